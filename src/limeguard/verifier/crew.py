"""Several worker processes of one verifier: started, started again when they end, and ended together.

The parent does nothing but that. Everything is imported before the first worker is forked and frozen out of the garbage
collector's sight, so that workers share the pages. Must not know what a worker does.
"""

import contextlib
import ctypes
import gc
import mmap
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from limeguard.telemetry import clean, get_logger

log = get_logger("keylime.verifier")

PAUSES: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds before a worker that ended is started again; the last one repeats."""
GOOD_SECONDS: Final = 60.0
"""A worker that lived so long is started again at once."""
KILL_SECONDS: Final = 15.0
"""Seconds beyond the drain time that workers get to end before they are killed."""
BIND_SECONDS: Final = 2.0
LOOK_SECONDS: Final = 0.2
PR_SET_PDEATHSIG: Final = 1
ENDING: Final = frozenset({signal.SIGTERM, signal.SIGINT})
SIGNALS: Final = ENDING | {signal.SIGCHLD}
MAX_PLACE: Final = 32
"""Bytes of a path below which a folder and a socket named by a worker's id still fit into 107."""


@dataclass(frozen=True, slots=True)
class Member:
    """One of `of` workers. `folder` is where they have sockets for each other; None for one that is alone."""

    number: int = 0
    of: int = 1
    folder: Path | None = None
    port: int | None = None
    ready: Callable[[], None] = lambda: None


@contextlib.contextmanager
def reserved_port(ip: str, port: int) -> Iterator[int]:
    """Hold a port that several processes are going to listen on, and give its number. Raises OSError.

    A port that another program shares in the same way would be taken without anybody's notice: hence a first look
    without sharing.
    """
    family, _, _, _, address = socket.getaddrinfo(ip, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    end = time.monotonic() + BIND_SECONDS
    while True:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
            break
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)  # workers of a parent that has just died
    with socket.socket(family, socket.SOCK_STREAM) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        held.bind(address)
        yield int(held.getsockname()[1])


@dataclass(slots=True)
class _Place:
    """Where one worker works: its process, when it began, and how often in a row it ended early."""

    pid: int = 0
    began: float = 0.0
    failures: int = 0
    start_at: float = 0.0


def private_folder(place: str) -> Path:
    """Make a folder for sockets that only this user may enter: in `place`, or in /tmp where its name is too long.

    The name of a socket has 107 bytes at most (`unix(7)`). Raises OSError.
    """
    roomy = len(os.fsencode(place)) <= MAX_PLACE
    return Path(tempfile.mkdtemp(prefix="limeguard-workers-", dir=place if roomy else "/tmp"))  # noqa: S108 - made anew


class Crew:
    """The workers of one parent."""

    def __init__(self, count: int, work: Callable[[Member], int], *, drain_seconds: float) -> None:
        """Run `work` in `count` processes; what it returns is the exit status of its process."""
        self._work = work
        self._patience = drain_seconds + KILL_SECONDS
        self._places = [_Place() for _ in range(count)]
        self._ready = mmap.mmap(-1, max(count, 1))
        self._said_ready = False

    def run(self, ip: str, port: int, prepare: Callable[[], int]) -> int:
        """Run until a signal asks for the end; return the exit status.

        `prepare` runs first, in a process of its own: it may start loops and threads, which do not survive a fork.
        Raises OSError when the port cannot be had.
        """
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        folder = private_folder(tempfile.gettempdir())
        try:
            with reserved_port(ip, port) as number:
                status = in_a_process(prepare)
                return status or self._watch(ip, number, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)

    def _watch(self, ip: str, port: int, folder: Path) -> int:
        gc.collect()
        gc.freeze()
        count = len(self._places)
        while True:
            now = time.monotonic()
            for number, place in enumerate(self._places):
                if not place.pid and now >= place.start_at:
                    self._start(place, Member(number, count, folder, port, lambda n=number: self._note_ready(n)))  # type: ignore[misc]
            caught = signal.sigtimedwait(SIGNALS, LOOK_SECONDS)
            # A process that was stopped and goes on is given a signal 0, which is none.
            if caught is not None and caught.si_signo in ENDING:
                log.info("Received %s, shutting down", signal.Signals(caught.si_signo).name)
                return self._end()
            if not self._bury():
                self._end()
                return 1
            if not self._said_ready and all(self._ready[:]):
                self._said_ready = True
                log.info("Listening on %s:%d (HTTPS) with %d worker processes...", ip, port, count)

    def _note_ready(self, number: int) -> None:
        self._ready[number] = 1

    def _start(self, place: _Place, member: Member) -> None:
        place.began = time.monotonic()
        place.pid = _forked(lambda: self._work(member))

    def _bury(self) -> bool:
        """Note workers that have ended; False when one did so before it was ready for the first time."""
        for number, place in enumerate(self._places):
            if not place.pid:
                continue
            pid, status = os.waitpid(place.pid, os.WNOHANG)
            if not pid:
                continue
            code = os.waitstatus_to_exitcode(status)
            if not self._ready[number]:
                log.critical("Worker %d cannot start", number)
                place.pid = 0
                return False
            lived = time.monotonic() - place.began
            place.failures = 0 if lived >= GOOD_SECONDS else place.failures + 1
            pause = PAUSES[min(place.failures, len(PAUSES)) - 1] if place.failures else 0.0
            log.error("Worker %d ended (%s); it is started again in %.1f s", number, _said(code), pause)
            place.pid, place.start_at = 0, time.monotonic() + pause
        return True

    def _end(self) -> int:
        """Have all workers drain and end; return the exit status."""
        self._tell(signal.SIGTERM)
        end = time.monotonic() + self._patience
        while any(place.pid for place in self._places) and time.monotonic() < end:
            signal.sigtimedwait({signal.SIGCHLD}, LOOK_SECONDS)
            self._reap(os.WNOHANG)
        if left := [number for number, place in enumerate(self._places) if place.pid]:
            log.error("Workers %s did not end and are killed", left)
            self._tell(signal.SIGKILL)
            self._reap(0)
            return 1
        return 0

    def _tell(self, number: signal.Signals) -> None:
        for place in self._places:
            if place.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(place.pid, number)

    def _reap(self, options: int) -> None:
        for place in self._places:
            if place.pid and os.waitpid(place.pid, options)[0]:
                place.pid = 0


def in_a_process(work: Callable[[], int]) -> int:
    """Run `work` in a process of its own and return its status: what it loads and starts is gone with it."""
    _, status = os.waitpid(_forked(work), 0)
    return os.waitstatus_to_exitcode(status)


def _said(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"status {code}"


def _forked(work: Callable[[], int]) -> int:
    """Run `work` in a new process, which dies with this one; return its number."""
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        _die_with(parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        status = work()
    except BaseException as fault:  # noqa: BLE001 - nothing may come back into the parent's code
        log.critical("A worker ended with a fault: %s", clean(f"{type(fault).__name__}: {fault}"))
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _die_with(parent: int) -> None:
    """Have the system kill this process when its parent dies: a verifier that is killed is gone as a whole."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
