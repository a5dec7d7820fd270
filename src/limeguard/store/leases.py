"""Who supervises which partition: workers that live, and leases that they hold. Reads and writes both tables.

A lease has no deadline of its own: it lasts while its owner's row does. Whoever finds an owner whose time has passed
removes that row and frees its leases in one transaction; an owner that comes back then finds its row gone, and knows.
The clock is the database's, so that hosts need not agree on the time.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from limeguard.store.changes import announce
from limeguard.store.database import Database, uncancelled
from limeguard.store.schema_verifier import PARTITIONS, leases, workers


@dataclass(frozen=True, slots=True)
class Worker:
    """One process that supervises. `place` names the machine and the numbering of processes that `pid` belongs to."""

    id: str
    place: str
    pid: int


@dataclass(frozen=True, slots=True)
class Standing:
    """What the database says: leases held (partition to epoch), workers that live, and the size of our share."""

    held: Mapping[int, int]
    live: int
    share: int


Gone = Callable[[str, int], bool]
"""Says of a place and a process whether that process is known to be dead."""


class Leases:
    """The leases of one worker. Every method may raise StoreUnavailable, and Conflict when two came at once."""

    def __init__(self, database: Database, verifier_id: str, worker: Worker, seconds: float) -> None:
        """Hold leases of the partitions of `verifier_id`; a worker that says nothing for `seconds` has lost them."""
        self._database = database
        self._verifier_id = verifier_id
        self.worker = worker
        self._seconds = seconds
        self._seen: tuple[str, ...] = ()

    @uncancelled
    async def beat(
        self, held: Mapping[int, int], gone: Gone, *, crew: int = 1, leaving: bool = False, patient: bool = False
    ) -> Standing:
        """Say that this worker lives, free what dead ones held, take what is missing to a fair share.

        `held` is what was held at the last beat. `crew` workers are expected at least: a fair share counts them, so
        that the first of several to start does not take all. One that is `leaving` takes nothing and is not counted.
        A `patient` one frees nothing because of time alone: the database was away, for others too.
        """
        async with self._database.transaction() as connection:
            known = await self._renew(connection, leaving=leaving)
            if leaving:
                found = await self._held(connection)
                return Standing(found, 1, len(found))
            live = await self._bury(connection, gone, patient=patient)
            share = fair_share(self.worker.id, live, crew)
            if known and live == self._seen and len(held) == share:
                return Standing(held, len(live), share)
            await self._take(connection, share)
            found = await self._held(connection)
        self._seen = live
        return Standing(found, len(live), share)

    @uncancelled
    async def release(self, partitions: Collection[int]) -> None:
        """Give leases back; others may take them at once."""
        ours = self._leases(leases.c.owner == self.worker.id, leases.c.partition.in_(sorted(partitions)))
        async with self._database.transaction() as connection:
            await connection.execute(leases.update().where(*ours).values(owner=None))
            await announce(connection, self._verifier_id)

    @uncancelled
    async def leave(self) -> None:
        """Give all leases back and be no worker any more."""
        async with self._database.transaction() as connection:
            await self._free(connection, self.worker.id)
            await connection.execute(workers.delete().where(workers.c.id == self.worker.id))
            await announce(connection, self._verifier_id)

    async def owners(self) -> dict[int, str]:
        """Return the worker that holds each partition; those that nobody holds are missing."""
        query = sa.select(leases.c.partition, leases.c.owner).where(*self._leases(leases.c.owner.is_not(None)))
        async with self._database.reading() as connection:
            return {row.partition: row.owner for row in await connection.execute(query)}

    # --- workers ------------------------------------------------------------------------------------------------------

    async def _renew(self, connection: AsyncConnection, *, leaving: bool) -> bool:
        """Move our deadline; False when our row was not there: this is the start, or we were taken for dead."""
        until = self._database.clock() + self._seconds
        renewed = workers.update().where(workers.c.id == self.worker.id).values(expires_at=until, leaving=leaving)
        if (await connection.execute(renewed)).rowcount:
            return True
        row = {
            "id": self.worker.id,
            "verifier_id": self._verifier_id,
            "place": self.worker.place,
            "pid": self.worker.pid,
            "expires_at": until,
            "leaving": leaving,
        }
        await connection.execute(workers.insert().values(row))
        return False

    async def _bury(self, connection: AsyncConnection, gone: Gone, *, patient: bool) -> tuple[str, ...]:
        """Free the leases of workers whose time has passed or whose process is dead; return the ids of the others."""
        clock = self._database.clock()
        table = workers.c
        query = sa.select(
            table.id, table.place, table.pid, table.leaving, (table.expires_at < clock).label("expired")
        ).where(table.verifier_id == self._verifier_id)
        live = []
        for row in (await connection.execute(query.order_by(table.id))).all():
            if row.id == self.worker.id:
                live.append(row.id)
                continue
            dead = gone(row.place, row.pid)
            if not dead and (patient or not row.expired):
                if not row.leaving:
                    live.append(row.id)
                continue
            # One that has said something in between is found alive here, and keeps what it has.
            still = [table.id == row.id] if dead else [table.id == row.id, table.expires_at < clock]
            if (await connection.execute(workers.delete().where(*still))).rowcount:
                await self._free(connection, row.id)
                await announce(connection, self._verifier_id)
        return tuple(live)

    async def _free(self, connection: AsyncConnection, owner: str) -> None:
        await connection.execute(leases.update().where(*self._leases(leases.c.owner == owner)).values(owner=None))

    # --- leases -------------------------------------------------------------------------------------------------------

    def _leases(self, *conditions: sa.ColumnElement[bool]) -> Sequence[sa.ColumnElement[bool]]:
        return (leases.c.verifier_id == self._verifier_id, *conditions)

    async def _held(self, connection: AsyncConnection) -> dict[int, int]:
        query = sa.select(leases.c.partition, leases.c.epoch).where(*self._leases(leases.c.owner == self.worker.id))
        return {row.partition: row.epoch for row in await connection.execute(query)}

    async def _take(self, connection: AsyncConnection, share: int) -> None:
        await self._make_rows(connection)
        missing = share - len(await self._held(connection))
        if missing <= 0:
            return
        query = (
            sa.select(leases.c.partition)
            .where(*self._leases(leases.c.owner.is_(None)))
            .order_by(leases.c.partition)
            .limit(missing)
            .with_for_update(skip_locked=True)
        )
        free = list((await connection.execute(query)).scalars())
        if free:
            taken = leases.update().where(*self._leases(leases.c.partition.in_(free), leases.c.owner.is_(None)))
            await connection.execute(taken.values(owner=self.worker.id, epoch=leases.c.epoch + 1))

    async def _make_rows(self, connection: AsyncConnection) -> None:
        """Make the rows of this verifier id, once. Raises Conflict when another worker does so now."""
        count = sa.select(sa.func.count()).select_from(leases).where(*self._leases())
        if (await connection.execute(count)).scalar():
            return
        rows: list[dict[str, Any]] = [
            {"verifier_id": self._verifier_id, "partition": number, "epoch": 0, "owner": None}
            for number in range(PARTITIONS)
        ]
        await connection.execute(leases.insert(), rows)


def fair_share(worker: str, live: Collection[str], crew: int = 1) -> int:
    """Return how many partitions are this worker's: the same for all, give or take one, and all of them together.

    `crew` workers are counted at least, those that are not seen yet as if they came last.
    """
    ids = sorted({worker, *live})
    count = max(len(ids), crew)
    each, rest = divmod(PARTITIONS, count)
    return each + (ids.index(worker) < rest)
