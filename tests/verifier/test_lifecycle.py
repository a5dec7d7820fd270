"""The supervision machine: a table of what leads where, and what holds after every sequence of events."""

from collections.abc import Sequence
from dataclasses import replace as with_fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from limeguard.appraisal import findings as known
from limeguard.appraisal.findings import Finding
from limeguard.appraisal.verdict import Condition, Integrity, Reachability
from limeguard.policy.severity import DEFAULT_LABELS, parse_severity
from limeguard.verifier.lifecycle import (
    Alarm,
    DeleteRequested,
    Effect,
    Enrolled,
    Event,
    KeyDelivered,
    KeyDeliveryFailed,
    NoticeKind,
    Notify,
    OurFault,
    Persist,
    Reactivated,
    Remove,
    Restarted,
    RoundDistrusted,
    RoundTrusted,
    Schedule,
    Step,
    StopRequested,
    SupervisionEnded,
    UnexpectedStatus,
    Unreachable,
    Unschedule,
    VersionAnswered,
    step,
    supervised,
    worst,
)
from limeguard.verifier.supervision import (
    MAX_FAULT_PAUSE,
    MIN_PAUSE,
    OPERATIONAL_STATES,
    PAUSED,
    Job,
    Phase,
    Rules,
    Supervision,
    default_trust_lifetime,
)

SEVERITY = parse_severity(DEFAULT_LABELS, [(r"pcr_validation\.invalid_pcr_23", "warning"), (".*", "emergency")])
RULES = Rules(
    quote_interval=2.0,
    retry_interval=2.0,
    exponential_backoff=True,
    max_retries=2,
    trust_lifetime=64.0,
    severity=SEVERITY,
)
GOING_ON = with_fields(RULES, continue_after_failure=True)

MILD = Finding(known.PCR_VALUE, {"pcr": 23})
SEVERE = Finding(known.PCR_VALUE, {"pcr": 7})
FORGED = Finding(known.QUOTE_SIGNATURE)

NOW, LATER = Persist(now=True), Persist(now=False)
FULL, PARTIAL, DELIVER = Job.FULL_ROUND, Job.PARTIAL_ROUND, Job.DELIVER_KEY

ATTESTING = Supervision(
    phase=Phase.ATTESTING,
    integrity=Integrity.TRUSTED,
    reachability=Reachability.REACHABLE,
    trust_expires_at=164.0,
    proven_at=100.0,
    attestation_count=3,
    job=PARTIAL,
)


def run(state: Supervision, events: Sequence[Event], rules: Rules = RULES) -> Step:
    """Return the last step."""
    taken = Step(state)
    for event in events:
        taken = step(taken.state, event, rules)
    return taken


def begun(*, has_v: bool = False, **changes: object) -> Supervision:
    return replace(step(Supervision(has_v=has_v), Enrolled(), RULES).state, **changes)


def changed(before: Supervision, after: Supervision) -> dict[str, object]:
    """Return the fields that differ."""
    names = before.__struct_fields__
    return {name: getattr(after, name) for name in names if getattr(after, name) != getattr(before, name)}


# --- the good way ---------------------------------------------------------------------------------------------------


def test_an_enrolled_node_is_asked_at_once_for_everything() -> None:
    assert step(Supervision(), Enrolled(), RULES) == Step(Supervision(job=FULL), (NOW, Schedule(0.0, FULL)))


def test_a_good_round_makes_trust_that_expires() -> None:
    taken = run(begun(), [RoundTrusted(100.0, new_key=True)])
    assert taken.effects == (NOW, Schedule(2.0, PARTIAL))
    assert changed(begun(), taken.state) == {
        "phase": Phase.ATTESTING,
        "integrity": Integrity.TRUSTED,
        "reachability": Reachability.REACHABLE,
        "trust_expires_at": 164.0,
        "proven_at": 100.0,
        "attestation_count": 1,
        "job": PARTIAL,
    }


def test_a_further_good_round_only_renews_the_expiry() -> None:
    taken = run(ATTESTING, [RoundTrusted(102.0)])
    assert taken.effects == (LATER, Schedule(2.0, PARTIAL))
    assert changed(ATTESTING, taken.state) == {"trust_expires_at": 166.0, "proven_at": 102.0, "attestation_count": 4}


