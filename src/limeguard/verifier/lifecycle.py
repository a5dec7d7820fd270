"""The supervision of one node as a pure machine: `step(state, event, rules)` says where it goes and what is to be done.

Decides phases, trust, pauses and what is told to whom. Must not wait, read a clock, store or send: events carry the
time, effects are data, and the caller does them in order. Whether evidence is good was decided by appraisal.

Three things hold in every phase. Only `RoundTrusted` makes trust, and it carries an expiry. While a node is supervised
each step that uses up its timer sets exactly one new one. Where supervision ends, an effect says so and why.

A node that attests by itself (`push`) has no rounds to wait for: its timer is the time at which its trust runs out.
"""

from collections.abc import Sequence
from typing import Final, assert_never

from msgspec.structs import replace

from limeguard.appraisal.findings import (
    NOT_REACHABLE,
    NOT_REACHABLE_V,
    UNEXPECTED_STATUS,
    UNEXPECTED_STATUS_V,
    VERSION_NOT_SUPPORTED,
    Finding,
)
from limeguard.appraisal.verdict import Integrity, Reachability
from limeguard.policy.severity import SeverityRules
from limeguard.verifier.lifecycle_events import (
    Alarm,
    DeadlinePassed,
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
    Result,
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
    Watch,
)
from limeguard.verifier.supervision import MAX_FAULT_PAUSE, MIN_PAUSE, PAUSED, Job, Phase, Rules, Supervision
from limeguard.wire.versions import is_older

__all__ = [
    "Alarm",
    "DeadlinePassed",
    "DeleteRequested",
    "Effect",
    "Enrolled",
    "Event",
    "KeyDelivered",
    "KeyDeliveryFailed",
    "NoticeKind",
    "Notify",
    "OurFault",
    "Persist",
    "Reactivated",
    "Remove",
    "Restarted",
    "Result",
    "RoundDistrusted",
    "RoundTrusted",
    "Schedule",
    "Step",
    "StopRequested",
    "SupervisionEnded",
    "UnexpectedStatus",
    "Unreachable",
    "Unschedule",
    "VersionAnswered",
    "Watch",
    "step",
    "supervised",
    "worst",
]

_PERSIST_NOW: Final = Persist(now=True)
_PERSIST_LATER: Final = Persist(now=False)
_UNSCHEDULE: Final = Unschedule()
_ENDING: Final = frozenset({Phase.FAILED, Phase.CONDEMNED})
"""Phases that end supervision unless the rules say to go on."""


# --- the machine ----------------------------------------------------------------------------------------------------


def supervised(state: Supervision, rules: Rules) -> bool:
    """Say whether the node is to be asked again without anybody's doing, or heard when it attests by itself."""
    if state.push:
        return state.phase not in PAUSED
    if state.phase in _ENDING:
        return rules.continue_after_failure
    return state.phase not in PAUSED


def step(state: Supervision, event: Event, rules: Rules) -> Step:
    """Say where the node goes and what to do about it; the caller does it."""
    match event:
        case DeleteRequested(busy):
            return _delete(state, busy=busy)
        case _ if state.phase == Phase.TERMINATED:
            return Step(state, (_UNSCHEDULE, Remove()))
        case Enrolled() | Reactivated():
            return _begin(state)
        case Restarted():
            return _take_up(state, rules)
        case StopRequested():
            return _stop(state)
        case _ if not supervised(state, rules):
            return Step(state)  # the answer to a question from before supervision ended
        case _:
            return _result(state, event, rules)


def _result(state: Supervision, event: Result | DeadlinePassed, rules: Rules) -> Step:
    if state.push or isinstance(event, DeadlinePassed):
        return _push_result(state, event, rules)
    match event:
        case RoundTrusted(at, new_key):
            return _trusted(state, at, new_key=new_key, rules=rules)
        case RoundDistrusted(findings):
            return _distrusted(state, findings, rules)
        case Unreachable(reason):
            return _unreachable(state, reason, rules)
        case UnexpectedStatus(status):
            kind = UNEXPECTED_STATUS_V if state.job is Job.DELIVER_KEY else UNEXPECTED_STATUS
            return _fail(state, Finding(kind, {"status": status}), rules)
        case VersionAnswered(version):
            return _version(state, version, rules)
        case OurFault(reason):
            return _our_fault(state, reason, rules)
        case KeyDelivered() | KeyDeliveryFailed():
            return _delivery(state, event, rules)
    assert_never(event)


