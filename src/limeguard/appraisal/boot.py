"""The boot log of an answer against the boot policy: is it the log that the TPM vouches for, and may a node boot so.

Replay proves digests. What an event says beside its digest counts only where the digest in the quoted bank covers it;
digests of other banks count for nothing. A log is parsed even where no policy asks for it: one that cannot be read is
a finding, as in Keylime.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final

from limeguard.appraisal.boot_rules import known_digests, refusals, unsaid
from limeguard.appraisal.boot_suspects import MAX_HASHES, MAX_PCRS, suspect
from limeguard.appraisal.findings import (
    BOOT_LOG_BANK,
    BOOT_LOG_MALFORMED,
    BOOT_LOG_PCRS,
    BOOT_PCRS_MISSING,
    BOOT_POLICY_UNUSABLE,
    BOOT_REJECTED,
    BOOT_REPLAY,
    PCR_LOG_MISSING,
    ContextValue,
    Finding,
)
from limeguard.crypto.hashes import HashAlgorithm
from limeguard.evidence.bootlog.decode import decode
from limeguard.evidence.bootlog.event_types import EV_EFI_VARIABLE_AUTHORITY
from limeguard.evidence.bootlog.layouts import split_variable
from limeguard.evidence.bootlog.log import BootEvent, BootLog, parse_boot_log
from limeguard.evidence.bootlog.replay import DataProof, ProvenEvent, ReplayedBootLog, ReplayFault, prove
from limeguard.evidence.reader import MalformedEvidence
from limeguard.evidence.tpm.quote import QuotedPcrs
from limeguard.policy.boot import BOOT_PCRS, BootPolicy
from limeguard.policy.boot.checks import evaluate
from limeguard.policy.boot.rules import BootRules

MAX_REFUSALS: Final = 32
"""Refusals of one log that are kept; what a node changed is seen from fewer."""
DEFAULT_LOGS: Final = 16_384
_ACCOUNTED: Final = tuple(sorted(BOOT_PCRS))
VENDOR_KEYS: Final = "vendor_db".encode("utf-16-le")


@dataclass(frozen=True, slots=True)
class BootVerdict:
    """Findings, and whether the log was judged: a policy is in force and was applied to all that it asks for.

    `aggregates` are what IMA's `boot_aggregate` may be; none unless the quote confirms the PCRs that it is made of.
    """

    findings: tuple[Finding, ...]
    judged: bool
    aggregates: tuple[bytes, ...] = ()


class BootMemo:
    """Verdicts of logs that were judged before, on any node.

    A verdict depends on the log, the policy, the bank and the quoted values, and on nothing else, so that sharing it
    cannot carry trust from one node to another. Bounded: the older half is dropped when the younger is full.
    """

    def __init__(self, limit: int = DEFAULT_LOGS) -> None:
        """Keep about `limit` verdicts."""
        self._half = max(limit // 2, 1)
        self._young: dict[tuple[object, ...], BootVerdict] = {}
        self._old: dict[tuple[object, ...], BootVerdict] = {}

    def get(self, key: tuple[object, ...]) -> BootVerdict | None:
        """Return what was judged before, or None."""
        found = self._young.get(key)
        if found is None and (found := self._old.get(key)) is not None:
            self.put(key, found)
        return found

    def put(self, key: tuple[object, ...], verdict: BootVerdict) -> None:
        """Keep a verdict. May forget the older half."""
        if len(self._young) >= self._half:
            self._old, self._young = self._young, {}
        self._young[key] = verdict


def appraise_boot(
    boot_log: bytes | None, quoted: QuotedPcrs, policy: BootPolicy | None, memo: BootMemo | None = None
) -> BootVerdict:
    """Judge the boot log of an answer, None when it has none. An unchanged log costs one hash of it with a `memo`."""
    if boot_log is None:
        return BootVerdict(tuple(_without_log(quoted, policy)), judged=False)
    if memo is None:
        return _judge(boot_log, quoted, policy)
    values = tuple(quoted.values.get(pcr) for pcr in _ACCOUNTED)
    key = (hashlib.sha256(boot_log).digest(), policy and policy.checksum, quoted.bank.name, values)
    verdict = memo.get(key)
    if verdict is None:
        verdict = _judge(boot_log, quoted, policy)
        memo.put(key, verdict)
    return verdict


def _without_log(quoted: QuotedPcrs, policy: BootPolicy | None) -> Iterator[Finding]:
    if policy is None or not policy.active:
        return
    if policy.invalid:
        yield Finding(BOOT_POLICY_UNUSABLE, {"message": policy.invalid})
        return
    for pcr in sorted(policy.required & quoted.values.keys()):
        yield Finding(PCR_LOG_MISSING, {"pcr": pcr, "message": f"PCR {pcr} was quoted, but no boot log was sent"})
    yield from _unquoted(quoted, policy)


def _unquoted(quoted: QuotedPcrs, policy: BootPolicy) -> Iterator[Finding]:
    missing = sorted(policy.required - quoted.values.keys())
    if missing:
        yield Finding(BOOT_PCRS_MISSING, {"policy": policy.name, "missing": missing, "bank": quoted.bank.name})


def _judge(boot_log: bytes, quoted: QuotedPcrs, policy: BootPolicy | None) -> BootVerdict:
    try:
        log = parse_boot_log(boot_log)
    except MalformedEvidence as problem:
        found = Finding(BOOT_LOG_MALFORMED, {"place": problem.place, "reason": problem.reason})
        return BootVerdict((found,), judged=False)
    replayed = prove(log, quoted)
    if isinstance(replayed, ReplayFault):
        banks = [bank.name for bank in log.banks]
        context = {"bank": quoted.bank.name, "banks": banks, "message": replayed.value}
        return BootVerdict((Finding(BOOT_LOG_BANK, context),), judged=False)
    if not replayed.pcrs:
        return BootVerdict((Finding(BOOT_LOG_PCRS),), judged=False)
    aggregates = replayed.aggregates()
    if policy is None or not policy.active:
        return BootVerdict((), judged=False, aggregates=aggregates)
    if policy.invalid:
        return BootVerdict((Finding(BOOT_POLICY_UNUSABLE, {"message": policy.invalid}),), judged=False)
    return replace(_by_policy(log, replayed, quoted, policy), aggregates=aggregates)


def _by_policy(log: BootLog, replayed: ReplayedBootLog, quoted: QuotedPcrs, policy: BootPolicy) -> BootVerdict:
    findings = list(_differences(replayed, quoted, policy))
    unquoted = list(_unquoted(quoted, policy))
    if unquoted:
        return BootVerdict((*findings, *unquoted), judged=False)
    findings += _rejections(log, replayed, policy)
    return BootVerdict(tuple(findings), judged=True)


def _differences(replayed: ReplayedBootLog, quoted: QuotedPcrs, policy: BootPolicy) -> Iterator[Finding]:
    differing = sorted(policy.required & replayed.differing)
    for pcr in differing:
        message = _parting(pcr, replayed, quoted.values[pcr])
        budget = MAX_HASHES // len(differing) if len(differing) <= MAX_PCRS else 0
        if budget and (found := suspect(pcr, quoted.values[pcr], replayed, _known(pcr, replayed, policy), budget)):
            message += f"; {found}"
        if isinstance(policy.judge, BootRules) and (names := unsaid(policy.judge, replayed, pcr)):
            message += f"; the log has no event about {', '.join(names)}"
        leads_to = replayed.pcrs.get(pcr, bytes(replayed.bank.size))
        context: dict[str, ContextValue] = {"pcr": pcr, "bank": replayed.bank.name, "message": message}
        yield Finding(BOOT_REPLAY, {**context, "got": quoted.values[pcr].hex(), "expected": leads_to.hex()})


def _parting(pcr: int, replayed: ReplayedBootLog, value: bytes) -> str:
    leads_to = replayed.pcrs.get(pcr, bytes(replayed.bank.size)).hex()
    events = [event.event_num for event in replayed.log.events if event.pcr == pcr]
    shown = "the boot log, which never names it, leads"
    if events:
        shown = f"events {events[0]} to {events[-1]} of the boot log lead" if events[1:] else f"event {events[0]} leads"
    return f"PCR {pcr} ({replayed.bank.name}): {shown} to {leads_to}, but the TPM quotes {value.hex()}"


def _known(pcr: int, replayed: ReplayedBootLog, policy: BootPolicy) -> Mapping[bytes, str]:
    if isinstance(policy.judge, BootRules):
        return known_digests(policy.judge, replayed, pcr)
    return {}


def _rejections(log: BootLog, replayed: ReplayedBootLog, policy: BootPolicy) -> Iterator[Finding]:
    judge = policy.judge
    if judge is None:
        return
    if isinstance(judge, BootRules):
        found = refusals(judge, replayed)
        for refusal in islice(found, MAX_REFUSALS):
            yield Finding(BOOT_REJECTED, {"policy": policy.name, **refusal.context()})
        if next(found, None) is not None:
            more = "There is more that the policy refuses; it was not looked at"
            yield Finding(BOOT_REJECTED, {"policy": policy.name, "message": more})
        return
    reason = evaluate(judge, quoted_view(log, replayed))
    if reason:
        yield Finding(BOOT_REJECTED, {"policy": policy.name, "message": reason})


def quoted_view(log: BootLog, replayed: ReplayedBootLog) -> Mapping[str, Any]:
    """Return the decoded log with what may be looked at: digests of the quoted bank, data that they do not deny."""
    unseen = {one.event.event_num for one in replayed.events if _unseen(one)}
    return {"events": [_seen(event, replayed.bank, unseen) for event in log.events]}


def _unseen(event: ProvenEvent) -> bool:
    """Say whether the data of an event may not be looked at: it is a lie, or keys of a vendor that nothing covers."""
    if event.proof is DataProof.HINT and event.event.type == EV_EFI_VARIABLE_AUTHORITY:
        variable = split_variable(event.event.data)
        return variable is not None and variable.bare_name.lower() == VENDOR_KEYS
    return event.proof is DataProof.CONTRADICTED


def _seen(event: BootEvent, bank: HashAlgorithm, unseen: set[int]) -> dict[str, Any]:
    digest = event.digests.get(bank)
    shown: dict[str, Any] = {
        "EventNum": event.event_num,
        "PCRIndex": event.pcr,
        "EventType": event.type_name,
        "Digests": [] if digest is None else [{"AlgorithmId": bank.name, "Digest": digest.hex()}],
    }
    if event.data and event.event_num not in unseen:
        shown["Event"] = decode(event)
    return shown
