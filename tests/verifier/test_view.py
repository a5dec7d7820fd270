"""What readers are told, for every state and moment: no answer is greener than another, and none outlives its proof."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.fakes.nodes import make_record

from limeguard.appraisal.verdict import Condition, Integrity, Reachability
from limeguard.store.node_record import NodeRecord, StoredFinding
from limeguard.verifier.supervision import OPERATIONAL_STATES, Phase
from limeguard.verifier.view import (
    agent_status,
    attestation_status,
    condition_of,
    node_list,
    node_view,
    operational_state,
    shows_trust,
)

NOW = 1_767_607_200.0
GREEN: dict[str, Any] = {
    "phase": Phase.ATTESTING,
    "integrity": Integrity.TRUSTED,
    "reachability": Reachability.REACHABLE,
    "trust_expires_at": NOW + 10,
    "proven_at": NOW,
}

records = st.builds(
    lambda phase, integrity, reachability, expires, proven: make_record(
        phase=phase, integrity=integrity, reachability=reachability, trust_expires_at=expires, proven_at=proven
    ),
    st.sampled_from(Phase),
    st.sampled_from(Integrity),
    st.sampled_from(Reachability),
    st.none() | st.floats(NOW - 100, NOW + 100),
    st.none() | st.floats(NOW - 100, NOW + 100),
)


@given(records, st.floats(NOW - 100, NOW + 100))
def test_every_answer_says_the_same_of_a_node(record: NodeRecord, now: float) -> None:
    # trust: green-is-recent
    condition = condition_of(record.state, now)
    assert shows_trust(record.state, now) is (condition is Condition.TRUSTED)
    assert node_view(record, now).condition == condition.value
    listed = node_list([record], now)
    assert listed.nodes[0].condition == condition.value
    assert {name for name, number in listed.counts.items() if number} == {condition.value}
    status = agent_status(record, now, 2.0)
    assert (status.attestation_status == "PASS") is (condition is Condition.TRUSTED)
    if condition is Condition.DISTRUSTED:
        assert status.attestation_status == "FAIL"


@given(records, st.floats(NOW - 100, NOW + 100))
def test_green_needs_an_unexpired_proof_of_a_node_that_answers(record: NodeRecord, now: float) -> None:
    # trust: green-is-recent
    state = record.state
    if shows_trust(state, now):
        assert state.integrity == "trusted"
        assert state.reachability == "reachable"
        assert state.phase not in {"stopped", "terminated"}
        assert state.trust_expires_at is not None
        assert now < state.trust_expires_at
        assert not shows_trust(state, state.trust_expires_at)
        assert not shows_trust(state, state.trust_expires_at + 1e6)


def test_one_moment_makes_green_stale() -> None:
    # trust: green-is-recent
    record = make_record(**GREEN)
    assert condition_of(record.state, NOW + 9.999) is Condition.TRUSTED
    assert condition_of(record.state, NOW + 10) is Condition.STALE
    assert attestation_status(record.state, NOW + 10) == "TIMEOUT"


def test_a_clock_that_was_set_back_makes_nothing_green_for_longer() -> None:
    # trust: green-is-recent
    record = make_record(**GREEN)
    assert condition_of(record.state, NOW - 3600) is Condition.STALE


@pytest.mark.parametrize("junk", ["", "TRUSTED", "trusted ", "yes", "1"])
def test_a_row_with_values_that_nobody_knows_is_not_green(junk: str) -> None:
    # trust: fail-closed
    state = make_record(**GREEN).state
    assert not shows_trust(replace(state, integrity=junk), NOW)
    assert not shows_trust(replace(state, reachability=junk), NOW)
    assert operational_state(replace(state, phase=junk)) == 7


@pytest.mark.parametrize("phase", Phase)
def test_the_state_is_the_number_that_keylime_uses(phase: Phase) -> None:
    assert operational_state(make_record(phase=phase).state) == OPERATIONAL_STATES[phase]


@pytest.mark.parametrize(("interval", "period", "longest"), [(2.0, "2s", "10s"), (60.0, "60s", "300s")])
def test_the_periods_are_told_in_whole_seconds(interval: float, period: str, longest: str) -> None:
    status = agent_status(make_record(), NOW, interval)
    assert (status.attestation_period, status.maximum_attestation_interval) == (period, longest)


def test_times_that_never_came_are_null_in_our_view_and_zero_on_the_wire() -> None:
    record = make_record()
    view, status = node_view(record, NOW), agent_status(record, NOW, 2.0)
    assert (view.last_answer_at, view.last_trusted_at, view.trust_expires_at) == (None, None, None)
    assert (status.last_received_quote, status.last_successful_attestation) == (0, 0)


def test_findings_come_with_their_context_and_advice() -> None:
    finding = StoredFinding(
        id="pcr.not-allowed",
        event_id="pcr_validation.invalid_pcr_23",
        severity=6,
        label="emergency",
        context='{"pcr": 23}',
        advice="Look.",
        at=NOW,
    )
    record = make_record()
    record = replace(record, state=replace(record.state, findings=(finding,)))
    (shown,) = node_view(record, NOW).findings
    assert (shown.severity, shown.context, shown.advice) == ("emergency", {"pcr": 23}, "Look.")


def test_a_list_is_in_the_order_of_ids_and_counts_every_condition() -> None:
    listed = node_list([make_record("b"), make_record("a", **GREEN)], NOW)
    assert [line.id for line in listed.nodes] == ["a", "b"]
    assert listed.counts == {**dict.fromkeys((each.value for each in Condition), 0), "trusted": 1, "pending": 1}


def test_a_node_of_which_nothing_is_asked_but_its_identity_is_marked() -> None:
    # trust: empty-is-not-valid
    record = make_record(**GREEN)
    checks = ("algorithms", "clock", "freshness", "pcr-selection", "quote-signature", "transport-key")
    assert node_view(replace(record, state=replace(record.state, required_checks=checks)), NOW).identity_only
    more = (*checks, "pcr-policy")
    assert not node_view(replace(record, state=replace(record.state, required_checks=more)), NOW).identity_only
