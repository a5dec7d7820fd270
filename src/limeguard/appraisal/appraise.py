"""The one entry point of judgement: evidence of a node, what was expected of it, what is known, and the time.

An exception that leaves `appraise` is a fault of ours, never a node's: the caller neither trusts nor distrusts for it.
"""

from dataclasses import dataclass, field, replace

from limeguard.appraisal.clock import clock_fault, rebooted
from limeguard.appraisal.findings import (
    INVALID_ENC_ALG,
    INVALID_HASH_ALG,
    INVALID_SIGN_ALG,
    NO_PUBKEY,
    QUOTE_VALIDATION,
    Finding,
    FindingKind,
    finding,
)
from limeguard.appraisal.history import History
from limeguard.appraisal.pcrs import check_policy, check_selection, check_transport_key
from limeguard.appraisal.verdict import Appraisal, Check
from limeguard.crypto.hashes import hash_by_name
from limeguard.evidence.reader import MalformedEvidence
from limeguard.evidence.tpm.quote import Quote, QuotedPcrs, QuoteFault, parse_quote, verify_quote
from limeguard.evidence.tpm.structures import PublicArea
from limeguard.policy.algorithms import key_algorithm_accepted, normal_key_algorithm
from limeguard.policy.pcrs import PcrPolicy

BASE_CHECKS = frozenset({Check.ALGORITHMS, Check.QUOTE, Check.CLOCK, Check.TRANSPORT_KEY, Check.SELECTION})


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the agent answered. Nothing of it is believed before the quote held.

    `public_key` is None when the agent was asked to leave it out; `ima_log` is None when there was none; `boot_log` is the
    binary log; `boottime` is seconds since 1970 or 0.
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


@dataclass(frozen=True, slots=True)
class Expected:
    """What a round expects: the registered AK, the nonce of this round, accept lists, and reference values.

    `required_selection` are the PCRs that were asked for. `identity_only_allowed` says that an operator enrolled the node
    without any reference value and knows it. `runtime_policy` and `boot_policy` are not judged yet: when one is set, its
    check is required and does not run, so the node is not trusted.
    """

    ak: PublicArea
    nonce: bytes
    accept_hash: tuple[str, ...]
    accept_enc: tuple[str, ...]
    accept_sign: tuple[str, ...]
    pcrs: PcrPolicy
    required_selection: frozenset[int]
    identity_only_allowed: bool
    runtime_policy: object | None = None
    boot_policy: object | None = None

    @property
    def required(self) -> frozenset[Check]:
        """The checks without which there is no trust."""
        more = set()
        if self.pcrs.allowed or not self.identity_only_allowed:
            more.add(Check.PCR_POLICY)
        if self.runtime_policy is not None:
            more.add(Check.IMA_LOG)
        if self.boot_policy is not None:
            more.add(Check.BOOT_LOG)
        return BASE_CHECKS | more


@dataclass(slots=True)
class _Round:
    """What has been seen so far in one appraisal."""

    ran: set[Check] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)

    def note(self, check: Check, found: tuple[Finding, ...]) -> None:
        self.ran.add(check)
        self.findings += found


def appraise(evidence: Evidence, expected: Expected, history: History, now: float) -> Appraisal:
    """Judge one answer. `now` is seconds since 1970; nothing here looks at a clock of its own.

    Order: transport key known, algorithms accepted, quote (key, signature, nonce, selection, digest), TPM clock, then PCRs.
    A quote that does not hold ends the appraisal: what it says is not evidence.
    """
    del now  # reference values with a validity will need it; the signature is what callers rely on
    seen = _Round()
    public_key = evidence.public_key or history.public_key
    early = _early(evidence, expected, public_key)
    seen.note(Check.ALGORITHMS, early)
    if early or public_key is None:
        return _done(expected, seen, history)
    quoted = _quote(evidence, expected)
    if isinstance(quoted, Finding):
        seen.note(Check.QUOTE, (quoted,))
        return _done(expected, seen, history)
    seen.note(Check.QUOTE, ())
    fault = clock_fault(history.clock, quoted.clock)
    seen.note(Check.CLOCK, () if fault is None else (_invalid_quote(fault),))
    if fault is not None:
        return _done(expected, seen, history)
    _judge_pcrs(seen, quoted, expected, public_key)
    bound = not any(one.kind.event_id.endswith("_16") for one in seen.findings)
    next_history = replace(
        history,
        clock=quoted.clock,
        public_key=public_key if bound else history.public_key,
        boottime=evidence.boottime,
    )
    return replace(_done(expected, seen, next_history), quoted=quoted, rebooted=rebooted(history.clock, quoted.clock))


