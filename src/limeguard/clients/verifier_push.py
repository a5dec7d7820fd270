"""A push agent's calls to one verifier: session, proof, capabilities, evidence.

One attempt each; when to try again and where is decided elsewhere.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urljoin, urlsplit

from limeguard.telemetry import clean, get_logger
from limeguard.web.answers import Answer
from limeguard.wire import push_agent_v3 as wire

log = get_logger("keylime_push_model_agent.http")

TRACE = 5
CREATED, ACCEPTED, UNAUTHORIZED = 201, 202, 401


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """The verifier answered with another status than the one that is wanted. `asked`: seconds of its Retry-After."""

    def __init__(self, status: int, refusal: wire.Refusal, asked: float | None) -> None:
        super().__init__(f"{status}: {clean(refusal.text)}")
        self.status = status
        self.code = refusal.code
        self.asked = asked


@dataclass(frozen=True, slots=True)
class Attestation:
    """An attestation that was begun: where its evidence goes, and what is asked for, in order."""

    url: str
    requested: tuple[wire.Requested, ...]


@dataclass(frozen=True, slots=True)
class Session:
    """A granted session: its token goes to the verifier that gave it, and nowhere else."""

    token: str = field(repr=False)


class Http(Protocol):
    """What carries the calls: either of the HTTP clients."""

    async def request(
        self, method: str, url: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send one request and return its whole answer. Raises Unreachable."""


class PushVerifier:
    """Calls to the verifier at `base` for one node. `show_tokens`: for tests of a site, never in operation."""

    def __init__(self, base: str, version: str, agent_id: str, http: Http, *, show_tokens: bool = False) -> None:
        """Connect with the first call."""
        self.base = base.rstrip("/")
        self._version, self._agent_id, self._http = version, agent_id, http
        self._show_tokens = show_tokens

    async def open_session(self) -> wire.OpenSession:
        """Ask for a challenge. Raises Refused, Unreachable, BadAnswer."""
        url = self.base + wire.sessions_path(self._version)
        answer = await self._send("POST", url, wire.encode_session_request(self._agent_id), None)
        if not 200 <= answer.status < 300:
            raise _refused(answer)
        return wire.decode_session(answer.body)

    async def prove(self, session: wire.OpenSession, message: bytes, signature: bytes) -> Session | None:
        """Answer the challenge; None when the proof is not accepted. Raises Refused, Unreachable, BadAnswer."""
        url = self.base + wire.session_path(self._version, session.id)
        body = wire.encode_session_proof(session.id, self._agent_id, message, signature)
        answer = await self._send("PATCH", url, body, None)
        if answer.status == UNAUTHORIZED:
            return None
        if not 200 <= answer.status < 300:
            raise _refused(answer)
        token = wire.decode_session_outcome(answer.body)
        return None if token is None else Session(token)

    async def negotiate(self, session: Session, capabilities: wire.Capabilities) -> Attestation:
        """Offer evidence and learn what is asked for. Raises Refused, Unreachable, BadAnswer."""
        url = self.base + wire.attestations_path(self._version, self._agent_id)
        answer = await self._send("POST", url, wire.encode_capabilities(capabilities), session)
        if answer.status != CREATED:
            raise _refused(answer)
        return Attestation(self._resolved(answer.headers.get("Location", "")), wire.decode_requested(answer.body))

    async def submit(self, attestation: Attestation, session: Session, body: bytes) -> float | None:
        """Send evidence; return the seconds until the next is wanted, if told. Raises Refused, Unreachable."""
        answer = await self._send("PATCH", attestation.url, body, session)
        if answer.status != ACCEPTED:
            raise _refused(answer)
        return wire.decode_accepted(answer.body)

    def _resolved(self, location: str) -> str:
        """Return where evidence goes. The token goes with it, so it must be the same server. Raises BadAnswer."""
        if not location or not location.isascii() or not location.isprintable():
            raise wire.BadAnswer("unreadable answer: there is no Location to send evidence to")
        try:
            url = urljoin(self.base + "/", location)
            there, here = urlsplit(url), urlsplit(self.base)
            same = (there.scheme, there.hostname, there.port) == (here.scheme, here.hostname, here.port)
        except ValueError:
            same, url = False, ""
        if not same:
            raise wire.BadAnswer("unreadable answer: Location names another server")
        return url

    async def _send(self, method: str, url: str, body: bytes, session: Session | None) -> Answer:
        headers = {"Content-Type": wire.BODY_TYPE, "Accept": wire.BODY_TYPE}
        log.debug("%s %s", method, clean(url))
        if session is not None:
            headers["Authorization"] = f"Bearer {session.token}"
            shown = session.token if self._show_tokens else "********"
            log.log(TRACE, 'authorization: "Bearer %s"', shown)
        return await self._http.request(method, url, body=body, headers=headers)


def _refused(answer: Answer) -> Refused:
    text = answer.headers.get("Retry-After")
    asked = None if text is None else wire.retry_after(text.strip(), time.time())
    return Refused(answer.status, wire.decode_refusal(answer.body), asked)


def bases(urls: Sequence[str], *, plain_allowed: bool) -> tuple[str, ...]:
    """Check the addresses of verifiers. Raises ValueError with what to write instead."""
    for url in urls:
        try:
            parts = urlsplit(url)
            good = parts.scheme in {"https", "http"} and bool(parts.hostname) and parts.port != 0
            good = good and not (parts.username or parts.password or parts.query or parts.fragment)
        except ValueError:
            good, parts = False, urlsplit("")
        if not good:
            raise ValueError(f"verifier_url: {clean(url, 80)} is no address of a verifier; write https://HOST:PORT.")
        if parts.scheme == "http" and not plain_allowed:
            raise ValueError(
                f"verifier_url: {clean(url, 80)} would carry this node's session token in the clear; write https://."
            )
    if not urls:
        raise ValueError("verifier_url names no verifier; write https://HOST:PORT.")
    return tuple(urls)
