"""Writes of many callers in one transaction: committed before anybody hears, and nobody pays for another's fault."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from limeguard.store.database import Database, StoreUnavailable
from limeguard.store.group_write import GroupWrite

pytestmark = pytest.mark.services

TABLE = sa.Table(
    "numbers",
    sa.MetaData(),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("used", sa.Boolean, nullable=False),
)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    made = Database(database_url)
    async with made.transaction() as connection:
        await connection.run_sync(TABLE.metadata.create_all)
        await connection.execute(TABLE.insert(), [{"number": number, "used": False} for number in range(50)])
    yield made
    await made.close()


async def used(database: Database) -> set[int]:
    async with database.reading() as connection:
        return set((await connection.execute(sa.select(TABLE.c.number).where(TABLE.c.used))).scalars())


async def take(writes: GroupWrite, number: int) -> bool:
    """Use a number up; False when it was used before."""

    async def write(connection: AsyncConnection) -> bool:
        waiting = TABLE.update().where(TABLE.c.number == number, sa.not_(TABLE.c.used))
        return (await connection.execute(waiting.values(used=True))).rowcount == 1

    return await writes.run(write)


async def test_each_caller_hears_of_its_own_write_and_what_is_used_once_is_used_once(database: Database) -> None:
    writes = GroupWrite(database)
    assert await asyncio.gather(*[take(writes, number) for number in (1, 2, 2, 3, 99)]) == [
        True,
        True,
        False,
        True,
        False,
    ]
    assert await used(database) == {1, 2, 3}
    assert await take(writes, 3) is False


async def test_many_writes_take_few_transactions(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = 0
    real = database.transaction

    def counted() -> object:
        nonlocal begun
        begun += 1
        return real()

    monkeypatch.setattr(database, "transaction", counted)
    writes = GroupWrite(database)
    assert all(await asyncio.gather(*[take(writes, number) for number in range(50)]))
    assert begun <= 2


async def test_the_fault_of_one_is_its_own(database: Database) -> None:
    writes = GroupWrite(database)

    async def wrong(connection: AsyncConnection) -> bool:
        await connection.execute(TABLE.update().where(TABLE.c.number == 5).values(used=True))
        raise KeyError("mine")

    outcomes = await asyncio.gather(take(writes, 1), writes.run(wrong), take(writes, 2), return_exceptions=True)
    assert (outcomes[0], outcomes[2]) == (True, True)
    assert isinstance(outcomes[1], KeyError)
    assert await used(database) == {1, 2}


async def test_an_outage_is_everybodys_and_the_next_write_is_tried(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # trust: fail-closed
    real = database.transaction

    def away() -> object:
        raise StoreUnavailable("away")

    monkeypatch.setattr(database, "transaction", away)
    writes = GroupWrite(database)
    outcomes = await asyncio.gather(take(writes, 1), take(writes, 2), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable, StoreUnavailable]
    monkeypatch.setattr(database, "transaction", real)
    assert await take(writes, 1)


async def test_a_caller_that_goes_away_takes_nobody_with_it(database: Database) -> None:
    writes = GroupWrite(database)
    leaving = asyncio.create_task(take(writes, 1))
    staying = asyncio.create_task(take(writes, 2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying
    assert await used(database) == {1, 2}
