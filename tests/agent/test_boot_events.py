"""Counting the events of a firmware log, of both layouts and of logs that end early."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.shared import shared_path

from limeguard.agent.boot_events import count_events

CAPTURED = [("direct-imang", 25), ("grub-ms-systemd", 51), ("uki-snakeoil-imasig", 37)]
"""Captures of virtual machines, and how many events `tpm2_eventlog` lists."""
SIZES = ((0x0004, 20), (0x000B, 32))


def older(kind: int, content: bytes) -> bytes:
    return struct.pack("<II20sI", 0, kind, bytes(20), len(content)) + content


def header() -> bytes:
    algorithms = b"".join(struct.pack("<HH", *size) for size in SIZES)
    return older(3, b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(SIZES)) + algorithms + b"\0")


def newer(content: bytes) -> bytes:
    digests = b"".join(struct.pack("<H", algorithm) + bytes(size) for algorithm, size in SIZES)
    return struct.pack("<III", 0, 1, len(SIZES)) + digests + struct.pack("<I", len(content)) + content


def test_events_of_both_layouts_are_counted() -> None:
    assert count_events(header() + newer(b"a") + newer(b"") + newer(b"ccc")) == 4
    assert count_events(older(1, b"a") + older(1, b"")) == 2
    assert count_events(b"") == 0


def test_a_log_that_ends_early_counts_as_far_as_it_goes() -> None:
    whole = header() + newer(b"abc") * 3
    assert count_events(whole[:-1]) == 3
    assert count_events(header()) == 1
    assert count_events(header()[:-3]) == 0


@pytest.mark.parametrize(("machine", "events"), CAPTURED)
def test_the_log_of_a_machine_is_counted_as_other_tools_count_it(machine: str, events: int) -> None:
    log = shared_path(f"fixtures/vm/{machine}/1-boot/uefi.bin").read_bytes()
    assert count_events(log) == events


@given(st.binary(max_size=300))
def test_no_log_is_an_error(tail: bytes) -> None:
    # trust: safe-parsing
    assert count_events(tail) >= 0
    assert count_events(header() + tail) >= 1
