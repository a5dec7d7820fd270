"""Several workers in this process over one database: who asks whom, whose word counts, what a death leaves."""

import asyncio
import itertools
import json
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.pki import Authority
from tests.fakes.postgres import Postgres, postgres_server
from tests.fakes.soft_agent import SoftAgent
from tests.fakes.soft_ima import policy_for
from tests.fakes.verifier_site import Site, running_verifier

from limeguard.policy.runtime import EMPTY_POLICY_TEXT
from limeguard.simulator.softtpm import SoftNode
from limeguard.store.database import StoreUnavailable
from limeguard.store.leases import Leases
from limeguard.store.nodes import Nodes
from limeguard.store.schema_verifier import PARTITIONS
from limeguard.verifier import ownership as module
from limeguard.verifier.ownership import Timing

pytestmark = pytest.mark.services

QUICK = Timing(lease=2.0, beat=0.3, look=0.05, look_called=0.5, look_quiet=0.3, outage=20.0)
POLICY = '{"23": ["%s"], "mask": "0x800000"}' % ("00" * 32)
DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.xdist_group("postgresql"))]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with postgres_server() as server:
        yield server


@pytest.fixture(params=DATABASES)
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'shared.sqlite'}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    async with server.database() as found:
        yield found


class Workers:
    """Workers over one database, which the test may end in any way."""

    def __init__(self, folder: Path, authority: Authority, url: str, stack: AsyncExitStack) -> None:
        self._folder, self._authority, self._url, self._stack = folder, authority, url, stack
        self.sites: list[Site] = []

    async def start(self, **changed: Any) -> Site:
        site = await self._stack.enter_async_context(
            running_verifier(
                self._folder, self._authority, timing=QUICK, database_url=self._url, trust_lifetime=30.0, **changed
            )
        )
        self.sites.append(site)
        return site

    async def balanced(self) -> None:
        """Wait until every partition is held, in equal shares, and its nodes are in memory."""
        held: list[int] = []
        loaded: list[int] = []
        for _ in range(300):
            held = [_ownership(site).partitions for site in self.sites]
            loaded = [len(_ownership(site)._loaded) for site in self.sites]
            if sum(held) == PARTITIONS and max(held) - min(held) <= 1 and held == loaded:
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"shares: {held}, loaded: {loaded}")

    def owner(self, agent_id: str) -> Site:
        """Return the worker that supervises a node."""
        (found,) = [site for site in self.sites if _fleet_has(site, agent_id)]
        return found

    def other(self, agent_id: str) -> Site:
        """Return a worker that does not."""
        return next(site for site in self.sites if not _fleet_has(site, agent_id))

    async def die(self, site: Site) -> None:
        """End a worker as a killed process ends: nothing is drained, written or given back."""
        self.sites.remove(site)
        await die(site)


def _ownership(site: Site) -> module.Ownership:
    found = site.verifier._ownership
    assert found is not None
    return found


def _fleet_has(site: Site, agent_id: str) -> bool:
    assert site.verifier.engine is not None
    return site.verifier.engine.fleet.get(agent_id) is not None


async def die(site: Site) -> None:
    verifier = site.verifier
    assert verifier.engine is not None
    verifier.engine._stopping = True
    for task in [*verifier._tasks, *verifier.engine._jobs]:
        task.cancel()
    await asyncio.gather(*verifier._tasks, return_exceptions=True)
    _ownership(site)._leaving = True

    async def nothing() -> None:
        return

    verifier.stop = nothing  # type: ignore[method-assign]  # the dead do not tidy up
    assert verifier._listener is not None
    await verifier._listener.stop()


@asynccontextmanager
async def workers(folder: Path, authority: Authority, url: str, count: int) -> AsyncIterator[Workers]:
    async with AsyncExitStack() as stack:
        made = Workers(folder, authority, url, stack)
        for _ in range(count):
            await made.start()
        await made.balanced()
        yield made


async def agents_of(site: Site, count: int) -> list[SoftAgent]:
    return [await site.add_agent(f"node-{n}", SoftNode.create("ecc256", number=n)) for n in range(count)]


