"""A measurement list against the quoted PCR 10 and the runtime policy.

The list is hostile until replay reaches the quoted value; lines after that point are judged, but nothing is learned or
counted from them. What one evaluation hands to the next is `ImaHistory`; nothing else is kept.
"""

from binascii import unhexlify
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, cast

from limeguard.appraisal.findings import IMA_LINE, IMA_PROGRESS, IMA_REPLAY, Finding
from limeguard.appraisal.ima.batches import BATCH, clean_batch, clean_line
from limeguard.appraisal.ima.devices import NO_DEVICES, Change, Device, DeviceStates, changed, missing_devices
from limeguard.appraisal.ima.entries import TENANT_KEYRING, Judged, Rules, judge
from limeguard.appraisal.ima.history import NO_IMA, ImaHistory, Keyrings
from limeguard.appraisal.ima.memo import MAX_LINE
from limeguard.crypto.hashes import SHA1, HashAlgorithm
from limeguard.crypto.keys import PublicKey
from limeguard.evidence.ima.measurement_list import entry_at
from limeguard.evidence.ima.templates import Entry
from limeguard.evidence.reader import MalformedEvidence
from limeguard.policy.keyring import EMPTY_KEYRING, Keyring
from limeguard.policy.runtime import RuntimePolicy

MAX_FINDINGS: Final = 1_000
"""Findings of one list after which the rest is not looked at: the verdict stands, and a hostile list costs no more."""
MAX_SEARCHED: Final = 50
"""Findings after which names with line ends are not looked for any more; honest lists have none before them."""
MAX_LEARNED: Final = 1_000
"""Keys that one node may teach; a kernel's keyrings hold a handful."""
_VIOLATION: Final = b"\xff"
_NO_LINES: Final = (0, 0)


@dataclass(frozen=True, slots=True)
class ListAppraisal:
    """What a list came to. `matched` is the number of lines that lead to the quoted value, None when none do.

    `running` is PCR 10 after all lines that could be read. `history` is what the next round starts from, as it was
    before when there are findings. `padded` says that the bank holds zero-padded SHA-1 digests, as kernels write that
    had no implementation of its hash when IMA began. `more` is not 0 when there
    were too many findings and the rest of the list was not looked at.
    """

    findings: tuple[Finding, ...]
    matched: int | None
    running: bytes
    history: ImaHistory
    padded: bool = False
    more: int = 0


def split_lines(text: bytes) -> list[bytes]:
    """Split the text of an ASCII list at line ends, the only thing that may be taken off a line."""
    lines = text.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines


def appraise_list(
    lines: Sequence[bytes],
    *,
    bank: HashAlgorithm,
    rules: Rules,
    quoted: bytes | None,
    history: ImaHistory = NO_IMA,
    keyrings: Keyrings | None = None,
    known: dict[bytes, bytes] | None = None,
) -> ListAppraisal:
    """Judge `lines` (without line ends), which begin at entry `history.next_entry`.

    `quoted` is PCR 10 of `bank` as the TPM vouched for it, None to replay only. `keyrings` are those of the operator,
    None when signatures have no say. `known` holds lines that are clean under this policy and bank, with what they
    extend; clean ones are added to it.
    """
    run = _Run(lines, bank, rules, quoted, history, keyrings, {} if known is None else known)
    run.replay()
    return run.conclude()


def nothing_new(history: ImaHistory, quoted: bytes, rules: Rules) -> ImaHistory | None:
    """Return what the next round starts from after a list without lines that leads to the quoted PCR 10, else None.

    This is what nearly every answer says: `appraise_list` would come to the same, at several times the cost. None, too,
    where device-mapper events are judged: devices may be missing although nothing is new.
    """
    if not history.next_entry or history.pcr != quoted or rules.policy is None or rules.policy.devices is not None:
        return None
    if history.progress == _NO_LINES and history.devices is NO_DEVICES:
        return history
    return replace(history, progress=_NO_LINES, devices=NO_DEVICES)


def appraise_entries(
    entries: Iterable[Entry], *, bank: HashAlgorithm, rules: Rules, quoted: bytes | None, keyrings: Keyrings | None
) -> ListAppraisal:
    """Judge a whole list as `appraise_list` does, from entries such as a binary list has."""
    run = _Run((), bank, rules, quoted, NO_IMA, keyrings, {})
    run.entries(entries)
    return run.conclude()


