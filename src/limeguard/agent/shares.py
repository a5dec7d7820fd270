"""The two halves of the payload key: which U and V belong together. Pure; holds secrets in memory only.

Halves come in any order and may come again. A pair is right when the tag that came with U is the HMAC of the node's id
under U xor V. Halves that found no partner are kept up to a bound, newest first to stay.
"""

import hmac
from collections import deque
from dataclasses import dataclass

from limeguard.crypto.keysplit import bootstrap_auth_tag, combine

MAX_WAITING = 16
"""Halves of each kind that wait for a partner: enough for every retry, too few to fill memory."""


@dataclass(frozen=True, slots=True, repr=False)
class HalfU:
    """What the tenant sends: its half, the tag over the whole key, and the payload under it (None: there is none)."""

    share: bytes
    auth_tag: bytes
    payload: bytes | None


@dataclass(frozen=True, slots=True, repr=False)
class Combined:
    """The payload key K and the payload that came with U."""

    key: bytes
    payload: bytes | None


class KeyHalves:
    """Halves that wait for each other."""

    def __init__(self, agent_id: str) -> None:
        """Start empty for the node of that id."""
        self._agent_id = agent_id
        self._u: deque[HalfU] = deque(maxlen=MAX_WAITING)
        self._v: deque[bytes] = deque(maxlen=MAX_WAITING)

    def add_u(self, half: HalfU) -> Combined | None:
        """Take the tenant's half; return the key when a waiting V fits it."""
        self._u.append(half)
        return self._match()

    def add_v(self, share: bytes) -> Combined | None:
        """Take the verifier's half; return the key when a waiting U fits it."""
        self._v.append(share)
        return self._match()

    @property
    def waiting(self) -> tuple[int, int]:
        """Return how many U and V wait."""
        return len(self._u), len(self._v)

    def _match(self) -> Combined | None:
        for half in reversed(self._u):
            for share in reversed(self._v):
                if len(share) != len(half.share):
                    continue
                key = combine(half.share, share)
                if hmac.compare_digest(bytes.fromhex(bootstrap_auth_tag(key, self._agent_id)), half.auth_tag):
                    self._u.clear()
                    self._v.clear()
                    return Combined(key, half.payload)
        return None
