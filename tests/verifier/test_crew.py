"""The parent of several workers, as a process: starts, starts again, drains, and never leaves a worker behind."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from limeguard.verifier import crew as module
from limeguard.verifier.crew import reserved_port
from limeguard.verifier.settings import VerifierSettings

pytestmark = pytest.mark.services

SCRIPT = """
import os, signal, sys, time
from limeguard.verifier import crew
crew.KILL_SECONDS = 1.0
crew.PAUSES = (0.05,)

def say(*words):  # one write for a line: several processes share the file
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def work(member):
    say("worker", member.number, os.getpid(), member.port, member.folder)
    {body}
    member.ready()
    end = []
    signal.signal(signal.SIGTERM, lambda *_: end.append(1))
    while not end or {stubborn}:
        time.sleep(0.01)
    say("drained", member.number)
    return 0

def prepare():
    say("prepared", os.getpid())
    return {prepared}

status = crew.Crew({count}, work, drain_seconds=0.1).run("127.0.0.1", 0, prepare)
say("end", status)
sys.exit(status)
"""


class Parent:
    """A parent that runs, and what it and its workers have said."""

    def __init__(self, folder: Path, **changes: object) -> None:
        self._out = folder / "out"
        script = SCRIPT.format(**{"body": "", "stubborn": False, "prepared": 0, "count": 2, **changes})
        with self._out.open("w") as out:
            self.process = subprocess.Popen([sys.executable, "-c", script], stdout=out, stderr=subprocess.STDOUT)

    def lines(self, word: str) -> list[list[str]]:
        return [line.split() for line in self._out.read_text().splitlines() if line.startswith(f"{word} ")]

    def wait(self, holds: Callable[[], object], seconds: float = 15.0) -> None:
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, self._out.read_text()
            time.sleep(0.02)

    def pids(self) -> list[int]:
        return [int(line[2]) for line in self.lines("worker")]


@pytest.fixture
def parents(tmp_path: Path) -> Iterator[Callable[..., Parent]]:
    made: list[Parent] = []

    def make(**changes: object) -> Parent:
        made.append(Parent(tmp_path, **changes))
        return made[-1]

    yield make
    for parent in made:
        parent.process.kill()
        parent.process.wait()


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_workers_drain_when_the_parent_is_asked_to_end(parents: Callable[..., Parent]) -> None:
    parent = parents(count=3)
    parent.wait(lambda: len(parent.lines("worker")) == 3)
    assert len({line[3] for line in parent.lines("worker")}) == 1, "one port for all"
    folder = Path(parent.lines("worker")[0][4])
    assert folder.stat().st_mode & 0o777 == 0o700
    time.sleep(0.3)
    parent.process.send_signal(signal.SIGTERM)
    assert parent.process.wait(10) == 0
    assert sorted(line[1] for line in parent.lines("drained")) == ["0", "1", "2"]
    assert all(map(ended, parent.pids()))
    assert not folder.exists()


def test_a_worker_that_dies_is_started_again(parents: Callable[..., Parent]) -> None:
    parent = parents()
    parent.wait(lambda: len(parent.lines("worker")) == 2)
    time.sleep(0.3)
    first = parent.pids()[0]
    os.kill(first, signal.SIGKILL)
    parent.wait(lambda: len(parent.lines("worker")) == 3)
    assert parent.lines("worker")[2][1] == parent.lines("worker")[0][1], "in the same place"
    assert parent.process.poll() is None


def test_a_worker_that_cannot_start_ends_all(parents: Callable[..., Parent]) -> None:
    parent = parents(body="if member.number == 1: return 1")
    assert parent.process.wait(15) == 1
    assert all(map(ended, parent.pids()))


def test_a_fault_in_a_worker_does_not_run_the_parents_code_twice(parents: Callable[..., Parent]) -> None:
    parent = parents(body="raise SystemExit(7)")
    assert parent.process.wait(15) == 1
    assert parent.lines("end") == [["end", "1"]]


def test_nothing_is_started_when_the_preparation_fails(parents: Callable[..., Parent]) -> None:
    parent = parents(prepared=1)
    assert parent.process.wait(15) == 1
    assert not parent.lines("worker")


def test_a_worker_that_does_not_end_is_killed(parents: Callable[..., Parent]) -> None:
    # trust: bounded
    parent = parents(stubborn=True)
    parent.wait(lambda: len(parent.lines("worker")) == 2)
    time.sleep(0.3)
    parent.process.send_signal(signal.SIGTERM)
    assert parent.process.wait(15) == 1
    assert all(map(ended, parent.pids()))


def test_workers_die_with_their_parent(parents: Callable[..., Parent]) -> None:
    # trust: fail-closed - nobody would start them again, and a new parent starts its own
    parent = parents()
    parent.wait(lambda: len(parent.lines("worker")) == 2)
    time.sleep(0.2)
    parent.process.kill()
    parent.process.wait()
    parent.wait(lambda: all(map(ended, parent.pids())))


def test_a_parent_that_was_stopped_goes_on(parents: Callable[..., Parent]) -> None:
    parent = parents()
    parent.wait(lambda: len(parent.lines("worker")) == 2)
    time.sleep(0.3)
    for _ in range(5):
        for number in (signal.SIGSTOP, signal.SIGCONT):
            parent.process.send_signal(number)
            time.sleep(0.05)
    assert parent.process.poll() is None
    parent.process.send_signal(signal.SIGTERM)
    assert parent.process.wait(10) == 0


def test_a_port_that_somebody_shares_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BIND_SECONDS", 0.1)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(OSError, match="in use"), reserved_port("127.0.0.1", other.getsockname()[1]):
            pass


def test_a_reserved_port_takes_no_connection_and_lets_workers_listen() -> None:
    with reserved_port("127.0.0.1", 0) as port, socket.socket() as worker:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 1)
        worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        worker.bind(("127.0.0.1", port))
        worker.listen()
        for _ in range(20):  # none is lost to the reservation
            socket.create_connection(("127.0.0.1", port), 1).close()


@pytest.mark.parametrize(
    ("number", "most", "cores", "workers"),
    [(0, 16, 2, 2), (0, 16, 64, 16), (0, 0, 64, 64), (5, 2, 1, 5), (0, 1, 8, 1), (0, 16, 0, 1)],
)
def test_how_many_workers_there_are(number: int, most: int, cores: int, workers: int) -> None:
    assert VerifierSettings(num_workers=number, max_workers=most).workers(cores) == workers


def test_a_socket_fits_into_the_private_folder_however_long_the_name_of_the_temporary_one_is(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    for place in (str(deep), "/tmp"):
        folder = module.private_folder(place)
        try:
            assert folder.stat().st_mode & 0o777 == 0o700
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(str(folder / f"{uuid.uuid4()}.relay"))
        finally:
            shutil.rmtree(folder)
