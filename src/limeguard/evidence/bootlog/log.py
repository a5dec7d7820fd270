"""The boot log as said: TCG PC Client event logs, of TCG 1.2 (SHA-1 only) and crypto-agile, from bytes to frozen facts.

Gives events; believes nothing that they say. Whether a log is the one that the TPM vouches for, and how much of each
event's data its digest covers, is decided by `limeguard.evidence.bootlog.replay`.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from limeguard.crypto.hashes import SHA1, HashAlgorithm, hash_by_tpm_id
from limeguard.evidence.bootlog.event_types import EV_NO_ACTION, NAMES, UNKNOWN
from limeguard.evidence.bootlog.layouts import problem_of
from limeguard.evidence.reader import MalformedEvidence

WHAT: Final = "boot log"
MAX_LOG: Final = 1 << 20
"""Bytes of a log. Firmware reserves 64 KiB for it, seldom more; logs of real machines stay below 200 KB."""
MAX_EVENTS: Final = 8192
"""Events of a log. Real ones have about a hundred; GRUB adds one for each command of its configuration."""
MAX_EVENT_DATA: Final = 256 << 10
"""Bytes of one event's data. The longest that occur are revocation lists (dbx), some 20 KB."""
MAX_ALGORITHMS: Final = 16
"""Banks that the log has digests of: as many as a TPM's digest list can have (TPM 2.0 Part 2, HASH_COUNT)."""
MAX_DIGEST: Final = 64
"""Bytes of a digest: SHA-512's."""
MAX_PCR: Final = 31
SPEC_ID_SIGNATURE: Final = b"Spec ID Event03\0"
MIN_SPEC_ID: Final = 28

_OLD_HEAD: Final = struct.Struct("<II20sI")
_AGILE_HEAD: Final = struct.Struct("<III")
_SPEC_ID_HEAD: Final = struct.Struct("<16sIBBBBI")
_ALGORITHM: Final = struct.Struct("<HH")
_U16: Final = struct.Struct("<H")
_U32: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class BootEvent:
    """One record. `digests` has those of known algorithms, in the order of the log; `other_digests` the rest by id."""

    event_num: int
    pcr: int
    type: int
    digests: Mapping[HashAlgorithm, bytes]
    data: bytes
    other_digests: tuple[tuple[int, bytes], ...] = ()

    @property
    def type_name(self) -> str:
        """The name of the type, or `Unknown event type`."""
        return NAMES.get(self.type, UNKNOWN)


@dataclass(frozen=True, slots=True)
class SpecId:
    """What the first record of a crypto-agile log says of the log. `algorithms` are (TPM_ALG_ID, digest size)."""

    platform_class: int
    version_minor: int
    version_major: int
    errata: int
    uintn_size: int
    algorithms: tuple[tuple[int, int], ...]
    vendor_info: bytes


@dataclass(frozen=True, slots=True)
class BootLog:
    """A log as said. `spec_id` is None for a TCG 1.2 log, which has a SHA-1 bank alone.

    `banks` are the known algorithms of which the log has digests. Event 0 of a crypto-agile log is the Spec ID event.
    """

    spec_id: SpecId | None
    banks: tuple[HashAlgorithm, ...]
    events: tuple[BootEvent, ...]


def parse_boot_log(data: bytes) -> BootLog:
    """Parse a log as the kernel gives it in `binary_bios_measurements`. Raises MalformedEvidence."""
    if not data:
        raise MalformedEvidence(WHAT, "is empty: the firmware or the boot loader handed none to the kernel")
    if len(data) > MAX_LOG:
        raise MalformedEvidence(WHAT, f"has {len(data)} bytes, at most {MAX_LOG} are allowed")
    first, start = _old_record(data, 0, 0)
    if first.type != EV_NO_ACTION:
        return BootLog(None, (SHA1,), _old_events(data))
    spec_id, start = _spec_id(first, data, start)
    banks = tuple(bank for number, _ in spec_id.algorithms if (bank := hash_by_tpm_id(number)))
    return BootLog(spec_id, banks, (first, *_agile_events(data, start, dict(spec_id.algorithms))))


def _malformed(event_num: int, field: str, reason: str) -> MalformedEvidence:
    return MalformedEvidence(f"{WHAT}.event {event_num}.{field}", reason)


