"""The one entry point of judgement: what an agent answered, against what was expected, in the light of what is known.

Pure, and the only judge of the pull and push models and of the tenant. Malformed evidence becomes a finding; any
exception that leaves here is our own fault, and the caller neither trusts nor distrusts the node for it.
"""

from collections.abc import Iterator
from math import inf
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from limeguard.appraisal.boot import BootMemo, appraise_boot
from limeguard.appraisal.clock import Since, check_clock
from limeguard.appraisal.findings import (
    HASH_NOT_ACCEPTED,
    INVALID_DATA,
    KEY_MISNAMED,
    KEY_NOT_ACCEPTED,
    NO_TRANSPORT_KEY,
    QUOTE_HASH,
    QUOTE_KEY_UNFIT,
    QUOTE_LATE,
    QUOTE_MALFORMED,
    QUOTE_NONCE,
    QUOTE_PCR_DIGEST,
    QUOTE_SCHEME,
    QUOTE_SELECTION,
    QUOTE_SIGNATURE,
    QUOTE_UNUSABLE,
    SCHEME_MISNAMED,
    SCHEME_NOT_ACCEPTED,
    Finding,
    FindingKind,
)
from limeguard.appraisal.history import History
from limeguard.appraisal.ima.history import NO_IMA
from limeguard.appraisal.pcrs import check_allowed, check_requested, check_transport_key
from limeguard.appraisal.runtime import Measured, RuntimeExpected, appraise_runtime
from limeguard.appraisal.verdict import IDENTITY_CHECKS, Appraisal, Check, Checks
from limeguard.crypto.keys import UnsupportedKeyError, load_public_key
from limeguard.evidence.reader import MalformedEvidence
from limeguard.evidence.tpm.quote import Quote, QuotedPcrs, QuoteFault, parse_quote, verify_quote
from limeguard.evidence.tpm.structures import PublicArea
from limeguard.policy.algorithms import hash_accepted, key_accepted, key_algorithm, scheme_accepted
from limeguard.policy.boot import BootPolicy
from limeguard.policy.pcrs import IMA_PCR, PcrPolicy

MAX_PUBLIC_KEY: Final = 8 * 1024
"""Characters of a transport key; RSA-4096 as PEM has 800. It is kept for each node."""
MIN_KEY_BITS: Final = 2048
"""A transport key that is weaker does not protect the share that is encrypted to it."""


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent said. Nothing of it is believed before the quote held.

    `public_key` is the transport key as PEM text, None when the answer has none. `ima_log` is the text from entry
    `ima_entry` on, None when there is no log; `boot_log` is binary; `boottime` is seconds since 1970, 0 when unknown.
    `parsed` is what `quote` parses to, where somebody had to know that before.
    """

    quote: str
    hash_alg: str
    enc_alg: str
    sign_alg: str
    public_key: str | None = None
    ima_log: str | None = None
    ima_entry: int = 0
    boot_log: bytes | None = None
    boottime: int = 0
    parsed: Quote | None = None


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What a good answer looks like. Everything here comes from the registrar, the operator or this round's challenge.

    `nonce` are the bytes that the TPM was to sign, good until `nonce_expires` (seconds since 1970). The accept lists
    hold Keylime's names. `required_selection` are the PCRs that were asked for. `identity_only_allowed` lets a node
    pass of which only the TPM's identity is proven, because the operator listed no PCR values. `runtime` judges the IMA
    log, None where none is judged. `binds_key` wants a transport key and its proof; agents that push have none.
    `boot_policy` judges the boot log; `boot_memo` holds verdicts of logs that were judged before, None to judge each
    anew.
    """

    ak: PublicArea
    nonce: bytes
    accept_hash: tuple[str, ...]
    accept_enc: tuple[str, ...]
    accept_sign: tuple[str, ...]
    pcrs: PcrPolicy
    required_selection: frozenset[int]
    identity_only_allowed: bool
    nonce_expires: float = inf
    runtime: RuntimeExpected | None = None
    binds_key: bool = True
    boot_policy: BootPolicy | None = None
    boot_memo: BootMemo | None = None