async def test_nodes_are_shared_out_and_every_worker_answers_for_all(
    tmp_path: Path, authority: Authority, url: str
) -> None:
    async with workers(tmp_path, authority, url, 3) as made:
        agents = await agents_of(made.sites[0], 9)
        for site, agent in zip(itertools.cycle(made.sites), agents, strict=False):
            await site.enrol(agent, tpm_policy=POLICY)
        for agent in agents:
            for site in made.sites:
                await site.reaches(agent, "trusted", rounds=1)
        assert sum(_fleet_has(site, agent.agent_id) for site in made.sites for agent in agents) == len(agents)
        for site in made.sites:
            listed = (await site.ask("GET", "/limeguard/v1/nodes")).json
            assert [node["id"] for node in listed["nodes"]] == sorted(agent.agent_id for agent in agents)
            assert listed["counts"]["trusted"] == len(agents)
            assert (await site.ask("POST", "/v2.6/agents/node-0", agents[0].enrolment())).status == 409
        agents[0].node.extend(23, bytes(32))
        for site in made.sites:
            view = await site.reaches(agents[0], "distrusted")
            assert site.event_ids(view) == ["pcr_validation.invalid_pcr_23"]


async def test_words_count_wherever_they_land(tmp_path: Path, authority: Authority, url: str) -> None:
    async with workers(tmp_path, authority, url, 2) as made:
        (agent,) = await agents_of(made.sites[0], 1)
        await made.sites[0].enrol(agent, tpm_policy=POLICY)
        await made.sites[1].reaches(agent, "trusted", rounds=1)
        name = agent.agent_id
        other = made.other(name)
        assert (await other.ask("PUT", f"/v2.6/agents/{name}/stop", b"")).status == 200
        asked = agent.quotes
        for site in made.sites:
            assert (await site.view(agent))["condition"] == "paused"
        await asyncio.sleep(0.3)
        assert agent.quotes <= asked + 1
        asked = agent.quotes
        assert (await other.ask("PUT", f"/v2.6/agents/{name}/reactivate", b"")).status == 200
        await other.reaches(agent, "trusted")
        assert agent.quotes > asked
        assert (await other.ask("DELETE", f"/v2.6/agents/{name}")).status == 200
        for site in made.sites:
            assert (await site.ask("GET", f"/v2.6/agents/{name}")).status == 404
            assert (await site.ask("PUT", f"/v2.6/agents/{name}/stop", b"")).status == 400
            assert (await site.ask("DELETE", f"/v2.6/agents/{name}")).status == 404
        asked = agent.quotes
        await asyncio.sleep(0.2)
        assert agent.quotes == asked
        await other.enrol(agent, tpm_policy=POLICY)
        await other.reaches(agent, "trusted", rounds=1)


async def test_words_from_all_sides_at_once_leave_one_owner_and_one_timer(
    tmp_path: Path, authority: Authority, url: str
) -> None:
    # trust: enrolment-order
    async with workers(tmp_path, authority, url, 3) as made:
        (agent,) = await agents_of(made.sites[0], 1)
        answers = await asyncio.gather(
            *(site.ask("POST", "/v2.6/agents/node-0", agent.enrolment()) for site in made.sites for _ in range(3))
        )
        assert sorted(answer.status for answer in answers) == [200] + [409] * 8
        words = [(site, word) for site in made.sites for word in ("stop", "reactivate")] * 4
        answers = await asyncio.gather(*(site.ask("PUT", f"/v2.6/agents/node-0/{word}", b"") for site, word in words))
        assert {answer.status for answer in answers} == {200}
        assert (await made.sites[1].ask("PUT", "/v2.6/agents/node-0/reactivate", b"")).status == 200
        await made.sites[2].reaches(agent, "trusted", rounds=1)
        asked = agent.quotes
        await asyncio.sleep(0.5)
        assert agent.quotes - asked <= 0.5 / 0.05 + 2
        assert sum(_fleet_has(site, "node-0") for site in made.sites) == 1