def _persist(before: Supervision, after: Supervision) -> Persist:
    """Whatever readers decide by is stored at once; counters and expiry may wait for company."""
    same = (
        before.phase == after.phase
        and before.integrity == after.integrity
        and before.reachability == after.reachability
        and before.severity_level == after.severity_level
    )
    return _PERSIST_LATER if same else _PERSIST_NOW


# --- operators and starts -------------------------------------------------------------------------------------------


def _begin(state: Supervision) -> Step:
    """Start afresh: nothing is proven, nothing counts against the node, V is delivered again."""
    begun = Supervision(
        attestation_count=state.attestation_count,
        api_version=state.api_version,
        has_v=state.has_v,
        job=None if state.push else Job.FULL_ROUND,
        push=state.push,
    )
    return Step(begun, (_PERSIST_NOW, _UNSCHEDULE if state.push else Schedule(0.0, Job.FULL_ROUND)))


def _take_up(state: Supervision, rules: Rules) -> Step:
    """Go on after a start of the verifier. Earlier trust holds until it expires; every answer is asked for afresh."""
    state = replace(state, job=None, faults=0, attempts=0, key_delivered=False)
    if not supervised(state, rules):
        return Step(state)
    if state.push:
        return _watched(state, ())
    lasting = state.phase in {Phase.FAILED, Phase.DOUBTED, Phase.CONDEMNED}
    taken = replace(state, phase=state.phase if lasting else Phase.START, job=Job.FULL_ROUND)
    return Step(taken, (_PERSIST_LATER, Schedule(0.0, Job.FULL_ROUND)))


def _stop(state: Supervision) -> Step:
    """Leave the node alone. Trust ends with supervision, distrust stays known."""
    stopped = replace(_without_trust(state), phase=Phase.STOPPED, attempts=0, faults=0, job=None)
    return Step(stopped, (_UNSCHEDULE, _PERSIST_NOW))


def _delete(state: Supervision, *, busy: bool) -> Step:
    if not busy:
        return Step(replace(state, phase=Phase.TERMINATED, job=None), (_UNSCHEDULE, Remove()))
    terminated = replace(_without_trust(state), phase=Phase.TERMINATED, job=None)
    return Step(terminated, (_UNSCHEDULE, _PERSIST_NOW))


def _without_trust(state: Supervision) -> Supervision:
    integrity = Integrity.UNKNOWN if state.integrity == Integrity.TRUSTED else state.integrity
    return replace(state, integrity=integrity, trust_expires_at=None)


# --- rounds ---------------------------------------------------------------------------------------------------------


def _trusted(state: Supervision, at: float, *, new_key: bool, rules: Rules) -> Step:
    if state.phase == Phase.CONDEMNED:
        # A machine that hid its traces is not the machine it was: an operator decides.
        again = replace(state, reachability=Reachability.REACHABLE, attempts=0, faults=0, job=Job.FULL_ROUND)
        return Step(again, (_persist(state, again), Schedule(rules.quote_interval, Job.FULL_ROUND)))
    delivered = state.key_delivered and not new_key
    deliver = state.has_v and not delivered
    job = Job.DELIVER_KEY if deliver else Job.PARTIAL_ROUND
    trusted = Supervision(
        phase=Phase.PROVIDING_V if deliver else Phase.ATTESTING,
        integrity=Integrity.TRUSTED,
        reachability=Reachability.REACHABLE,
        trust_expires_at=at + rules.trust_lifetime,
        proven_at=at,
        attestation_count=state.attestation_count + 1,
        severity_level=state.severity_level,
        last_event_id=state.last_event_id,
        api_version=state.api_version,
        has_v=state.has_v,
        key_delivered=delivered,
        job=job,
    )
    after = 0.0 if deliver else rules.quote_interval
    return Step(trusted, (_persist(state, trusted), Schedule(after, job)))


def _distrusted(state: Supervision, findings: Sequence[Finding], rules: Rules) -> Step:
    finding, level, label = worst(findings, rules.severity)
    final = state.phase == Phase.CONDEMNED or level >= rules.severity.highest
    new_incident = state.integrity != Integrity.DISTRUSTED
    distrusted = replace(
        _noted(state, finding, level),
        phase=Phase.CONDEMNED if final else Phase.DOUBTED,
        integrity=Integrity.DISTRUSTED,
        reachability=Reachability.REACHABLE,
        trust_expires_at=None,
        attempts=0,
        faults=0,
    )
    notify = Notify(NoticeKind.REVOCATION, finding, level, label)
    told = (notify,) if new_incident or _rises(state, level) else ()
    return _go_on_or_end(_persist(state, distrusted), distrusted, finding, rules.quote_interval, told, rules)