def _done(expected: Expected, seen: _Round, history: History) -> Appraisal:
    return Appraisal(expected.required, frozenset(seen.ran), tuple(seen.findings), history)


def _early(evidence: Evidence, expected: Expected, public_key: str | None) -> tuple[Finding, ...]:
    """Look at what the agent says of itself, and hold it against the registered AK: the first thing wrong ends it."""
    if public_key is None:
        return (finding(NO_PUBKEY, {"message": "No transport key was sent and none is known"}),)
    ak, announced = expected.ak, evidence
    if hash_by_name(announced.hash_alg) is None or announced.hash_alg not in expected.accept_hash:
        return (_unaccepted(INVALID_HASH_ALG, "hash", announced.hash_alg, expected.accept_hash),)
    if not key_algorithm_accepted(announced.enc_alg, expected.accept_enc):
        return (_unaccepted(INVALID_ENC_ALG, "encryption", announced.enc_alg, expected.accept_enc),)
    # What is announced is only said; the AK is what counts.
    if normal_key_algorithm(announced.enc_alg) != ak.key_algorithm:
        return (_unaccepted(INVALID_ENC_ALG, "encryption", ak.key_algorithm, (announced.enc_alg,)),)
    if announced.sign_alg not in expected.accept_sign:
        return (_unaccepted(INVALID_SIGN_ALG, "signing", announced.sign_alg, expected.accept_sign),)
    return ()


def _unaccepted(kind: FindingKind, what: str, got: str, accepted: tuple[str, ...]) -> Finding:
    return finding(kind, {"message": f"{what} algorithm is not accepted", "got": got[:64], "accepted": list(accepted)})


def _quote(evidence: Evidence, expected: Expected) -> QuotedPcrs | Finding:
    try:
        quote = parse_quote(evidence.quote)
    except MalformedEvidence as problem:
        return _invalid_quote(str(problem))
    announced = _announced_mismatch(evidence, quote)
    if announced is not None:
        return _invalid_quote(announced)
    proven = verify_quote(quote, key=expected.ak, nonce=expected.nonce, accepted_hashes=frozenset(expected.accept_hash))
    return _invalid_quote(proven.value) if isinstance(proven, QuoteFault) else proven


def _announced_mismatch(evidence: Evidence, quote: Quote) -> str | None:
    if quote.signature.hash_alg.name != evidence.hash_alg:
        return "The hash algorithm of the signature is not the announced one"
    if quote.signature.scheme != evidence.sign_alg:
        return "The scheme of the signature is not the announced one"
    return None


def _invalid_quote(error: str) -> Finding:
    return finding(QUOTE_VALIDATION, {"message": "Quote data validation", "error": error})


def _judge_pcrs(seen: _Round, quoted: QuotedPcrs, expected: Expected, public_key: str) -> None:
    seen.note(Check.TRANSPORT_KEY, check_transport_key(quoted, public_key))
    seen.note(Check.SELECTION, check_selection(quoted, expected.required_selection | set(expected.pcrs.allowed)))
    if expected.pcrs.allowed:
        seen.note(Check.PCR_POLICY, check_policy(quoted, expected.pcrs))