def test_trust_is_green_only_until_its_deadline() -> None:
    # trust: green-is-recent
    assert ATTESTING.condition(100.0) is Condition.TRUSTED
    assert ATTESTING.condition(163.9) is Condition.TRUSTED
    assert ATTESTING.condition(164.0) is Condition.STALE
    assert ATTESTING.condition(1e9) is Condition.STALE


def test_v_is_delivered_after_the_first_good_round() -> None:
    taken = run(begun(has_v=True), [RoundTrusted(100.0, new_key=True)])
    assert taken.state.phase is Phase.PROVIDING_V
    assert taken.effects == (NOW, Schedule(0.0, DELIVER))
    taken = run(taken.state, [KeyDelivered()])
    assert (taken.state.phase, taken.state.key_delivered) == (Phase.ATTESTING, True)
    assert taken.effects == (NOW, Schedule(2.0, PARTIAL))
    assert run(taken.state, [RoundTrusted(104.0)]).effects == (LATER, Schedule(2.0, PARTIAL))


@pytest.mark.parametrize(
    ("events", "delivers"),
    [
        ([RoundTrusted(110.0)], False),
        ([RoundTrusted(110.0, new_key=True)], True),
        ([Reactivated(), RoundTrusted(110.0)], True),
        ([Unreachable("reset"), RoundTrusted(110.0)], False),
        ([Unreachable("reset"), RoundTrusted(110.0, new_key=True)], True),
        ([RoundDistrusted((MILD,)), RoundTrusted(110.0)], False),
        ([Restarted(), RoundTrusted(110.0)], True),
    ],
)
def test_v_is_delivered_again_when_the_agent_may_lack_it(events: list[Event], delivers: bool) -> None:
    delivered = run(begun(has_v=True), [RoundTrusted(100.0, new_key=True), KeyDelivered()])
    taken = run(delivered.state, events)
    assert (taken.effects[-1] == Schedule(0.0, DELIVER)) is delivers
    assert (taken.state.phase is Phase.PROVIDING_V) is delivers


# --- bad evidence ---------------------------------------------------------------------------------------------------


def test_severe_findings_end_trust_and_supervision() -> None:
    taken = run(ATTESTING, [RoundDistrusted((SEVERE,))])
    assert taken.effects == (
        NOW,
        Notify(NoticeKind.REVOCATION, SEVERE, 6, "emergency"),
        Unschedule(),
        SupervisionEnded(SEVERE),
    )
    assert changed(ATTESTING, taken.state) == {
        "phase": Phase.CONDEMNED,
        "integrity": Integrity.DISTRUSTED,
        "trust_expires_at": None,
        "severity_level": 6,
        "last_event_id": "pcr_validation.invalid_pcr_7",
        "job": None,
    }
    assert taken.state.condition(100.0) is Condition.DISTRUSTED


def test_mild_findings_end_trust_and_the_next_round_comes_after_the_interval() -> None:
    taken = run(ATTESTING, [RoundDistrusted((MILD,))])
    assert taken.effects == (NOW, Notify(NoticeKind.REVOCATION, MILD, 2, "warning"), Schedule(2.0, FULL))
    assert (taken.state.phase, taken.state.integrity) == (Phase.DOUBTED, Integrity.DISTRUSTED)


def test_a_good_round_after_mild_findings_returns_to_attesting() -> None:
    taken = run(ATTESTING, [RoundDistrusted((MILD,)), RoundTrusted(110.0)])
    assert taken.effects == (NOW, Schedule(2.0, PARTIAL))
    assert (taken.state.phase, taken.state.integrity) == (Phase.ATTESTING, Integrity.TRUSTED)
    assert (taken.state.severity_level, taken.state.last_event_id) == (2, "pcr_validation.invalid_pcr_23")


def test_the_same_trouble_round_after_round_is_told_once() -> None:
    taken = run(ATTESTING, [RoundDistrusted((MILD,)), RoundDistrusted((MILD,))])
    assert taken.effects == (LATER, Schedule(2.0, FULL))


def test_trouble_after_a_good_round_is_told_again() -> None:
    taken = run(ATTESTING, [RoundDistrusted((MILD,)), RoundTrusted(110.0), RoundDistrusted((MILD,))])
    assert Notify(NoticeKind.REVOCATION, MILD, 2, "warning") in taken.effects


