"""A verifier over PostgreSQL: rounds, a database that goes away in the middle, and two verifiers in one database."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.pki import Authority
from tests.fakes.postgres import Postgres, postgres_server
from tests.fakes.verifier_site import Site, running_verifier

from limeguard.simulator.softtpm import SoftNode

pytestmark = [pytest.mark.services, pytest.mark.xdist_group("postgresql")]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with postgres_server() as server:
        yield server


async def becomes_ready(site: Site, status: int) -> None:
    """Wait until the verifier says whether it is ready, as load balancers ask it."""
    async with asyncio.timeout(20):
        while (await site.ask("GET", "/readyz")).status != status:
            await asyncio.sleep(0.1)


# trust: outage
async def test_an_idle_verifier_is_not_ready_while_its_database_is_away(
    postgres: Postgres, tmp_path: Path, authority: Authority
) -> None:
    async with (
        postgres.database() as url,
        running_verifier(tmp_path, authority, database_url=url) as site,
    ):
        await becomes_ready(site, 200)
        await asyncio.to_thread(postgres.kill)
        await becomes_ready(site, 503)
        await asyncio.to_thread(postgres.start)
        await becomes_ready(site, 200)


async def test_a_verifier_rides_out_an_outage_of_its_database(
    postgres: Postgres, tmp_path: Path, authority: Authority
) -> None:
    async with (
        postgres.database() as url,
        running_verifier(tmp_path, authority, database_url=url, trust_lifetime=30.0) as site,
    ):
        agent = await site.add_agent()
        await site.enrol(agent, tpm_policy='{"23": ["%s"], "mask": "0x800000"}' % ("00" * 32))
        count = (await site.reaches(agent, "trusted", rounds=3))["attestation_count"]
        assert (await site.ask("GET", "/readyz")).status == 200
        await asyncio.to_thread(postgres.kill)
        await becomes_ready(site, 503)
        assert (await site.ask("GET", "/healthz")).status == 200
        asked = agent.quotes
        for _ in range(200):
            if agent.quotes > asked + 5:
                break
            await asyncio.sleep(0.05)
        assert agent.quotes > asked + 5, "the node is asked on while nothing can be written"
        other = await site.add_agent("node-2", SoftNode.create("ecc256", number=2))
        refused = await site.ask("POST", "/v2.6/agents/node-2", other.enrolment())
        assert (refused.status, refused.said) == (500, "Internal server error")
        await asyncio.to_thread(postgres.start)
        await becomes_ready(site, 200)
        await site.reaches(agent, "trusted", rounds=count + 6)
        await site.enrol(other)
        await site.reaches(other, "trusted", rounds=1)
        agent.node.extend(23, bytes(32))
        await site.reaches(agent, "distrusted")


async def test_two_verifiers_in_one_database_keep_to_their_own(
    postgres: Postgres, tmp_path: Path, authority: Authority
) -> None:
    async with (
        postgres.database() as url,
        running_verifier(tmp_path, authority, database_url=url, uuid="first") as first,
        running_verifier(tmp_path, authority, database_url=url, uuid="second") as second,
    ):
        one = await first.add_agent("node-1")
        two = await second.add_agent("node-2", SoftNode.create("ecc256", number=2))
        await first.enrol(one)
        await second.enrol(two)
        await first.reaches(one, "trusted", rounds=2)
        await second.reaches(two, "trusted", rounds=2)
        assert (await second.status(one))["verifier_id"] == "first"
        assert (await second.ask("POST", "/v2.6/agents/node-1", one.enrolment())).status == 409
        listed = (await first.ask("GET", "/v2.6/agents?verifier=second")).json["results"]["uuids"]
        assert listed == [["node-2"]]
