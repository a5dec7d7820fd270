"""Pushed evidence as appraisal takes it, and a verdict as the lifecycle and the wire have it."""

from typing import Final

from limeguard.appraisal.appraise import Evidence
from limeguard.appraisal.findings import Finding
from limeguard.appraisal.verdict import Appraisal, Outcome
from limeguard.verifier import lifecycle
from limeguard.verifier.fleet import Node
from limeguard.verifier.lifecycle import Event
from limeguard.verifier.push.attestation import Attestation
from limeguard.wire.agent_v2 import MAX_BOOT_LOG
from limeguard.wire.attestation_v3 import Collected, LogParameters, QuoteParameters
from limeguard.wire.offer_v3 import UEFI_LOG

BROKEN_CHAIN: Final = "broken_evidence_chain"
POLICY_VIOLATION: Final = "policy_violation"
_CHAIN_EVENTS: Final = frozenset({"qoute_validation.quote_validation", "ima.pcr_mismatch"})
_CHAIN_PREFIX: Final = "measured_boot.invalid_pcr_"


def offset_of(requested: tuple[object, ...]) -> int:
    """Return from which entry on the IMA log was asked for."""
    for one in requested:
        parameters = getattr(one, "parameters", None)
        if isinstance(parameters, LogParameters) and isinstance(parameters.starting_offset, int):
            return parameters.starting_offset
    return 0


def evidence_of(node: Node, attestation: Attestation, collected: Collected) -> Evidence:
    """Return evidence as appraisal takes it. What an agent that is polled announces was agreed on beforehand here."""
    asked = next(one.parameters for one in attestation.requested if isinstance(one.parameters, QuoteParameters))
    return Evidence(
        quote=collected.quote_text,
        parsed=collected.quote,
        hash_alg=asked.hash_algorithm,
        enc_alg=node.ak.key_algorithm,
        sign_alg=asked.signature_scheme,
        ima_log=collected.ima_log,
        ima_entry=attestation.offset,
        boot_log=_boot_log(collected.boot_log),
        boottime=int(attestation.boot_time or 0),
    )


def _boot_log(log: bytes | None) -> bytes | None:
    """Return the boot log as appraisal takes it: an empty one is none, and one that is far too long is no log."""
    if not log:
        return None
    return log if len(log) <= MAX_BOOT_LOG else b""


def has_boot_log(attestation: Attestation) -> bool:
    """Say whether the boot log was asked for."""
    return any(one.evidence_type == UEFI_LOG for one in attestation.requested)


def event_of(appraisal: Appraisal, received_at: float) -> Event:
    """Return what a verdict is to the lifecycle."""
    match appraisal.outcome:
        case Outcome.TRUSTED:
            return lifecycle.RoundTrusted(received_at)
        case Outcome.DISTRUSTED:
            return lifecycle.RoundDistrusted(appraisal.findings)
        case Outcome.INCOMPLETE:
            missing = ", ".join(sorted(appraisal.not_run))
            return lifecycle.OurFault(f"required checks did not run: {missing}")


def failure_reason(findings: tuple[Finding, ...]) -> str:
    """Return the wire's word for what was wrong: the chain of evidence itself, or what it shows."""
    broken = any(one.event_id in _CHAIN_EVENTS or one.event_id.startswith(_CHAIN_PREFIX) for one in findings)
    return BROKEN_CHAIN if broken else POLICY_VIOLATION
