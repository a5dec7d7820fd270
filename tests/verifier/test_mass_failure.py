"""Many nodes fail at once: what that costs is bounded, everybody is told, and the others keep their rounds."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.fakes.nodes import make_node
from tests.fakes.pki import Authority, client_context
from tests.fakes.verifier_site import running_verifier
from tests.verifier.test_notices import hook, until

from limeguard.clients.agent import AgentAddress
from limeguard.simulator.identity import make_identity
from limeguard.simulator.operator import Site
from limeguard.simulator.run import Plan, Simulation
from limeguard.simulator.scenario import Happening
from limeguard.store.notices import Notice
from limeguard.verifier.addressees import Addressee, addressees
from limeguard.verifier.fleet import Node
from limeguard.verifier.notices import (
    BATCH,
    FAN_OUT,
    Agents,
    Bounds,
    NotDelivered,
    pace_for,
)
from limeguard.web.answers import Unreachable
from limeguard.web.tls import server_context


class Told:
    """Stands for the agents: notes who was told what, how many at a time, and who refuses."""

    def __init__(self, *, slow: float = 0.0, away: str = "") -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.tries: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self._slow, self._away = slow, away

    async def notify(self, address: AgentAddress, _version: str, body: bytes) -> None:
        self.tries[address.host] += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self._slow)
        finally:
            self.at_once -= 1
        if address.host == self._away:
            raise Unreachable("connect", "nobody is there")
        self.messages.append((address.host, body))


def fleet(count: int) -> list[Node]:
    nodes = [make_node(f"n{number}") for number in range(count)]
    for node in nodes:
        node.address = AgentAddress(node.agent_id, 9002, None)
    return nodes


def everybody(nodes: list[Node]) -> Callable[[], Awaitable[list[Addressee]]]:
    async def found() -> list[Addressee]:
        return addressees(nodes)

    return found


async def send_all(agents: Agents, names: list[str]) -> None:
    await asyncio.gather(*(agents.send(Notice("agent", name, "{}"), name.encode()) for name in names))


async def test_each_node_hears_of_all_others_once() -> None:
    told, nodes = Told(slow=0.001), fleet(100)
    failed = [f"n{number}" for number in range(10)]
    await send_all(Agents(told, everybody(nodes), pace=1e6), failed)  # type: ignore[arg-type]
    wanted = {(node.agent_id, name.encode()) for node in nodes for name in failed if node.agent_id != name}
    assert Counter(told.messages) == Counter(wanted)
    assert told.most_at_once <= FAN_OUT


async def test_messages_go_out_at_a_pace_whatever_fails() -> None:
    told, nodes = Told(), fleet(20)
    began = time.monotonic()
    await send_all(Agents(told, everybody(nodes), pace=400), [f"n{number}" for number in range(10)])  # type: ignore[arg-type]
    assert len(told.messages) == 10 * 19
    assert time.monotonic() - began >= 190 / 400 - 0.1


async def test_an_agent_that_is_away_costs_one_try_and_none_once_that_is_known() -> None:
    told, nodes = Told(away="n3"), fleet(5)
    agents = Agents(told, everybody(nodes), pace=1e6)  # type: ignore[arg-type]
    await send_all(agents, ["n0", "n1", "n2"])
    assert (told.tries["n3"], told.tries["n4"]) == (1, 3)
    nodes[3].become(replace(nodes[3].state, reachability="unreachable"), 0.0)
    await send_all(agents, ["n0"])
    assert (told.tries["n3"], told.tries["n4"]) == (1, 4)


async def test_when_telling_all_fails_nobody_counts_as_told() -> None:
    class Odd(Told):
        async def notify(self, _address: AgentAddress, _version: str, _body: bytes) -> None:
            raise RuntimeError("a fault of ours")

    nodes = fleet(3)
    agents = Agents(Odd(), everybody(nodes), pace=1e6)  # type: ignore[arg-type]
    tries = [agents.send(Notice("agent", name, "{}"), b"") for name in ("n0", "n1", "n2")]
    outcomes = await asyncio.gather(*tries, return_exceptions=True)
    assert all(isinstance(one, Exception) for one in outcomes)
    assert sum(isinstance(one, NotDelivered) for one in outcomes) == 2


@pytest.mark.parametrize(
    ("nodes", "bounds"), [(10, Bounds(BATCH, 120.0)), (2_000, Bounds(15, 180.0)), (100_000, Bounds(1, 600.0))]
)
async def test_what_is_claimed_can_be_told_before_the_claim_ends(nodes: int, bounds: Bounds) -> None:
    one = make_node("n")
    assert await Agents(Told(), everybody([one] * nodes), pace=500).bounds() == bounds  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("nodes", "interval", "pace"), [(10, 2.0, 50.0), (600, 3.0, 100.0), (5_000, 2.0, 500.0), (10, 0.0, 500.0)]
)
def test_the_pace_is_below_that_of_rounds(nodes: int, interval: float, pace: float) -> None:
    assert pace_for(nodes, interval) == pace


@pytest.mark.services
async def test_half_a_fleet_fails_in_the_same_moment(tmp_path: Path, authority: Authority) -> None:
    ca = authority.identity.certificate
    plan = Plan(nodes=40, seconds=3.0, interval=0.5, scenario=(Happening(0.5, "extend", 20, 0.0),))
    async with hook() as (told, url):
        options = {"enabled_revocation_notifications": ("webhook", "agent"), "webhook_url": url}
        async with running_verifier(tmp_path, authority, quote_interval=0.5, **options) as site:
            certificate, key = make_identity(tmp_path, time.time())
            agents = server_context(certificate, key, "", (ca,), require_client=True)
            simulation = Simulation(plan, Site(site.base, client_context(authority.issue("operator"), ca)))
            report = await simulation.run(agents, certificate.read_text())
            await until(lambda: len(told.bodies) >= 20)
    about = [json.loads(json.loads(body)["msg"])["agent_id"] for body in told.bodies]
    assert sorted(about) == sorted(one.agent_id for one in report.detections)
    assert report.conditions == {"distrusted": 20, "trusted": 20}
    assert report.waiting == 0
    assert report.errors == {}
    assert max(one.seconds or 99.0 for one in report.detections) < 2.0
    assert 0 < simulation.server.notices <= 20 * 39  # the rest is still on its way: at most 50 in a second