def test_worse_trouble_is_told_and_kept() -> None:
    taken = run(ATTESTING, [RoundDistrusted((MILD,)), RoundDistrusted((MILD, SEVERE))])
    assert Notify(NoticeKind.REVOCATION, SEVERE, 6, "emergency") in taken.effects
    assert taken.state.last_event_id == "pcr_validation.invalid_pcr_7"
    assert taken.state.phase is Phase.CONDEMNED


def test_what_cannot_be_undone_is_severe_whatever_the_rules_say() -> None:
    rules = with_fields(RULES, severity=parse_severity(DEFAULT_LABELS, [(".*", "info")]))
    assert run(ATTESTING, [RoundDistrusted((SEVERE,))], rules).state.phase is Phase.DOUBTED
    assert run(ATTESTING, [RoundDistrusted((FORGED,))], rules).state.phase is Phase.CONDEMNED


def test_the_first_of_the_worst_findings_is_reported() -> None:
    other = Finding(known.PCRS_MISSING)
    assert worst((MILD, SEVERE, other), SEVERITY) == (SEVERE, 6, "emergency")


def test_a_condemned_node_is_asked_on_when_so_configured_and_stays_condemned() -> None:
    condemned = run(ATTESTING, [RoundDistrusted((SEVERE,))], GOING_ON)
    assert condemned.effects[-1] == Schedule(2.0, FULL)
    events: list[Event] = [RoundTrusted(110.0), RoundDistrusted((MILD,)), UnexpectedStatus(503), Unreachable("gone")]
    for event in events:
        taken = run(condemned.state, [event] * 9, GOING_ON)
        assert (taken.state.phase, taken.state.integrity) == (Phase.CONDEMNED, Integrity.DISTRUSTED)
        assert isinstance(taken.effects[-1], Schedule)
        assert not any(isinstance(effect, Notify) for effect in taken.effects)


def test_a_round_without_findings_cannot_be_distrusted() -> None:
    # trust: fail-closed
    with pytest.raises(ValueError, match="empty"):
        step(ATTESTING, RoundDistrusted(()), RULES)


# --- no usable answer -----------------------------------------------------------------------------------------------


def test_the_first_try_that_fails_shows_and_integrity_stays() -> None:
    taken = run(ATTESTING, [Unreachable("refused")])
    assert taken.effects == (NOW, Schedule(2.0, FULL))
    assert changed(ATTESTING, taken.state) == {
        "phase": Phase.RETRYING,
        "reachability": Reachability.UNREACHABLE,
        "attempts": 1,
        "job": FULL,
    }
    assert taken.state.condition(101.0) is Condition.UNREACHABLE


def test_pauses_grow_until_the_tries_are_used_up() -> None:
    taken = run(ATTESTING, [Unreachable("refused")] * 2)
    assert taken.effects == (LATER, Schedule(4.0, FULL))
    taken = run(taken.state, [Unreachable("refused")])
    (stored, told, unscheduled, ended) = taken.effects
    assert (stored, unscheduled) == (NOW, Unschedule())
    assert isinstance(told, Notify)
    assert (told.kind, told.finding.event_id) == (NoticeKind.COMM_ERROR, "internal.verifier.not_reachable")
    assert isinstance(ended, SupervisionEnded)
    assert (taken.state.phase, taken.state.integrity) == (Phase.FAILED, Integrity.TRUSTED)
    assert taken.state.last_event_id == "internal.verifier.not_reachable"


def test_a_node_that_never_attested_fails_without_a_notice() -> None:
    taken = run(begun(), [Unreachable("refused")] * 3)
    assert taken.state.phase is Phase.FAILED
    assert [type(effect) for effect in taken.effects] == [Persist, Unschedule, SupervisionEnded]


def test_a_node_that_never_attested_is_not_shown_as_attesting_while_it_is_retried() -> None:
    # trust: fail-closed
    taken = run(begun(), [Unreachable("refused")])
    assert OPERATIONAL_STATES[taken.state.phase] == 1


def test_an_answer_after_failed_tries_counts_them_anew() -> None:
    taken = run(ATTESTING, [Unreachable("x"), Unreachable("x"), RoundTrusted(110.0), Unreachable("x")])
    assert (taken.state.attempts, taken.state.phase) == (1, Phase.RETRYING)


