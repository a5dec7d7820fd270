"""The supervision of nodes that attest by themselves: what leads where, and what holds after every sequence."""

from dataclasses import replace as with_fields

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from limeguard.appraisal import findings as known
from limeguard.appraisal.findings import Finding
from limeguard.appraisal.verdict import Condition, Integrity, Reachability
from limeguard.policy.severity import DEFAULT_LABELS, parse_severity
from limeguard.verifier.lifecycle import (
    Alarm,
    DeadlinePassed,
    DeleteRequested,
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
    StopRequested,
    UnexpectedStatus,
    Unreachable,
    Unschedule,
    VersionAnswered,
    Watch,
    step,
    supervised,
)
from limeguard.verifier.supervision import PAUSED, Job, Phase, Rules, Supervision

SEVERITY = parse_severity(DEFAULT_LABELS, [(r"pcr_validation\.invalid_pcr_23", "warning"), (".*", "emergency")])
RULES = Rules(
    quote_interval=2.0,
    retry_interval=2.0,
    exponential_backoff=True,
    max_retries=2,
    trust_lifetime=64.0,
    severity=SEVERITY,
)
RECOVERING = with_fields(RULES, auto_recover=True)
MILD = Finding(known.PCR_VALUE, {"pcr": 23})
SEVERE = Finding(known.PCR_VALUE, {"pcr": 7})
FORGED = Finding(known.QUOTE_SIGNATURE)
TRUSTED = step(Supervision(push=True), RoundTrusted(100.0), RULES).state
DISTRUSTED = step(TRUSTED, RoundDistrusted((SEVERE,)), RULES).state
SILENT = step(TRUSTED, DeadlinePassed(164.0), RULES).state


def test_a_good_round_makes_trust_with_a_deadline_instead_of_a_next_round() -> None:
    done = step(Supervision(push=True), RoundTrusted(100.0), RULES)
    assert done.effects == (Persist(now=True), Watch(164.0))
    assert (done.state.phase, done.state.integrity, done.state.job) == (Phase.ATTESTING, Integrity.TRUSTED, Job.WATCH)
    again = step(done.state, RoundTrusted(102.0), RULES)
    assert again.effects == (Persist(now=False), Watch(166.0))
    assert again.state.attestation_count == 2


def test_a_bad_round_is_stored_and_told_and_the_next_one_is_heard() -> None:
    done = step(TRUSTED, RoundDistrusted((MILD, SEVERE)), RULES)
    level = SEVERITY.highest
    told = Notify(NoticeKind.REVOCATION, SEVERE, level, "emergency")
    assert done.effects == (Persist(now=True), told, Unschedule())
    assert supervised(done.state, RULES)
    again = step(done.state, RoundDistrusted((SEVERE,)), RULES)
    assert not any(isinstance(effect, Notify) for effect in again.effects)


@pytest.mark.parametrize("finding", [MILD, SEVERE, FORGED])
def test_distrust_ends_by_itself_only_where_that_is_wanted(finding: Finding) -> None:
    # trust: fail-closed
    bad = step(TRUSTED, RoundDistrusted((finding,)), RULES).state
    stays = step(bad, RoundTrusted(200.0), RULES).state
    assert (stays.integrity, stays.phase) == (Integrity.DISTRUSTED, Phase.CONDEMNED)
    assert step(bad, RoundTrusted(200.0), RECOVERING).state.integrity == Integrity.TRUSTED


def test_silence_is_noted_and_told_once_and_ends_with_the_next_good_round() -> None:
    # trust: green-is-recent
    done = step(TRUSTED, DeadlinePassed(164.0), RULES)
    kinds = [effect.kind for effect in done.effects if isinstance(effect, Notify)]
    assert kinds == [NoticeKind.COMM_ERROR]
    assert done.state.condition(164.0) is Condition.UNREACHABLE
    assert done.state.severity_level is None
    assert step(done.state, DeadlinePassed(170.0), RULES).effects == (Unschedule(),)
    assert step(done.state, RoundTrusted(200.0), RULES).state.condition(200.0) is Condition.TRUSTED


def test_a_deadline_that_was_moved_is_watched_anew() -> None:
    assert step(TRUSTED, DeadlinePassed(150.0), RULES).effects == (Watch(164.0),)


def test_after_a_restart_the_deadline_is_watched() -> None:
    assert step(TRUSTED, Restarted(), RULES).effects == (Watch(164.0),)
    for state in (DISTRUSTED, SILENT, Supervision(push=True)):
        assert step(state, Restarted(), RULES).effects == (Unschedule(),)
        assert step(state, Restarted(), RULES).state.integrity == state.integrity


