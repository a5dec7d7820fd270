"""What a push agent does next: the table, and what must hold for every verifier, however it behaves."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limeguard.agent.push_step import (
    START,
    Do,
    Event,
    EvidenceAccepted,
    EvidenceMissing,
    EvidenceRequested,
    LocalFault,
    NoAnswer,
    NothingRequested,
    NotRegistered,
    Refused,
    Registered,
    Rules,
    SessionDenied,
    SessionGranted,
    State,
    Step,
    WaitOver,
    step,
)

RULES = Rules(interval=60, first_delay=10, retries=2, longest_delay=300)
TWO = Rules(interval=60, first_delay=10, retries=2, longest_delay=300, verifiers=2)


def after(*events: Event, rules: Rules = RULES) -> Step:
    now = Step(START)
    for event in events:
        now = step(now.state, event, rules)
    return now


def shown(*events: Event, rules: Rules = RULES) -> tuple[Do, float, Do | None]:
    """Return what is done now, for how long when it is a wait, and what follows it."""
    now = after(*events, rules=rules)
    waiting = now.state.doing is Do.WAIT
    return now.state.doing, now.seconds, step(now.state, WaitOver(), rules).state.doing if waiting else None


IN = (Registered(), SessionGranted())
ASKED = (*IN, EvidenceRequested())
ROUND = (*ASKED, EvidenceAccepted(30), WaitOver())
"""A whole attestation, and the wait after it."""


@pytest.mark.parametrize(
    ("events", "wanted"),
    [
        ((), (Do.REGISTER, 0, None)),
        ((NotRegistered(),), (Do.WAIT, 60, Do.REGISTER)),
        ((LocalFault(),), (Do.WAIT, 60, Do.REGISTER)),
        ((Registered(),), (Do.AUTHENTICATE, 0, None)),
        (IN, (Do.NEGOTIATE, 0, None)),
        (ASKED, (Do.ATTEST, 0, None)),
        ((*ASKED, EvidenceAccepted(30)), (Do.WAIT, 30, Do.NEGOTIATE)),
        ((*ASKED, EvidenceAccepted(None)), (Do.WAIT, 60, Do.NEGOTIATE)),
        ((*ASKED, EvidenceAccepted(0)), (Do.WAIT, 0.1, Do.NEGOTIATE)),
        (ROUND, (Do.NEGOTIATE, 0, None)),
        # Nothing is asked for: no evidence is sent, the session stays.
        ((*IN, NothingRequested()), (Do.WAIT, 60, Do.NEGOTIATE)),
        # A session is tried three times, a second apart, then once in an interval.
        ((Registered(), SessionDenied()), (Do.WAIT, 1, Do.AUTHENTICATE)),
        ((Registered(), *[SessionDenied()] * 2), (Do.WAIT, 1, Do.AUTHENTICATE)),
        ((Registered(), *[SessionDenied()] * 3), (Do.WAIT, 60, Do.AUTHENTICATE)),
        ((Registered(), *[SessionDenied()] * 4), (Do.WAIT, 60, Do.AUTHENTICATE)),
        ((Registered(), Refused(429, asked=42)), (Do.WAIT, 42, Do.AUTHENTICATE)),
        ((Registered(), Refused(429, asked=1e9)), (Do.WAIT, 7200, Do.AUTHENTICATE)),
        ((Registered(), Refused(404)), (Do.WAIT, 1, Do.AUTHENTICATE)),
        # A session that worked and ended is opened again at once; one that never worked is not.
        ((*ROUND, Refused(401)), (Do.AUTHENTICATE, 0, None)),
        ((*ROUND, EvidenceRequested(), Refused(401)), (Do.AUTHENTICATE, 0, None)),
        ((*IN, Refused(401)), (Do.WAIT, 60, Do.AUTHENTICATE)),
        ((*ROUND, Refused(401), SessionGranted(), Refused(401)), (Do.WAIT, 60, Do.AUTHENTICATE)),
        ((*ROUND, Refused(403)), (Do.WAIT, 60, Do.AUTHENTICATE)),
        # A 403 about the attestation does not cost the session.
        ((*ASKED, Refused(403, "evidence_immutable")), (Do.WAIT, 60, Do.NEGOTIATE)),
        ((*ASKED, Refused(403, "old_attestation")), (Do.WAIT, 60, Do.NEGOTIATE)),
        ((*IN, Refused(403, "agent_attestations_disabled")), (Do.WAIT, 60, Do.NEGOTIATE)),
        ((*ASKED, Refused(403, "challenges_expired")), (Do.NEGOTIATE, 0, None)),
        (
            (*ASKED, Refused(403, "challenges_expired"), EvidenceRequested(), Refused(403, "challenges_expired")),
            (Do.WAIT, 60, Do.NEGOTIATE),
        ),
        # Statuses that pass: the same request again, exponentially or as the verifier asks.
        ((*IN, Refused(503)), (Do.WAIT, 10, Do.NEGOTIATE)),
        ((*ASKED, Refused(500)), (Do.WAIT, 10, Do.ATTEST)),
        ((*ASKED, NoAnswer()), (Do.WAIT, 10, Do.ATTEST)),
        ((*ASKED, NoAnswer(), WaitOver(), NoAnswer()), (Do.WAIT, 20, Do.ATTEST)),
        ((*ASKED, *[NoAnswer(), WaitOver()] * 2, NoAnswer()), (Do.WAIT, 60, Do.NEGOTIATE)),
        ((*IN, Refused(429, asked=7)), (Do.WAIT, 7, Do.NEGOTIATE)),
        ((*ASKED, Refused(503, asked=7)), (Do.WAIT, 7, Do.ATTEST)),
        ((Registered(), NoAnswer()), (Do.WAIT, 10, Do.AUTHENTICATE)),
        # Anything else: the next attestation, in its time.
        ((*IN, Refused(422)), (Do.WAIT, 60, Do.NEGOTIATE)),
        ((*IN, Refused(409, asked=90)), (Do.WAIT, 90, Do.NEGOTIATE)),
        ((*ASKED, Refused(400)), (Do.WAIT, 60, Do.NEGOTIATE)),
        ((*ASKED, EvidenceMissing()), (Do.WAIT, 60, Do.NEGOTIATE)),
        ((*ASKED, LocalFault()), (Do.WAIT, 60, Do.NEGOTIATE)),
        ((Registered(), LocalFault()), (Do.WAIT, 60, Do.AUTHENTICATE)),
    ],
)
def test_the_table(events: tuple[Event, ...], wanted: tuple[Do, float, Do | None]) -> None:
    assert shown(*events) == wanted


def test_several_verifiers_are_tried_in_order_and_a_session_holds_only_where_it_was_granted() -> None:
    now = after(*ROUND, NoAnswer(), rules=TWO)
    assert (now.state.doing, now.state.verifier, now.state.session) == (Do.AUTHENTICATE, 1, False)
    now = after(*ROUND, NoAnswer(), NoAnswer(), rules=TWO)
    assert (now.state.doing, now.state.verifier, now.seconds) == (Do.WAIT, 0, 10)
    now = after(*ROUND, NoAnswer(), NoAnswer(), WaitOver(), NoAnswer(), NoAnswer(), rules=TWO)
    assert (now.state.verifier, now.seconds) == (0, 20)
    now = after(*ROUND, NoAnswer(), SessionGranted(), EvidenceRequested(), EvidenceAccepted(5), rules=TWO)
    assert (now.state.verifier, now.state.unreached) == (1, 0)


def test_a_node_unknown_to_one_verifier_asks_the_next() -> None:
    now = after(Registered(), *[SessionDenied()] * 3, rules=TWO)
    assert (now.state.doing, now.state.verifier) == (Do.AUTHENTICATE, 1)
    now = after(Registered(), *[SessionDenied()] * 4, rules=TWO)
    assert (now.state.doing, now.state.verifier, now.seconds) == (Do.WAIT, 0, 60)


# --- what must hold whatever the verifier does ------------------------------------------------------------------------

PASSING = st.sampled_from([408, 429, 500, 502, 503, 599])
OTHER = st.sampled_from([200, 301, 400, 404, 409, 415, 422])
CODES = st.sampled_from(["", "challenges_expired", "old_attestation", "evidence_immutable", "not_found"])
ASKS = st.none() | st.floats(0, 1e6)
REFUSALS = st.builds(Refused, PASSING | OTHER | st.sampled_from([401, 403]), CODES, ASKS)
FAILURES = REFUSALS | st.builds(NoAnswer) | st.builds(LocalFault)
ANSWERS = {
    Do.REGISTER: st.builds(Registered) | st.builds(NotRegistered) | st.builds(LocalFault),
    Do.AUTHENTICATE: st.builds(SessionGranted) | st.builds(SessionDenied) | FAILURES,
    Do.NEGOTIATE: st.builds(EvidenceRequested) | st.builds(NothingRequested) | FAILURES,
    Do.ATTEST: st.builds(EvidenceAccepted, st.none() | st.floats(0, 100)) | st.builds(EvidenceMissing) | FAILURES,
    Do.WAIT: st.builds(WaitOver),
}
RULE_SETS = st.builds(
    Rules,
    interval=st.floats(1, 100),
    first_delay=st.floats(0, 20),
    retries=st.integers(0, 6),
    longest_delay=st.floats(0, 300),
    verifiers=st.integers(1, 3),
)


@dataclass
class Took:
    state: State
    event: Event
    then: Step


def run(data: st.DataObject, rules: Rules, answers: dict[Do, st.SearchStrategy[Event]], length: int) -> list[Took]:
    now, taken = Step(START), []
    for _ in range(length):
        event = data.draw(answers[now.state.doing])
        following = step(now.state, event, rules)
        taken.append(Took(now.state, event, following))
        now = following
    return taken


@given(st.data(), RULE_SETS)
def test_no_verifier_keeps_a_node_busy_without_pauses(data: st.DataObject, rules: Rules) -> None:
    # trust: bounded
    busy = 0
    for took in run(data, rules, ANSWERS, 60):
        if took.then.state.doing is Do.WAIT:
            assert 0.1 <= took.then.seconds <= max(7200, rules.interval, rules.longest_delay)
            busy = 0
        else:
            busy += 1
        assert busy <= 8 * rules.verifiers


@given(st.data(), RULE_SETS)
def test_no_evidence_is_sent_without_a_session_and_a_question(data: st.DataObject, rules: Rules) -> None:
    for took in run(data, rules, ANSWERS, 60):
        then = took.then.state
        if then.doing in {Do.NEGOTIATE, Do.ATTEST}:
            assert then.session
        if then.doing is Do.ATTEST:
            assert isinstance(took.event, EvidenceRequested) or took.state.then is Do.ATTEST
        if then.verifier != took.state.verifier:
            assert not then.session
        assert 0 <= then.verifier < rules.verifiers


DENIALS: dict[Do, st.SearchStrategy[Event]] = {
    **ANSWERS,
    Do.REGISTER: st.builds(Registered),
    Do.AUTHENTICATE: st.builds(SessionGranted) | st.builds(SessionDenied) | st.builds(Refused, OTHER),
    Do.NEGOTIATE: st.builds(EvidenceRequested) | st.builds(Refused, st.sampled_from([401, 403])),
    Do.ATTEST: st.builds(EvidenceMissing) | st.builds(Refused, st.sampled_from([401, 403])),
}


@given(st.data(), st.builds(Rules, interval=st.floats(1, 100)))
@settings(max_examples=60)
def test_refused_sessions_stay_below_the_rate_at_which_verifiers_block(data: st.DataObject, rules: Rules) -> None:
    # 15 sessions in 60 s are allowed; a block would keep an honest node out for minutes after it was enrolled.
    clock, opened = 0.0, []
    for took in run(data, rules, DENIALS, 120):
        if took.state.doing is Do.AUTHENTICATE:
            opened.append(clock)
        clock += took.then.seconds
    for first in opened:
        assert sum(first <= moment < first + 60 for moment in opened) <= 15


@given(st.data(), RULE_SETS)
def test_an_honest_verifier_is_attested_to_again_after_any_trouble(data: st.DataObject, rules: Rules) -> None:
    state = run(data, rules, ANSWERS, 40)[-1].then.state
    honest: dict[Do, Event] = {
        Do.REGISTER: Registered(),
        Do.AUTHENTICATE: SessionGranted(),
        Do.NEGOTIATE: EvidenceRequested(),
        Do.ATTEST: EvidenceAccepted(1),
        Do.WAIT: WaitOver(),
    }
    for _ in range(8):
        event = honest[state.doing]
        if isinstance(event, EvidenceAccepted):
            return
        state = step(state, event, rules).state
    pytest.fail(f"no evidence was given: {state}")
