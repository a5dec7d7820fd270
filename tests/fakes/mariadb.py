"""A MariaDB server of the tests' own: a free loopback port, a password, and at the end all its files are gone."""

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
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

START_SECONDS = 60.0
MISSING = "MariaDB is not installed (Debian: apt-get install --no-install-recommends mariadb-server-core)"
OWNER = "limeguard"


@dataclass
class MariaDb:
    """A server that runs."""

    folder: Path
    account: str | None
    password: str
    port: int
    process: subprocess.Popen[bytes] | None = None

    def url(self, database: str) -> str:
        return f"mysql://{OWNER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Make the files, start the server and wait until it takes connections."""
        data = self.folder / "data"
        account = self.account or pwd.getpwuid(os.geteuid()).pw_name
        if self.account is not None:
            shutil.chown(self.folder, self.account)
        # Native asynchronous I/O is rationed for the whole machine, and other servers may have taken all of it.
        common = ["--no-defaults", f"--datadir={data}", f"--user={account}", "--innodb-use-native-aio=0"]
        self._install(data, common)
        init = self.folder / "init.sql"
        init.write_text(
            f"CREATE USER '{OWNER}'@'127.0.0.1' IDENTIFIED BY '{self.password}';\n"
            f"GRANT ALL ON *.* TO '{OWNER}'@'127.0.0.1';\n"
        )
        init.chmod(0o644)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    shutil.which("mariadbd", path=f"{os.environ['PATH']}:/usr/sbin") or "mariadbd",
                    *common,
                    *("--bind-address=127.0.0.1", f"--port={self.port}", f"--socket={self.folder / 'socket'}"),
                    *(f"--pid-file={self.folder / 'pid'}", f"--init-file={init}", "--skip-name-resolve"),
                    *("--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=32M", "--skip-log-bin"),
                ],
                stdout=log,
                stderr=log,
                cwd="/",
                user=self.account,
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"MariaDB does not start: {(self.folder / 'log').read_text()[-2000:]}")
                time.sleep(0.05)
            else:
                return

    def _install(self, data: Path, common: list[str]) -> None:
        """Make the files, in two tries: the program gives up on a machine that is busy."""
        said = ""
        for _ in range(2):
            shutil.rmtree(data, ignore_errors=True)
            done = subprocess.run(
                ["mariadb-install-db", *common, "--auth-root-authentication-method=normal", "--skip-test-db"],
                check=False,
                capture_output=True,
                text=True,
                cwd="/",
                user=self.account,
            )
            if done.returncode == 0:
                return
            said = (done.stdout + done.stderr)[-2000:]
        pytest.fail(f"MariaDB cannot be installed: {said}")

    @asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """Give the URL of an empty database that is dropped at the end."""
        name = f"t{secrets.token_hex(8)}"
        await self.run(f"CREATE DATABASE {name}")
        yield self.url(name)
        await self.run(f"DROP DATABASE {name}")

    async def run(self, statement: str) -> None:
        """Run one statement; a server that has just started is asked again."""
        engine = create_async_engine(make_url(self.url("")).set(drivername="mysql+asyncmy"))
        try:
            for attempt in range(20):
                try:
                    async with engine.connect() as connection:
                        await connection.execute(sa.text(statement))
                except OperationalError:
                    if attempt == 19:
                        raise
                    time.sleep(0.2)
                else:
                    return
        finally:
            await engine.dispose()


@contextmanager
def mariadb_server() -> Iterator[MariaDb]:
    """Run a server. Skips the test when there is no MariaDB, or no driver for it."""
    pytest.importorskip("asyncmy", reason="needs the extra `mysql` (asyncmy)")
    if not shutil.which("mariadb-install-db"):
        pytest.skip(MISSING)
    account = None
    if os.geteuid() == 0:
        account = next((each.pw_name for each in pwd.getpwall() if each.pw_name in {"mysql", "nobody"}), None)
        if account is None:
            pytest.skip("MariaDB does not run as root, and there is no user `mysql` or `nobody` to run it as")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    folder = Path(tempfile.mkdtemp(prefix="limeguard-mariadb-"))
    server = MariaDb(folder, account, secrets.token_hex(16), port)
    try:
        server.start()
        yield server
    finally:
        if server.process is not None:
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(START_SECONDS)
        shutil.rmtree(folder)
