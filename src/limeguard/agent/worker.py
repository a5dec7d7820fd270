"""One thread for the TPM: the event loop never waits for the chip, and the chip never gets two commands mixed up."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MAX_WAITING = 32
"""Requests that wait for the TPM; a quote takes up to a second on a chip, so more would time out anyway."""


class Busy(Exception):  # noqa: N818 - a fact about the load
    """Too many requests wait for the TPM already."""


class TpmThread:
    """Runs blocking functions one after another in a thread of its own."""

    def __init__(self) -> None:
        """Start nothing yet; the thread comes with the first call."""
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tpm")
        self._waiting = 0

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function in the thread and return its result. Raises Busy when too many wait."""
        if self._waiting >= MAX_WAITING:
            raise Busy
        self._waiting += 1
        try:
            future = asyncio.get_running_loop().run_in_executor(self._executor, lambda: function(*args, **kwargs))
            # A caller that goes away does not take the command with it: it runs to its end and frees what it holds.
            return await asyncio.shield(future)
        finally:
            self._waiting -= 1

    async def stop(self) -> None:
        """Wait for what runs, and end the thread."""
        await asyncio.to_thread(self._executor.shutdown)
