"""One engine for a service, its transactions, and its schema upgrades. Knows SQL dialects; knows nothing of the tables.

Faults of the database come out as `StoreUnavailable` (try again later, nothing was written) and `Conflict` (a
uniqueness rule spoke); everything else is a bug of ours and passes through.
"""

import asyncio
import functools
import os
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateTable

ASYNC_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
    "mysql": "mysql+asyncmy",
    "mariadb": "mariadb+asyncmy",
}
BUSY_SECONDS = 10.0
"""How long a SQLite writer waits for another one."""
OUTAGES = frozenset({"08", "25", "28", "3D", "40", "53", "55", "57", "58"})
"""Classes of SQLSTATE that are no fault of a statement: connection, read-only standby, login, unknown database,
deadlock, too few resources, locks, shutdown, disk. The PostgreSQL driver gives no other sign of them."""
_ONE_MIGRATION = threading.Lock()
"""Alembic keeps what it is doing in globals of the process."""
_MIGRATION_LOCK = 0x6C696D65
"""Key of the advisory lock that keeps the migrations of several processes apart; any constant."""


_MIGRATION_NAME = "limeguard"
_MIGRATION_SECONDS = 60


ANNOUNCED: Final = "limeguard_announced"
"""In `info` of a connection: the running transaction holds something that others should look at."""


class StoreUnavailable(Exception):  # noqa: N818 - a state of the world
    """The database cannot be used now; nothing of the transaction was kept."""


class Conflict(Exception):  # noqa: N818 - a state of the world
    """A row with that key exists already, or another writer was first."""


class UnknownDatabaseError(ValueError):
    """The database URL cannot be used; the text says why."""


def async_url(url: str) -> URL:
    """Turn a database URL, with whatever driver it names, into the one with our driver. Raises UnknownDatabaseError."""
    try:
        parsed = make_url(url)
    except SQLAlchemyError as problem:
        raise UnknownDatabaseError(f"not a database URL: {problem}") from None
    family = parsed.drivername.partition("+")[0]
    if family not in ASYNC_DRIVERS:
        raise UnknownDatabaseError(f"no support for {family} databases: use sqlite, postgresql or mysql")
    return parsed.set(drivername=ASYNC_DRIVERS[family])


def _prepare_sqlite_file(url: URL) -> None:
    """Make the file readable for its owner alone before anything is written to it."""
    if not url.database or url.database == ":memory:":
        return
    path = Path(url.database)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if stat.S_IMODE(os.fstat(handle).st_mode) & 0o077:
            os.fchmod(handle, 0o600)
    finally:
        os.close(handle)


