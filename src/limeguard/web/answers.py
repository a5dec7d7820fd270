"""What comes of a request to a peer, and how a peer is known, whichever client asks."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


class Unreachable(Exception):  # noqa: N818 - a fact about the peer
    """No usable HTTP answer came: refused, reset, timed out, wrong certificate, too large, or not HTTP.

    `kind` is one of connect, timeout, tls, certificate, too_large, protocol.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


class NoRoom(Unreachable):
    """This process may open no more connections: a fact about us, not about the peer."""

    def __init__(self, reason: str) -> None:
        super().__init__("no_room", reason)


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete HTTP answer, of whatever status."""

    status: int
    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Pin:
    """The certificate that a peer must present, by its SHA-256."""

    sha256: bytes


def make_pin(certificate_der: bytes) -> Pin:
    """Pin a peer to exactly this certificate (DER)."""
    return Pin(hashlib.sha256(certificate_der).digest())


class Requester(Protocol):
    """A client that asks peers."""

    async def request(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        pin: Pin | None = None,
    ) -> Answer:
        """Send one request and return its whole answer. Raises Unreachable."""
        ...