_WITH_POLICY: Final = IDENTITY_CHECKS | {Check.PCR_POLICY}
_BINDING: Final[Checks] = frozenset({Check.TRANSPORT_KEY})
_ANNOUNCED: Final[Checks] = frozenset({Check.ALGORITHMS})
_LATE: Final = _ANNOUNCED | {Check.FRESHNESS}
_SIGNED: Final = _ANNOUNCED | {Check.QUOTE_SIGNATURE}
_FRESH: Final = _SIGNED | {Check.FRESHNESS}
_TIMED: Final = _FRESH | {Check.CLOCK}

QUOTE_FAULTS: Final = {
    QuoteFault.KEY_NOT_RESTRICTED: QUOTE_KEY_UNFIT,
    QuoteFault.HASH_NOT_ACCEPTED: QUOTE_HASH,
    QuoteFault.SCHEME_MISMATCH: QUOTE_SCHEME,
    QuoteFault.BAD_SIGNATURE: QUOTE_SIGNATURE,
    QuoteFault.WRONG_NONCE: QUOTE_NONCE,
    QuoteFault.SELECTION_MISMATCH: QUOTE_SELECTION,
    QuoteFault.WRONG_PCR_DIGEST: QUOTE_PCR_DIGEST,
}


def required_checks(expected: Expected) -> Checks:
    """Return the checks without which there is no trust."""
    identity_only = not expected.pcrs.allowed and expected.identity_only_allowed
    required = IDENTITY_CHECKS if identity_only else _WITH_POLICY
    if not expected.binds_key:
        required -= _BINDING
    # A quote that covers the IMA log's PCR asks for the log to be judged.
    if expected.runtime is not None or IMA_PCR in expected.required_selection:
        required |= {Check.IMA_LOG}
    if expected.boot_policy is not None and expected.boot_policy.active:
        required |= {Check.BOOT_LOG}
    return required


def appraise(evidence: Evidence, expected: Expected, history: History, now: float) -> Appraisal:
    """Judge one answer; `now` is seconds since 1970.

    In this order, and no further than the first step with findings: what the agent announces, the quote (signature,
    nonce, PCR digest), the TPM's clock, then PCR values, the boot log and the IMA log together. Any exception is our
    own fault.
    """
    required = required_checks(expected)
    announced = tuple(_check_announced(evidence, expected, history))
    if announced:
        return Appraisal(required, _ANNOUNCED, announced, history)
    if now > expected.nonce_expires:
        late = Finding(QUOTE_LATE, {"seconds": round(now - expected.nonce_expires)})
        return Appraisal(required, _LATE, (late,), history)
    quoted = _proven(evidence, expected)
    if isinstance(quoted, Finding):
        ran = _FRESH if quoted.kind is QUOTE_NONCE else _SIGNED
        return Appraisal(required, ran, (quoted,), history)
    clock = check_clock(history.clock, quoted.clock)
    if clock.finding is not None:
        return Appraisal(required, _TIMED, (clock.finding,), history)
    return _judge_values(evidence, expected, history, quoted, clock.since)


def unreadable(expected: Expected, history: History, reason: str) -> Appraisal:
    """Return the appraisal of an answer that is no answer: not JSON, or members missing or of the wrong type."""
    return Appraisal(required_checks(expected), frozenset(), (Finding(INVALID_DATA, {"message": reason}),), history)


def _judge_values(
    evidence: Evidence, expected: Expected, history: History, quoted: QuotedPcrs, since: Since
) -> Appraisal:
    """Judge what the TPM vouched for. The proven clock is kept in any case, the rest only with trust."""
    public_key = evidence.public_key or history.public_key or ""
    required = required_checks(expected)
    boot = appraise_boot(evidence.boot_log, quoted, expected.boot_policy, expected.boot_memo)
    findings = [*_check_values(quoted, expected, public_key), *boot.findings]
    ran = _WITH_POLICY if expected.pcrs.allowed else IDENTITY_CHECKS
    if boot.judged:
        ran |= {Check.BOOT_LOG}
    if not expected.binds_key:
        ran -= _BINDING
    same_boot = since is not Since.REBOOTED and evidence.boottime == history.boottime
    ima = history.ima if same_boot else NO_IMA
    if expected.runtime is not None and Check.IMA_LOG in required:
        measured = Measured(evidence.ima_log, evidence.ima_entry)
        verdict = appraise_runtime(
            measured, quoted, expected.runtime, history.ima, same_boot=same_boot, boot_aggregates=boot.aggregates
        )
        if verdict is None:
            ima = NO_IMA
        else:
            ran |= {Check.IMA_LOG}
            findings += verdict.findings
            ima = verdict.history
    trusted = not findings and required <= ran
    next_history = History(
        clock=quoted.clock,
        public_key=public_key if trusted and expected.binds_key else history.public_key,
        ima=NO_IMA if findings else ima,
        boottime=evidence.boottime if trusted else history.boottime,
    )
    new_key = trusted and expected.binds_key and public_key != history.public_key
    return Appraisal(required, ran, tuple(findings), next_history, quoted, since, new_key)