def test_without_retries_one_failed_try_is_enough() -> None:
    taken = run(ATTESTING, [Unreachable("x")], with_fields(RULES, max_retries=0))
    assert taken.state.phase is Phase.FAILED


def test_v_that_cannot_be_sent_is_retried_then_given_up() -> None:
    providing = run(begun(has_v=True), [RoundTrusted(100.0, new_key=True)]).state
    taken = run(providing, [Unreachable("x")])
    assert (taken.state.phase, taken.effects) == (Phase.RETRYING_V, (NOW, Schedule(2.0, DELIVER)))
    taken = run(taken.state, [Unreachable("x")] * 2)
    assert taken.state.last_event_id == "internal.verifier.not_reachable_v"
    assert any(isinstance(effect, Notify) and effect.kind is NoticeKind.COMM_ERROR for effect in taken.effects)


@pytest.mark.parametrize("event", [UnexpectedStatus(403), KeyDeliveryFailed("not an RSA key")])
def test_v_that_is_refused_is_a_failure(event: Event) -> None:
    providing = run(begun(has_v=True), [RoundTrusted(100.0, new_key=True)]).state
    taken = run(providing, [event])
    assert (taken.state.phase, taken.state.last_event_id) == (Phase.FAILED, "internal.verifier.no_v")


def test_an_unexpected_status_is_a_failure_at_once() -> None:
    taken = run(ATTESTING, [UnexpectedStatus(403)])
    assert (taken.state.phase, taken.state.last_event_id) == (Phase.FAILED, "internal.verifier.no_quote")
    assert taken.state.condition(101.0) is Condition.UNREACHABLE
    assert [type(effect) for effect in taken.effects] == [Persist, Unschedule, SupervisionEnded]


def test_a_failed_node_comes_back_by_itself_when_so_configured() -> None:
    failed = run(ATTESTING, [Unreachable("x")] * 3, GOING_ON)
    assert failed.effects[-1] == Schedule(4.0, FULL)
    still = run(failed.state, [Unreachable("x")] * 50, GOING_ON)
    assert (still.state.phase, still.effects) == (Phase.FAILED, (LATER, Schedule(4.0, FULL)))
    back = run(still.state, [RoundTrusted(900.0)], GOING_ON)
    assert (back.state.phase, back.effects) == (Phase.ATTESTING, (NOW, Schedule(2.0, PARTIAL)))


def test_endless_tries_never_spin() -> None:
    # trust: bounded
    rules = with_fields(GOING_ON, retry_interval=0.0, quote_interval=0.0)
    assert run(ATTESTING, [Unreachable("x")] * 9, rules).effects[-1] == Schedule(MIN_PAUSE, FULL)
    assert run(ATTESTING, [OurFault("x")], rules).effects[-1] == Schedule(MIN_PAUSE, FULL)


# --- versions -------------------------------------------------------------------------------------------------------


def test_a_newer_version_is_taken_up_after_a_pause() -> None:
    before = replace(ATTESTING, api_version="2.3")
    taken = run(before, [VersionAnswered("2.6")])
    assert taken.effects == (LATER, Schedule(2.0, FULL))
    assert changed(before, taken.state) == {"api_version": "2.6", "job": FULL}


@pytest.mark.parametrize("version", [None, "2.1"])
def test_an_attested_node_does_not_go_back_to_an_older_version(version: str | None) -> None:
    # trust: downgrade
    taken = run(replace(ATTESTING, api_version="2.5"), [VersionAnswered(version)])
    assert (taken.state.phase, taken.state.api_version) == (Phase.FAILED, "2.5")
    assert taken.state.last_event_id == "internal.verifier.version_not_supported"


def test_a_node_that_never_attested_may_have_an_older_version() -> None:
    taken = run(begun(), [VersionAnswered("2.1")])
    assert (taken.state.api_version, taken.state.phase) == ("2.1", Phase.START)
    assert taken.effects[-1] == Schedule(2.0, FULL)


def test_the_same_version_counts_as_no_answer() -> None:
    taken = run(ATTESTING, [VersionAnswered("2.6")] * 3)
    assert taken.state.last_event_id == "internal.verifier.not_reachable"


def test_versions_that_go_up_and_down_end_somewhere() -> None:
    # trust: bounded
    taken = run(begun(), [VersionAnswered("2.1"), VersionAnswered("2.6")] * 3)
    assert taken.state.phase is Phase.FAILED


