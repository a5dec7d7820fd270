"""A ring from worker to worker of one parent: something was committed that is worth a look.

Says neither what nor whose. Who misses a ring finds the change at the next regular look, so nothing waits for one.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

RING: Final = b"!"


class Bell:
    """The bells of this worker's siblings, and its own. Made inside a running loop; `close` it."""

    def __init__(self, folder: Path, number: int, count: int, rung: Callable[[], None]) -> None:
        """Be worker `number` of `count` in `folder`, which only this user may enter. Raises OSError."""
        self._others = [_path(folder, other) for other in range(count) if other != number]
        self._own, self._rung = _path(folder, number), rung
        self._own.unlink(missing_ok=True)  # of a worker that died in this place
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(self._own))
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._hear)

    def ring(self) -> None:
        """Ring all others; one that is not there, or has not looked since the last rings, is left out."""
        for path in self._others:
            with contextlib.suppress(OSError):
                self._socket.sendto(RING, str(path))

    def _hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(len(RING))
                self._rung()

    def close(self) -> None:
        """Hear and ring no more."""
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._own.unlink(missing_ok=True)


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number}.bell"