# --- nodes that attest by themselves --------------------------------------------------------------------------------


def _push_result(state: Supervision, event: Result | DeadlinePassed, rules: Rules) -> Step:
    match event:
        case DeadlinePassed(at):
            return _silent(state, at, rules)
        case RoundTrusted(at):
            return _push_trusted(state, at, rules)
        case RoundDistrusted(findings):
            return _push_distrusted(state, findings, rules)
        case OurFault(reason):
            faults = state.faults + 1
            return Step(replace(state, faults=faults), (Alarm(reason, faults),))
        case _:
            return Step(state)  # nobody asks such a node anything


def _push_trusted(state: Supervision, at: float, rules: Rules) -> Step:
    if state.phase == Phase.CONDEMNED and not rules.auto_recover:
        again = replace(state, reachability=Reachability.REACHABLE, faults=0)
        return Step(again, (_persist(state, again),))
    trusted = replace(
        state,
        phase=Phase.ATTESTING,
        integrity=Integrity.TRUSTED,
        reachability=Reachability.REACHABLE,
        trust_expires_at=at + rules.trust_lifetime,
        proven_at=at,
        attestation_count=state.attestation_count + 1,
        faults=0,
    )
    return _watched(trusted, (_persist(state, trusted),))


def _push_distrusted(state: Supervision, findings: Sequence[Finding], rules: Rules) -> Step:
    finding, level, label = worst(findings, rules.severity)
    distrusted = replace(
        _noted(state, finding, level),
        # Only the operator's word, or the setting that stands for it, ends distrust.
        phase=Phase.CONDEMNED,
        integrity=Integrity.DISTRUSTED,
        reachability=Reachability.REACHABLE,
        trust_expires_at=None,
        faults=0,
    )
    new_incident = state.integrity != Integrity.DISTRUSTED
    notify = Notify(NoticeKind.REVOCATION, finding, level, label)
    told = (notify,) if new_incident or _rises(state, level) else ()
    return _watched(distrusted, (_persist(state, distrusted), *told))


def _silent(state: Supervision, at: float, rules: Rules) -> Step:
    """Look after a node that attests by itself when its timer went off: its trust has run out, or was renewed since."""
    if not state.push or state.integrity != Integrity.TRUSTED or state.trust_expires_at is None:
        return Step(state)
    if at < state.trust_expires_at:
        return _watched(state, ())
    if state.reachability == Reachability.UNREACHABLE:
        return _watched(state, ())
    silent = replace(state, reachability=Reachability.UNREACHABLE)
    finding = Finding(NOT_REACHABLE, {"message": "the node has not attested in time", "tries": 0})
    level, label = rules.severity.level(finding.event_id, not finding.recoverable)
    told = Notify(NoticeKind.COMM_ERROR, finding, level, label)
    return _watched(silent, (_persist(state, silent), told))


def _watched(state: Supervision, effects: tuple[Effect, ...]) -> Step:
    """Finish a step of a node that attests by itself: a timer runs while there is trust that can run out."""
    runs = state.integrity == Integrity.TRUSTED and state.reachability == Reachability.REACHABLE
    if not runs or state.trust_expires_at is None:
        return Step(replace(state, job=None), (*effects, _UNSCHEDULE))
    return Step(replace(state, job=Job.WATCH), (*effects, Watch(state.trust_expires_at)))


# --- findings -------------------------------------------------------------------------------------------------------


def worst(findings: Sequence[Finding], severity: SeverityRules) -> tuple[Finding, int, str]:
    """Return the first finding of the highest severity, its level and label. Raises ValueError when there is none."""
    levelled = [(finding, *severity.level(finding.event_id, not finding.recoverable)) for finding in findings]
    return max(levelled, key=lambda entry: entry[1])


def _rises(state: Supervision, level: int) -> bool:
    return state.severity_level is None or level > state.severity_level


def _noted(state: Supervision, finding: Finding, level: int) -> Supervision:
    """Keep the worst event since enrolment or reactivation."""
    if not _rises(state, level):
        return state
    return replace(state, severity_level=level, last_event_id=finding.event_id)


def _go_on_or_end(
    persist: Persist, state: Supervision, finding: Finding, after: float, told: tuple[Effect, ...], rules: Rules
) -> Step:
    """Finish a step that something bad led to. It is stored before anyone is told."""
    if supervised(state, rules):
        return Step(replace(state, job=Job.FULL_ROUND), (persist, *told, Schedule(after, Job.FULL_ROUND)))
    return Step(replace(state, job=None), (persist, *told, _UNSCHEDULE, SupervisionEnded(finding)))


