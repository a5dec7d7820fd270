"""Transactions, faults, migrations and file modes of the database layer, on every database there is."""

import asyncio
import stat
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection
from tests.fakes.postgres import Postgres, postgres_server

import limeguard.store.database as database_module
from limeguard.store.database import (
    Conflict,
    Database,
    Pulse,
    StoreUnavailable,
    UnknownDatabaseError,
    async_url,
    newest_revision,
)

THINGS = sa.table("things", sa.column("name"))


async def make(url: str) -> Database:
    database = Database(url)
    async with database.transaction() as connection:
        await connection.execute(sa.text("CREATE TABLE things (name VARCHAR(50) PRIMARY KEY)"))
    return database


async def names(database: Database) -> set[str]:
    async with database.reading() as connection:
        return {row.name for row in await connection.execute(sa.select(THINGS.c.name))}


async def test_a_failed_transaction_leaves_nothing(database_url: str) -> None:
    database = await make(database_url)
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


async def test_many_writers_at_once_all_get_through(database_url: str) -> None:
    database = await make(database_url)

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
    database = await make(f"sqlite:///{path}")
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
    with pytest.raises(StoreUnavailable, match="Connect call failed") as problem:
        async with database.reading():
            pytest.fail("there is no server")
    assert "secret-word" not in str(problem.value)
    await database.close()


# trust: secret
async def test_a_server_that_refuses_the_login_says_why_without_the_password(postgres: Postgres) -> None:
    for url, reason in (
        (postgres.url("postgres", "secret-word"), "password authentication failed"),
        (postgres.url("nonesuch"), "nonesuch.*does not exist"),
    ):
        database = Database(url)
        with pytest.raises(StoreUnavailable, match=reason) as problem:
            await database.migrate("registrar")
        assert "secret-word" not in str(problem.value)
        await database.close()


OUTAGES = {
    "terminated": "SELECT pg_terminate_backend(pg_backend_pid())",
    "too slow": "SET LOCAL statement_timeout = 50; SELECT pg_sleep(5)",
    "locked": "SET LOCAL lock_timeout = 50; LOCK TABLE things",
    "read-only": "SET TRANSACTION READ ONLY; INSERT INTO things VALUES ('x')",
}


@pytest.mark.parametrize("statements", OUTAGES.values(), ids=OUTAGES.keys())
async def test_an_outage_of_the_server_is_told_apart_from_a_bug(postgres: Postgres, statements: str) -> None:
    async with postgres.database() as url:
        database = await make(url)
        async with database.transaction() as holder:
            await holder.execute(sa.text("LOCK TABLE things IN ACCESS SHARE MODE"))
            with pytest.raises(StoreUnavailable):
                await execute(database, *statements.split("; "))
        with pytest.raises(ProgrammingError):
            await execute(database, "SELECT nonsense")
        assert await names(database) == set()
        await database.close()


async def execute(database: Database, *statements: str) -> None:
    async with database.transaction() as connection:
        for statement in statements:
            await connection.execute(sa.text(statement))


async def test_writers_that_wait_for_each_other_do_not_wait_for_ever(postgres: Postgres) -> None:
    async with postgres.database() as url:
        database = await make(url)
        await execute(database, "INSERT INTO things VALUES ('a'), ('b')")

        async def rename(first: str, second: str) -> None:
            async with database.transaction() as connection:
                for name in (first, second):
                    await connection.execute(THINGS.update().where(THINGS.c.name == name).values(name=name))
                    await asyncio.sleep(0.1)

        outcomes = await asyncio.gather(rename("a", "b"), rename("b", "a"), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes if outcome is not None] == [StoreUnavailable]
        await database.close()


async def test_a_server_that_was_killed_and_came_back_has_what_was_committed() -> None:
    with postgres_server() as server:
        async with server.database() as url:
            database = await make(url)
            await execute(database, "INSERT INTO things VALUES ('kept')")
            server.kill()
            for _ in range(3):
                with pytest.raises(StoreUnavailable):
                    await execute(database, "INSERT INTO things VALUES ('lost')")
            server.start()
            assert await names(database) == {"kept"}
            await database.close()