def _check_values(quoted: QuotedPcrs, expected: Expected, public_key: str) -> Iterator[Finding]:
    unbound = check_transport_key(quoted, public_key) if expected.binds_key else None
    if unbound is not None:
        yield unbound
    yield from check_allowed(quoted, expected.pcrs)
    missing = check_requested(quoted, expected.required_selection.union(expected.pcrs.allowed))
    if missing is not None:
        yield missing


def _check_announced(evidence: Evidence, expected: Expected, history: History) -> Iterator[Finding]:
    """Yield what is wrong with the answer's own words, all of it."""
    if evidence.public_key:
        if evidence.public_key != history.public_key and (reason := _unfit_key(evidence.public_key)):
            yield Finding(INVALID_DATA, {"message": reason})
    elif expected.binds_key and not history.public_key:
        yield Finding(NO_TRANSPORT_KEY)
    if not hash_accepted(evidence.hash_alg, expected.accept_hash):
        yield _not_accepted(HASH_NOT_ACCEPTED, evidence.hash_alg, expected.accept_hash)
    if not key_accepted(evidence.enc_alg, expected.accept_enc):
        yield _not_accepted(KEY_NOT_ACCEPTED, evidence.enc_alg, expected.accept_enc)
    elif key_algorithm(evidence.enc_alg) != expected.ak.key_algorithm:
        context = {"announced": _said(evidence.enc_alg), "key": expected.ak.key_algorithm}
        yield Finding(KEY_MISNAMED, context)
    if not scheme_accepted(evidence.sign_alg, expected.accept_sign):
        yield _not_accepted(SCHEME_NOT_ACCEPTED, evidence.sign_alg, expected.accept_sign)


def _not_accepted(kind: FindingKind, name: str, accepted: tuple[str, ...]) -> Finding:
    return Finding(kind, {"announced": _said(name), "accepted": accepted})


def _said(text: str) -> str:
    """Return what the agent said, as much of it as is worth keeping."""
    return text[:64]


def _unfit_key(public_key: str) -> str | None:
    """Return why a share cannot be encrypted to this transport key, or None."""
    if len(public_key) > MAX_PUBLIC_KEY or not public_key.isascii():
        return f"the transport key is not PEM text of at most {MAX_PUBLIC_KEY} characters"
    try:
        key = load_public_key(public_key.encode())
    except UnsupportedKeyError as problem:
        return f"the transport key cannot be read: {problem}"
    if not isinstance(key, RSAPublicKey) or key.key_size < MIN_KEY_BITS:
        return f"the transport key is not an RSA key of {MIN_KEY_BITS} bits or more"
    return None


def _proven(evidence: Evidence, expected: Expected) -> QuotedPcrs | Finding:
    """Return what the attestation key vouches for, or why it vouches for nothing."""
    try:
        quote = parse_quote(evidence.quote) if evidence.parsed is None else evidence.parsed
    except MalformedEvidence as problem:
        return Finding(QUOTE_MALFORMED, {"place": problem.place, "reason": problem.reason})
    misnamed = _misnamed(quote, evidence)
    if misnamed is not None:
        return misnamed
    proven = verify_quote(quote, key=expected.ak, nonce=expected.nonce, accepted_hashes=frozenset(expected.accept_hash))
    if isinstance(proven, QuoteFault):
        return Finding(QUOTE_FAULTS.get(proven, QUOTE_UNUSABLE), {"message": proven.value})
    return proven


def _misnamed(quote: Quote, evidence: Evidence) -> Finding | None:
    """Hold the signature against what was announced, as the accept lists were."""
    signature = quote.signature
    if signature.hash_alg.name != evidence.hash_alg:
        return Finding(QUOTE_SCHEME, {"announced": evidence.hash_alg, "signature": signature.hash_alg.name})
    if signature.scheme != evidence.sign_alg:
        return Finding(SCHEME_MISNAMED, {"announced": evidence.sign_alg, "signature": signature.scheme})
    return None
