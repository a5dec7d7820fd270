"""What to ask an agent, and how long to wait before asking again.

Decides nonces, PCRs and pauses from what it is handed; must not draw random bytes, wait or send.
"""

import string
from typing import Final

import msgspec

from limeguard.policy.pcrs import PcrPolicy
from limeguard.wire.agent_v2 import integrity_path

NONCE_LENGTH: Final = 20
"""Characters of a nonce: 119 bits, in the only alphabet that agents take."""
NONCE_BYTES: Final = 64
"""Random bytes that `make_nonce` needs. One byte in 32 is dropped; that 45 of 64 are, nobody will see."""
MAX_PAUSE: Final = 3600.0
"""Seconds between two tries at most, however many failed."""

_ALPHABET: Final = (string.ascii_uppercase + string.digits + string.ascii_lowercase).encode()
_FAIR: Final = 256 - 256 % len(_ALPHABET)
_TABLE: Final = bytes(_ALPHABET[value % len(_ALPHABET)] for value in range(256))
_UNFAIR: Final = bytes(range(_FAIR, 256))
_MAX_EXPONENT: Final = 64


class QuoteRequest(msgspec.Struct, frozen=True):
    """One question to an agent. `mask` is hexadecimal text, `partial` leaves the transport key out of the answer."""

    nonce: str
    mask: str
    partial: bool
    ima_ml_entry: int
    api_version: str

    @property
    def path(self) -> str:
        """Path and query of the request."""
        return integrity_path(
            self.api_version, self.nonce, self.mask, partial=self.partial, ima_entry=self.ima_ml_entry
        )


def make_nonce(random: bytes) -> str:
    """Return 20 letters and digits, each equally likely, from NONCE_BYTES bytes of the system's random source.

    Bytes that would favour some characters are dropped. Raises ValueError when too few are left.
    """
    text = random.translate(_TABLE, _UNFAIR)[:NONCE_LENGTH]
    if len(text) < NONCE_LENGTH:
        raise ValueError(f"{len(random)} random bytes are too few for a nonce")
    return text.decode()


def ask(policy: PcrPolicy, random: bytes, *, partial: bool, api_version: str, ima_entry: int = 0) -> QuoteRequest:
    """Return the question for the next round; `random` is NONCE_BYTES long and used for nothing else."""
    return QuoteRequest(make_nonce(random), policy.mask_text, partial, ima_entry, api_version)


def retry_delay(attempt: int, interval: float, *, exponential: bool) -> float:
    """Return the seconds to wait after failed attempt number `attempt` (1 is the first).

    With back-off they are `interval` to the power of `attempt` (2, 4, 8, ...), which only grows above an interval of 1;
    otherwise they are always `interval`. Never more than MAX_PAUSE.
    """
    if interval >= MAX_PAUSE:
        return MAX_PAUSE
    if exponential and interval > 1:
        return float(min(interval ** min(attempt, _MAX_EXPONENT), MAX_PAUSE))
    return interval
