"""Nodes that attest by themselves with several workers over one database: whichever takes the request, one answers."""

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from tests.fakes.pki import Authority
from tests.fakes.postgres import Postgres, postgres_server
from tests.fakes.push_agent import PushAgent, push_enrolment
from tests.fakes.verifier_site import Answer, Site
from tests.verifier.test_cluster import DATABASES, Workers

from limeguard.simulator.softtpm import SoftNode
from limeguard.verifier.crew import Member

pytestmark = pytest.mark.services

PUSH = {"mode": "push", "quote_interval": 0.0}
PATIENCE = 15.0


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


class Crew(Workers):
    """Workers of one parent, or of several where a folder of their own is given."""

    private: Path

    async def join(self, folder: Path | None = None) -> Site:
        """Start one more worker."""
        member = Member(number=len(self.sites), folder=folder or self.private)
        return await self.start(**PUSH, member=member)

    async def enrolled(self, agent_id: str, at: Site | None = None, node: SoftNode | None = None) -> PushAgent:
        """Enrol a node; its agent comes to a worker that does not supervise it."""
        node, site = node or SoftNode.create("ecc256"), at or self.sites[0]
        answer = await site.ask("POST", f"/v2.6/agents/{agent_id}", push_enrolment(node))
        assert answer.status == 200, answer.text
        await self.owned(agent_id)
        return PushAgent(self.other(agent_id), agent_id, node)

    async def die(self, site: Site) -> None:
        """End a worker as a killed process ends."""
        assert site.verifier._relay is not None
        await site.verifier._relay.stop()
        await super().die(site)

    async def owned(self, agent_id: str) -> Site:
        """Wait until a worker supervises the node, and return it."""
        end = time.monotonic() + PATIENCE
        while True:
            found = [site for site in self.sites if _supervises(site, agent_id)]
            if found:
                return found[0]
            assert time.monotonic() < end, "nobody supervises the node"
            await asyncio.sleep(0.01)


def _supervises(site: Site, agent_id: str) -> bool:
    assert site.verifier.engine is not None
    return site.verifier.engine.fleet.get(agent_id) is not None


@asynccontextmanager
async def crew(folder: Path, authority: Authority, url: str, count: int = 2) -> AsyncIterator[Crew]:
    private = Path(tempfile.mkdtemp(prefix="limeguard-test-"))
    try:
        async with AsyncExitStack() as stack:
            made = Crew(folder, authority, url, stack)
            made.private = private
            for _ in range(count):
                await made.join()
            await made.balanced()
            yield made
    finally:
        shutil.rmtree(private)


@pytest.fixture
async def two(tmp_path: Path, authority: Authority, url: str) -> AsyncIterator[Crew]:
    async with crew(tmp_path, authority, url) as made:
        yield made


async def attests(agent: PushAgent) -> float:
    """Come again as agents do until evidence is taken; return how long that took."""
    began = time.monotonic()
    while True:
        answer = await agent.send_offer()
        if answer.status == 201:
            data = answer.json["data"]["attributes"]
            taken = await agent.send_evidence(answer.headers["Location"], agent.evidence(data["evidence_requested"]))
            if taken.status == 202:
                return time.monotonic() - began
            answer = taken
        assert answer.status in {404, 503} or "attestation" in answer.text, f"{answer.status}: {answer.text}"
        assert time.monotonic() < began + PATIENCE
        await asyncio.sleep(0.1)


async def refused(agent: PushAgent, token: str, status: int) -> Answer:
    """Offer evidence with a token, and be refused."""
    answer = await agent.ask("POST", agent.path, agent.offer(), Authorization=f"Bearer {token}")
    assert answer.status == status, f"{answer.status}: {answer.text}"
    return answer


async def test_a_node_attests_to_whichever_worker_takes_its_connection(two: Crew) -> None:
    agents = [await two.enrolled(f"node-{number}", two.sites[number % 2]) for number in range(6)]
    assert len({id(agent.site) for agent in agents}) == 2
    for agent in agents:
        await agent.start()
        assert (await agent.evaluated())["evaluation"] == "pass"  # asked of the wrong worker, too
        for site in two.sites:
            await PushAgent(site, agent.agent_id, agent.node).reaches("trusted")
        agent.site = two.owner(agent.agent_id)
        await agent.attest()  # the same token, the owner itself
    indexes = [data["links"]["self"].rpartition("/")[2] for data in agents[0].asked]
    assert indexes == ["0", "1"]


