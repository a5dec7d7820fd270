"""Lines that were judged clean before, on any node: line to the digest that extends PCR 10.

A fleet runs the same programs, so nearly every line of one node's log was seen in another's. What is kept depends on
nothing but the line, the policy and the bank, so sharing it cannot carry trust from one node to another. Bounded: the
older half is dropped when the younger is full.
"""

from typing import Final

from limeguard.crypto.hashes import HashAlgorithm
from limeguard.policy.runtime import RuntimePolicy

DEFAULT_BYTES: Final = 64 << 20
_OVERHEAD: Final = 200
"""Bytes that a kept line costs beside its own text: two objects and a slot of a table."""
MAX_LINE: Final = 1_024
"""Longer lines (signatures, buffers) are not worth their place."""


class LineMemo:
    """Clean lines for each policy and bank. Not a cache of policies: it is keyed by their checksums."""

    def __init__(self, limit: int = DEFAULT_BYTES) -> None:
        """Keep lines of about `limit` bytes in all."""
        self._half = limit // 2
        self._used = 0
        self._young: dict[tuple[str, str], dict[bytes, bytes]] = {}
        self._old: dict[tuple[str, str], dict[bytes, bytes]] = {}

    def table(self, policy: RuntimePolicy, bank: HashAlgorithm) -> dict[bytes, bytes]:
        """Return the table of one policy and bank; the caller may add to it and then says so with `grown`."""
        key = (policy.checksum, bank.name)
        found = self._young.get(key)
        if found is None:
            found = self._young[key] = self._old.pop(key, {})
        return found

    def grown(self, count: int, size: int) -> None:
        """Take note that `count` lines of `size` bytes were added. May forget the older half."""
        self._used += size + count * _OVERHEAD
        if self._used > self._half:
            self._old, self._young, self._used = self._young, {}, 0
