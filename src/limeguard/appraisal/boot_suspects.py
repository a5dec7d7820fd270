"""Where a boot log and a quoted PCR part: which one event would have to be otherwise for the log to lead to the value.

For people, who have to find out what happened; nothing is trusted or refused by it. The search is bounded, because the
log comes from the node.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from limeguard.appraisal.boot_words import named
from limeguard.evidence.bootlog.event_types import EV_IPL, EV_NO_ACTION
from limeguard.evidence.bootlog.log import BootEvent
from limeguard.evidence.bootlog.replay import ReplayedBootLog

MAX_HASHES: Final = 30_000
"""Hashes for one log: some 20 ms."""
MAX_LOCALITY: Final = 4
MAX_PCRS: Final = 4
"""PCRs that are searched; a log that differs in more was not changed in one place."""


def suspect(
    pcr: int, quoted: bytes, replayed: ReplayedBootLog, known: Mapping[bytes, str], budget: int = MAX_HASHES
) -> str:
    """Return a sentence about the one event by which log and PCR differ, empty when no such event is found.

    `known` are digests that the policy lists for this PCR and what they are; `budget` is how many hashes may be spent.
    """
    bank = replayed.bank
    extending = [
        (event, event.digests[bank])
        for event in replayed.log.events
        if event.pcr == pcr and event.type != EV_NO_ACTION and bank in event.digests
    ]
    start = _start(pcr, extending, replayed)
    if not extending or start is None:
        return ""
    return next(_Search(replayed, quoted, extending, known, budget, start).found(), "")


def _start(pcr: int, extending: Sequence[tuple[BootEvent, bytes]], replayed: ReplayedBootLog) -> bytes | None:
    """Return what the PCR started from, the TPM's locality in its last byte; None if it was set later, too."""
    new, size = replayed.bank.constructor, replayed.bank.size
    for locality in range(MAX_LOCALITY + 1):
        start = value = bytes(size - 1) + bytes([locality])
        for _, digest in extending:
            value = new(value + digest).digest()
        if value == replayed.pcrs.get(pcr):
            return start
    return None


class _Search:
    """Tries changes of one event, the cheap ones first."""

    def __init__(
        self,
        replayed: ReplayedBootLog,
        quoted: bytes,
        extending: Sequence[tuple[BootEvent, bytes]],
        known: Mapping[bytes, str],
        budget: int,
        start: bytes,
    ) -> None:
        self.new = replayed.bank.constructor
        self.quoted = quoted
        self.events = [event for event, _ in extending]
        self.digests = [digest for _, digest in extending]
        # What is listed and not in the log is what was most likely taken out of it.
        self.absent = {digest: what for digest, what in known.items() if digest not in self.digests}
        self.present = {digest: what for digest, what in known.items() if digest in self.digests}
        self.budget = budget
        self.before = [start]
        for digest in self.digests:
            self.before.append(self.new(self.before[-1] + digest).digest())

    def leads(self, value: bytes, digests: Sequence[bytes]) -> bool:
        """Say whether these digests lead from the value to the quoted one."""
        self.budget -= len(digests)
        for digest in digests:
            value = self.new(value + digest).digest()
        return value == self.quoted

    def found(self) -> Iterator[str]:
        """Yield sentences."""
        yield from self.cut()
        yield from self.added()
        yield from self.swapped()
        for known in (self.absent, self.present):
            yield from self.replaced(known)
            yield from self.missing(known)

    def cut(self) -> Iterator[str]:
        for index, value in enumerate(self.before[:-2]):
            if value == self.quoted:
                yield f"{named(self.events[index])} and all later events on this PCR were never measured"

    def added(self) -> Iterator[str]:
        for index, event in enumerate(self.events):
            if self.budget < 0:
                return
            if self.leads(self.before[index], self.digests[index + 1 :]):
                yield f"{named(event)} was never measured: it was added to the log"

    def swapped(self) -> Iterator[str]:
        for index in range(len(self.events) - 1):
            if self.budget < 0:
                return
            first, second = self.digests[index : index + 2]
            if self.leads(self.before[index], [second, first, *self.digests[index + 2 :]]):
                yield f"{named(self.events[index])} was measured after {named(self.events[index + 1])}"

    def missing(self, known: Mapping[bytes, str]) -> Iterator[str]:
        for index in range(len(self.events), -1, -1):
            for digest, what in known.items():
                if self.budget < 0:
                    return
                if self.leads(self.before[index], [digest, *self.digests[index:]]):
                    place = f"before {named(self.events[index])}" if index < len(self.events) else "at its end"
                    yield f"an event is missing from the log {place}: {what} ({digest.hex()})"

    def replaced(self, known: Mapping[bytes, str]) -> Iterator[str]:
        for index in range(len(self.events) - 1, -1, -1):
            event = self.events[index]
            own = {self.new(data).digest(): "what its data says" for data in _texts(event)}
            for digest, what in {**own, **known}.items():
                if self.budget < 0:
                    return
                if self.leads(self.before[index], [digest, *self.digests[index + 1 :]]):
                    yield f"the digest of {named(event)} was changed: the TPM measured {what} ({digest.hex()})"


def _texts(event: BootEvent) -> Iterator[bytes]:
    """Yield what of the event's data a digest may be of."""
    yield event.data
    if event.type == EV_IPL:
        yield event.data.partition(b" ")[2].removesuffix(b"\0")