async def test_evidence_is_taken_once_whoever_takes_it(two: Crew) -> None:
    # trust: fresh, one-time challenges
    agent = await two.enrolled("node-1")
    data = await agent.open_session()
    proof = agent.proof(data["attributes"]["authentication_requested"][0]["chosen_parameters"]["challenge"])
    assert (await agent.send_proof(data, proof)).status == 200
    agent.site = two.owner("node-1")
    assert (await agent.send_proof(data, proof)).status == 404  # a challenge counts once among all workers
    agent.site = two.other("node-1")
    await agent.log_in()
    location, requested = await agent.negotiate()
    evidence = agent.evidence(requested)
    agent.check_taken(await agent.send_evidence(location, evidence))
    await agent.reaches("trusted")
    _, requested = await agent.negotiate()
    replayed = await agent.send_evidence(agent.path + "/latest", evidence)
    assert replayed.status == 202
    view = await agent.reaches("distrusted")
    assert [one["id"] for one in view["findings"]] == ["quote.wrong-nonce"]
    agent.site = two.owner("node-1")
    late = await agent.send_evidence(location, evidence)
    assert late.status == 403


async def test_tokens_count_for_their_node_alone_and_end_with_it_on_every_worker(two: Crew) -> None:
    # trust: authority
    one, other = await two.enrolled("node-1"), await two.enrolled("node-2")
    token, others = await one.log_in(), await other.log_in()
    for site in two.sites:
        one.site = site
        await refused(one, others, 403)
        await refused(one, f"{token[:-4]}AAAA", 401)
    admin = await two.sites[0].ask("POST", one.path, one.offer(), Content_Type="application/vnd.api+json")
    assert admin.status == 403
    for site in two.sites:
        one.site = site
        assert (await one.send_offer()).status == 201
        assert (await one.ask("GET", "/v2.6/agents/node-1")).status == 200
        assert (await one.ask("GET", "/v2.6/agents/node-2")).status == 403
    answer = await two.other("node-1").ask("DELETE", "/v2.6/agents/node-1")
    assert answer.status == 200
    for site in two.sites:
        one.site = site
        await refused(one, token, 401)
        assert (await one.ask("GET", "/v2.6/agents/node-1")).status == 401
    again = await two.enrolled("node-1", node=one.node)
    for site in two.sites:
        again.site = site
        await refused(again, token, 401)
        again.token = token
        assert (await again.ask("GET", "/v2.6/agents/node-1")).status == 401


async def test_a_node_whose_owner_dies_attests_again_after_the_take_over(two: Crew) -> None:
    # trust: fail-closed
    agent = await two.enrolled("node-1")
    await agent.start()
    await agent.reaches("trusted")
    location, requested = await agent.negotiate()
    evidence = agent.evidence(requested)
    owner = two.owner("node-1")
    await two.die(owner)
    answer = await agent.send_offer()
    assert (answer.status, answer.headers.get("Retry-After")) == (503, "1")
    assert await attests(agent) < PATIENCE
    assert (await agent.evaluated())["evaluation"] == "pass"
    taken = [int(data["links"]["self"].rpartition("/")[2]) for data in agent.asked]
    latest = await agent.site.ask("GET", f"{agent.path}/latest")
    number = int(latest.json["data"]["links"]["self"].rpartition("/")[2])
    assert number > max(taken)  # no number is given twice
    assert (await agent.send_evidence(location, evidence)).status == 403  # what the dead one asked for


async def test_without_an_owner_that_can_be_reached_nothing_changes_and_the_node_comes_again(
    tmp_path: Path, authority: Authority, url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # trust: fail-closed
    async with crew(tmp_path, authority, url, 1) as made:
        await made.join(tmp_path_factory.mktemp("other-host"))
        await made.balanced()
        agent = await made.enrolled("node-1")
        await agent.log_in()  # sessions are everybody's
        answer = await agent.send_offer()
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert answer.headers["Connection"] == "close"  # the next one may come to another machine
        (error,) = answer.json["errors"]
        assert error["code"] == "verifier_not_ready"
        agent.site = made.owner("node-1")
        await agent.attest()
        await agent.reaches("trusted")


async def test_a_node_moves_to_a_worker_that_comes(two: Crew) -> None:
    agent = await two.enrolled("node-1")
    await agent.start()
    await agent.reaches("trusted")
    kept = (await agent.site.ask("GET", agent.path)).json["data"]
    await two.join()
    await two.balanced()
    for site in two.sites:
        agent.site = site
        await attests(agent)
        assert (await agent.evaluated())["evaluation"] == "pass"
    assert len(kept) == 1
    listed = (await agent.site.ask("GET", agent.path)).json["data"]
    assert len(listed) >= 1
