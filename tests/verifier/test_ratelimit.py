"""How often somebody may ask."""

from hypothesis import given
from hypothesis import strategies as st

from limeguard.verifier.push.ratelimit import MAX_KEYS, RateLimit


def test_blocks_double_up_to_an_hour_and_are_forgiven() -> None:
    limit, now = RateLimit(1, 60.0), 0.0
    blocks = []
    for _ in range(8):
        assert limit.check("k", now) is None
        block = limit.check("k", now)
        assert block is not None
        blocks.append(block)
        assert limit.check("k", now + block - 0.5) == 1
        now += block
    assert blocks == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    now += 8_000
    assert limit.check("k", now) is None
    assert limit.check("k", now) == 60


def test_no_limit_lets_all_pass() -> None:
    limit = RateLimit(0, 60.0)
    assert [limit.check("k", 0.0) for _ in range(1000)] == [None] * 1000


@given(st.lists(st.floats(0, 30), max_size=60), st.integers(1, 5), st.floats(1, 60))
def test_no_window_ever_sees_more_than_the_limit(gaps: list[float], most: int, window: float) -> None:
    # trust: bounded
    limit, now, passed = RateLimit(most, window), 0.0, []
    for gap in gaps:
        now += gap
        wait = limit.check("k", now)
        if wait is None:
            passed.append(now)
        else:
            assert 1 <= wait <= 3600
    for at in passed:
        assert sum(1 for other in passed if at - window < other <= at) <= most


def test_the_number_of_keys_is_bounded() -> None:
    # trust: bounded
    limit = RateLimit(1, 60.0)
    for number in range(MAX_KEYS + 1000):
        limit.check(f"k{number}", 0.0)
    assert len(limit) <= MAX_KEYS