def test_a_version_change_while_v_is_sent_sends_v_again() -> None:
    providing = run(begun(has_v=True, api_version="2.3"), [RoundTrusted(100.0, new_key=True)]).state
    assert run(providing, [VersionAnswered("2.6")]).effects[-1] == Schedule(2.0, DELIVER)


# --- our own faults -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [ATTESTING, begun(), run(ATTESTING, [RoundDistrusted((MILD,))]).state])
def test_our_own_fault_changes_nothing_about_the_node(before: Supervision) -> None:
    # trust: fail-closed
    taken = run(before, [OurFault("disk full")] * 3)
    assert changed(replace(before, job=FULL), taken.state) == {"faults": 3}
    assert taken.effects == (Alarm("disk full", 3), Schedule(8.0, FULL))


def test_trust_runs_out_while_the_fault_is_ours() -> None:
    # trust: green-is-recent
    taken = run(ATTESTING, [OurFault("x")] * 20)
    assert taken.state.condition(101.0) is Condition.TRUSTED
    assert taken.state.condition(165.0) is Condition.STALE
    assert taken.effects[-1] == Schedule(MAX_FAULT_PAUSE, FULL)


def test_a_fault_while_v_is_sent_sends_v_again() -> None:
    providing = run(begun(has_v=True), [RoundTrusted(100.0, new_key=True)]).state
    assert run(providing, [OurFault("x")]).effects[-1] == Schedule(2.0, DELIVER)


# --- operators and restarts -----------------------------------------------------------------------------------------

ENDED = [
    run(ATTESTING, [StopRequested()]).state,
    run(ATTESTING, [RoundDistrusted((SEVERE,))]).state,
    run(ATTESTING, [UnexpectedStatus(403)]).state,
]


@pytest.mark.parametrize("before", [*ENDED, ATTESTING])
def test_reactivation_clears_stop_and_severity_and_starts_afresh(before: Supervision) -> None:
    taken = run(replace(before, has_v=True, key_delivered=True), [Reactivated()])
    assert taken.effects == (NOW, Schedule(0.0, FULL))
    assert taken.state == Supervision(attestation_count=3, has_v=True, job=FULL)
    assert taken.state.condition(101.0) is Condition.PENDING


def test_a_stopped_node_is_paused_and_not_trusted() -> None:
    taken = run(ATTESTING, [StopRequested()])
    assert taken.effects == (Unschedule(), NOW)
    assert (taken.state.phase, taken.state.integrity) == (Phase.STOPPED, Integrity.UNKNOWN)
    assert taken.state.condition(101.0) is Condition.PAUSED


def test_a_stop_does_not_wash_off_distrust() -> None:
    assert run(ATTESTING, [RoundDistrusted((MILD,)), StopRequested()]).state.integrity is Integrity.DISTRUSTED


@pytest.mark.parametrize("before", ENDED)
@pytest.mark.parametrize(
    "event", [RoundTrusted(110.0), RoundDistrusted((MILD,)), Unreachable("x"), UnexpectedStatus(403), OurFault("x")]
)
def test_an_answer_that_comes_after_the_end_changes_nothing(before: Supervision, event: Event) -> None:
    # trust: fail-closed
    assert step(before, event, RULES) == Step(before)


def test_the_answer_to_an_old_delivery_changes_nothing() -> None:
    providing = run(begun(has_v=True), [RoundTrusted(100.0, new_key=True)]).state
    again = run(providing, [Reactivated()]).state
    for event in (KeyDelivered(), KeyDeliveryFailed("x")):
        assert step(again, event, RULES) == Step(again)


def test_an_idle_node_is_removed_at_once() -> None:
    assert run(ATTESTING, [DeleteRequested(busy=False)]).effects == (Unschedule(), Remove())


@pytest.mark.parametrize("event", [RoundTrusted(110.0), Unreachable("x"), OurFault("x"), Restarted(), Reactivated()])
def test_a_busy_node_is_removed_when_its_request_is_over(event: Event) -> None:
    taken = run(ATTESTING, [DeleteRequested(busy=True)])
    assert (taken.state.phase, taken.effects) == (Phase.TERMINATED, (Unschedule(), NOW))
    assert run(taken.state, [event]).effects == (Unschedule(), Remove())


