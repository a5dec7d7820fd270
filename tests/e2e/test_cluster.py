"""Two verifiers of two workers each over one PostgreSQL: nobody is asked twice or lost, nothing late is written."""

import asyncio
import math
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from tests.fakes.cluster import Cluster, cluster
from tests.fakes.postgres import Postgres, postgres_server

from limeguard.store.schema_verifier import PARTITIONS

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-cluster"), pytest.mark.timeout(300)]

MACHINES = 40
OUTAGE = float(os.environ.get("LIMEGUARD_OUTAGE", "4"))
INTERVAL = 1.0
TWICE = 0.4 * INTERVAL
"""Two questions closer than this are two in one interval.

A round that was long under way is followed by the next after half an interval at least. Two owners of a node would ask
it at any moment of each other's interval, 40 nodes round after round.
"""


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with postgres_server() as server:
        yield server


@pytest.fixture
async def database(postgres: Postgres) -> AsyncIterator[str]:
    if postgres.process is None:
        postgres.start()  # a test that stopped it has failed
    async with postgres.database() as url:
        yield url


async def shared_out(made: Cluster) -> bool:
    """Whether all partitions are held, in equal shares."""
    shares = await made.partitions()
    return sum(shares) == PARTITIONS and max(shares) - min(shares) <= 1


async def all_trusted(made: Cluster, host: int = 0) -> bool:
    found = await made.conditions(made.hosts[host])
    return len(found) == MACHINES and set(found.values()) == {"trusted"}


async def rows(url: str) -> dict[str, tuple[int, int, int]]:
    """Return epoch, version and attestation count of each row."""
    engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"))
    try:
        async with engine.connect() as connection:
            found = await connection.execute(
                sa.text("SELECT agent_id, epoch, version, attestation_count FROM limeguard_nodes")
            )
            return {row[0]: (row[1], row[2], row[3]) for row in found}
    finally:
        await engine.dispose()


# trust: fail-closed
async def test_a_fleet_over_two_hosts(tmp_path: Path, database: str) -> None:
    async with cluster(tmp_path, MACHINES, database_url=database, quote_interval="1") as made:
        # One host, then two: every node moves at most once, and none is asked twice in an interval.
        await made.enrol_all()
        await made.until("all to be trusted", lambda: all_trusted(made))
        await made.start_host(2)
        await made.until("fair shares", lambda: shared_out(made))
        await made.until("all to be trusted on both", lambda: all_trusted(made, 1))
        moved = time.monotonic()
        await asyncio.sleep(3 * INTERVAL)
        assert await made.all_asked_since(moved, 1.0) < 2.5 * INTERVAL
        assert made.shortest_pause() > TWICE

        # Words are obeyed wherever they land.
        for number, machine in enumerate(made.machines[:4]):
            host = made.hosts[number % 2]
            status, said = await made.ask(host, "PUT", f"/v2.6/agents/{machine.agent_id}/stop")
            told = time.monotonic()
            assert status == 200, said
            for other in made.hosts:
                assert (await made.view(other, machine))["condition"] == "paused"
            await asyncio.sleep(0.3)
            assert not [at for at in made.asked[machine.agent_id] if at > told + 0.05]
        for number, machine in enumerate(made.machines[:4]):
            status, said = await made.ask(
                made.hosts[1 - number % 2], "PUT", f"/v2.6/agents/{machine.agent_id}/reactivate"
            )
            assert status == 200, said
        await made.until("all to be trusted again", lambda: all_trusted(made))

        # One host is stopped in its tracks: the other takes its nodes over, and it finds out when it goes on.
        second = made.hosts[1]
        second.signal(signal.SIGSTOP)
        paused = time.monotonic()
        made.hosts.remove(second)
        assert await made.all_asked_since(paused, 10.0) < 10.0
        await made.until("the other to hold everything", lambda: shared_out(made))
        await made.until("all to be written by the other", lambda: all_written(database, made))
        before = await rows(database)
        went_on = time.monotonic()
        second.signal(signal.SIGCONT)
        made.hosts.append(second)
        while time.monotonic() < went_on + 4.0:
            after = await rows(database)
            for name, (epoch, version, count) in after.items():
                assert (epoch, version, count) >= before[name], f"{name}: a late write"
                assert version >= before[name][1]
                assert count >= before[name][2]
            before = after
            await asyncio.sleep(0.1)
        await made.until("fair shares again", lambda: shared_out(made))
        lost = (await made.metrics(second))["limeguard_verifier_leases_lost_total"]
        assert sum(lost.values()) >= PARTITIONS // 2
        assert made.shortest_pause(went_on) > TWICE

        # One host dies.
        await asyncio.sleep(2 * INTERVAL)
        second.program.kill()
        died = time.monotonic()
        made.hosts.remove(second)
        assert await made.all_asked_since(died, 10.0) < 10.0
        await made.until("all to be trusted", lambda: all_trusted(made))
        assert made.shortest_pause(went_on) > TWICE