def _old_events(data: bytes) -> tuple[BootEvent, ...]:
    events: list[BootEvent] = []
    start = 0
    while start < len(data):
        if len(events) >= MAX_EVENTS:
            raise MalformedEvidence(WHAT, f"has more than {MAX_EVENTS} events")
        event, start = _old_record(data, start, len(events))
        events.append(event)
    return tuple(events)


def _old_record(data: bytes, start: int, num: int) -> tuple[BootEvent, int]:
    # TCG 1.2: u32 PCR | u32 type | SHA-1 digest | u32 size | data
    try:
        pcr, event_type, digest, size = _OLD_HEAD.unpack_from(data, start)
    except struct.error:
        raise _malformed(num, "header", f"needs {_OLD_HEAD.size} bytes, {len(data) - start} are left") from None
    content, end = _event_data(data, start + _OLD_HEAD.size, size, num)
    if pcr > MAX_PCR:
        raise _no_pcr(num, pcr)
    if problem := problem_of(event_type, content):
        raise _malformed(num, "data", problem)
    return BootEvent(num, pcr, event_type, {SHA1: digest}, content), end


def _event_data(data: bytes, start: int, size: int, num: int) -> tuple[bytes, int]:
    if size > MAX_EVENT_DATA:
        raise _malformed(num, "size", f"says {size} bytes, at most {MAX_EVENT_DATA} are allowed")
    end = start + size
    if end > len(data):
        raise _malformed(num, "data", f"needs {size} bytes, {len(data) - start} are left")
    return data[start:end], end


def _no_pcr(num: int, pcr: int) -> MalformedEvidence:
    return _malformed(num, "pcr", f"{pcr} is not a PCR")


def _spec_id(first: BootEvent, log: bytes, end_of_record: int) -> tuple[SpecId, int]:
    """Return what the Spec ID event says and where the next record begins."""
    if first.pcr != 0:
        # Measurements of a confidential guest (CCEL) count registers from 1 and belong to another root of trust.
        raise _malformed(0, "pcr", f"is {first.pcr}: this is the log of a confidential guest (CCEL), not of a TPM")
    if any(first.digests[SHA1]):
        raise _malformed(0, "digest", "is not zero, as that of a Spec ID event must be")
    data = first.data
    if len(data) < MIN_SPEC_ID:
        raise _malformed(0, "data", f"has {len(data)} bytes, a Spec ID event has {MIN_SPEC_ID} at least")
    signature, platform, minor, major, errata, uintn, count = _SPEC_ID_HEAD.unpack_from(data)
    if signature != SPEC_ID_SIGNATURE:
        raise _malformed(0, "signature", f"is {signature!r}, not that of a Spec ID event (Spec ID Event03)")
    algorithms, end = _algorithms(data, count)
    if end >= len(data):
        raise _malformed(0, "vendorInfoSize", "is missing")
    vendor, start = _vendor_info(data, end + 1, data[end], log, end_of_record)
    return SpecId(platform, minor, major, errata, uintn, algorithms, vendor), start


def _vendor_info(data: bytes, begin: int, size: int, log: bytes, end_of_record: int) -> tuple[bytes, int]:
    if len(data) == begin + size:
        return data[begin:], end_of_record
    if len(data) == begin and end_of_record + size <= len(log):
        # Some firmware leaves it out of the event's size; it stands there all the same, and readers agree to skip it.
        return log[end_of_record : end_of_record + size], end_of_record + size
    # Any other size would leave open where the next record begins, so nothing after it could be relied on.
    raise _malformed(0, "vendorInfoSize", f"{size} bytes after {begin} do not make the event's {len(data)}")


def _algorithms(data: bytes, count: int) -> tuple[tuple[tuple[int, int], ...], int]:
    if not 1 <= count <= MAX_ALGORITHMS:
        raise _malformed(0, "numberOfAlgorithms", f"is {count}, not 1 to {MAX_ALGORITHMS}")
    end = _SPEC_ID_HEAD.size + count * _ALGORITHM.size
    if end > len(data):
        raise _malformed(0, "algorithms", f"{count} need {end} bytes, the event has {len(data)}")
    found = tuple((number, size) for number, size in _ALGORITHM.iter_unpack(data[_SPEC_ID_HEAD.size : end]))
    if len(dict(found)) != count:
        raise _malformed(0, "algorithms", "one of them stands twice")
    for number, size in found:
        known = hash_by_tpm_id(number)
        if known and known.size != size:
            raise _malformed(0, "algorithms", f"a digest of {known.name} has {known.size} bytes, not {size}")
        if size > MAX_DIGEST:
            raise _malformed(0, "algorithms", f"a digest of {size} bytes is longer than any ({MAX_DIGEST})")
    return found, end