@pytest.mark.parametrize("phase", [Phase.START, Phase.ATTESTING, Phase.RETRYING, Phase.PROVIDING_V, Phase.RETRYING_V])
def test_running_nodes_start_again_after_a_restart(phase: Phase) -> None:
    # trust: fail-closed
    stored = replace(ATTESTING, phase=phase, attempts=2, job=None)
    taken = run(stored, [Restarted()])
    assert taken.effects == (LATER, Schedule(0.0, FULL))
    assert (taken.state.phase, taken.state.attempts) == (Phase.START, 0)
    assert taken.state.condition(163.0) is Condition.TRUSTED
    assert taken.state.condition(165.0) is Condition.STALE


@pytest.mark.parametrize("before", ENDED)
def test_ended_nodes_stay_as_they_are_after_a_restart(before: Supervision) -> None:
    taken = run(before, [Restarted()])
    assert taken.effects == ()
    assert OPERATIONAL_STATES[taken.state.phase] == OPERATIONAL_STATES[before.phase]


def test_a_doubted_node_is_asked_on_after_a_restart() -> None:
    taken = run(ATTESTING, [RoundDistrusted((MILD,)), Restarted()])
    assert (taken.state.phase, taken.effects[-1]) == (Phase.DOUBTED, Schedule(0.0, FULL))
    assert taken.state.condition(101.0) is Condition.DISTRUSTED


def test_a_condemned_node_stays_condemned_after_a_restart_with_other_rules() -> None:
    # trust: fail-closed
    milder = with_fields(GOING_ON, severity=parse_severity((*DEFAULT_LABELS, "worse"), [(".*", "info")]))
    condemned = run(ATTESTING, [RoundDistrusted((SEVERE,))]).state
    assert run(condemned, [Restarted(), RoundTrusted(200.0)], milder).state.integrity is Integrity.DISTRUSTED


def test_phases_read_as_text_from_a_row_behave_the_same() -> None:
    # trust: fail-closed
    condemned = run(ATTESTING, [RoundDistrusted((SEVERE,))]).state
    as_text = replace(condemned, phase="condemned", integrity="distrusted")
    assert step(as_text, RoundTrusted(200.0), GOING_ON).state.integrity == "distrusted"
    assert as_text.condition(100.0) is Condition.DISTRUSTED


def test_every_phase_has_the_state_that_keylime_reports() -> None:
    assert set(OPERATIONAL_STATES) == set(Phase)
    assert set(OPERATIONAL_STATES.values()) == {1, 3, 4, 5, 6, 7, 8, 9, 10}


# --- the lifetime of trust ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("interval", "seconds"), [(2.0, 10.0), (60.0, 300.0), (10.0, 50.0), (0.1, 10.0), (0.0, 10.0)])
def test_trust_lasts_five_intervals_as_readers_are_told(interval: float, seconds: float) -> None:
    # trust: green-is-recent
    assert default_trust_lifetime(interval) == seconds


# --- what holds after every sequence --------------------------------------------------------------------------------

any_findings = st.lists(st.sampled_from([MILD, SEVERE, FORGED]), min_size=1, max_size=3).map(tuple)
any_results: st.SearchStrategy[Event] = st.one_of(
    st.builds(RoundDistrusted, any_findings),
    st.just(Unreachable("x")),
    st.builds(UnexpectedStatus, st.sampled_from([403, 404, 503])),
    st.builds(VersionAnswered, st.sampled_from([None, "2.1", "2.3", "2.6"])),
    st.just(OurFault("x")),
    st.just(KeyDelivered()),
    st.just(KeyDeliveryFailed("x")),
)
any_rules = st.builds(
    Rules,
    quote_interval=st.sampled_from([0.0, 2.0]),
    retry_interval=st.sampled_from([0.0, 0.5, 2.0]),
    exponential_backoff=st.booleans(),
    max_retries=st.integers(0, 3),
    trust_lifetime=st.sampled_from([1.0, 64.0]),
    severity=st.just(SEVERITY),
    continue_after_failure=st.booleans(),
)


