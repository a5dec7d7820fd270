"""What readers are told of a node: computed from its record and the present time, never stored.

Pure. Keylime's fields and our own views come from the same record, so they cannot contradict each other.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from limeguard.appraisal.verdict import STATE_CHECKS, Condition, Integrity, condition
from limeguard.store.node_record import NodeRecord, NodeState, StoredFinding
from limeguard.verifier.supervision import INTERVALS_OF_TRUST, OPERATIONAL_STATES, PAUSED, Phase
from limeguard.wire.limeguard_v1 import Checks, FindingView, NodeList, NodeSummary, NodeView, context_of
from limeguard.wire.verifier_v2 import AgentStatus

PENDING: Final = "PENDING"
PASS: Final = "PASS"  # noqa: S105 - a word of the wire
FAIL: Final = "FAIL"
TIMEOUT: Final = "TIMEOUT"

_PUSH_STATES: Final[dict[str, int]] = {phase: OPERATIONAL_STATES[phase] for phase in (Phase.STOPPED, Phase.TERMINATED)}


def condition_of(state: NodeState, now: float) -> Condition:
    """Return the condition at `now`."""
    return condition(
        integrity=state.integrity,
        reachability=state.reachability,
        paused=state.phase in PAUSED,
        trust_expires_at=state.trust_expires_at,
        proven_at=state.proven_at,
        now=now,
    )


def shows_trust(state: NodeState, now: float) -> bool:
    """Say whether a reader would be told that the node is trusted."""
    return condition_of(state, now) is Condition.TRUSTED


def operational_state(state: NodeState, *, push: bool = False) -> int:
    """Return Keylime's number for the state; a phase that nobody knows counts as failed.

    That of a node which attests by itself never changes but for operators' words, as older peers expect.
    """
    if push:
        return _PUSH_STATES.get(state.phase, OPERATIONAL_STATES[Phase.ATTESTING])
    try:
        return OPERATIONAL_STATES[Phase(state.phase)]
    except ValueError:
        return OPERATIONAL_STATES[Phase.FAILED]


def attestation_status(state: NodeState, now: float, *, push: bool = False) -> str:
    """Return Keylime's word for the node. `PASS` only while a proof is fresh: older peers would go on saying it."""
    seen = condition_of(state, now)
    if seen is Condition.TRUSTED:
        return PASS
    if push:
        if state.integrity == Integrity.DISTRUSTED:
            return FAIL
        return PENDING if state.proven_at is None else TIMEOUT
    if seen is Condition.DISTRUSTED or state.phase in {Phase.FAILED, Phase.STOPPED, Phase.CONDEMNED}:
        return FAIL
    if state.phase == Phase.TERMINATED or state.proven_at is None:
        return PENDING
    return TIMEOUT


def agent_status(record: NodeRecord, now: float, quote_interval: float) -> AgentStatus:
    """Return the node in Keylime's fields."""
    enrolled, state = record.enrolled, record.state
    return AgentStatus(
        operational_state=operational_state(state, push=enrolled.push),
        v=enrolled.v,
        ip=enrolled.ip,
        port=enrolled.port,
        tpm_policy=enrolled.tpm_policy,
        meta_data=enrolled.meta_data,
        has_mb_refstate=int(enrolled.has_mb_policy),
        has_runtime_policy=int(enrolled.has_runtime_policy),
        accept_tpm_hash_algs=enrolled.accept_hash,
        accept_tpm_encryption_algs=enrolled.accept_enc,
        accept_tpm_signing_algs=enrolled.accept_sign,
        hash_alg=state.hash_alg,
        enc_alg=state.enc_alg,
        sign_alg=state.sign_alg,
        verifier_id=enrolled.verifier_id,
        verifier_ip=enrolled.verifier_ip,
        verifier_port=enrolled.verifier_port,
        severity_level=state.severity_level,
        last_event_id=state.last_event_id,
        attestation_count=state.attestation_count,
        last_received_quote=int(state.last_received_quote),
        last_successful_attestation=int(state.last_successful_attestation),
        attestation_status=attestation_status(state, now, push=enrolled.push),
        attestation_period=f"{int(quote_interval)}s",
        maximum_attestation_interval=f"{int(INTERVALS_OF_TRUST * quote_interval)}s",
    )


def node_view(record: NodeRecord, now: float) -> NodeView:
    """Return the node as our own interface shows it."""
    enrolled, state = record.enrolled, record.state
    return NodeView(
        id=enrolled.agent_id,
        condition=condition_of(state, now).value,
        integrity=state.integrity,
        reachability=state.reachability,
        phase=state.phase,
        identity_only=bool(state.required_checks) and not STATE_CHECKS & set(state.required_checks),
        trust_expires_at=state.trust_expires_at,
        last_answer_at=state.last_received_quote or None,
        last_trusted_at=state.last_successful_attestation or None,
        attestation_count=state.attestation_count,
        failed_attempts=state.attempts,
        findings=tuple(_finding(one) for one in state.findings),
        checks=Checks(state.required_checks, state.ran_checks),
        ip=enrolled.ip,
        port=enrolled.port,
        agent_api_version=state.supported_version,
        verifier_id=enrolled.verifier_id,
        enrolled_at=enrolled.enrolled_at,
        push=enrolled.push,
    )


def node_list(records: Sequence[NodeRecord], now: float) -> NodeList:
    """Return the list of nodes, by id, and how many are in each condition."""
    lines = tuple(_summary(record, now) for record in sorted(records, key=lambda record: record.agent_id))
    counts = Counter(line.condition for line in lines)
    return NodeList({each.value: counts[each.value] for each in Condition}, lines)


def _summary(record: NodeRecord, now: float) -> NodeSummary:
    state = record.state
    return NodeSummary(
        id=record.agent_id,
        condition=condition_of(state, now).value,
        integrity=state.integrity,
        reachability=state.reachability,
        trust_expires_at=state.trust_expires_at,
        last_event_id=state.last_event_id,
    )


def _finding(stored: StoredFinding) -> FindingView:
    return FindingView(
        id=stored.id,
        event_id=stored.event_id,
        severity=stored.label,
        found_at=stored.at,
        context=context_of(stored.context),
        advice=stored.advice,
    )
