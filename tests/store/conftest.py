"""The databases that the tests of the store run on: SQLite always, PostgreSQL and MariaDB where they are installed."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.fakes.mariadb import MariaDb, mariadb_server
from tests.fakes.postgres import Postgres, postgres_server

DATABASES = [
    "sqlite",
    pytest.param("postgresql", marks=pytest.mark.xdist_group("postgresql")),
    pytest.param("mariadb", marks=pytest.mark.xdist_group("mariadb")),
]
"""One process runs all that is about the server, so that there is one server."""


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Run PostgreSQL; skip without one."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDb]:
    """Run MariaDB; skip without one."""
    with mariadb_server() as server:
        yield server


@pytest.fixture(params=DATABASES)
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """Give the URL of an empty database, for each kind there is."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'test.sqlite'}"
        return
    server: Postgres | MariaDb = request.getfixturevalue(
        {"postgresql": "postgres", "mariadb": "mariadb"}[request.param]
    )
    async with server.database() as url:
        yield url