async def all_written(url: str, made: Cluster) -> bool:
    """Whether every row was last written by who holds its lease now."""
    engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"))
    try:
        async with engine.connect() as connection:
            late = await connection.execute(
                sa.text(
                    "SELECT count(*) FROM limeguard_nodes n JOIN limeguard_leases l USING (verifier_id, partition) "
                    "WHERE n.epoch <> l.epoch"
                )
            )
            return late.scalar() == 0
    finally:
        await engine.dispose()


# trust: fail-closed, green-is-recent
async def test_a_database_that_is_away_makes_nothing_green_and_nothing_red(
    tmp_path: Path, postgres: Postgres, database: str
) -> None:
    async with cluster(
        tmp_path,
        MACHINES,
        database_url=database,
        quote_interval="1",
        max_retries="100",
        exponential_backoff="False",
        trust_lifetime="5",
    ) as made:
        await made.start_host(2)
        await made.enrol_all()
        await made.until("all to be trusted", lambda: all_trusted(made))
        await made.until("fair shares", lambda: shared_out(made))
        silent, changed, late = made.machines[:3]
        counts = {name: row[2] for name, row in (await rows(database)).items()}
        await asyncio.to_thread(postgres.kill)
        away = time.monotonic()
        silent.behaviour.offline_until = math.inf
        changed.extend()
        seen: set[str] = set()
        while time.monotonic() < away + OUTAGE:
            for host in made.hosts:
                for machine in made.machines:
                    # A node of another worker is not answered for while its row cannot be read.
                    status, view = await made.ask(host, "GET", f"/limeguard/v1/nodes/{machine.agent_id}")
                    assert status in {200, 500}, view
                    if status != 200:
                        continue
                    if machine is changed and time.monotonic() > away + 2.5 * INTERVAL:
                        assert view["condition"] == "distrusted"
                    elif machine is silent and time.monotonic() > away + 6.0:
                        assert view["condition"] != "trusted"
                    elif machine is not changed and machine is not silent:
                        seen.add(view["condition"])
        assert seen == {"trusted"}
        # Rounds go on meanwhile, and nobody is asked twice.
        asked = time.monotonic()
        names = [one.agent_id for one in made.machines if one is not silent and one is not changed]
        await made.until("rounds to go on", lambda: all(made.asked[name][-1] > asked for name in names), 3 * INTERVAL)
        late.extend()
        await asyncio.to_thread(postgres.start)

        async def settled() -> bool:
            found = await made.conditions(made.hosts[0])
            wanted = dict.fromkeys(found, "trusted") | dict.fromkeys((changed.agent_id, late.agent_id), "distrusted")
            return {name: one for name, one in found.items() if name != silent.agent_id} == {
                name: one for name, one in wanted.items() if name != silent.agent_id
            }

        await made.until("everything to be as it is", settled, 30.0)
        assert (await made.conditions(made.hosts[1]))[silent.agent_id] != "trusted"
        for name, row in (await rows(database)).items():
            assert row[2] >= counts[name], f"{name}: a committed round was forgotten"
        silent.behaviour.offline_until = 0.0
        await made.until(
            "the silent one to come back",
            lambda: trusts(made, silent.agent_id),
        )
        del made.asked[silent.agent_id]  # retries are closer than rounds
        assert made.shortest_pause() > TWICE


async def trusts(made: Cluster, name: str) -> bool:
    return (await made.conditions(made.hosts[0]))[name] == "trusted"
