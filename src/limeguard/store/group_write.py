"""Small writes of many callers in one transaction: whoever comes while one runs goes with the next.

For writes that each caller must know to be committed, such as a session's token. A commit waits for the disk: one for
each would bound a fleet that comes back after an outage to some ten sessions a second.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from limeguard.store.database import Database, StoreUnavailable

MAX_WRITES: Final = 200
"""Callers in one transaction."""

T = TypeVar("T")
Work = Callable[[AsyncConnection], Awaitable[Any]]
_Waiting = tuple[Work, asyncio.Future[Any]]


class GroupWrite:
    """Runs callers' work on one database. Each caller hears of its own work only, and only when it is committed."""

    def __init__(self, database: Database) -> None:
        """Write to `database`."""
        self._database = database
        self._waiting: list[_Waiting] = []
        self._task: asyncio.Task[None] | None = None

    async def run(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Do the work in a transaction and return its result. It may be done twice, the first time undone.

        Raises what the work raises, and StoreUnavailable.
        """
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, done))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await asyncio.shield(done)

    async def _run(self) -> None:
        batch: list[_Waiting] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_WRITES], self._waiting[MAX_WRITES:]
                await self._write(batch)
        finally:
            # Nothing is awaited between the last look at what waits and this line: whoever comes next starts anew.
            self._task = None
            given_up, self._waiting = [*batch, *self._waiting], []
            _fail(given_up, StoreUnavailable("the write was given up"))

    async def _write(self, batch: list[_Waiting]) -> None:
        try:
            async with self._database.transaction() as connection:
                results = [await work(connection) for work, _ in batch]
        except StoreUnavailable as outage:
            _fail(batch, outage)
        except Exception as problem:  # noqa: BLE001 - whatever it is, it is what its caller must hear, and nobody else
            if len(batch) == 1:
                _fail(batch, problem)
                return
            for one in batch:
                await self._write([one])
        else:
            for (_, done), result in zip(batch, results, strict=True):
                if not done.done():
                    done.set_result(result)


def _fail(batch: list[_Waiting], problem: Exception) -> None:
    for _, done in batch:
        if not done.done():
            done.set_exception(problem)
