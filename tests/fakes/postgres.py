"""A PostgreSQL server of the tests' own: a free loopback port, a password, and at the end all its files are gone."""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

START_SECONDS = 30.0
MISSING = "PostgreSQL is not installed (Debian: apt-get install --no-install-recommends postgresql)"
NO_USER = "PostgreSQL does not run as root, and there is no user `postgres` or `nobody` to run it as"
OWNER = "limeguard"


def binaries() -> Path | None:
    """Return the folder of the newest `initdb` and `postgres`, which Debian keeps out of the path."""
    folders = sorted(
        (path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()),
        key=lambda path: int(path.parent.name),
    )
    on_path = shutil.which("initdb")
    return next((f for f in reversed(folders) if (f / "initdb").exists()), Path(on_path).parent if on_path else None)


def _account() -> str | None:
    """Return the user that the server must run as: None is the one that runs the tests."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    pytest.skip(NO_USER)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Postgres:
    """A server that runs, or can be started again after `kill`."""

    tools: Path
    folder: Path
    account: str | None
    password: str
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def url(self, database: str, password: str | None = None) -> str:
        return f"postgresql://{OWNER}:{password or self.password}@127.0.0.1:{self.port}/{database}"

    def create(self) -> None:
        """Make the cluster's files."""
        secret = self.folder / "password"
        secret.write_text(self.password)
        if self.account is not None:
            for path in (self.folder, secret):
                shutil.chown(path, self.account)
        subprocess.run(
            [
                self.tools / "initdb",
                f"--pgdata={self.data}",
                f"--username={OWNER}",
                f"--pwfile={secret}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ],
            check=True,
            capture_output=True,
            cwd="/",
            user=self.account,
        )

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    self.tools / "postgres",
                    *("-D", self.data, "-h", "127.0.0.1", "-p", str(self.port)),
                    *("-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "max_connections=60"),
                ],
                stdout=log,
                stderr=log,
                cwd="/",
                user=self.account,
            )
        deadline = time.monotonic() + START_SECONDS
        while subprocess.run(
            [self.tools / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)], check=False
        ).returncode:
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"PostgreSQL does not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def kill(self, number: signal.Signals = signal.SIGQUIT) -> None:
        """End the server: SIGQUIT at once and without a checkpoint, SIGINT in order."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(START_SECONDS)
            self.process = None

    @asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """Give the URL of an empty database that is dropped at the end."""
        name = f"t{secrets.token_hex(8)}"
        await self.run(f"CREATE DATABASE {name} TEMPLATE template0")
        yield self.url(name)
        await self.run(f"DROP DATABASE {name} WITH (FORCE)")

    async def run(self, statement: str) -> None:
        """Run one statement as the owner of the cluster."""
        url = make_url(self.url("postgres")).set(drivername="postgresql+asyncpg")
        engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
        try:
            async with engine.connect() as connection:
                await connection.execute(sa.text(statement))
        finally:
            await engine.dispose()


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """Run a server. Skips the test when there is no PostgreSQL."""
    tools = binaries()
    if tools is None:
        pytest.skip(MISSING)
    account = _account()
    folder = Path(tempfile.mkdtemp(prefix="limeguard-postgres-"))
    server = Postgres(tools, folder, account, secrets.token_hex(16), _free_port())
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.kill(signal.SIGINT)
        shutil.rmtree(folder)