async def test_a_worker_that_ends_in_order_hands_its_nodes_over_at_once(
    tmp_path: Path, authority: Authority, url: str
) -> None:
    async with workers(tmp_path, authority, url, 2) as made:
        agents = await agents_of(made.sites[0], 6)
        for agent in agents:
            await made.sites[0].enrol(agent)
        for agent in agents:
            await made.sites[1].reaches(agent, "trusted", rounds=1)
        counts = {agent.agent_id: (await made.sites[1].view(agent))["attestation_count"] for agent in agents}
        first = made.sites.pop(0)
        await first.verifier.stop()
        asked = {agent.agent_id: agent.quotes for agent in agents}
        await made.balanced()
        for agent in agents:
            view = await made.sites[0].reaches(agent, "trusted", rounds=counts[agent.agent_id] + 1)
            await made.sites[0].reaches(agent, "trusted", rounds=view["attestation_count"] + 2)
            assert agent.quotes > asked[agent.agent_id]


async def test_a_worker_that_dies_is_replaced_and_one_that_comes_gets_its_share(
    tmp_path: Path, authority: Authority, url: str
) -> None:
    # trust: fail-closed
    async with workers(tmp_path, authority, url, 2) as made:
        agents = await agents_of(made.sites[0], 6)
        agents[0].node.extend(23, bytes(32))
        for agent in agents:
            await made.sites[0].enrol(agent, tpm_policy=POLICY)
        await made.sites[1].reaches(agents[0], "distrusted")
        for agent in agents[1:]:
            await made.sites[1].reaches(agent, "trusted", rounds=1)
        owner = made.owner("node-1")
        await made.die(owner)
        (left,) = made.sites
        counts = {agent.agent_id: (await left.view(agent))["attestation_count"] for agent in agents}
        await made.balanced()
        assert (await left.view(agents[0]))["condition"] == "distrusted"
        for agent in agents[1:]:
            await left.reaches(agent, "trusted", rounds=counts[agent.agent_id] + 2)
        newcomer = await made.start()
        await made.balanced()
        assert (await newcomer.view(agents[0]))["condition"] == "distrusted"
        for agent in agents[1:]:
            await newcomer.reaches(agent, "trusted", rounds=counts[agent.agent_id] + 4)


async def test_who_follows_a_dead_worker_does_not_repeat_questions_that_it_asked_just_before(
    tmp_path: Path, authority: Authority
) -> None:
    # What the dead one knew of its last rounds was not written yet.
    shared: dict[str, Any] = {
        "timing": replace(QUICK, lease=0.6, beat=0.1),
        "trust_lifetime": 30.0,
        "quote_interval": 2.0,
    }
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(running_verifier(tmp_path, authority, **shared))
        agents = await agents_of(first, 8)
        for agent in agents:
            await first.enrol(agent)
        while min(agent.quotes for agent in agents) < 2:
            await asyncio.sleep(0.01)
        await die(first)
        died, asked = time.monotonic(), {agent.agent_id: agent.quotes for agent in agents}
        await stack.enter_async_context(running_verifier(tmp_path, authority, **shared))
        waiting = {agent.agent_id: agent for agent in agents}
        pauses = []
        while waiting:
            await asyncio.sleep(0.01)
            for agent in list(waiting.values()):
                if agent.quotes > asked[agent.agent_id]:
                    pauses.append(time.monotonic() - died)
                    del waiting[agent.agent_id]
        assert 1.0 <= min(pauses) <= max(pauses) < 6.0


