"""The IMA log of an answer against the runtime policy: where it begins, whether it is there, what its entries say.

Decides which part of the list an answer carries, and refuses what nobody asked for. Entries are judged in `ima`.
"""

from dataclasses import dataclass, field

from limeguard.appraisal.findings import IMA_ABSENT, IMA_ENTRY_NUMBER, IMA_LINE, IMA_MORE, Finding
from limeguard.appraisal.ima.entries import TENANT_KEYRING, Rules
from limeguard.appraisal.ima.history import NO_IMA, ImaHistory
from limeguard.appraisal.ima.measurements import appraise_list, nothing_new, split_lines
from limeguard.appraisal.ima.memo import LineMemo
from limeguard.evidence.tpm.quote import QuotedPcrs
from limeguard.policy.keyring import Keyring
from limeguard.policy.pcrs import IMA_PCR
from limeguard.policy.runtime import RuntimePolicy


@dataclass(frozen=True, slots=True)
class Measured:
    """What the agent sent of the IMA log: its text from entry `first` on, None for no log."""

    text: str | None
    first: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeExpected:
    """What the IMA log is judged by.

    `verification_keys` verify signatures of files; they stand beside the policy because a node may have its own.
    `memo` holds lines that were clean before. `violations_found` makes a ToMToU or open-writers violation a finding.
    """

    policy: RuntimePolicy
    verification_keys: Keyring
    violations_found: bool = True
    memo: LineMemo = field(default_factory=LineMemo)


@dataclass(frozen=True, slots=True)
class RuntimeVerdict:
    """Findings, and what the next round starts from when the whole round has none."""

    findings: tuple[Finding, ...]
    history: ImaHistory


def appraise_runtime(
    measured: Measured,
    quoted: QuotedPcrs,
    expected: RuntimeExpected,
    history: ImaHistory,
    *,
    same_boot: bool,
    boot_aggregates: tuple[bytes, ...] = (),
) -> RuntimeVerdict | None:
    """Judge the IMA log; `history` is what earlier rounds proved, `same_boot` whether the machine still runs since.

    `boot_aggregates` are what `boot_aggregate` may be by the boot log of this answer, beside what the policy lists.

    Return None when the log was asked for from where an earlier boot had come to, or from where another device-mapper
    policy had: what came then can neither be believed nor held against the node, and has to be asked for from its
    beginning.
    """
    if measured.text is None:
        return _only(
            Finding(IMA_ABSENT, {"pcr": IMA_PCR, "message": "PCR 10 was quoted, but there is no IMA log in the answer"})
        )
    if measured.first not in {0, history.next_entry}:
        text = f"The IMA log begins at entry {measured.first}, entry {history.next_entry} was asked for"
        return _only(Finding(IMA_ENTRY_NUMBER, {"message": text}))
    if measured.first and not (same_boot and _same_devices(expected, history)):
        return None
    if not measured.first:
        history = NO_IMA
    value = quoted.values.get(IMA_PCR)
    if value is None:
        return _only(Finding(IMA_ABSENT, {"pcr": IMA_PCR, "message": "PCR 10 was not quoted"}))
    rules = Rules(expected.policy, boot_aggregates, violations_found=expected.violations_found)
    return _entries(measured.text, value, quoted, expected, rules, history)


def _same_devices(expected: RuntimeExpected, history: ImaHistory) -> bool:
    """Say whether the device-mapper policy in force made the record of devices: no other can go on with it."""
    devices = expected.policy.devices
    return devices is None or devices.checksum == history.devices.checksum


def _entries(
    text: str, value: bytes, quoted: QuotedPcrs, expected: RuntimeExpected, rules: Rules, history: ImaHistory
) -> RuntimeVerdict:
    if not text and (unchanged := nothing_new(history, value, rules)) is not None:
        return RuntimeVerdict((), unchanged)
    try:
        lines = split_lines(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return _only(Finding(IMA_LINE, {"message": "The IMA log is not text"}))
    if not lines and not history.next_entry:
        return _only(Finding(IMA_ABSENT, {"pcr": IMA_PCR, "message": "The IMA log is empty: nothing was measured"}))
    known = expected.memo.table(expected.policy, quoted.bank)
    before = len(known)
    result = appraise_list(
        lines,
        bank=quoted.bank,
        rules=rules,
        quoted=value,
        history=history,
        keyrings={TENANT_KEYRING: expected.verification_keys},
        known=known,
    )
    expected.memo.grown(len(known) - before, len(text) if len(known) > before else 0)
    findings = result.findings
    if not findings and not result.history.next_entry:
        # The quoted value is that of a PCR nobody extended, and lines that are shown beside it prove nothing.
        findings = (Finding(IMA_ABSENT, {"pcr": IMA_PCR, "message": "PCR 10 is zero: nothing was measured"}),)
    if result.more:
        findings = (
            *findings,
            Finding(IMA_MORE, {"message": "There are too many findings, so the rest of the list was not looked at"}),
        )
    return RuntimeVerdict(findings, result.history)


def _only(finding: Finding) -> RuntimeVerdict:
    return RuntimeVerdict((finding,), NO_IMA)
