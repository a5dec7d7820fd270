"""How checks combine to trust, and what readers see at which moment."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limeguard.appraisal.findings import PCRS_MISSING, Finding
from limeguard.appraisal.history import NO_HISTORY
from limeguard.appraisal.verdict import (
    IDENTITY_CHECKS,
    STATE_CHECKS,
    Appraisal,
    Check,
    Condition,
    Integrity,
    Outcome,
    Reachability,
    condition,
)

FOUND = (Finding(PCRS_MISSING),)
some_checks = st.frozensets(st.sampled_from(list(Check)))


@pytest.mark.parametrize(
    ("required", "ran", "findings", "outcome"),
    [
        ({Check.CLOCK}, {Check.CLOCK}, (), Outcome.TRUSTED),
        ({Check.CLOCK}, {Check.CLOCK, Check.IMA_LOG}, (), Outcome.TRUSTED),
        ({Check.CLOCK}, {Check.CLOCK}, FOUND, Outcome.DISTRUSTED),
        ({Check.CLOCK, Check.IMA_LOG}, {Check.CLOCK}, (), Outcome.INCOMPLETE),
        ({Check.CLOCK, Check.IMA_LOG}, {Check.CLOCK}, FOUND, Outcome.DISTRUSTED),
        (set(), {Check.CLOCK}, (), Outcome.INCOMPLETE),
        (set(), set(), (), Outcome.INCOMPLETE),
    ],
)
def test_a_verdict_remembers_what_ran(
    required: set[Check], ran: set[Check], findings: tuple[Finding, ...], outcome: Outcome
) -> None:
    # trust: empty-is-not-valid
    appraisal = Appraisal(frozenset(required), frozenset(ran), findings, NO_HISTORY)
    assert appraisal.outcome is outcome
    assert appraisal.trusted is (outcome is Outcome.TRUSTED)
    assert appraisal.not_run == required - ran


@given(some_checks, some_checks, st.booleans())
def test_trust_needs_something_required_all_of_it_run_and_nothing_found(
    required: frozenset[Check], ran: frozenset[Check], found: bool
) -> None:
    # trust: empty-is-not-valid
    appraisal = Appraisal(required, ran, FOUND if found else (), NO_HISTORY)
    assert appraisal.trusted == (len(required) > 0 and required <= ran and not found)


@given(some_checks)
def test_identity_alone_is_called_so(required: frozenset[Check]) -> None:
    assert Appraisal(required, required, (), NO_HISTORY).identity_only == required.isdisjoint(STATE_CHECKS)
    assert not IDENTITY_CHECKS & STATE_CHECKS


def seen(
    integrity: str = Integrity.TRUSTED,
    reachability: str = Reachability.REACHABLE,
    *,
    paused: bool = False,
    expires: float | None = 110.0,
    proven: float | None = 100.0,
    now: float = 105.0,
) -> Condition:
    return condition(
        integrity=integrity,
        reachability=reachability,
        paused=paused,
        trust_expires_at=expires,
        proven_at=proven,
        now=now,
    )


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (seen(), Condition.TRUSTED),
        (seen(now=109.999), Condition.TRUSTED),
        (seen(now=110.0), Condition.STALE),
        (seen(now=1e12), Condition.STALE),
        (seen(now=91.0), Condition.TRUSTED),
        (seen(now=89.0), Condition.STALE),
        (seen(now=0.0), Condition.STALE),
        (seen(now=float("nan")), Condition.STALE),
        (seen(expires=None), Condition.STALE),
        (seen(proven=None), Condition.STALE),
        (seen(reachability="unreachable"), Condition.UNREACHABLE),
        (seen(reachability="unknown"), Condition.STALE),
        (seen(reachability="ok"), Condition.STALE),
        (seen(integrity="distrusted"), Condition.DISTRUSTED),
        (seen(integrity="distrusted", reachability="unreachable"), Condition.DISTRUSTED),
        (seen(integrity="unknown"), Condition.PENDING),
        (seen(integrity="unknown", reachability="unreachable"), Condition.UNREACHABLE),
        (seen(integrity="TRUSTED"), Condition.PENDING),
        (seen(integrity=""), Condition.PENDING),
        (seen(paused=True), Condition.PAUSED),
        (seen("distrusted", paused=True), Condition.PAUSED),
    ],
)
def test_a_condition_is_computed_for_the_moment_of_asking(result: Condition, expected: Condition) -> None:
    # trust: green-is-recent
    assert result is expected


@given(
    st.sampled_from([*Integrity, "", "x"]),
    st.sampled_from([*Reachability, "", "x"]),
    st.booleans(),
    st.none() | st.floats(),
    st.none() | st.floats(),
    st.floats(),
)
def test_only_one_combination_is_green(
    integrity: str, reachability: str, paused: bool, expires: float | None, proven: float | None, now: float
) -> None:
    # trust: green-is-recent
    shown = seen(integrity, reachability, paused=paused, expires=expires, proven=proven, now=now)
    if shown is Condition.TRUSTED:
        assert (integrity, reachability, paused) == ("trusted", "reachable", False)
        assert expires is not None
        assert now < expires


def test_the_documentation_names_every_check_and_condition() -> None:
    page = (Path(__file__).parents[2] / "docs" / "explain" / "verdicts.md").read_text()
    for name in (*Check, *Condition):
        assert f"`{name.value}`" in page
