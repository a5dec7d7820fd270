"""Leases on every database there is: shares, deaths, hand-overs, and writes that come too late."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.fakes.columns import made_columns, wanted_columns
from tests.fakes.nodes import make_record

from limeguard.store.changes import Changes, Ear
from limeguard.store.database import Conflict, Database
from limeguard.store.leases import Leases, Standing, Worker, fair_share
from limeguard.store.node_record import NodeRecord, NodeState, partition_of
from limeguard.store.nodes import Nodes
from limeguard.store.notices import Notice
from limeguard.store.schema_verifier import PARTITIONS, metadata, workers

pytestmark = pytest.mark.services

SECONDS = 5.0


def alive(_place: str, _pid: int) -> bool:
    return False


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    made = Database(database_url)
    await made.migrate("verifier")
    yield made
    await made.close()


def leases_of(database: Database, name: str, verifier_id: str = "default") -> Leases:
    return Leases(database, verifier_id, Worker(name, "here", 1), SECONDS)


async def expire(database: Database, name: str) -> None:
    """Let the time of a worker pass."""
    async with database.transaction() as connection:
        await connection.execute(workers.update().where(workers.c.id == name).values(expires_at=1.0))


async def test_one_worker_has_all_and_two_have_halves(database: Database) -> None:
    one, two = leases_of(database, "one"), leases_of(database, "two")
    first = await one.beat({}, alive)
    assert (set(first.held), first.live, first.share) == (set(range(PARTITIONS)), 1, PARTITIONS)
    second = await two.beat({}, alive)
    assert (second.held, second.live, second.share) == ({}, 2, PARTITIONS // 2)
    first = await one.beat(first.held, alive)
    assert first.share == PARTITIONS // 2
    await one.release(range(PARTITIONS // 2, PARTITIONS))
    second = await two.beat(second.held, alive)
    first = await one.beat({}, alive)
    assert set(first.held) == set(range(PARTITIONS // 2))
    assert set(second.held) == set(range(PARTITIONS // 2, PARTITIONS))
    assert set(second.held.values()) == {2}
    assert await one.beat(first.held, alive) == first


async def test_the_leases_of_the_dead_are_taken_with_a_new_epoch(database: Database) -> None:
    one, two = leases_of(database, "one"), leases_of(database, "two")
    await one.beat({}, alive)
    await two.beat({}, alive)
    assert (await two.beat({}, alive)).held == {}
    await expire(database, "one")
    found = await two.beat({}, alive)
    assert (set(found.held), set(found.held.values()), found.live) == (set(range(PARTITIONS)), {2}, 1)
    # trust: fail-closed - it comes back, and is told that it has nothing
    again = await one.beat(dict.fromkeys(range(PARTITIONS), 1), alive)
    assert again.held == {}
    assert again.live == 2


async def test_after_an_outage_others_are_given_time(database: Database) -> None:
    one, two = leases_of(database, "one"), leases_of(database, "two")
    first = await one.beat({}, alive)
    await expire(database, "one")
    assert (await two.beat({}, alive, patient=True)).held == {}
    assert (await one.beat(first.held, alive, patient=True)).held == first.held
    assert (await two.beat({}, alive, patient=True)).live == 2


async def test_a_process_that_is_known_to_be_dead_is_not_waited_for(database: Database) -> None:
    one = Leases(database, "default", Worker("one", "here", 4711), SECONDS)
    two = leases_of(database, "two")
    await one.beat({}, alive)
    found = await two.beat({}, lambda place, pid: (place, pid) == ("here", 4711))
    assert len(found.held) == PARTITIONS


async def test_verifier_ids_have_leases_of_their_own(database: Database) -> None:
    one, other = leases_of(database, "one"), leases_of(database, "other", "another")
    assert len((await one.beat({}, alive)).held) == len((await other.beat({}, alive)).held) == PARTITIONS


async def test_a_crew_that_starts_together_does_not_fight(database: Database) -> None:
    crew = [leases_of(database, name) for name in "abcd"]
    held: dict[str, Standing] = {}

    async def begin(one: Leases) -> None:
        for _ in range(20):
            try:
                held[one.worker.id] = await one.beat({}, alive, crew=4)
            except Conflict:
                await asyncio.sleep(0.02)
            else:
                return

    await asyncio.gather(*map(begin, crew))
    for one in crew:
        held[one.worker.id] = await one.beat(held[one.worker.id].held, alive, crew=4)
    owned = [partition for standing in held.values() for partition in standing.held]
    assert sorted(owned) == list(range(PARTITIONS))
    assert {len(standing.held) for standing in held.values()} == {PARTITIONS // 4}


async def test_one_that_leaves_takes_nothing_and_is_not_counted(database: Database) -> None:
    one, two = leases_of(database, "one"), leases_of(database, "two")
    first = await one.beat({}, alive)
    leaving = await one.beat(first.held, alive, leaving=True)
    assert leaving.held == first.held
    assert (await two.beat({}, alive)).share == PARTITIONS
    await one.release(range(10))
    assert len((await one.beat({}, alive, leaving=True)).held) == PARTITIONS - 10
    assert len((await two.beat({}, alive)).held) == 10
    await one.leave()
    assert len((await two.beat({}, alive)).held) == PARTITIONS


@given(st.sets(st.text("abcdef0123456789", min_size=1, max_size=8), min_size=1, max_size=40))
def test_shares_are_fair_and_cover_everything(live: set[str]) -> None:
    shares = [fair_share(one, live) for one in live]
    assert sum(shares) == PARTITIONS
    assert max(shares) - min(shares) <= 1


@given(st.sets(st.text("abcdef", min_size=1, max_size=5), min_size=1, max_size=9), st.integers(1, 12))
def test_a_crew_never_takes_more_than_there_is(live: set[str], crew: int) -> None:
    assert sum(fair_share(one, live, crew) for one in live) <= PARTITIONS


# --- writes under leases ----------------------------------------------------------------------------------------------


def changed(record: NodeRecord, attempts: int) -> NodeRecord:
    return replace(record, state=replace(record.state, attempts=attempts))


async def added(database: Database, leases: Leases, agent_id: str = "n") -> tuple[Nodes, NodeRecord]:
    """Enrol a node under a lease, and return it as its owner has it."""
    held = (await leases.beat({}, alive)).held
    rows = Nodes(database, "default", worker=leases.worker.id)
    record = replace(make_record(agent_id), epoch=held[partition_of(agent_id)])
    await rows.add(record, mtls_cert=None, revocation_key="")
    (loaded,) = [one for one in await rows.load(held) if one.agent_id == agent_id]
    assert loaded == record
    return rows, loaded


# trust: fail-closed
async def test_a_write_under_a_lease_that_another_has_taken_is_refused(database: Database) -> None:
    one, two = leases_of(database, "one"), leases_of(database, "two")
    rows, record = await added(database, one)
    assert await rows.save_rounds([changed(record, 1)]) == frozenset()
    record = replace(changed(record, 1), version=1)
    await expire(database, "one")
    await two.beat({}, alive)
    # Nobody has written since: the version would do, the lease does not.
    late = [Notice("webhook", "n", "{}")]
    assert await rows.save_rounds([changed(record, 9)], late) == {"n"}
    assert not await rows.delete("n", record.epoch)
    async with database.reading() as connection:
        assert (await connection.execute(sa.text("SELECT count(*) FROM limeguard_notices"))).scalar() == 0
    owner = Nodes(database, "default", worker="two")
    (found,) = await owner.load((await two.beat({}, alive)).held)
    assert (found.state.attempts, found.version) == (1, 1)
    assert await owner.save_rounds([changed(found, 2)]) == frozenset()
    # Taken back, the partition has a third epoch, and what was known under the first counts no more.
    await two.leave()
    await one.beat({}, alive)
    assert await rows.save_rounds([replace(changed(record, 9), version=2)]) == {"n"}


async def test_a_release_waits_for_no_write_and_refuses_all_that_come_after(database: Database) -> None:
    # trust: fail-closed
    one = leases_of(database, "one")
    rows, record = await added(database, one)
    outcomes = await asyncio.gather(rows.save_rounds([changed(record, 1)]), one.release([partition_of("n")]))
    row = await rows.get("n")
    assert row is not None
    assert row.state.attempts == (0 if outcomes[0] else 1)
    assert await rows.save_rounds([replace(changed(record, 2), version=row.version)]) == {"n"}


async def test_a_word_changes_the_row_of_another_and_its_owner_hears_of_it(database: Database) -> None:
    one = leases_of(database, "one")
    rows, record = await added(database, one)
    changes = Changes(database, "default", "one")
    seen = await changes.look()
    assert (seen.changed, seen.present, seen.free) == (0, True, 0)
    other = Nodes(database, "default", worker="two")

    def stop(found: NodeRecord) -> NodeState:
        return replace(found.state, phase="stopped")

    number = await other.change("n", stop)
    assert number is not None
    assert (await changes.look()).changed == 1
    assert await Changes(database, "default", "two").mine() == []
    assert await changes.mine() == [(number, "n")]
    assert await rows.save_rounds([changed(record, 5)]) == {"n"}  # what it learned before it heard
    assert not await changes.is_heard(number)
    await changes.heard([number])
    assert await changes.is_heard(number)
    assert await other.change("n", lambda _record: None) is not None
    assert await rows.get("n") is None
    assert await other.change("n", stop) is None


async def test_a_word_that_is_refused_changes_nothing(database: Database) -> None:
    rows, record = await added(database, leases_of(database, "one"))

    def refuse(_record: NodeRecord) -> NodeState:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await rows.change("n", refuse)
    assert await rows.get("n") == replace(record, epoch=0)
    assert await Changes(database, "default", "one").mine() == []


async def test_an_enrolment_tells_the_owner_with_the_row_or_not_at_all(database: Database) -> None:
    one = leases_of(database, "one")
    held = (await one.beat({}, alive)).held
    other = Nodes(database, "default", worker="two")
    await other.add(make_record("n"), mtls_cert=None, revocation_key="", tell=True)
    changes = Changes(database, "default", "one")
    assert [agent_id for _, agent_id in await changes.mine()] == ["n"]
    with pytest.raises(Conflict):
        await other.add(make_record("n"), mtls_cert=None, revocation_key="", tell=True)
    assert len(await changes.mine()) == 1
    assert await other.ids_in(held) == ["n"]
    assert await other.ids_in([partition_of("n") ^ 1]) == []


async def test_whoever_listens_is_called(database: Database) -> None:
    called = asyncio.Event()
    ear = Ear(database, "default", called.set)
    task = asyncio.create_task(ear.run())
    if database.dialect != "postgresql":
        await asyncio.sleep(0.05)
        assert not ear.listening
    else:
        async with asyncio.timeout(5):
            await called.wait()  # it looks once when it begins to listen
            called.clear()
            assert ear.listening
            await Nodes(database, "other").tell("n")
            await asyncio.sleep(0.1)
            assert not called.is_set()
            await Nodes(database, "default").tell("n")
            await called.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not ear.listening


@pytest.mark.parametrize("table", ["limeguard_workers", "limeguard_leases", "limeguard_changes"])
async def test_the_migration_makes_what_the_mapping_says(database: Database, table: str) -> None:
    async with database.reading() as connection:
        made = await connection.run_sync(made_columns, table)
        wanted = wanted_columns(metadata.tables[table], connection.dialect)
    assert made == wanted
