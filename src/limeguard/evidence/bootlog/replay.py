"""Replay: which PCR values a boot log makes, and which of its events a quote vouches for.

`replay` computes. Only `prove` makes a `ReplayedBootLog`; judgement takes nothing else. What a digest does not cover is
a hint for people: a hostile node can keep every digest and write any data beside it.
"""

import contextlib
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from limeguard.crypto.hashes import HashAlgorithm, UnsupportedAlgorithmError
from limeguard.evidence.bootlog.decode import startup_locality
from limeguard.evidence.bootlog.event_types import (
    BOOT_VARIABLE_TYPES,
    EV_EFI_ACTION,
    EV_EFI_GPT_EVENT,
    EV_EFI_HCRTM_EVENT,
    EV_EFI_VARIABLE_AUTHORITY,
    EV_EFI_VARIABLE_DRIVER_CONFIG,
    EV_IPL,
    EV_NO_ACTION,
    EV_S_CRTM_VERSION,
    EV_SEPARATOR,
)
from limeguard.evidence.bootlog.layouts import split_variable
from limeguard.evidence.bootlog.log import BootEvent, BootLog
from limeguard.evidence.bootlog.text import utf16_text
from limeguard.evidence.tpm.quote import QuotedPcrs

BOOT_PCRS: Final = frozenset({*range(10), *range(11, 16)})
"""The PCRs that a boot log accounts for: 10 is the kernel's, 16 and above are not extended while booting."""
HCRTM_LOCALITY: Final = b"\x04"
SEPARATORS: Final = (bytes(4), b"\xff" * 4)
"""What a separator's digest is of: the second form says that the firmware met an error."""
_WHOLE: Final = frozenset(
    {
        EV_SEPARATOR,
        EV_S_CRTM_VERSION,
        EV_EFI_VARIABLE_DRIVER_CONFIG,
        EV_EFI_VARIABLE_AUTHORITY,
        EV_EFI_GPT_EVENT,
        EV_EFI_ACTION,
    }
)
_COMMAND_PCR: Final = 8
_SECTION_PCR: Final = 11
_STUB_PCR: Final = 12


class DataProof(Enum):
    """How much of an event's data its digest in the quoted bank covers. Its type and number are never covered."""

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
        at = bisect_left(self.events, event_num, key=lambda proven: proven.event.event_num)
        if at < len(self.events) and self.events[at].event.event_num == event_num:
            return self.events[at]
        return None

    def aggregates(self) -> tuple[bytes, ...]:
        """Return what `boot_aggregate` may be in the quoted bank; nothing unless the quote confirms PCRs 0-9."""
        return boot_aggregates(self.pcrs, self.bank) if self.confirmed.issuperset(range(10)) else ()


class ReplayFault(Enum):
    """Why a quote says nothing of a log. The value is a sentence for people."""

    BANK_NOT_IN_LOG = "The boot log has no digests in the quoted PCR bank"
    BANK_NOT_COMPUTABLE = "The quoted PCR bank's hash algorithm cannot be computed here"


def replay(log: BootLog, bank: HashAlgorithm) -> dict[int, bytes]:
    """Return the value of each PCR that an event of the log names. Raises UnsupportedAlgorithmError."""
    new = bank.constructor
    zeros = bytes(bank.size)
    pcrs: dict[int, bytes] = {}
    # The locality is what PCR 0 starts from. Later in the log it would undo what came before, so events that a hostile
    # node invents could stand there and leave no trace in the value.
    seeding = True
    for event in log.events:
        pcr, event_type = event.pcr, event.type
        value = pcrs.get(pcr, zeros)
        if event_type == EV_NO_ACTION:  # never extended (PC Client PFP 10.4.5)
            if pcr == 0 and seeding and (locality := startup_locality(event)):
                value = zeros[:-1] + bytes((locality,))
        else:
            if pcr == 0 and event_type == EV_EFI_HCRTM_EVENT:
                value = value[:-1] + HCRTM_LOCALITY
            digest = event.digests.get(bank)
            if digest is not None:
                value = new(value + digest).digest()
            seeding = seeding and pcr != 0
        pcrs[pcr] = value
    return pcrs


def replay_all(log: BootLog) -> dict[HashAlgorithm, dict[int, bytes]]:
    """Return the PCRs of each bank that the log has digests of and that can be computed."""
    banks: dict[HashAlgorithm, dict[int, bytes]] = {}
    for bank in log.banks:
        with contextlib.suppress(UnsupportedAlgorithmError):
            banks[bank] = replay(log, bank)
    return banks


