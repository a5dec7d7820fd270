"""Replay: which PCR values a boot log makes, and which of its events a quote vouches for.

`replay` computes. Only `prove` makes a `ReplayedBootLog`; judgement takes nothing else. What a digest does not cover is
a hint for people: a hostile node can keep every digest and write any data beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from limeguard.crypto.hashes import HashAlgorithm
from limeguard.evidence.bootlog.log import BootEvent, BootLog
from limeguard.evidence.tpm.quote import QuotedPcrs

BOOT_PCRS: Final = frozenset({*range(10), *range(11, 16)})
"""The PCRs that a boot log accounts for: 10 is the kernel's, 16 and above are not extended while booting."""


class DataProof(Enum):
    """How much of an event's data its digest in the quoted bank covers. Type and number of an event are never covered."""

    WHOLE = "the digest covers the event's data"
    CONTENT = "the digest covers the content; the name or label before it is a hint"
    HINT = "the digest is of something that is not in the log; the data is a hint"
    CONTRADICTED = "the data is not what the digest covers, though it should be; it is worth nothing"


@dataclass(frozen=True, slots=True)
class ProvenEvent:
    """An event whose digest in the quoted bank went into a PCR that the quote confirms. Only `prove` makes it.

    `content` are the bytes that `digest` covers and the log has: all of the data (WHOLE), the variable's data or the
    command behind its label (CONTENT), else None. `after_separator` says that a separator came before it on its PCR:
    on PCRs 0-7 the firmware is then past the point where it hands over, so later code could have made the event.
    """

    event: BootEvent
    digest: bytes
    proof: DataProof
    content: bytes | None
    after_separator: bool


@dataclass(frozen=True, slots=True)
class ReplayedBootLog:
    """What a quote makes of a log.

    `pcrs` are the replayed values in `bank`. `confirmed` are the PCRs of BOOT_PCRs whose quoted value is the replayed
    one (zeros where the log never extends); `differing` those whose value is another; `unquoted` those not in the
    quote. `events` are, in order, the extending events of confirmed PCRs, each once; no other event may be judged.
    """

    log: BootLog
    bank: HashAlgorithm
    pcrs: Mapping[int, bytes]
    confirmed: frozenset[int]
    differing: frozenset[int]
    unquoted: frozenset[int]
    events: tuple[ProvenEvent, ...]

    def proven(self, event_num: int) -> ProvenEvent | None:
        """Return the event of that number if the quote vouches for its digest."""
        return next((proven for proven in self.events if proven.event.event_num == event_num), None)


class ReplayFault(Enum):
    """Why a quote says nothing of a log. The value is a sentence for people."""

    BANK_NOT_IN_LOG = "The boot log has no digests in the quoted PCR bank"
    BANK_NOT_COMPUTABLE = "The quoted PCR bank's hash algorithm cannot be computed here"


def replay(log: BootLog, bank: HashAlgorithm) -> dict[int, bytes]:
    """Return the value of each PCR that an event of the log names. Raises UnsupportedAlgorithmError."""
    raise NotImplementedError


def replay_all(log: BootLog) -> dict[HashAlgorithm, dict[int, bytes]]:
    """Return the PCRs of each bank that the log has digests of and that can be computed."""
    raise NotImplementedError


def boot_aggregates(pcrs: Mapping[int, bytes], bank: HashAlgorithm) -> tuple[bytes, ...]:
    """Return what IMA's `boot_aggregate` may be: the hash of PCRs 0-7 and of 0-9, each if all its PCRs are there."""
    raise NotImplementedError


def prove(log: BootLog, quoted: QuotedPcrs) -> ReplayedBootLog | ReplayFault:
    """Say which events of the log the quoted PCR values vouch for."""
    raise NotImplementedError