def _listen_sqlite(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def pragmas(connection: Any, _record: object) -> None:
        # SQLAlchemy's own BEGIN is written below: the driver must not add one of its kind.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",  # a distrusted node stays distrusted when the power goes
            "foreign_keys=ON",
            f"busy_timeout={int(BUSY_SECONDS * 1000)}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer takes the write lock at once: upgrading a read lock half-way fails under load.
        writes = connection.get_execution_options().get("limeguard_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


SQLITE_CONNECTIONS: Final = 5
PULSE_SECONDS: Final = 1.0
PULSE_PATIENCE: Final = 2.0
MYSQL: Final = ("mysql", "mariadb")


@compiles(CreateTable, *MYSQL)
def _create_table(element: CreateTable, compiler: Any, **named: Any) -> str:
    """Compare texts to the letter, as other databases do: ids that differ in case or in a blank are two nodes."""
    collation = "utf8mb4_nopad_bin" if compiler.dialect.is_mariadb else "utf8mb4_0900_bin"
    statement: str = compiler.visit_create_table(element, **named)
    return f"{statement.rstrip()} CHARACTER SET utf8mb4 COLLATE {collation}"


@compiles(sa.Text, *MYSQL)
def _text(_element: sa.Text, _compiler: Any, **_named: Any) -> str:
    """Have room for whatever a column without a bound may hold; MySQL's TEXT ends at 64 KiB."""
    return "LONGTEXT"


class Database:
    """A service's database: `transaction` for writes, `reading` for reads; both raise this module's two errors."""

    def __init__(self, url: str, *, pool_size: int = 5, overflow: int = 10) -> None:
        """Prepare the engine; nothing is opened yet. Raises UnknownDatabaseError."""
        self.url = async_url(url)
        self.on_announced: Callable[[], None] = lambda: None
        """Called when something was committed that others should look at, where the database does not call them."""
        self.dialect = self.url.get_backend_name()
        # SQLite has one writer at a time and lets others sleep and try again: in this process they queue instead.
        self._one_writer: AbstractAsyncContextManager[None] = (
            asyncio.Lock() if self.dialect == "sqlite" else nullcontext()
        )
        if self.dialect == "sqlite":
            _prepare_sqlite_file(self.url)
            # Connections that are kept: opening one costs a thread and its settings. A database in memory has one only.
            in_memory = self.url.database in {None, "", ":memory:"}
            kept = {} if in_memory else {"pool_size": SQLITE_CONNECTIONS, "max_overflow": 0}
            self.engine = create_async_engine(self.url, connect_args={"timeout": BUSY_SECONDS}, **kept)
            _listen_sqlite(self.engine)
        else:
            # MySQL would lock the places of rows that are not there, and let two inserts wait for each other.
            isolation = {"isolation_level": "READ COMMITTED"} if self.dialect in MYSQL else {}
            self.engine = create_async_engine(
                self.url,
                pool_size=pool_size,
                max_overflow=overflow,
                pool_pre_ping=True,
                pool_timeout=BUSY_SECONDS,
                **isolation,
            )

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Give a connection whose work is committed at the end, or undone when the block raises."""
        async with self._one_writer, self._written() as connection:
            yield connection

    @asynccontextmanager
    async def _written(self) -> AsyncIterator[AsyncConnection]:
        with _faults():
            async with self.engine.connect() as raw:
                connection = await raw.execution_options(limeguard_write=True)
                connection.info.pop(ANNOUNCED, None)
                async with connection.begin():
                    yield connection
                if connection.info.pop(ANNOUNCED, False):
                    self.on_announced()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Give a connection for reading."""
        with _faults():
            async with self.engine.connect() as connection:
                yield connection

    async def migrate(self, component: str) -> None:
        """Bring the tables of `component` (a folder below `migrations`) to the newest revision.

        Several may do so at once, in this process and in others: the first works, the others find it done.
        """
        while not _ONE_MIGRATION.acquire(blocking=False):  # noqa: ASYNC110 - the other may be of another event loop
            await asyncio.sleep(0.01)
        try:
            # One after the other from the first connection on: two cannot turn a new SQLite file's journal at a time.
            async with self.reading() as connection:
                if await connection.run_sync(_is_newest, component):
                    return
            async with self._migration_turn(), self.transaction() as connection:
                if self.dialect == "postgresql":
                    await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
                await connection.run_sync(_upgrade, component)
        finally:
            _ONE_MIGRATION.release()

    @asynccontextmanager
    async def _migration_turn(self) -> AsyncIterator[None]:
        """Keep others from migrating until the transaction has ended, where no lock of its own does that."""
        if self.dialect not in MYSQL:
            yield
            return
        async with self.reading() as connection:
            await connection.execute(sa.select(sa.func.get_lock(_MIGRATION_NAME, _MIGRATION_SECONDS)))
            try:
                yield
            finally:
                await connection.execute(sa.select(sa.func.release_lock(_MIGRATION_NAME)))

    def clock(self) -> sa.ColumnElement[float]:
        """Return the seconds since 1970 as an expression: by the database's clock where several hosts may ask."""
        if self.dialect == "sqlite":
            return sa.literal(time.time(), sa.Double)
        if self.dialect == "postgresql":
            return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Double)
        return sa.cast(sa.func.unix_timestamp(sa.func.now(6)), sa.Double)

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()


class Pulse:
    """Whether the database answers, asked at most once in a second however often somebody wants to know."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        """Ask this database."""
        self._database, self._clock = database, clock
        self._lock = asyncio.Lock()
        self._asked_at: float | None = None
        self._answered = True

    async def beats(self) -> bool:
        """Return whether it answered a moment ago, or does so now in time."""
        async with self._lock:
            if self._asked_at is None or self._clock() >= self._asked_at + PULSE_SECONDS:
                self._answered = await self._ask()
                self._asked_at = self._clock()
            return self._answered

    async def _ask(self) -> bool:
        try:
            async with asyncio.timeout(PULSE_PATIENCE), self._database.reading() as connection:
                await connection.execute(sa.select(sa.literal(1)))
        except (StoreUnavailable, TimeoutError):
            return False
        return True


def _migrations(component: str) -> Path:
    return Path(__file__).with_name("migrations") / component


def _version_table(component: str) -> str:
    return f"limeguard_{component}_version"


def newest_revision(component: str) -> str:
    """Return the newest revision of a component's tables: files of revisions are named by their numbers."""
    return max((path.name[:4] for path in (_migrations(component) / "versions").glob("[0-9]*.py")), default="")


def _is_newest(connection: Connection, component: str) -> bool:
    """Say whether there is nothing to do. Most starts find it so, and then do without ten megabytes of Alembic."""
    versions = sa.table(_version_table(component), sa.column("version_num"))
    if not sa.inspect(connection).has_table(versions.name):
        return False
    return list(connection.scalars(sa.select(versions.c.version_num))) == [newest_revision(component)]


def _upgrade(connection: Connection, component: str) -> None:
    import alembic.command
    import alembic.config

    config = alembic.config.Config()
    config.set_main_option("script_location", str(_migrations(component)))
    config.attributes["connection"] = connection
    config.attributes["version_table"] = _version_table(component)
    alembic.command.upgrade(config, "head")


def _is_outage(error: DBAPIError) -> bool:
    return str(getattr(error.orig, "sqlstate", None) or "")[:2] in OUTAGES


def _words(error: BaseException) -> str:
    """Return the first line of what the driver or the server said; statements and parameters are not in it."""
    origin = getattr(error, "orig", None) or error
    return str(origin.__cause__ or origin).partition("\n")[0] or type(error).__name__


Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


def uncancelled(
    method: Callable[Arguments, Coroutine[Any, Any, Answer]],
) -> Callable[Arguments, Coroutine[Any, Any, Answer]]:
    """Have a transaction end by itself when its caller is cancelled.

    One that is broken off in the middle may keep SQLite's one write lock for as long as this process lives.
    """

    @functools.wraps(method)
    async def run(*arguments: Arguments.args, **named: Arguments.kwargs) -> Answer:
        task = asyncio.ensure_future(method(*arguments, **named))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_looked_at)
            raise

    return run


def _looked_at(task: "asyncio.Future[Any]") -> None:
    """Take note of how a task ended that nobody waits for any more."""
    if not task.cancelled():
        task.exception()


class _faults:  # noqa: N801 - reads as a statement
    """Maps the errors of drivers and pool to StoreUnavailable and Conflict."""

    def __enter__(self) -> None:
        return

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, IntegrityError):
            raise Conflict(str(error.orig)) from error
        if isinstance(error, OperationalError | InterfaceError | InternalError | PoolTimeoutError | OSError) or (
            isinstance(error, DBAPIError) and (error.connection_invalidated or _is_outage(error))
        ):
            raise StoreUnavailable(f"the database cannot be used: {_words(error)}") from error