class _Run:
    """One pass over a list. Mutable, lives for one call of `appraise_list`."""

    def __init__(
        self,
        lines: Sequence[bytes],
        bank: HashAlgorithm,
        rules: Rules,
        quoted: bytes | None,
        history: ImaHistory,
        keyrings: Keyrings | None,
        known: dict[bytes, bytes],
    ) -> None:
        self.lines = lines
        self.bank = bank
        self.rules = rules
        self.quoted = quoted
        self.history = history
        self.start = history.pcr if history.pcr is not None else bytes(bank.size)
        self.known = known
        self.log_hash = rules.policy.log_hash if rules.policy is not None else SHA1
        self.keyrings: dict[bytes, Keyring] | None = None
        if keyrings is not None:
            self.keyrings = {**keyrings, **history.keyrings}
        self.learned: list[tuple[int, bytes, int, PublicKey]] = []
        self.devices = dict(history.devices.devices)
        self.device_changes: list[tuple[int, tuple[Change, ...]]] = []
        self.findings: list[Finding] = []
        self.more = 0
        self.unread: set[int] = set()
        self.recorded: list[bytes] = []
        self.constant = False
        self.count = 0
        self.fold = self.start
        self.matched: int | None = 0 if quoted is not None and self.start == quoted else None

    def replay(self) -> None:
        """Fold every entry and judge it. Clean lines, nearly all, stay in the tight loop of `_clean_lines`."""
        index, end = 0, len(self.lines)
        while index < end and not self.more:
            index = self._clean_lines(index)
            if index < end:
                index = self._entry(index)

    def _clean_lines(self, index: int) -> int:
        """Fold clean lines from `index` on; return the index of the first that needs a closer look."""
        policy, end = self.rules.policy, len(self.lines)
        if policy is None:
            return index
        while index < end:
            lines = self.lines[index : index + BATCH]
            digests = self._digests(lines, policy)
            self._fold(index, digests)
            index += len(digests)
            if len(digests) < len(lines):
                return index
        return index

    def _digests(self, lines: Sequence[bytes], policy: RuntimePolicy) -> list[bytes]:
        """Return what lines extend PCR 10 with, up to the first that is not clean."""
        seen = list(map(self.known.get, lines))
        if all(seen):  # a digest is never empty
            return cast("list[bytes]", seen)
        if not any(seen):
            new = clean_batch(lines, policy, self.bank, self.log_hash)
            if new is not None:
                self.known.update(zip(lines, new, strict=True))
                return new
        clean: list[bytes] = []
        for line, known in zip(lines, seen, strict=True):
            digest = known or clean_line(line, policy, self.bank, self.log_hash)
            if digest is None:
                break
            self.known[line] = digest
            clean.append(digest)
        return clean

    def _fold(self, first: int, digests: Iterable[bytes]) -> None:
        """Fold the digests of clean lines from `first` on, and see where the quoted value is reached."""
        new, fold = self.bank.constructor, self.fold
        folds = [fold := new(fold + digest).digest() for digest in digests]
        self.fold = fold
        self.count += len(folds)
        if self.matched is None and self.quoted in folds:
            self.matched = first + folds.index(self.quoted) + 1

    def _entry(self, index: int) -> int:
        """Fold and judge the entry that begins in line `index`; return the index after it."""
        if not self.lines[index]:
            self.unread.add(index)
            return index + 1
        self.count += 1
        try:
            entry, span = entry_at(self.lines, index, self.log_hash, joined=len(self.findings) < MAX_SEARCHED)
        except MalformedEvidence as problem:
            self.unread.add(index)
            text = self.lines[index][:400].decode("utf-8", "backslashreplace")
            self._found(Finding(IMA_LINE, {"message": f"Line could not be parsed: {text}", "reason": str(problem)}))
            return index + 1
        digest = self._judge(entry, index, span)
        self.unread.update(range(index + 1, index + span))
        self.count += span - 1
        clean = not self.findings and not entry.violates(self.log_hash.size)
        if clean and span == 1 and len(self.lines[index]) <= MAX_LINE:
            self._remember(index, digest)
        return index + span

    def entries(self, entries: Iterable[Entry]) -> None:
        """Fold and judge entries that need no reading any more."""
        for index, entry in enumerate(entries):
            if self.more:
                return
            self.count += 1
            self._judge(entry, index, 1)
            self.recorded.append(entry.template_digest)

    def _judge(self, entry: Entry, index: int, span: int) -> bytes:
        """Fold and judge an entry of `span` lines from `index` on; return what it extends PCR 10 with."""
        violation = entry.violates(self.log_hash.size)
        digest = _VIOLATION * self.bank.size if violation else self.bank.digest(entry.data)
        self.fold = self.bank.digest(self.fold + digest)
        log_digest = self.log_hash.digest(entry.data)
        number = self.history.next_entry + index
        judged = judge(entry, number, log_digest, self.rules, self.keyrings, self.devices)
        self._keep(index, span, judged)
        if self.matched is None and self.fold == self.quoted:
            self.matched = index + span
        return digest

    def _keep(self, index: int, span: int, judged: Judged) -> None:
        for finding in judged.findings:
            self._found(finding)
        self.constant = judged.constant and judged.learned is None
        if judged.devices:
            changed(self.devices, judged.devices)
            self.device_changes.append((index + span, judged.devices))
        if judged.learned is None or self.keyrings is None or len(self.learned) >= MAX_LEARNED:
            return
        name, key_id, key = judged.learned
        self.learned.append((index + span, name, key_id, key))
        # Lines after the quoted value may be signed with a key that only they load: so it counts for their sake, and is
        # forgotten with them (`_learned`).
        self.keyrings[name] = self.keyrings.get(name, EMPTY_KEYRING).with_key(key_id, key)

    def _remember(self, index: int, digest: bytes) -> None:
        if self.constant:
            self.known[self.lines[index]] = digest

    def _found(self, finding: Finding) -> None:
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(finding)
        else:
            self.more += 1

    def conclude(self) -> ListAppraisal:
        """Say what the pass came to."""
        padded = False
        at = self.fold
        if self.quoted is not None and self.matched is None:
            self.matched = self._padded_match()
            padded = self.matched is not None
        if self.quoted is not None:
            at = self.quoted
            self._check_reached()
        devices = self._devices()
        if self.findings or self.matched is None or self.quoted is None:
            return ListAppraisal(tuple(self.findings), self.matched, self.fold, self.history, padded, self.more)
        history = ImaHistory(
            next_entry=self.history.next_entry + self.matched,
            pcr=at,
            keyrings=self._learned(self.matched),
            progress=(self.matched, self.count),
            devices=devices,
        )
        return ListAppraisal((), self.matched, self.fold, history, padded)

    def _check_reached(self) -> None:
        if self.matched is None:
            reached, wanted = self.fold.hex(), (self.quoted or b"").hex()
            text = f"IMA measurement list expected pcr value {reached} does not match TPM PCR {wanted}"
            self._found(Finding(IMA_REPLAY, {"message": text, "entries": self.count}))
        elif not self._progressed(self.matched):
            text = (
                "The measurement list does not make progress: the quoted PCR 10 lags behind lines that were sent before"
            )
            self._found(Finding(IMA_PROGRESS, {"message": text}))

    def _devices(self) -> DeviceStates:
        """Return the record of devices at the quoted value, and say which required ones it lacks.

        Lines after the quoted value have been judged, but what they did to the record is forgotten.
        """
        policy = self.rules.policy.devices if self.rules.policy is not None else None
        if policy is None or self.matched is None:
            return NO_DEVICES
        proven: dict[str, Device] = dict(self.history.devices.devices)
        for end, changes in self.device_changes:
            if end <= self.matched:
                changed(proven, changes)
        for finding in missing_devices(policy, proven):
            self._found(finding)
        return DeviceStates(policy.checksum, proven)

    def _progressed(self, matched: int) -> bool:
        """Say whether the quote covers at least the lines that were sent but not covered the last time."""
        if self.history.progress is None or matched == self.count:
            return True
        before, sent = self.history.progress
        return matched >= sent - before

    def _learned(self, matched: int) -> Keyrings:
        rings = dict(self.history.keyrings)
        for end, name, key_id, key in self.learned:
            if end <= matched and name != TENANT_KEYRING:
                rings[name] = rings.get(name, EMPTY_KEYRING).with_key(key_id, key)
        return MappingProxyType(rings)

    def _padded_match(self) -> int | None:
        """Return where a bank of zero-padded SHA-1 digests matches.

        A kernel extends them where it had no implementation of the bank's hash when IMA began. Each line's SHA-1 was
        compared with its own digest before; a list in which one did not fit does not match here either.
        """
        if self.bank is SHA1 or self.log_hash is not SHA1 or self.findings:
            return None
        fold, new, size = self.start, self.bank.constructor, self.bank.size
        for index, digest in self._recorded():
            extended = digest.ljust(size, b"\0") if digest.strip(b"\0") else _VIOLATION * size
            fold = new(fold + extended).digest()
            if fold == self.quoted:
                return index + 1
        return None

    def _recorded(self) -> Iterator[tuple[int, bytes]]:
        """Yield the template digest that each entry states, with its place; every entry was read before."""
        yield from enumerate(self.recorded)
        for index, line in enumerate(self.lines):
            if index not in self.unread:
                yield index, unhexlify(line.split(b" ", 2)[1])
