"""Changes of nodes that their owner is to go by: lines beside the rows, and a call to those who listen.

A line is written in the transaction that changes the node, by whoever changes it, and removed by the worker that holds
the node's partition once it goes by the change. Knows who holds what only by the table of leases.
"""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from limeguard.store.database import ANNOUNCED, Database, uncancelled
from limeguard.store.schema_verifier import boot_policies, changes, leases, runtime_policies, workers
from limeguard.telemetry import clean, get_logger

log = get_logger("keylime.verifier")

CHANNEL: Final = "limeguard"
"""Where PostgreSQL calls those who listen; the message is the verifier id, or `ALL`."""
ALL: Final = ""
LISTEN_PAUSE: Final = 2.0
"""Seconds between tries to listen while the database is away."""
MANY: Final = 1000
"""Changes that are taken up at a time."""


async def announce(connection: AsyncConnection, verifier_id: str = ALL) -> None:
    """Call the workers of a verifier id when this transaction is committed; by other databases only those nearby."""
    if connection.dialect.name == "postgresql":
        await connection.execute(sa.select(sa.func.pg_notify(CHANNEL, verifier_id)))
    else:
        connection.info[ANNOUNCED] = True


async def insert_change(connection: AsyncConnection, verifier_id: str, agent_id: str, partition: int) -> int:
    """Note in a running transaction that a node was changed; return the number of the line."""
    line = changes.insert().values(verifier_id=verifier_id, partition=partition, agent_id=agent_id)
    done = await connection.execute(line)
    await announce(connection, verifier_id)
    key = done.inserted_primary_key
    return int(key[0]) if key is not None else 0


def _mark(updated_at: sa.Column[float]) -> sa.ScalarSelect[float]:
    return sa.select(sa.func.coalesce(sa.func.sum(updated_at), 0.0)).scalar_subquery()


@dataclass(frozen=True, slots=True)
class Look:
    """What there is to do: leases that nobody holds, changes of our nodes, a mark of all policies, and our own row."""

    free: int
    changed: int
    policies: float
    present: bool


class Changes:
    """The changes that one worker is to go by. Every method may raise StoreUnavailable."""

    def __init__(self, database: Database, verifier_id: str, worker: str) -> None:
        """Look for what concerns the partitions of `verifier_id` that `worker` holds."""
        self._database = database
        self._verifier_id = verifier_id
        self._mine = (
            leases.c.verifier_id == changes.c.verifier_id,
            leases.c.partition == changes.c.partition,
            leases.c.owner == worker,
        )
        free = sa.select(sa.func.count()).select_from(leases)
        changed = sa.select(sa.func.count()).select_from(changes.join(leases, sa.and_(*self._mine)))
        mark = _mark(runtime_policies.c.updated_at) + _mark(boot_policies.c.updated_at)
        present = sa.select(sa.func.count()).select_from(workers).where(workers.c.id == worker)
        self._look = sa.select(
            free.where(leases.c.verifier_id == verifier_id, leases.c.owner.is_(None)).scalar_subquery(),
            changed.where(changes.c.verifier_id == verifier_id).scalar_subquery(),
            mark,
            present.scalar_subquery(),
        )

    async def look(self) -> Look:
        """Say whether there is anything to do: one statement, whose answer is nearly always no."""
        async with self._database.reading() as connection:
            free, changed, policies, present = (await connection.execute(self._look)).one()
        return Look(free, changed, float(policies), bool(present))

    async def mine(self) -> list[tuple[int, str]]:
        """Return number and node of changes in partitions that this worker holds, the oldest first."""
        query = sa.select(changes.c.id, changes.c.agent_id).join(leases, sa.and_(*self._mine))
        query = query.where(changes.c.verifier_id == self._verifier_id).order_by(changes.c.id).limit(MANY)
        async with self._database.reading() as connection:
            return [(row.id, row.agent_id) for row in await connection.execute(query)]

    @uncancelled
    async def heard(self, numbers: Collection[int]) -> None:
        """Remove lines that this worker goes by."""
        async with self._database.transaction() as connection:
            await connection.execute(changes.delete().where(changes.c.id.in_(sorted(numbers))))

    async def is_heard(self, number: int) -> bool:
        """Say whether the owner goes by that change."""
        async with self._database.reading() as connection:
            query = sa.select(changes.c.id).where(changes.c.id == number)
            return (await connection.execute(query)).first() is None


class Ear:
    """Listens where the database can call; `listening` says whether it does now."""

    def __init__(self, database: Database, verifier_id: str, called: Callable[[], None]) -> None:
        """Have `called` called whenever something happens under `verifier_id`."""
        self._database = database
        self._verifier_id = verifier_id
        self._called = called
        self.listening = False

    async def run(self) -> None:
        """Listen until cancelled; a connection that breaks is made anew."""
        if self._database.dialect != "postgresql":
            await asyncio.get_running_loop().create_future()
        while True:
            try:
                await self._listen()
            except Exception as problem:  # noqa: BLE001 - the driver's own kinds among them; who is not called looks
                log.debug("Calls of the database cannot be listened for: %s", clean(problem))
            finally:
                self.listening = False
            await asyncio.sleep(LISTEN_PAUSE)

    async def _listen(self) -> None:
        async with self._database.engine.connect() as connection:
            raw = await connection.get_raw_connection()
            driver: Any = raw.driver_connection
            ended = asyncio.Event()

            def on_call(_connection: object, _pid: int, _channel: str, message: str) -> None:
                if message in {ALL, self._verifier_id}:
                    self._called()

            driver.add_termination_listener(lambda _connection: ended.set())
            await driver.add_listener(CHANNEL, on_call)
            self.listening = True
            self._called()
            try:
                await ended.wait()
            finally:
                await connection.invalidate()
