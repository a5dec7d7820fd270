"""How many events a firmware's log holds, which the push protocol wants to know beforehand.

The content is not interpreted and nothing is believed of it: a log that cannot be walked counts as far as it can.
"""

import struct
from typing import Final

EV_NO_ACTION: Final = 3
SPEC_ID: Final = b"Spec ID Event03\0"
MAX_ALGORITHMS: Final = 16
MAX_EVENTS: Final = 1_000_000

_U16, _U32 = struct.Struct("<H"), struct.Struct("<I")
_HEAD = struct.Struct("<II20sI")
"""TCG_PCClientPCREvent up to the event's data (PC Client Platform Firmware Profile §10.2.1)."""


def count_events(log: bytes) -> int:
    """Return the number of events in a log of either layout, the one with a header event or the older one."""
    if len(log) < _HEAD.size:
        return 0
    _, kind, _, size = _HEAD.unpack_from(log)
    first = log[_HEAD.size : _HEAD.size + size]
    if len(first) < size:
        return 0
    if kind == EV_NO_ACTION and first.startswith(SPEC_ID):
        return 1 + _count(log, _HEAD.size + size, _digest_sizes(first))
    return _count_older(log)


def _digest_sizes(header: bytes) -> dict[int, int]:
    """Return digest sizes by algorithm, as the header event names them (§10.4.5.1)."""
    sizes: dict[int, int] = {}
    try:
        (algorithms,) = _U32.unpack_from(header, 24)
        for number in range(min(algorithms, MAX_ALGORITHMS)):
            algorithm, size = struct.unpack_from("<HH", header, 28 + 4 * number)
            sizes[algorithm] = size
    except struct.error:
        return {}
    return sizes


def _count(log: bytes, position: int, sizes: dict[int, int]) -> int:
    count = 0
    while count < MAX_EVENTS:
        try:
            (digests,) = _U32.unpack_from(log, position + 8)
            position += 12
            for _ in range(min(digests, MAX_ALGORITHMS)):
                (algorithm,) = _U16.unpack_from(log, position)
                position += 2 + sizes[algorithm]
            (size,) = _U32.unpack_from(log, position)
        except (struct.error, KeyError):
            return count
        position += 4 + size
        if position > len(log):
            return count
        count += 1
    return count


def _count_older(log: bytes) -> int:
    count = position = 0
    while count < MAX_EVENTS and position + _HEAD.size <= len(log):
        size: int = _HEAD.unpack_from(log, position)[3]
        position += _HEAD.size + size
        if position > len(log):
            break
        count += 1
    return count
