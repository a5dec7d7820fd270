"""Evidence that somebody brings, judged once: no node, no history, no transport key. Pure.

Decides whether a quote holds for one of the nonces, and whether what it proves is what the caller's policies allow. Who
asks, and how fresh the nonce is, only the caller knows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from limeguard.appraisal.appraise import QUOTE_FAULTS
from limeguard.appraisal.boot import appraise_boot
from limeguard.appraisal.findings import (
    QUOTE_MALFORMED,
    QUOTE_SCHEME,
    QUOTE_UNUSABLE,
    Finding,
)
from limeguard.appraisal.history import NO_HISTORY
from limeguard.appraisal.ima.history import NO_IMA
from limeguard.appraisal.pcrs import check_allowed, check_requested
from limeguard.appraisal.runtime import Measured, RuntimeExpected, appraise_runtime
from limeguard.appraisal.verdict import Appraisal, Check, Checks
from limeguard.evidence.reader import MalformedEvidence
from limeguard.evidence.tpm.quote import QuotedPcrs, QuoteFault, parse_quote, verify_quote
from limeguard.evidence.tpm.structures import PublicArea
from limeguard.policy.boot import BootPolicy
from limeguard.policy.pcrs import PcrPolicy

_SIGNED: Final[Checks] = frozenset({Check.ALGORITHMS, Check.QUOTE_SIGNATURE, Check.FRESHNESS})


@dataclass(frozen=True, slots=True, kw_only=True)
class BroughtEvidence:
    """What was brought. Nothing of it is believed before the quote held; None or "" for a log that was not."""

    quote: str
    ima_log: str = ""
    boot_log: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BroughtExpectation:
    """What the caller calls good. Any of `nonces` may have been signed: texts can be read in two ways.

    `hash_alg` names the hash of the signature and of the bank. `runtime` and `boot_policy` are None where the caller
    does not ask for that log.
    """

    ak: PublicArea
    nonces: Sequence[bytes]
    hash_alg: str
    pcrs: PcrPolicy
    runtime: RuntimeExpected | None = None
    boot_policy: BootPolicy | None = None

    @property
    def required(self) -> Checks:
        """The checks without which the evidence is not valid."""
        boot = self.boot_policy is not None and self.boot_policy.active
        asked = ((self.pcrs.allowed, Check.PCR_POLICY), (self.runtime, Check.IMA_LOG), (boot, Check.BOOT_LOG))
        return _SIGNED | {check for wanted, check in asked if wanted}


def appraise_brought(evidence: BroughtEvidence, expected: BroughtExpectation) -> Appraisal:
    """Judge evidence: the quote, then PCR values, boot log and IMA log together. Any exception is our own fault."""
    required = expected.required
    quoted = proven(evidence.quote, key=expected.ak, nonces=expected.nonces, hash_alg=expected.hash_alg)
    if isinstance(quoted, Finding):
        return Appraisal(required, _SIGNED, (quoted,), NO_HISTORY)
    findings = list(check_allowed(quoted, expected.pcrs))
    missing = check_requested(quoted, frozenset(expected.pcrs.allowed))
    if missing is not None:
        findings.append(missing)
    ran = _SIGNED | {Check.PCR_POLICY}
    boot = appraise_boot(evidence.boot_log, quoted, expected.boot_policy)
    findings += boot.findings
    if boot.judged:
        ran |= {Check.BOOT_LOG}
    if expected.runtime is not None:
        measured = Measured(evidence.ima_log, 0)
        verdict = appraise_runtime(
            measured, quoted, expected.runtime, NO_IMA, same_boot=False, boot_aggregates=boot.aggregates
        )
        if verdict is not None:
            findings += verdict.findings
            ran |= {Check.IMA_LOG}
    return Appraisal(required, ran, tuple(findings), NO_HISTORY, quoted)


def proven(text: str, *, key: PublicArea, nonces: Sequence[bytes], hash_alg: str) -> QuotedPcrs | Finding:
    """Return what the key vouches for over one of the nonces, or why it vouches for nothing."""
    try:
        quote = parse_quote(text)
    except MalformedEvidence as problem:
        return Finding(QUOTE_MALFORMED, {"message": f"The quote cannot be read: {problem}"})
    if quote.signature.hash_alg.name != hash_alg:
        return Finding(QUOTE_SCHEME, {"message": "The quote is not signed with the named hash algorithm"})
    faults: list[QuoteFault] = []
    for nonce in nonces:
        found = verify_quote(quote, key=key, nonce=nonce, accepted_hashes=frozenset({hash_alg}))
        if not isinstance(found, QuoteFault):
            return found
        faults.append(found)
    if not faults:
        return Finding(QUOTE_UNUSABLE, {"message": "There is no nonce that the quote could be made over"})
    return Finding(QUOTE_FAULTS.get(faults[0], QUOTE_UNUSABLE), {"message": faults[0].value})