def _agile_events(data: bytes, start: int, sizes: Mapping[int, int]) -> list[BootEvent]:
    # u32 PCR | u32 type | u32 count | count x (u16 algorithm, digest) | u32 size | data
    usual = _Usual(sizes)
    events: list[BootEvent] = []
    num, end = 1, len(data)
    while start < end:
        if num >= MAX_EVENTS:
            raise MalformedEvidence(WHAT, f"has more than {MAX_EVENTS} events")
        try:
            pcr, event_type, count = _AGILE_HEAD.unpack_from(data, start)
        except struct.error:
            raise _malformed(num, "header", f"needs {_AGILE_HEAD.size} bytes, {end - start} are left") from None
        if pcr > MAX_PCR:
            raise _no_pcr(num, pcr)
        start += _AGILE_HEAD.size
        digests, others, start = usual.digests(data, start, count) or _digests(data, start, count, sizes, num)
        try:
            (size,) = _U32.unpack_from(data, start)
        except struct.error:
            raise _malformed(num, "size", f"needs {_U32.size} bytes, {end - start} are left") from None
        content, start = _event_data(data, start + _U32.size, size, num)
        if problem := problem_of(event_type, content):
            raise _malformed(num, "data", problem)
        events.append(BootEvent(num, pcr, event_type, digests, content, others))
        num += 1
    return events


_Digests = tuple[Mapping[HashAlgorithm, bytes], tuple[tuple[int, bytes], ...], int]


class _Usual:
    """Reads the digests of a record at once where they are those of the Spec ID event, in its order; nearly all are."""

    def __init__(self, sizes: Mapping[int, int]) -> None:
        self._numbers = tuple(sizes)
        self._algorithms = [hash_by_tpm_id(number) for number in sizes]
        self._layout = struct.Struct("<" + "".join(f"H{size}s" for size in sizes.values()))

    def digests(self, data: bytes, start: int, count: int) -> _Digests | None:
        """Return what `_digests` does, or None where it must look."""
        end = start + self._layout.size
        if count != len(self._numbers) or end > len(data):
            return None
        fields = self._layout.unpack_from(data, start)
        if fields[::2] != self._numbers:
            return None
        known: dict[HashAlgorithm, bytes] = {}
        others: tuple[tuple[int, bytes], ...] = ()
        for number, algorithm, digest in zip(self._numbers, self._algorithms, fields[1::2], strict=True):
            if algorithm is None:
                others = (*others, (number, digest))
            else:
                known[algorithm] = digest
        return known, others, end


def _digests(data: bytes, start: int, count: int, sizes: Mapping[int, int], num: int) -> _Digests:
    if count > len(sizes):
        raise _malformed(num, "digests", f"are {count}, the log has {len(sizes)} algorithms")
    known: dict[HashAlgorithm, bytes] = {}
    others: dict[int, bytes] = {}
    for _ in range(count):
        try:
            (number,) = _U16.unpack_from(data, start)
        except struct.error:
            raise _malformed(num, "digests", f"needs {_U16.size} bytes, {len(data) - start} are left") from None
        size = sizes.get(number)
        if size is None:
            raise _malformed(num, "digests", f"algorithm {number:#06x} is not in the Spec ID event")
        start += _U16.size
        if start + size > len(data):
            raise _malformed(num, "digests", f"needs {size} bytes, {len(data) - start} are left")
        algorithm = hash_by_tpm_id(number)
        if algorithm in known or number in others:
            # Readers disagree whether one of them or both extend the PCR.
            raise _malformed(num, "digests", f"algorithm {number:#06x} stands twice")
        if algorithm is None:
            others[number] = data[start : start + size]
        else:
            known[algorithm] = data[start : start + size]
        start += size
    return known, tuple(others.items()), start