def boot_aggregates(pcrs: Mapping[int, bytes], bank: HashAlgorithm) -> tuple[bytes, ...]:
    """Return what IMA's `boot_aggregate` may be: the hash of PCRs 0-7 and of 0-9, each if all its PCRs are there."""
    return tuple(
        bank.digest(b"".join(pcrs[pcr] for pcr in range(count)))
        for count in (8, 10)
        if pcrs.keys() >= set(range(count))
    )


def prove(log: BootLog, quoted: QuotedPcrs) -> ReplayedBootLog | ReplayFault:
    """Say which events of the log the quoted PCR values vouch for."""
    bank = quoted.bank
    if bank not in log.banks:
        return ReplayFault.BANK_NOT_IN_LOG
    try:
        pcrs = replay(log, bank)
    except UnsupportedAlgorithmError:
        return ReplayFault.BANK_NOT_COMPUTABLE
    compared = BOOT_PCRS & quoted.values.keys()
    zeros = bytes(bank.size)
    confirmed = frozenset(pcr for pcr in compared if pcrs.get(pcr, zeros) == quoted.values[pcr])
    return ReplayedBootLog(
        log=log,
        bank=bank,
        pcrs=pcrs,
        confirmed=confirmed,
        differing=frozenset(compared) - confirmed,
        unquoted=BOOT_PCRS - compared,
        events=_proven_events(log, bank, confirmed),
    )


def _proven_events(log: BootLog, bank: HashAlgorithm, confirmed: frozenset[int]) -> tuple[ProvenEvent, ...]:
    # A separator is known by its digest: type and data could have been rewritten to hide that it was there.
    separators = {bank.digest(value) for value in SEPARATORS}
    separated: set[int] = set()
    events: list[ProvenEvent] = []
    for event in log.events:
        pcr = event.pcr
        digest = event.digests.get(bank)
        if event.type == EV_NO_ACTION or digest is None or pcr not in confirmed:
            continue
        proof, content = data_proof(event, digest, bank)
        events.append(ProvenEvent(event, digest, proof, content, pcr in separated))
        if digest in separators:
            separated.add(pcr)
    return tuple(events)


def data_proof(event: BootEvent, digest: bytes, bank: HashAlgorithm) -> tuple[DataProof, bytes | None]:
    """Say how much of an event's data its digest covers, and return the bytes that it covers.

    Which bytes a type's digest is of is known from the profile and from real logs; for all other types the digest is of
    something that is not in the log, and is never compared with the data: a file could be made whose content is the
    text that the event shows.
    """
    data, event_type = event.data, event.type
    if event_type in _WHOLE or (event_type == EV_IPL and event.pcr == _STUB_PCR):
        if bank.digest(data) == digest:
            return DataProof.WHOLE, data
        return (DataProof.HINT if event_type == EV_EFI_VARIABLE_AUTHORITY else DataProof.CONTRADICTED), None
    if event_type == EV_IPL and event.pcr == _COMMAND_PCR:
        return _command_proof(data, digest, bank)
    if event_type == EV_IPL and event.pcr == _SECTION_PCR:
        return _section_proof(data, digest, bank)
    if event_type in BOOT_VARIABLE_TYPES:
        return _boot_variable_proof(data, digest, bank)
    return DataProof.HINT, None


def _command_proof(data: bytes, digest: bytes, bank: HashAlgorithm) -> tuple[DataProof, bytes | None]:
    # GRUB shows a label and the command (`kernel_cmdline: ...`) and measures the command, with its NUL or not. Older
    # systemd-boot shows the command alone, in UTF-16, and measures it with a NUL of which the log has one byte or both.
    command = data.partition(b" ")[2]
    for content, hashed in (
        (command, command.removesuffix(b"\0")),
        (command, command),
        (data, data + b"\0"),
        (data, data),
    ):
        if bank.digest(hashed) == digest:
            return DataProof.CONTENT, content.removesuffix(b"\0")
    return DataProof.CONTRADICTED, None


def _section_proof(data: bytes, digest: bytes, bank: HashAlgorithm) -> tuple[DataProof, bytes | None]:
    # systemd's stub shows a section's name in UTF-16 twice: once with the digest of the name in ASCII and its NUL, then
    # with the digest of the section's content, which is not in the log.
    name = utf16_text(data).encode("utf-8", "surrogatepass")
    return (DataProof.WHOLE, data) if bank.digest(name) == digest else (DataProof.HINT, None)


def _boot_variable_proof(data: bytes, digest: bytes, bank: HashAlgorithm) -> tuple[DataProof, bytes | None]:
    # Some firmware measures the variable's content alone, some all of the event; there is no third kind.
    if bank.digest(data) == digest:
        return DataProof.WHOLE, data
    variable = split_variable(data)
    if variable is not None and bank.digest(variable.content) == digest:
        return DataProof.CONTENT, variable.content
    return DataProof.HINT, None