# --- no usable answer -----------------------------------------------------------------------------------------------


def _unreachable(state: Supervision, reason: str, rules: Rules) -> Step:
    attempts = state.attempts + 1
    delivering = state.job is Job.DELIVER_KEY
    patient = state.phase in _ENDING
    if attempts > rules.max_retries and not patient:
        kind = NOT_REACHABLE_V if delivering else NOT_REACHABLE
        return _fail(state, Finding(kind, {"message": reason, "tries": attempts}), rules)
    job = _again(state)
    retrying = replace(
        state,
        phase=_retry_phase(state.phase),
        reachability=Reachability.UNREACHABLE,
        attempts=attempts,
        faults=0,
        job=job,
    )
    after = rules.long_pause() if patient else rules.pause(attempts)
    return Step(retrying, (_persist(state, retrying), Schedule(after, job)))


def _retry_phase(phase: Phase) -> Phase:
    """Return the phase of a retry; those that say more than that are kept."""
    return {Phase.ATTESTING: Phase.RETRYING, Phase.PROVIDING_V: Phase.RETRYING_V}.get(phase, phase)


def _again(state: Supervision) -> Job:
    """Return the job that takes up what did not work: a round asks for everything again."""
    return Job.DELIVER_KEY if state.job is Job.DELIVER_KEY else Job.FULL_ROUND


def _fail(state: Supervision, finding: Finding, rules: Rules) -> Step:
    """Give up on a node that gives no usable answer. Its integrity stays what it was until the trust expires."""
    level, label = rules.severity.level(finding.event_id, not finding.recoverable)
    failed = replace(
        _noted(state, finding, level),
        phase=Phase.CONDEMNED if state.phase == Phase.CONDEMNED else Phase.FAILED,
        reachability=Reachability.UNREACHABLE,
        attempts=state.attempts + 1,
        faults=0,
    )
    lost = finding.kind is NOT_REACHABLE_V or (finding.kind is NOT_REACHABLE and state.attestation_count > 0)
    told = (Notify(NoticeKind.COMM_ERROR, finding, level, label),) if lost else ()
    return _go_on_or_end(_persist(state, failed), failed, finding, rules.long_pause(), told, rules)


def _version(state: Supervision, version: str | None, rules: Rules) -> Step:
    """Follow a change of the agent's API version upwards; a node that was attested does not go back."""
    if version == state.api_version:
        return _unreachable(state, f"the agent refuses API version {version}, which it lists", rules)
    older = version is not None and is_older(version, state.api_version)
    if version is None or (older and state.attestation_count > 0):
        context = {"before": state.api_version, "now": version or "none in common"}
        return _fail(state, Finding(VERSION_NOT_SUPPORTED, context), rules)
    changed = replace(state, api_version=version)
    if older:
        # Counted, so that an agent that goes up and down does not keep us busy for ever.
        return _unreachable(changed, f"the agent went back to API version {version}", rules)
    job = _again(state)
    changed = replace(changed, job=job)
    return Step(changed, (_PERSIST_LATER, Schedule(rules.pause(max(state.attempts, 1)), job)))


# --- our own faults, and V ------------------------------------------------------------------------------------------


def _our_fault(state: Supervision, reason: str, rules: Rules) -> Step:
    """Try again later. The node's record stays as it is: trust runs out by itself, distrust is not made of our bugs."""
    faults = state.faults + 1
    job = _again(state)
    after = min(max(rules.pause(faults), MIN_PAUSE), MAX_FAULT_PAUSE)
    return Step(replace(state, faults=faults, job=job), (Alarm(reason, faults), Schedule(after, job)))


def _delivery(state: Supervision, event: KeyDelivered | KeyDeliveryFailed, rules: Rules) -> Step:
    if state.job is not Job.DELIVER_KEY:
        return Step(state)  # of a delivery from before a reactivation
    if isinstance(event, KeyDeliveryFailed):
        return _fail(state, Finding(UNEXPECTED_STATUS_V, {"message": event.reason}), rules)
    attesting = replace(
        state,
        phase=Phase.ATTESTING,
        reachability=Reachability.REACHABLE,
        attempts=0,
        faults=0,
        key_delivered=True,
        job=Job.PARTIAL_ROUND,
    )
    return Step(attesting, (_persist(state, attesting), Schedule(rules.quote_interval, Job.PARTIAL_ROUND)))
