"""Rows of nodes to records and back: the one place that knows which column holds what."""

import time
from collections.abc import Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from limeguard.evidence.tpm.structures import ClockInfo
from limeguard.store.ima_history import history_text, parse_history
from limeguard.store.node_record import MAX_CONTEXT, MAX_FINDINGS, Enrolled, NodeRecord, NodeState, StoredFinding
from limeguard.store.schema_verifier import nodes
from limeguard.telemetry import clean, get_logger

log = get_logger("keylime.verifier")

_LEFT_OUT = frozenset({"mtls_cert", "revocation_key", "partition", "epoch", "updated_at"})
READ = tuple(column for column in nodes.c if column.name not in _LEFT_OUT)
_STATE_COLUMNS = (
    "supported_version",
    "phase",
    "integrity",
    "reachability",
    "trust_expires_at",
    "proven_at",
    "attempts",
    "attestation_count",
    "last_received_quote",
    "last_successful_attestation",
    "tpm_clockinfo",
    "public_key",
    "boottime",
    "ima_next_entry",
    "ima_history",
    "hash_alg",
    "enc_alg",
    "sign_alg",
    "severity_level",
    "last_event_id",
    "findings",
    "required_checks",
    "ran_checks",
    "attestation_limit",
    "updated_at",
    "version",
    "epoch",
)
UPDATE = (
    nodes.update()
    .where(nodes.c.agent_id == sa.bindparam("b_agent_id"))
    .values({name: sa.bindparam(name) for name in _STATE_COLUMNS})
)


def update_row(record: NodeRecord) -> dict[str, Any]:
    """Return the parameters of UPDATE for a record."""
    return {
        **state_row(record.state),
        "b_agent_id": record.agent_id,
        "version": record.version + 1,
        "epoch": record.epoch,
    }


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def enrolled_row(enrolled: Enrolled) -> dict[str, Any]:
    """Return the columns of what was enrolled, but for the secrets that stay in the row."""
    return {
        "agent_id": enrolled.agent_id,
        "verifier_id": enrolled.verifier_id,
        "verifier_ip": enrolled.verifier_ip,
        "verifier_port": enrolled.verifier_port,
        "ip": enrolled.ip,
        "port": enrolled.port,
        "v": enrolled.v,
        "tpm_policy": enrolled.tpm_policy,
        "meta_data": enrolled.meta_data,
        "has_mb_policy": enrolled.has_mb_policy,
        "has_runtime_policy": enrolled.has_runtime_policy,
        "runtime_policy_name": enrolled.runtime_policy_name,
        "ima_keys": enrolled.ima_keys,
        "mb_policy_name": enrolled.mb_policy_name,
        "accept_tpm_hash_algs": _json(enrolled.accept_hash),
        "accept_tpm_encryption_algs": _json(enrolled.accept_enc),
        "accept_tpm_signing_algs": _json(enrolled.accept_sign),
        "ak_tpm": enrolled.ak_tpm,
        "certificate_sha256": enrolled.certificate_sha256,
        "enrolled_at": enrolled.enrolled_at,
        "push": enrolled.push,
    }


def state_row(state: NodeState) -> dict[str, Any]:
    """Return the columns of what supervision knows."""
    clock = state.clock
    return {
        "supported_version": state.supported_version,
        "phase": state.phase,
        "integrity": state.integrity,
        "reachability": state.reachability,
        "trust_expires_at": state.trust_expires_at,
        "proven_at": state.proven_at,
        "attempts": state.attempts,
        "attestation_count": state.attestation_count,
        "last_received_quote": state.last_received_quote,
        "last_successful_attestation": state.last_successful_attestation,
        # The TPM's clock has 64 bits without a sign: no column of every database holds it, text does.
        "tpm_clockinfo": None
        if clock is None
        else _json([clock.clock, clock.reset_count, clock.restart_count, clock.safe]),
        "public_key": state.public_key,
        "boottime": state.boottime,
        "ima_next_entry": state.ima.next_entry,
        "ima_history": history_text(state.ima),
        "hash_alg": state.hash_alg,
        "enc_alg": state.enc_alg,
        "sign_alg": state.sign_alg,
        "severity_level": state.severity_level,
        "last_event_id": state.last_event_id,
        "findings": _json(_bounded(state.findings)),
        "required_checks": _json(state.required_checks),
        "ran_checks": _json(state.ran_checks),
        "attestation_limit": state.attestation_limit,
        "updated_at": time.time(),
    }