# trust: fail-closed
async def test_a_worker_that_slept_past_its_lease_neither_asks_nor_answers_nor_writes(
    tmp_path: Path, authority: Authority, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with workers(tmp_path, authority, url, 2) as made:
        (agent,) = await agents_of(made.sites[0], 1)
        await made.sites[0].enrol(agent, tpm_policy=POLICY)
        await made.sites[1].reaches(agent, "trusted", rounds=2)
        sleeper, other = made.owner("node-0"), made.other("node-0")
        engine, writer, ownership = sleeper.verifier.engine, sleeper.verifier.writer, _ownership(sleeper)
        assert engine is not None
        assert writer is not None
        node = engine.fleet.get("node-0")
        assert node is not None
        # It says nothing any more, as a stopped process would, and its clock tells it nothing either.
        real = Leases.beat

        async def silent(self: Leases, *arguments: Any, **named: Any) -> Any:
            if self.worker.id == sleeper.verifier._worker.id:
                await asyncio.sleep(3600)
            return await real(self, *arguments, **named)

        monkeypatch.setattr(Leases, "beat", silent)
        ownership._timing = Timing(lease=1000.0, beat=1000.0)
        for _ in range(300):
            if _fleet_has(other, "node-0"):
                break
            await asyncio.sleep(0.02)
        assert _fleet_has(other, "node-0")
        # What it goes on believing is refused, and the row is the new owner's.
        await other.shows(agent, lambda view: bool(view["attestation_count"]))
        before = await other.verifier._rows.get("node-0")
        assert before is not None
        late = node.record
        assert await sleeper.verifier._rows.save_rounds([late]) == {"node-0"}
        assert not await sleeper.verifier._rows.delete("node-0", late.epoch)
        # With its own clock it would have found out by itself.
        ownership._valid_until = ownership._clock() - 1.0
        assert not ownership.open
        assert (await sleeper.ask("GET", "/readyz")).status == 503
        asked = engine.fleet.counters.rounds
        await asyncio.sleep(0.3)
        assert engine.fleet.counters.rounds == asked
        agent.node.extend(23, bytes(32))
        await other.reaches(agent, "distrusted")
        await sleeper.reaches(agent, "distrusted")
        monkeypatch.setattr(Leases, "beat", real)


async def test_rounds_go_on_for_a_bounded_time_while_the_database_is_away(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    # trust: green-is-recent, bounded
    url = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    async with workers(tmp_path, authority, url, 1) as made:
        (site,) = made.sites
        ownership = _ownership(site)
        (agent,) = await agents_of(site, 1)
        await site.enrol(agent)
        await site.reaches(agent, "trusted", rounds=1)

        async def away(*_arguments: object, **_named: object) -> Any:
            raise StoreUnavailable("away")

        for kind, name in ((Leases, "beat"), (Nodes, "save_rounds"), (Nodes, "get")):
            monkeypatch.setattr(kind, name, away)
        ownership._timing = Timing(lease=1.0, beat=0.2, look=0.05, look_quiet=0.3, outage=1.5)
        await asyncio.sleep(1.6)
        asked = agent.quotes
        await asyncio.sleep(0.3)
        assert agent.quotes > asked, "the lease has ended, and nobody can have taken it"
        assert (await site.view(agent))["condition"] == "trusted"
        await asyncio.sleep(2.2)
        asked = agent.quotes
        await asyncio.sleep(0.4)
        assert agent.quotes == asked, "the time for which that is assumed is over"
        assert (await site.ask("GET", "/readyz")).status == 503
        assert (await site.ask("GET", "/v2.6/agents/node-0")).status == 500
        monkeypatch.undo()
        await site.reaches(agent, "trusted")
        asked = agent.quotes
        await asyncio.sleep(0.3)
        assert agent.quotes > asked


def upload(text: str) -> dict[str, str]:
    return {"runtime_policy": b64encode(text.encode()).decode()}


async def test_a_policy_that_is_replaced_anywhere_is_in_force_everywhere(
    tmp_path: Path, authority: Authority, url: str
) -> None:
    async with workers(tmp_path, authority, url, 2) as made:
        first = made.sites[0]
        assert (await first.ask("POST", "/v2.6/allowlists/shared", upload(EMPTY_POLICY_TEXT))).status == 201
        (agent,) = await agents_of(first, 1)
        await first.enrol(agent, runtime_policy_name="shared")
        other = made.other("node-0")
        assert (
            await other.ask("PUT", "/v2.6/allowlists/shared", upload(json.dumps(policy_for("/usr/bin/tool"))))
        ).status == 201
        owner = made.owner("node-0")
        for _ in range(100):
            if (await owner.status(agent))["has_runtime_policy"] == 1:
                break
            await asyncio.sleep(0.02)
        assert (await owner.status(agent))["has_runtime_policy"] == 1
