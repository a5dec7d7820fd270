"""Transactions, faults and file modes of the database layer, on SQLite."""

import asyncio
import stat
from pathlib import Path

import pytest
import sqlalchemy as sa

from limeguard.store.database import Conflict, Database, StoreUnavailable, UnknownDatabaseError, async_url

THINGS = sa.table("things", sa.column("name"))


async def make(path: Path) -> Database:
    database = Database(f"sqlite:///{path}")
    async with database.transaction() as connection:
        await connection.execute(sa.text("CREATE TABLE things (name TEXT PRIMARY KEY)"))
    return database


async def names(database: Database) -> set[str]:
    async with database.reading() as connection:
        return {row.name for row in await connection.execute(sa.select(THINGS.c.name))}


async def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    database = await make(tmp_path / "d.sqlite")
    with pytest.raises(Conflict):
        async with database.transaction() as connection:
            await connection.execute(THINGS.insert().values(name="first"))
            await connection.execute(THINGS.insert().values(name="first"))
    with pytest.raises(RuntimeError, match="ours"):
        async with database.transaction() as connection:
            await connection.execute(THINGS.insert().values(name="second"))
            raise RuntimeError("ours")
    assert await names(database) == set()
    await database.close()


async def test_many_writers_at_once_all_get_through(tmp_path: Path) -> None:
    database = await make(tmp_path / "d.sqlite")

    async def write(name: str) -> None:
        async with database.transaction() as connection:
            await connection.execute(sa.select(THINGS.c.name))
            await connection.execute(THINGS.insert().values(name=name))

    await asyncio.gather(*(write(str(i)) for i in range(40)))
    assert len(await names(database)) == 40
    await database.close()


# trust: secret
async def test_the_files_are_readable_for_their_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "d.sqlite"
    database = await make(path)
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    await database.close()


# trust: no-ambient-files
def test_a_link_in_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    (tmp_path / "d.sqlite").symlink_to(target)
    with pytest.raises(OSError, match="symbolic"):
        Database(f"sqlite:///{tmp_path / 'd.sqlite'}")
    assert not target.exists()


async def test_a_server_that_is_away_is_told_apart_from_a_bug(unused_tcp_port: int) -> None:
    database = Database(f"postgresql://somebody:secret-word@127.0.0.1:{unused_tcp_port}/limeguard")
    with pytest.raises(StoreUnavailable) as problem:
        async with database.reading():
            pytest.fail("there is no server")
    assert "secret-word" not in str(problem.value)
    await database.close()


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("sqlite:///x", "sqlite+aiosqlite"),
        ("postgresql://u@h/d", "postgresql+asyncpg"),
        ("postgresql+psycopg2://u@h/d", "postgresql+asyncpg"),
        ("mysql+pymysql://u@h/d", "mysql+asyncmy"),
    ],
)
def test_urls_are_taken_with_any_driver(given: str, driver: str) -> None:
    assert async_url(given).drivername == driver


@pytest.mark.parametrize("given", ["", "nonsense", "oracle://u@h/d"])
def test_an_unusable_url_says_why(given: str) -> None:
    with pytest.raises(UnknownDatabaseError):
        async_url(given)
