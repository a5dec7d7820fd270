"""The bounded cursor."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limeguard.evidence.reader import MalformedEvidence, Reader


def test_fields_come_in_order_and_errors_name_their_place() -> None:
    reader = Reader(bytes.fromhex("01 0002 00000003 0000000000000004 0500 06000000 0002ffee"), "THING")
    assert (reader.u8("a"), reader.u16("b"), reader.u32("c"), reader.u64("d")) == (1, 2, 3, 4)
    assert (reader.u16_le("e"), reader.u32_le("f"), reader.sized("g", 2)) == (5, 6, b"\xff\xee")
    reader.finish()
    with pytest.raises(MalformedEvidence) as problem:
        reader.u8("h")
    assert problem.value.place == "THING.h"


# trust: bounded
def test_a_size_over_its_limit_is_refused_before_anything_is_taken() -> None:
    with pytest.raises(MalformedEvidence, match="at most 3"):
        Reader(b"\x00\x04abcd", "THING").sized("name", 3)


def test_bytes_left_over_are_refused() -> None:
    with pytest.raises(MalformedEvidence, match="1 bytes too many"):
        Reader(b"x", "THING").finish()


@given(st.binary(max_size=64), st.integers(-5, 100))
def test_a_reader_never_runs_past_the_end(data: bytes, count: int) -> None:
    reader = Reader(data, "THING")
    try:
        taken = reader.take(count, "field")
    except MalformedEvidence:
        assert count < 0 or count > len(data)
        assert reader.remaining == len(data)
    else:
        assert taken == data[:count]
