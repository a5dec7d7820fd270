"""Shortcuts to the verdict of `judge` for lines that are clean: one at a time, or many of the commonest layout at once.

Never another way to a verdict: property tests hold `clean_batch` to `clean_line`, and that to the judge. Slices, joins
and hashes over whole batches cost a third less than line by line.
"""

import struct
from binascii import unhexlify
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from limeguard.crypto.hashes import HashAlgorithm
from limeguard.policy.runtime import RuntimePolicy, digests_of

BATCH: Final = 512
"""Lines at a time: enough to share the cost, few enough to stay in a core's cache."""
_PCR: Final = b"10 "
_MIDDLE: Final = b" ima-ng sha256:"
_MEASURED: Final = 64
_LENGTHS: Final = tuple(value.to_bytes(4, "little") for value in range(4_100))

_NO_SIGNATURE: Final = b"\0\0\0\0\0"
_TAILS: Final = {b"ima-ng": b"\0", b"ima-sig": _NO_SIGNATURE}
"""What follows the name: its NUL, and for ima-sig the length of an absent signature."""


def _head(algorithm: bytes, size: int) -> bytes:
    """Return how template data begins: the length of its first field, the algorithm, `:`, NUL (kernel: d-ng)."""
    return (len(algorithm) + 2 + size).to_bytes(4, "little") + algorithm + b":\0"


_HEAD: Final = _head(b"sha256", 32)


def clean_batch(
    lines: Sequence[bytes], policy: RuntimePolicy, bank: HashAlgorithm, log_hash: HashAlgorithm
) -> list[bytes] | None:
    """Return what each line extends PCR 10 with, None when any is not clean or not `10 … ima-ng sha256:… <name>`."""
    try:
        return _batch(lines, policy, bank, log_hash)
    except (ValueError, IndexError):  # not hexadecimal, or a name that is longer than any
        return None


def _batch(
    lines: Sequence[bytes], policy: RuntimePolicy, bank: HashAlgorithm, log_hash: HashAlgorithm
) -> list[bytes] | None:
    count, place = len(lines), len(_PCR) + 2 * log_hash.size
    width = place + len(_MIDDLE)
    end = width + _MEASURED + 1
    heads = b"".join([line[:width] for line in lines])
    measured = b"".join([line[width:end] for line in lines])
    # The blanks of every line are where they should be, and what lies between them is compared below, so that no line
    # can lend a part to its neighbour.
    blanks = b" " * count
    if heads[2::width] != blanks or heads[place::width] != blanks or heads[place + 7 :: width] != blanks:
        return None
    if measured[_MEASURED :: _MEASURED + 1] != blanks or not (heads.startswith(_PCR) and heads.endswith(_MIDDLE)):
        return None
    raw = unhexlify(measured.replace(b" ", b""))
    recorded = unhexlify(heads[len(_PCR) : -len(_MIDDLE)].replace(_MIDDLE + _PCR, b""))
    if len(raw) != count * 32 or len(recorded) != count * log_hash.size:
        return None
    digests = _digests_of(count).unpack(raw)
    names = [line[end:] for line in lines]
    if not _listed(names, digests, policy):
        return None
    join, log_new, new = b"".join, log_hash.constructor, bank.constructor
    data = [
        join((_HEAD, digest, _LENGTHS[len(name) + 1], name, b"\0")) for digest, name in zip(digests, names, strict=True)
    ]
    if join([log_new(item).digest() for item in data]) != recorded:
        return None
    return [new(item).digest() for item in data]


@lru_cache(maxsize=4)
def _digests_of(count: int) -> struct.Struct:
    """Return the layout of so many digests of SHA-256."""
    return struct.Struct("32s" * count)


def _listed(names: list[bytes], digests: tuple[bytes, ...], policy: RuntimePolicy) -> bool:
    """Say whether the policy lists every digest; most names have one, and then lists are compared as a whole."""
    allowed = tuple(map(policy.digests.get, names))
    if allowed == digests:
        return True
    return all(digest in digests_of(listed) for listed, digest in zip(allowed, digests, strict=True))


def clean_line(line: bytes, policy: RuntimePolicy, bank: HashAlgorithm, log_hash: HashAlgorithm) -> bytes | None:
    """Return what a clean line extends PCR 10 with, None for a line that needs a closer look.

    Clean here is the common case only: `ima-ng` or `ima-sig` without signature, PCR 10, a digest that the policy lists,
    and a template digest that fits. It is a shortcut to the verdict of `judge` and never another way: a property test
    holds the two together.
    """
    try:
        pcr, recorded, template, text, name = line.split(b" ", 4)
        tail = _TAILS[template]
        algorithm, value = text.split(b":")
        digest, log_digest = unhexlify(value), unhexlify(recorded)
        if tail is _NO_SIGNATURE:
            name, signature = name.split(b" ")
            if signature:
                return None
        length = _LENGTHS[len(name) + 1]
    except (ValueError, KeyError, IndexError):  # what unhexlify raises is a ValueError, too
        return None
    if pcr != b"10" or digest not in digests_of(policy.digests.get(name)):
        return None
    data = b"".join((_head(algorithm, len(digest)), digest, length, name, tail))
    return bank.digest(data) if log_hash.digest(data) == log_digest else None
