"""How often somebody may ask for something: a sliding window for each key, and blocks that double.

Pure: the caller says what time it is. Keeps a bounded number of keys, whatever is thrown at it.
"""

from collections import deque
from dataclasses import dataclass, field
from math import ceil
from typing import Final

FIRST_BLOCK: Final = 60.0
MAX_BLOCK: Final = 3600.0
FORGIVEN_AFTER: Final = 2 * MAX_BLOCK
"""Seconds of good behaviour after which the next block is as short as the first."""
MAX_KEYS: Final = 50_000
_MAX_EXPONENT: Final = 16


@dataclass(slots=True)
class _Key:
    times: deque[float] = field(default_factory=deque)
    blocks: int = 0
    blocked_until: float = 0.0


class RateLimit:
    """Lets `limit` requests of one key pass in any `window` seconds; 0 lets all pass."""

    def __init__(self, limit: int, window: float) -> None:
        """Start with nobody known."""
        self._limit, self._window = limit, window
        self._keys: dict[str, _Key] = {}

    def check(self, key: str, now: float) -> int | None:
        """Count a request; return None when it may pass, else after how many seconds to come again.

        Whoever exceeds the limit is blocked for a minute, the next time for two, and so on up to an hour.
        """
        if self._limit <= 0:
            return None
        known = self._keys.get(key)
        if known is None:
            known = self._make(key, now)
        if now < known.blocked_until:
            return max(ceil(known.blocked_until - now), 1)
        if known.blocks and now - known.blocked_until > FORGIVEN_AFTER:
            known.blocks = 0
        times = known.times
        while times and times[0] <= now - self._window:
            times.popleft()
        if len(times) < self._limit:
            times.append(now)
            return None
        times.clear()
        known.blocks += 1
        block = min(FIRST_BLOCK * 2.0 ** min(known.blocks - 1, _MAX_EXPONENT), MAX_BLOCK)
        known.blocked_until = now + block
        return ceil(block)

    def __len__(self) -> int:
        return len(self._keys)

    def _make(self, key: str, now: float) -> _Key:
        if len(self._keys) >= MAX_KEYS:
            self._forget(now)
        return self._keys.setdefault(key, _Key())

    def _forget(self, now: float) -> None:
        """Drop the keys that say nothing any more; when all do, the half that was seen first."""
        self._keys = {
            key: known
            for key, known in self._keys.items()
            if now < known.blocked_until or (known.times and known.times[-1] > now - self._window)
        }
        if len(self._keys) >= MAX_KEYS:
            for key in list(self._keys)[: MAX_KEYS // 2]:
                del self._keys[key]
