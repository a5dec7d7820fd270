"""Partial reads of the IMA log, the boot log, and a time of boot that does not move."""

import base64
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limeguard.agent import logs
from limeguard.agent.logs import LogPart, LogTooLarge, boot_time, open_boot_log, open_ima_log


def line(number: int) -> str:
    return f"10 {number:040x} ima-ng sha256:{number:064x} /usr/bin/file-{number}\n"


def write(path: Path, count: int) -> None:
    path.write_text("".join(line(number) for number in range(count)))


@pytest.fixture
def ima_file(tmp_path: Path) -> Path:
    path = tmp_path / "ascii_runtime_measurements"
    write(path, 10)
    return path


def test_a_part_starts_at_the_entry_asked_for(ima_file: Path) -> None:
    log = open_ima_log(ima_file)
    assert log is not None
    assert log.read_from(0) == LogPart("".join(line(number) for number in range(10)), 0)
    assert log.read_from(7) == LogPart(line(7) + line(8) + line(9), 7)
    log.close()


def test_the_entry_after_the_last_gives_an_empty_part(ima_file: Path) -> None:
    log = open_ima_log(ima_file)
    assert log is not None
    assert log.read_from(10) == LogPart("", 10)
    log.close()


def test_an_entry_beyond_the_log_gives_all_of_it(ima_file: Path) -> None:
    log = open_ima_log(ima_file)
    assert log is not None
    assert log.read_from(11).first == 0
    assert log.read_from(10**17) == LogPart("".join(line(number) for number in range(10)), 0)
    log.close()


def test_a_line_that_is_still_being_written_waits(ima_file: Path) -> None:
    log = open_ima_log(ima_file)
    assert log is not None
    with ima_file.open("a") as file:
        file.write(line(10)[:20])
        file.flush()
        assert log.read_from(10) == LogPart("", 10)
        file.write(line(10)[20:])
    assert log.read_from(10) == LogPart(line(10), 10)
    log.close()


def test_a_shorter_file_starts_over(ima_file: Path) -> None:
    log = open_ima_log(ima_file)
    assert log is not None
    assert log.read_from(10).text == ""
    write(ima_file, 3)
    assert log.read_from(10) == LogPart(line(0) + line(1) + line(2), 0)
    ima_file.write_text("")
    assert log.read_from(3) == LogPart("", 0)
    log.close()


# trust: bounded
def test_a_repeated_read_at_the_end_reads_only_what_is_new(ima_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(ima_file, 5000)
    log = open_ima_log(ima_file)
    assert log is not None
    log.read_from(0)
    taken: list[int] = []
    read = os.pread

    def counted(descriptor: int, size: int, offset: int) -> bytes:
        data = read(descriptor, size, offset)
        taken.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", counted)
    with ima_file.open("a") as file:
        file.write(line(5000))
    assert log.read_from(5000) == LogPart(line(5000), 5000)
    assert sum(taken) == len(line(5000))
    taken.clear()
    assert log.read_from(4990).first == 4990
    assert sum(taken) < (logs.STRIDE + 20) * len(line(0))
    log.close()


# trust: bounded
def test_a_log_beyond_the_bound_is_not_read(ima_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_IMA_LOG", 100)
    log = open_ima_log(ima_file)
    assert log is not None
    with pytest.raises(LogTooLarge):
        log.read_from(0)
    log.close()


def test_a_name_that_is_not_utf8_does_not_end_attestation(ima_file: Path) -> None:
    ima_file.write_bytes(line(0).encode() + b"10 00 ima-ng sha256:00 /tmp/\xff\n")
    log = open_ima_log(ima_file)
    assert log is not None
    part = log.read_from(1)
    assert part.text.endswith("/tmp/\N{REPLACEMENT CHARACTER}\n")
    log.close()


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 3000)), max_size=8))
def test_any_sequence_of_growth_and_reads_gives_whole_lines(
    steps: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("ima") / "log"
    path.write_text("")
    log = open_ima_log(path)
    assert log is not None
    lines: list[str] = []
    for growth, entry in steps:
        new = [line(len(lines) + number) for number in range(growth)]
        lines += new
        with path.open("a") as file:
            file.write("".join(new))
        expected = LogPart("".join(lines[entry:]), entry) if entry <= len(lines) else LogPart("".join(lines), 0)
        assert log.read_from(entry) == expected
    log.close()


def test_a_missing_log_is_a_warning_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert open_ima_log(tmp_path / "none") is None
    assert open_boot_log(tmp_path / "none") is None
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


def test_the_boot_log_comes_whole_in_base64(tmp_path: Path) -> None:
    path = tmp_path / "binary_bios_measurements"
    path.write_bytes(bytes(range(256)) * 10_000)
    log = open_boot_log(path)
    assert log is not None
    assert base64.b64decode(log.read()) == path.read_bytes()
    assert base64.b64decode(log.read()) == path.read_bytes()
    log.close()


def make_proc(folder: Path, boot_id: str, btime: int) -> Path:
    (folder / "sys/kernel/random").mkdir(parents=True, exist_ok=True)
    (folder / "sys/kernel/random/boot_id").write_text(boot_id + "\n")
    (folder / "stat").write_text(f"cpu 1 2 3\nctxt 4\nbtime {btime}\nprocesses 9\n")
    return folder


def test_the_time_of_boot_stays_the_same_when_the_clock_is_stepped(tmp_path: Path) -> None:
    state = tmp_path / "boot_time.json"
    assert boot_time(state, make_proc(tmp_path / "proc", "one", 1000)) == 1000
    assert boot_time(state, make_proc(tmp_path / "proc", "one", 2000)) == 1000
    assert boot_time(state, make_proc(tmp_path / "proc", "two", 3000)) == 3000
    assert state.stat().st_mode & 0o777 == 0o600


def test_an_unreadable_proc_gives_no_time(tmp_path: Path) -> None:
    assert boot_time(tmp_path / "state", tmp_path / "nowhere") is None
    folder = make_proc(tmp_path / "proc", "one", 1)
    (folder / "stat").write_text("cpu 1\n")
    assert boot_time(tmp_path / "state", folder) is None


def test_a_spoilt_state_file_is_replaced(tmp_path: Path) -> None:
    state = tmp_path / "boot_time.json"
    state.write_text("{")
    assert boot_time(state, make_proc(tmp_path / "proc", "one", 1000)) == 1000
    assert boot_time(state, make_proc(tmp_path / "proc", "one", 5)) == 1000
