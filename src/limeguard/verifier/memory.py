"""The memory of a worker: what lives long is spared from the collection of garbage, what is free goes back.

A start and a rush of enrolments leave holes between what stays. The C library keeps them, and rounds, whose buffers
seldom fit, make the process grow a little with each; given back whole pages at a time, it stays as it is.
"""

import asyncio
import ctypes
import gc
from collections.abc import Callable
from typing import Final

COLLECT_AFTER: Final = 20_000
"""New objects until garbage is collected: rounds make nearly none that reference counts do not free."""
TRIM_SECONDS: Final = 30.0


def settle() -> None:
    """Spare what lives as long as the process from being looked at by each collection of garbage."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])


class Memory:
    """Gives free memory back from time to time, where the C library can (glibc; others do it by themselves)."""

    def __init__(self, trim: Callable[[], object] | None = None, pause: float = TRIM_SECONDS) -> None:
        """Call `trim` every `pause` seconds, malloc_trim(3) unless told otherwise."""
        self._trim = trim or _malloc_trim()
        self._pause = pause

    async def run(self) -> None:
        """Go on until cancelled. The call takes a millisecond or a few, in a thread of its own."""
        while True:
            await asyncio.sleep(self._pause)
            if self._trim is not None:
                await asyncio.to_thread(self._trim)


def _malloc_trim() -> Callable[[], object] | None:
    """Return what gives free pages back, None where the C library has no such thing."""
    try:
        function = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_size_t]
    function.restype = ctypes.c_int
    return lambda: function(0)
