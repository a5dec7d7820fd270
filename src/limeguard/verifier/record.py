"""Between what supervision thinks in and what a row holds: pure, and the only place that knows both."""

from functools import lru_cache

import msgspec
from msgspec.structs import replace

from limeguard.appraisal.findings import Finding
from limeguard.appraisal.ima.history import NO_IMA
from limeguard.appraisal.verdict import Checks, Integrity, Reachability
from limeguard.policy.severity import SeverityRules
from limeguard.store.node_record import MAX_CONTEXT, MAX_FINDINGS, NodeState, StoredFinding
from limeguard.verifier.poller import Facts
from limeguard.verifier.supervision import Phase, Supervision


def supervision_of(state: NodeState, *, has_v: bool, push: bool = False) -> Supervision:
    """Return what a row says of supervision. Raises ValueError for a row with values that are none of ours."""
    return Supervision(
        phase=Phase(state.phase),
        integrity=Integrity(state.integrity),
        reachability=Reachability(state.reachability),
        trust_expires_at=state.trust_expires_at,
        proven_at=state.proven_at,
        attempts=state.attempts,
        attestation_count=state.attestation_count,
        severity_level=state.severity_level,
        last_event_id=state.last_event_id,
        api_version=state.supported_version,
        has_v=has_v,
        push=push,
    )


def with_supervision(state: NodeState, supervision: Supervision) -> NodeState:
    """Return the row's state with what supervision says now."""
    return replace(
        state,
        phase=supervision.phase.value,
        integrity=supervision.integrity.value,
        reachability=supervision.reachability.value,
        trust_expires_at=supervision.trust_expires_at,
        proven_at=supervision.proven_at,
        attempts=supervision.attempts,
        attestation_count=supervision.attestation_count,
        severity_level=supervision.severity_level,
        last_event_id=supervision.last_event_id,
        supported_version=supervision.api_version,
    )


def afresh(state: NodeState) -> NodeState:
    """Return the state without what earlier rounds found and proved of logs: all is asked for again."""
    return replace(state, findings=(), required_checks=(), ran_checks=(), ima=NO_IMA)


def with_facts(state: NodeState, facts: Facts, *, trusted: bool) -> NodeState:
    """Return the state with what a round learned; `trusted` says whether it made trust, which clears findings."""
    appraisal, history = facts.appraisal, facts.appraisal.history
    state = replace(
        state,
        clock=history.clock,
        public_key=history.public_key,
        boottime=history.boottime,
        ima=history.ima,
        required_checks=_names(appraisal.required),
        ran_checks=_names(appraisal.ran),
    )
    if facts.answered_at is None:
        return state
    return replace(
        state,
        last_received_quote=facts.answered_at,
        last_successful_attestation=facts.answered_at if trusted else state.last_successful_attestation,
        hash_alg=facts.hash_alg,
        enc_alg=facts.enc_alg,
        sign_alg=facts.sign_alg,
        findings=() if trusted else state.findings,
    )


@lru_cache(maxsize=512)  # every set of checks there is: nodes share the few that occur
def _names(checks: Checks) -> tuple[str, ...]:
    return tuple(sorted(checks))


def with_findings(state: NodeState, findings: tuple[Finding, ...], rules: SeverityRules, at: float) -> NodeState:
    """Return the state with findings added, each event once for each file, the first that were seen."""
    known = {(one.id, one.event_id, _path_in(one.context)) for one in state.findings}
    fresh = [
        stored(one, rules, at)
        for one in findings
        if (one.kind.id, one.event_id, str(one.context.get("path", ""))) not in known
    ]
    return replace(state, findings=(*state.findings, *fresh)[:MAX_FINDINGS]) if fresh else state


def _path_in(context: str) -> str:
    """Return the file that a stored finding is about: each file of a list is a finding of its own."""
    try:
        return str(msgspec.json.decode(context, type=dict[str, object]).get("path", ""))
    except msgspec.DecodeError:
        return ""


def stored(finding: Finding, rules: SeverityRules, at: float) -> StoredFinding:
    """Return a finding as it is kept."""
    level, label = rules.level(finding.event_id, not finding.recoverable)
    context = msgspec.json.encode(dict(finding.context)).decode()
    if len(context) > MAX_CONTEXT:
        context = msgspec.json.encode({"message": f"too long to keep: {context[: MAX_CONTEXT // 2]}"}).decode()
    return StoredFinding(
        id=finding.kind.id,
        event_id=finding.event_id,
        severity=level,
        label=label,
        context=context,
        advice=finding.kind.advice,
        at=at,
    )