def _bounded(findings: tuple[StoredFinding, ...]) -> list[StoredFinding]:
    return [
        finding
        if len(finding.context) <= MAX_CONTEXT
        else msgspec.structs.replace(finding, context=finding.context[:MAX_CONTEXT])
        for finding in findings[:MAX_FINDINGS]
    ]


def readable(row: Mapping[Any, Any]) -> NodeRecord | None:
    """Return the record of a row; None for one that cannot be read, which is named in the log."""
    try:
        return record_of(row)
    except (ValueError, TypeError) as problem:
        reason = clean(problem)
    log.error("The row of node %s cannot be read: %s", clean(row["agent_id"]), reason)
    return None


def record_of(row: Mapping[Any, Any]) -> NodeRecord:
    """Return the record of a row. Raises ValueError, TypeError."""
    enrolled = Enrolled(
        agent_id=row["agent_id"],
        verifier_id=row["verifier_id"],
        verifier_ip=row["verifier_ip"],
        verifier_port=row["verifier_port"],
        ip=row["ip"],
        port=row["port"],
        v=row["v"],
        tpm_policy=row["tpm_policy"],
        meta_data=row["meta_data"],
        has_mb_policy=row["has_mb_policy"],
        has_runtime_policy=row["has_runtime_policy"],
        runtime_policy_name=row["runtime_policy_name"],
        ima_keys=row["ima_keys"],
        mb_policy_name=row["mb_policy_name"],
        accept_hash=_strings(row["accept_tpm_hash_algs"]),
        accept_enc=_strings(row["accept_tpm_encryption_algs"]),
        accept_sign=_strings(row["accept_tpm_signing_algs"]),
        ak_tpm=row["ak_tpm"],
        certificate_sha256=row["certificate_sha256"],
        enrolled_at=row["enrolled_at"],
        push=row["push"],
    )
    return NodeRecord(enrolled, _state(row), row["version"])


def _state(row: Mapping[Any, Any]) -> NodeState:
    clock = None if row["tpm_clockinfo"] is None else msgspec.json.decode(row["tpm_clockinfo"], type=_ClockRow)
    return NodeState(
        supported_version=row["supported_version"],
        phase=row["phase"],
        integrity=row["integrity"],
        reachability=row["reachability"],
        trust_expires_at=row["trust_expires_at"],
        proven_at=row["proven_at"],
        attempts=row["attempts"],
        attestation_count=row["attestation_count"],
        last_received_quote=row["last_received_quote"],
        last_successful_attestation=row["last_successful_attestation"],
        clock=None if clock is None else ClockInfo(*clock),
        public_key=row["public_key"],
        boottime=row["boottime"],
        ima=parse_history(row["ima_next_entry"], row["ima_history"]),
        hash_alg=row["hash_alg"],
        enc_alg=row["enc_alg"],
        sign_alg=row["sign_alg"],
        severity_level=row["severity_level"],
        last_event_id=row["last_event_id"],
        findings=tuple(msgspec.json.decode(row["findings"], type=list[StoredFinding])),
        required_checks=_strings(row["required_checks"]),
        ran_checks=_strings(row["ran_checks"]),
        attestation_limit=row["attestation_limit"],
    )


_ClockRow = tuple[int, int, int, bool]


def _strings(text: str) -> tuple[str, ...]:
    return msgspec.json.decode(text, type=tuple[str, ...])
