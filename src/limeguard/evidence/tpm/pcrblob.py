"""The PCR values that travel with a quote: the file format of tpm2-tools, a memory image of a little-endian host.

    u32 count | 16 x (u16 bank, u8 size, u8[3] bitmap, u16 0) | u32 lists | lists x (u32 count, 8 x (u16 size, u8[64]))

Values stand in the order of the selections, PCR numbers ascending, eight to a list.
"""

import functools
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from limeguard.crypto.hashes import HashAlgorithm, hash_by_tpm_id
from limeguard.evidence.reader import MalformedEvidence
from limeguard.evidence.tpm.structures import PcrSelection, bitmap_of_pcrs, pcrs_of_bitmap

WHAT: Final = "PCR blob"
SLOTS: Final = 16
PER_LIST: Final = 8
LIST_SIZE: Final = 532
HEAD_SIZE: Final = 136
MAX_LISTS: Final = 3 * 5
"""24 PCRs of five banks."""

MAX_REMEMBERED: Final = 512
"""Blobs: usually half a MiB, some 12 MiB of the largest that are taken."""

PcrValues = Mapping[HashAlgorithm, Mapping[int, bytes]]

_HEAD = struct.Struct("<I" + "HB3sxx" * SLOTS)
_COUNT = struct.Struct("<I")
_LIST = struct.Struct("<I" + "H64s" * PER_LIST)


@functools.lru_cache(maxsize=MAX_REMEMBERED)
def parse_pcr_blob(data: bytes) -> tuple[tuple[PcrSelection, ...], PcrValues]:
    """Return the selections and, per bank, the value of each PCR. Raises MalformedEvidence.

    Machines that are set up alike hold the same values, and an idle one holds them from round to round: what was read
    before is remembered.
    """
    if len(data) < HEAD_SIZE:
        raise MalformedEvidence(WHAT, f"needs {HEAD_SIZE} bytes at least, has {len(data)}")
    (lists,) = _COUNT.unpack_from(data, HEAD_SIZE - 4)
    if lists > MAX_LISTS:
        raise MalformedEvidence(WHAT, f"{lists} lists are more than a TPM has")
    if len(data) != HEAD_SIZE + lists * LIST_SIZE:
        raise MalformedEvidence(WHAT, f"{lists} lists do not make {len(data)} bytes")
    selections = _selections(data[: HEAD_SIZE - 4])
    found = _values(data, lists)
    wanted = [(s.bank, pcr) for s in selections for pcr in s.pcrs]
    if len(found) != len(wanted):
        raise MalformedEvidence(WHAT, f"has {len(found)} values for {len(wanted)} selected PCRs")
    values: dict[HashAlgorithm, dict[int, bytes]] = {s.bank: {} for s in selections}
    for (bank, pcr), value in zip(wanted, found, strict=True):
        if len(value) != bank.size:
            raise MalformedEvidence(WHAT, f"PCR {pcr} of bank {bank.name} has {len(value)} bytes, not {bank.size}")
        values[bank][pcr] = value
    return selections, MappingProxyType({bank: MappingProxyType(pcrs) for bank, pcrs in values.items()})


@functools.lru_cache(maxsize=256)  # a fleet asks for few different selections, again and again
def _selections(head: bytes) -> tuple[PcrSelection, ...]:
    count, *slots = _HEAD.unpack(head)
    if count > SLOTS:
        raise MalformedEvidence(WHAT, f"{count} banks are more than a TPM has")
    selections: list[PcrSelection] = []
    for slot in range(count):
        number, size, bitmap = slots[3 * slot : 3 * slot + 3]
        if size == 0:
            continue
        bank = hash_by_tpm_id(number)
        if size != 3 or bank is None:
            raise MalformedEvidence(WHAT, f"slot {slot} selects bank {number} with {size} bytes")
        if any(bank == earlier.bank for earlier in selections):
            raise MalformedEvidence(WHAT, f"bank {bank.name} stands twice")
        selections.append(PcrSelection(bank, pcrs_of_bitmap(bitmap)))
    return tuple(selections)


def _values(data: bytes, lists: int) -> list[bytes]:
    found: list[bytes] = []
    for index in range(lists):
        fields = _LIST.unpack_from(data, HEAD_SIZE + index * LIST_SIZE)
        count = fields[0]
        if count > PER_LIST:
            raise MalformedEvidence(WHAT, f"list {index} says it has {count} values")
        for position in range(count):
            size, value = fields[1 + 2 * position], fields[2 + 2 * position]
            if size > len(value):
                raise MalformedEvidence(WHAT, f"a value of {size} bytes in list {index}")
            found.append(value[:size])
    return found


def build_pcr_blob(values: PcrValues) -> bytes:
    """Marshal PCR values, banks in the order of the mapping. Raises ValueError for PCRs beyond 23."""
    slots: list[int | bytes] = []
    flat: list[bytes] = []
    for bank, pcrs in values.items():
        slots += [bank.tpm_id, 3, bitmap_of_pcrs(tuple(pcrs))]
        flat += [pcrs[n] for n in sorted(pcrs)]
    slots += [0, 0, b"\0\0\0"] * (SLOTS - len(values))
    groups = [flat[i : i + PER_LIST] for i in range(0, len(flat), PER_LIST)]
    parts = [_HEAD.pack(len(values), *slots), _COUNT.pack(len(groups))]
    for group in groups:
        cells = [cell for value in group for cell in (len(value), value)]
        parts.append(_LIST.pack(len(group), *cells, *(0, b"") * (PER_LIST - len(group))))
    return b"".join(parts)