class SupervisionMachine(RuleBasedStateMachine):
    """Drives one node as an engine does, keeping its own book of what was proven and what is pending."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = 1000.0
        self.removed = False
        self.pending: Schedule | None = None
        self.last_proof: float | None = None
        self.proof_counts = False
        self.condemned = False

    @initialize(rules=any_rules, has_v=st.booleans())
    def enrol(self, rules: Rules, has_v: bool) -> None:
        self.policy = rules
        self.state = Supervision(has_v=has_v)
        self.take(Enrolled())

    def take(self, event: Event) -> tuple[Effect, ...]:
        before = self.state
        result = step(before, event, self.policy)
        self.state = result.state
        scheduled = [effect for effect in result.effects if isinstance(effect, Schedule)]
        assert len(scheduled) <= 1
        assert not (scheduled and any(isinstance(effect, (Unschedule, Remove)) for effect in result.effects))
        for effect in result.effects:
            self.do(effect)
        stored = [i for i, effect in enumerate(result.effects) if isinstance(effect, Persist)]
        told = [i for i, effect in enumerate(result.effects) if isinstance(effect, Notify)]
        assert all(i > stored[0] for i in told), "told before it was stored"
        if before.integrity != result.state.integrity and not self.removed:
            assert Persist(now=True) in result.effects, "a change of trust waits"
        return result.effects

    def do(self, effect: Effect) -> None:
        match effect:
            case Schedule(after, job):
                assert after >= 0
                assert job is self.state.job
                self.pending = effect
            case Unschedule():
                self.pending = None
            case Remove():
                self.removed = True

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.clock += seconds

    @rule(new_key=st.booleans())
    def good_round(self, new_key: bool) -> None:
        self.pending = None if supervised(self.state, self.policy) else self.pending
        before = self.state
        self.take(RoundTrusted(self.clock, new_key=new_key))
        if self.state.integrity == Integrity.TRUSTED and before != self.state:
            self.last_proof, self.proof_counts = self.clock, True

    @rule(event=any_results)
    def other_result(self, event: Event) -> None:
        before, pending = self.state, self.pending
        self.pending = None
        effects = self.take(event)
        if not effects:
            self.pending = pending  # an answer to an old question uses nothing up
        if isinstance(event, RoundDistrusted) and effects and not self.removed:
            self.proof_counts = False
            self.condemned = self.condemned or self.state.phase == Phase.CONDEMNED
        if isinstance(event, OurFault):
            assert (before.integrity, before.trust_expires_at) == (self.state.integrity, self.state.trust_expires_at)
        if supervised(before, self.policy) and not supervised(self.state, self.policy):
            assert any(isinstance(effect, SupervisionEnded) for effect in effects), "supervision ended silently"
            assert self.state.last_event_id is not None

    @rule()
    def restart(self) -> None:
        self.pending = None
        self.state = replace(self.state, job=None, faults=0, key_delivered=False)  # what a row does not hold
        self.take(Restarted())

    @rule()
    def reactivate(self) -> None:
        self.take(Reactivated())
        self.proof_counts = self.condemned = False

    @rule()
    def stop(self) -> None:
        self.take(StopRequested())
        self.proof_counts = False

    @rule(busy=st.booleans())
    def delete(self, busy: bool) -> None:
        self.take(DeleteRequested(busy=busy))
        self.proof_counts = False

    @invariant()
    def exactly_one_timer_while_supervised(self) -> None:
        # trust: fail-closed
        if not hasattr(self, "state") or self.removed:
            return
        assert (self.pending is not None) == supervised(self.state, self.policy)

    @invariant()
    def trusted_only_by_a_recent_good_round_after_the_last_bad_one(self) -> None:
        # trust: green-is-recent
        if not hasattr(self, "state"):
            return
        if self.state.condition(self.clock) is Condition.TRUSTED:
            assert self.proof_counts
            assert self.last_proof is not None
            assert self.clock - self.last_proof < self.policy.trust_lifetime
            assert self.state.phase not in PAUSED

    @invariant()
    def what_was_condemned_stays_so_until_an_operator_acts(self) -> None:
        # trust: fail-closed
        if self.condemned and not self.removed:
            assert self.state.integrity == Integrity.DISTRUSTED


SupervisionMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestSupervision = SupervisionMachine.TestCase


@given(st.lists(any_results, max_size=30), any_rules)
def test_without_a_good_round_there_is_no_trust(events: list[Event], rules: Rules) -> None:
    # trust: fail-closed
    state = run(begun(), events, rules).state
    assert state.integrity != Integrity.TRUSTED
    assert state.condition(0.0) is not Condition.TRUSTED
