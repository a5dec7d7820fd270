"""A TPM's clock and counters move only as a TPM can move them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limeguard.appraisal.clock import Since, check_clock
from limeguard.appraisal.findings import CLOCK_BACKWARDS, CLOCK_RESETS, CLOCK_RESTARTS, CLOCK_UNSAFE, FindingKind
from limeguard.evidence.tpm.structures import ClockInfo

BASE = ClockInfo(1000, 5, 3, safe=True)
UNSAFE = ClockInfo(1000, 5, 3, safe=False)


@pytest.mark.parametrize(
    ("before", "now", "since", "kind"),
    [
        (None, ClockInfo(0, 0, 0, safe=False), Since.FIRST, None),
        (None, BASE, Since.FIRST, None),
        (BASE, ClockInfo(1001, 5, 3, safe=True), Since.SAME_BOOT, None),
        (BASE, ClockInfo(10**15, 5, 3, safe=True), Since.SAME_BOOT, None),
        (BASE, ClockInfo(1000, 5, 3, safe=True), Since.SAME_BOOT, CLOCK_BACKWARDS),
        (BASE, ClockInfo(999, 5, 3, safe=True), Since.SAME_BOOT, CLOCK_BACKWARDS),
        (BASE, ClockInfo(1001, 5, 3, safe=False), Since.SAME_BOOT, CLOCK_UNSAFE),
        (UNSAFE, ClockInfo(1001, 5, 3, safe=False), Since.SAME_BOOT, None),
        (UNSAFE, ClockInfo(1001, 5, 3, safe=True), Since.SAME_BOOT, None),
        (UNSAFE, ClockInfo(1000, 5, 3, safe=False), Since.SAME_BOOT, CLOCK_BACKWARDS),
        (BASE, ClockInfo(1001, 5, 4, safe=True), Since.RESUMED, None),
        (BASE, ClockInfo(999, 5, 4, safe=True), Since.SAME_BOOT, CLOCK_BACKWARDS),
        (BASE, ClockInfo(1001, 5, 4, safe=False), Since.SAME_BOOT, CLOCK_UNSAFE),
        (BASE, ClockInfo(1001, 5, 2, safe=True), Since.SAME_BOOT, CLOCK_RESTARTS),
        (BASE, ClockInfo(1001, 4, 3, safe=True), Since.SAME_BOOT, CLOCK_RESETS),
        (BASE, ClockInfo(1001, 0, 0, safe=True), Since.SAME_BOOT, CLOCK_RESETS),
        (BASE, ClockInfo(1, 6, 0, safe=False), Since.REBOOTED, None),
        (BASE, ClockInfo(2000, 6, 0, safe=True), Since.REBOOTED, None),
        (BASE, ClockInfo(2000, 6, 4, safe=True), Since.REBOOTED, None),
        (BASE, ClockInfo(1, 4000, 0, safe=True), Since.REBOOTED, None),
    ],
)
def test_the_rules_of_clock_and_counters(
    before: ClockInfo | None, now: ClockInfo, since: Since, kind: FindingKind | None
) -> None:
    # trust: clock-and-reset
    step = check_clock(before, now)
    assert step.since is since
    assert (step.finding and step.finding.kind) is kind


clocks = st.builds(ClockInfo, st.integers(0, 2**64 - 1), st.integers(0, 3), st.integers(0, 3), safe=st.booleans())


@given(clocks, clocks)
def test_nothing_goes_back_unnoticed(before: ClockInfo, now: ClockInfo) -> None:
    # trust: clock-and-reset
    passed = check_clock(before, now).finding is None
    if passed:
        earlier = (before.reset_count, before.restart_count, before.clock)
        assert (now.reset_count, now.restart_count, now.clock) > earlier


@given(clocks, clocks)
def test_of_two_readings_at_most_one_order_is_good(one: ClockInfo, other: ClockInfo) -> None:
    # trust: clock-and-reset
    assert check_clock(one, other).finding is not None or check_clock(other, one).finding is not None


@given(clocks)
def test_the_same_reading_twice_is_a_replay(reading: ClockInfo) -> None:
    # trust: clock-and-reset
    step = check_clock(reading, reading)
    assert step.finding is not None
    assert step.finding.kind is CLOCK_BACKWARDS


def test_the_finding_shows_both_readings() -> None:
    step = check_clock(BASE, ClockInfo(999, 5, 3, safe=True))
    assert step.finding is not None
    assert step.finding.event_id == "qoute_validation.quote_validation"
    assert step.finding.context == {
        "before": "clock 1000, resets 5, restarts 3, safe 1",
        "now": "clock 999, resets 5, restarts 3, safe 1",
    }