COMPONENTS = ["registrar", "verifier"]


async def tables(database: Database) -> set[str]:
    async with database.reading() as connection:
        return set(await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names()))


async def test_migrations_at_once_in_one_process_all_succeed(database_url: str) -> None:
    databases = [Database(database_url) for _ in range(3)]
    await asyncio.gather(*(one.migrate(component) for one in databases for component in COMPONENTS))
    assert {"limeguard_registrations", "limeguard_nodes"} <= await tables(databases[0])
    for database in databases:
        await database.close()


MIGRATE = """
import asyncio, sys
from limeguard.store.database import Database
async def main():
    database = Database(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    for component in sys.argv[2:]:
        await database.migrate(component)
    await database.close()
asyncio.run(main())
"""


async def test_migrations_at_once_in_several_processes_all_succeed(database_url: str) -> None:
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", MIGRATE, database_url, *COMPONENTS), stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
    for _, errors in await asyncio.gather(*(process.communicate(b"go\n") for process in processes)):
        assert errors == b""
    assert [process.returncode for process in processes] == [0, 0, 0]
    database = Database(database_url)
    assert {"limeguard_registrations", "limeguard_nodes"} <= await tables(database)
    await database.close()


LOADED = """
import asyncio, sys
from limeguard.store.database import Database
async def main():
    database = Database(sys.argv[1])
    await database.migrate("verifier")
    await database.close()
    print("alembic" in sys.modules)
asyncio.run(main())
"""


async def test_a_start_that_finds_its_tables_up_to_date_does_without_the_migration_library(database_url: str) -> None:
    for loaded in ("True", "False"):
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", LOADED, database_url, stdout=PIPE)
        said, _ = await process.communicate()
        assert said.decode().split() == [loaded]


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_newest_revision_is_the_one_that_the_migration_library_would_go_to(component: str) -> None:
    folder = Path(database_module.__file__).with_name("migrations") / component
    assert newest_revision(component) == ScriptDirectory(str(folder)).get_current_head()


async def test_tables_of_an_older_version_are_brought_up_to_date(database_url: str) -> None:
    database = Database(database_url)
    await database.migrate("verifier")
    async with database.transaction() as connection:
        on = " ON limeguard_nodes" if database.dialect in {"mysql", "mariadb"} else ""
        await connection.execute(sa.text(f"DROP INDEX ix_limeguard_nodes_mb_policy_name{on}"))
        await connection.execute(sa.text("DROP TABLE limeguard_boot_policies"))
        await connection.execute(sa.text("ALTER TABLE limeguard_nodes DROP COLUMN mb_policy_name"))
        await connection.execute(sa.text("UPDATE limeguard_verifier_version SET version_num = '0005'"))
    await database.migrate("verifier")
    assert "limeguard_boot_policies" in await tables(database)
    await database.close()


async def test_a_migration_that_failed_leaves_the_next_one_free(database_url: str) -> None:
    database = Database(database_url)
    with pytest.raises(CommandError):
        await database.migrate("nonesuch")
    await database.migrate("registrar")
    await database.migrate("registrar")
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


async def test_the_pulse_is_taken_once_in_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database, now, asked = Database(f"sqlite:///{tmp_path}/db.sqlite"), 10.0, 0
    pulse = Pulse(database, lambda: now)

    @asynccontextmanager
    async def away() -> AsyncIterator[AsyncConnection]:
        nonlocal asked
        asked += 1
        if asked:
            raise StoreUnavailable("away")
        async with database.engine.connect() as connection:
            yield connection

    assert await pulse.beats()
    monkeypatch.setattr(database, "reading", away)
    assert await pulse.beats()  # not asked again yet
    now += 1.0
    assert not await pulse.beats()
    assert not await pulse.beats()
    assert asked == 1
    monkeypatch.undo()
    now += 1.0
    assert await pulse.beats()
    await database.close()
