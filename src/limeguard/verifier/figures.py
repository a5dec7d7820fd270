"""The figures of all workers of one parent, as one answer: whichever is asked asks the others.

Each worker hands its own text to its siblings over a socket in their private folder. Knows the text format of
Prometheus; must not know what is counted.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

SIBLING_SECONDS: Final = 1.0


class Siblings:
    """The figures of this worker and those of its siblings."""

    def __init__(self, folder: Path, number: int, count: int, own: Callable[[], bytes]) -> None:
        """Serve `own` as worker `number` of `count` in `folder`, which only this user may enter."""
        self._folder, self._number, self._count, self._own = folder, number, count, own
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        """Serve siblings."""
        path = self._path(self._number)
        path.unlink(missing_ok=True)  # of a worker that died in this place
        self._server = await asyncio.start_unix_server(self._serve, path)

    async def _serve(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(self._own())
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    async def text(self) -> bytes:
        """Return the figures of all; those of a sibling that does not answer are missing."""
        others = [number for number in range(self._count) if number != self._number]
        answers = await asyncio.gather(*(self._asked(number) for number in others))
        texts = {str(self._number): self._own()}
        texts.update({str(number): answer for number, answer in zip(others, answers, strict=True) if answer})
        return merged(dict(sorted(texts.items(), key=lambda item: int(item[0]))))

    async def _asked(self, number: int) -> bytes:
        try:
            async with asyncio.timeout(SIBLING_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self._path(number))
                try:
                    return await reader.read(-1)
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return b""

    async def stop(self) -> None:
        """Serve nobody any more."""
        if self._server is not None:
            self._server.close()
            self._path(self._number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.metrics"


def merged(texts: Mapping[str, bytes]) -> bytes:
    """Return the figures of several workers as one text, each sample with its worker's name as a label."""
    families: dict[str, tuple[list[str], list[str]]] = {}
    for worker, text in texts.items():
        samples: list[str] = []
        head: list[str] = []
        for line in text.decode().split("\n"):  # values may hold what else ends lines
            if line.startswith("# HELP "):
                head, samples = families.setdefault(line.split(" ", 3)[2], ([], []))
                head[:] = [line]
            elif line.startswith("# TYPE "):
                head[1:] = [line]
            elif line:
                samples.append(_labelled(line, worker))
    return "".join(f"{line}\n" for head, samples in families.values() for line in (*head, *samples)).encode()


def _labelled(sample: str, worker: str) -> str:
    """Put a label in front of the others."""
    name, brace, rest = sample.partition("{")
    if brace and " " not in name:
        return f'{name}{{worker="{worker}",{rest}'
    name, _, value = sample.partition(" ")
    return f'{name}{{worker="{worker}"}} {value}'