def test_our_fault_changes_nothing_but_raises_an_alarm() -> None:
    # trust: fail-closed
    done = step(TRUSTED, OurFault("x"), RULES)
    assert done.effects == (Alarm("x", 1),)
    assert replace(done.state, faults=0) == TRUSTED


@pytest.mark.parametrize("event", [DeadlinePassed(1e9)])
def test_a_deadline_means_nothing_for_a_node_that_is_polled(event: Event) -> None:
    polled = step(Supervision(), RoundTrusted(100.0), RULES).state
    assert step(polled, event, RULES).effects == ()


any_events: st.SearchStrategy[Event] = st.one_of(
    st.builds(RoundDistrusted, st.lists(st.sampled_from([MILD, SEVERE, FORGED]), min_size=1, max_size=3).map(tuple)),
    st.just(Unreachable("x")),
    st.builds(UnexpectedStatus, st.sampled_from([403, 503])),
    st.builds(VersionAnswered, st.sampled_from([None, "2.1", "2.6"])),
    st.just(OurFault("x")),
    st.just(KeyDelivered()),
    st.just(KeyDeliveryFailed("x")),
)


class BothKinds(RuleBasedStateMachine):
    """One node that may be deleted and enrolled again as the other kind, and everything that may happen to it."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = 1000.0
        self.proof: float | None = None
        self.timer: Schedule | Watch | None = None
        self.removed = False

    @initialize(push=st.booleans(), auto=st.booleans(), going_on=st.booleans(), has_v=st.booleans())
    def enrol(self, push: bool, auto: bool, going_on: bool, has_v: bool) -> None:
        self.policy = with_fields(RULES, auto_recover=auto, continue_after_failure=going_on)
        self.state = Supervision(push=push, has_v=has_v and not push)
        self.take(Enrolled())

    @rule(push=st.booleans())
    def enrol_again(self, push: bool) -> None:
        self.take(DeleteRequested(busy=False))
        assert self.removed
        self.removed, self.state = False, Supervision(push=push)
        self.take(Enrolled())

    def take(self, event: Event) -> None:
        done = step(self.state, event, self.policy)
        timers = [effect for effect in done.effects if isinstance(effect, Schedule | Watch | Unschedule)]
        assert len(timers) <= 1
        for effect in timers:
            self.timer = None if isinstance(effect, Unschedule) else effect
        self.removed = self.removed or any(isinstance(effect, Remove) for effect in done.effects)
        stored = [n for n, effect in enumerate(done.effects) if isinstance(effect, Persist)]
        assert all(n > stored[0] for n, effect in enumerate(done.effects) if isinstance(effect, Notify))
        if self.state.integrity != done.state.integrity and not self.removed:
            assert Persist(now=True) in done.effects, "a change of trust waits"
        if done.state.integrity != Integrity.TRUSTED:
            self.proof = None
        self.state = done.state

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.clock += seconds
        if isinstance(self.timer, Watch) and self.timer.until <= self.clock:
            self.timer = None
            self.take(DeadlinePassed(self.clock))

    @rule(new_key=st.booleans())
    def good_round(self, new_key: bool) -> None:
        before = self.state
        self.take(RoundTrusted(self.clock, new_key=new_key))
        if self.state != before and self.state.integrity == Integrity.TRUSTED:
            self.proof = self.clock

    @rule(event=any_events)
    def other(self, event: Event) -> None:
        self.take(event)

    @rule(event=st.sampled_from([Reactivated(), StopRequested(), DeadlinePassed(0.0)]))
    def operator(self, event: Event) -> None:
        self.take(event)

    @rule()
    def restart(self) -> None:
        self.timer = None
        self.state = replace(self.state, job=None, faults=0, key_delivered=False)
        self.take(Restarted())

    @rule()
    def delete_while_busy(self) -> None:
        self.take(DeleteRequested(busy=True))

    @invariant()
    def no_trust_without_a_recent_good_round_since_everything_else(self) -> None:
        # trust: fresh, green-is-recent
        if hasattr(self, "state") and self.state.condition(self.clock) is Condition.TRUSTED:
            assert self.proof is not None
            assert self.clock - self.proof < self.policy.trust_lifetime
            assert self.state.phase not in PAUSED

    @invariant()
    def trust_that_can_run_out_is_watched_and_nobody_asks_a_node_that_pushes(self) -> None:
        if not hasattr(self, "state") or self.removed or not self.state.push:
            return
        assert not isinstance(self.timer, Schedule)
        if self.state.integrity == Integrity.TRUSTED and self.state.reachability == Reachability.REACHABLE:
            assert self.timer == Watch(self.state.trust_expires_at or 0.0)
        else:
            assert self.timer is None


BothKinds.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestBothKinds = BothKinds.TestCase
