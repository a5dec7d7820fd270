"""Inserts of many callers in one transaction: whoever comes while one runs goes with the next.

A commit waits for the disk, so that one commit for each row would bound enrolment to a hundred nodes a second.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from limeguard.store.database import Conflict, Database, StoreUnavailable

MAX_ROWS: Final = 500
"""Rows in one transaction."""

Row = dict[str, Any]
Beside = tuple[sa.Table, Row]
"""A row of another table that goes in with the first, or not at all."""
Also = Callable[[AsyncConnection], Awaitable[None]]
Waiting = tuple[Row, Beside | None, asyncio.Future[None]]


class GroupInsert:
    """Inserts into one table. Each caller hears only of its own row."""

    def __init__(self, database: Database, table: sa.Table, also: Also | None = None) -> None:
        """Insert into `table`; `also` is done in transactions with rows of other tables."""
        self._database = database
        self._table = table
        self._also = also
        self._waiting: list[Waiting] = []
        self._task: asyncio.Task[None] | None = None

    async def add(self, row: Row, beside: Beside | None = None) -> None:
        """Insert one row, and one beside it, and return when it is committed. Raises Conflict, StoreUnavailable."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((row, beside, done))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        await asyncio.shield(done)

    async def _run(self) -> None:
        batch: list[Waiting] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_ROWS], self._waiting[MAX_ROWS:]
                await self._insert_all(batch)
        finally:
            # Nothing is awaited between the last look at what waits and this line: whoever comes next starts anew.
            self._task = None
            given_up, self._waiting = [*batch, *self._waiting], []
            _settle(given_up, StoreUnavailable("the insert was given up"))

    async def _insert_all(self, batch: list[Waiting]) -> None:
        problem: Exception | None = None
        try:
            await self._insert(batch)
        except Conflict as conflict:
            if len(batch) > 1:
                for one in batch:
                    await self._insert_all([one])
                return
            problem = conflict
        except Exception as fault:  # noqa: BLE001 - whatever it is, it is what every caller must hear
            problem = fault
        _settle(batch, problem)

    async def _insert(self, batch: list[Waiting]) -> None:
        others: dict[sa.Table, list[Row]] = {}
        for _, beside, _ in batch:
            if beside is not None:
                others.setdefault(beside[0], []).append(beside[1])
        async with self._database.transaction() as connection:
            await connection.execute(self._table.insert(), [row for row, _, _ in batch])
            for table, rows in others.items():
                await connection.execute(table.insert(), rows)
            if others and self._also is not None:
                await self._also(connection)


def _settle(batch: list[Waiting], problem: Exception | None) -> None:
    """Tell those who still wait; who was told before keeps what they heard."""
    for _, _, done in batch:
        if done.done():
            continue
        if problem is None:
            done.set_result(None)
        else:
            done.set_exception(problem)
