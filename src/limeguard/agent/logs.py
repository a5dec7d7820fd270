"""The measurement logs of the node and the time of its boot, as the agent sends them beside a quote.

Decides which lines go out and what is remembered between reads; the content is not interpreted. Files are opened once,
while the agent may still be root, and read through their descriptors afterwards.
"""

import base64
import os
import threading
from array import array
from dataclasses import dataclass
from pathlib import Path

import msgspec

from limeguard.agent.files import UnsafeFile, read_file, write_private
from limeguard.telemetry import clean, get_logger

log = get_logger("keylime_agent.logs")

CHUNK = 1024 * 1024
STRIDE = 256
"""Every so many lines an offset is kept: a partial read skips fewer lines than that."""
MAX_IMA_LOG = 512 * 1024 * 1024
MAX_BOOT_LOG = 16 * 1024 * 1024
"""A log larger than that is a fault; no firmware or node of a sane size comes near."""
MAX_STATE = 4096


class LogTooLarge(Exception):  # noqa: N818 - a fact about the node
    """A measurement log is larger than the bound."""


@dataclass(frozen=True, slots=True)
class LogPart:
    """Whole lines of the log, from line number `first` on."""

    text: str
    first: int


class ImaLog:
    """The IMA list in ASCII, read from any line to its end at the cost of what is new.

    The kernel appends only. For a log kept in an ordinary file (tests, emulation) a shorter file starts over.
    """

    def __init__(self, descriptor: int) -> None:
        """Take over an open descriptor."""
        self._fd = descriptor
        self._has_size = False
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._lines = 0
        self._end = 0
        self._marks = array("Q", [0])

    def read_from(self, entry: int) -> LogPart:
        """Return lines `entry` to the end; the whole log from 0 when there are fewer lines. Blocks on the file.

        Raises OSError, LogTooLarge.
        """
        with self._lock:
            self._notice_truncation()
            if entry >= self._lines:
                part = self._read_known_end(entry)
                if part is not None:
                    return part
                entry = 0
            return LogPart(_text(self._lines_from(entry)), entry)

    def count(self) -> int:
        """Return how many whole lines there are now. Raises OSError, LogTooLarge."""
        with self._lock:
            self._notice_truncation()
            self._absorb(self._end)
            return self._lines

    def _notice_truncation(self) -> None:
        """Start over when an ordinary file became shorter; the kernel's file always gives its size as 0."""
        size = os.fstat(self._fd).st_size
        self._has_size = self._has_size or size > 0
        if self._has_size and size < self._end:
            self._forget()

    def _read_known_end(self, entry: int) -> LogPart | None:
        """Serve a request at or beyond the lines seen so far; None when the log turns out to be shorter."""
        before = self._lines
        new = self._absorb(self._end)
        if entry > self._lines:
            return None
        return LogPart(_text(_skip_lines(new, entry - before)), entry)

    def _lines_from(self, entry: int) -> bytes:
        """Return the bytes of line `entry` and all after it, taking in what is new on the way."""
        mark = entry // STRIDE
        data = self._absorb(self._marks[mark])
        return _skip_lines(data, entry - mark * STRIDE)

    def _absorb(self, start: int) -> bytes:
        """Read from `start`, a known line start, to the last whole line, and note the lines that were not known."""
        data = _read_all(self._fd, start, MAX_IMA_LOG)
        data = data[: data.rfind(b"\n") + 1]
        position = self._end - start
        while (following := data.find(b"\n", position)) >= 0:
            position = following + 1
            self._lines += 1
            if self._lines % STRIDE == 0:
                self._marks.append(start + position)
        self._end = max(self._end, start + len(data))
        return data

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)


class BootLog:
    """The binary event log of the firmware."""

    def __init__(self, descriptor: int) -> None:
        """Take over an open descriptor."""
        self._fd = descriptor

    def read(self) -> str:
        """Return the whole log in base64. Raises OSError, LogTooLarge."""
        return base64.b64encode(self.read_bytes()).decode("ascii")

    def read_bytes(self) -> bytes:
        """Return the whole log. Raises OSError, LogTooLarge."""
        return _read_all(self._fd, 0, MAX_BOOT_LOG)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)


def _read_all(descriptor: int, offset: int, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while chunk := os.pread(descriptor, CHUNK, offset + size):
        parts.append(chunk)
        size += len(chunk)
        if size > limit:
            raise LogTooLarge(f"a measurement log is larger than {limit} bytes")
    return b"".join(parts)


def _skip_lines(data: bytes, count: int) -> bytes:
    position = 0
    for _ in range(count):
        position = data.find(b"\n", position) + 1
    return data[position:]


def _text(data: bytes) -> str:
    """Decode for JSON. A path that is not UTF-8 cannot be carried by the protocol; the reader will see a mismatch."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        log.warning("The IMA log holds a file name that is not UTF-8; the verifier will not be able to replay it")
        return data.decode("utf-8", "replace")


def _open(path: Path, what: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as problem:
        log.warning("%s %s is not available: %s", what, clean(path), problem.strerror)
        return None


def open_ima_log(path: Path) -> ImaLog | None:
    """Open the IMA log, or say in the log why there is none."""
    descriptor = _open(path, "IMA measurement list")
    return None if descriptor is None else ImaLog(descriptor)


def open_boot_log(path: Path) -> BootLog | None:
    """Open the firmware's event log, or say in the log why there is none."""
    descriptor = _open(path, "Measured boot event log")
    return None if descriptor is None else BootLog(descriptor)


class _BootRecord(msgspec.Struct, frozen=True):
    boot_id: str
    boot_time: int


def boot_time(state_file: Path, proc: Path = Path("/proc")) -> int | None:
    """Return the time of boot in seconds since 1970, the same for the whole life of a boot; None when it is unknown.

    `btime` moves when the clock is stepped (proc(5)), so what was read first in a boot is kept in `state_file`.
    """
    try:
        boot_id = (proc / "sys/kernel/random/boot_id").read_text("ascii").strip()
        seconds = _btime((proc / "stat").read_text("ascii"))
    except (OSError, ValueError):
        return None
    kept = _kept_boot(state_file)
    if kept is not None and kept.boot_id == boot_id:
        return kept.boot_time
    try:
        write_private(state_file, msgspec.json.encode(_BootRecord(boot_id, seconds)))
    except OSError as problem:
        log.warning("Cannot keep the time of boot in %s: %s", clean(state_file), problem.strerror)
    return seconds


def _btime(text: str) -> int:
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == "btime":
            return int(value)
    raise ValueError("no btime")


def _kept_boot(state_file: Path) -> _BootRecord | None:
    try:
        data = read_file(state_file, limit=MAX_STATE)
        return None if data is None else msgspec.json.decode(data, type=_BootRecord)
    except (OSError, UnsafeFile, msgspec.MsgspecError):
        return None
