"""The agent's calls to a registrar: versions, register, activate.

One attempt each; when to try again is decided elsewhere.
"""

import secrets
import ssl
import string
from collections.abc import Sequence
from dataclasses import dataclass

from limeguard.telemetry import clean, get_logger
from limeguard.web.answers import Answer, Unreachable
from limeguard.web.client import HttpClient
from limeguard.wire import registrar_agent_v2 as wire
from limeguard.wire.registrar_v2 import VERSION
from limeguard.wire.versions import negotiate

log = get_logger("keylime_agent.registrar")

TIMEOUT_SECONDS = 60.0
MAX_ANSWER = 1024 * 1024
RETRIED_STATUSES = frozenset({408, 429})
REQUEST_ID_LENGTH = 6
_REQUEST_ID_ALPHABET = string.ascii_lowercase + string.digits


class EnrolmentError(Exception):
    """An attempt failed. `final`: another one cannot help. `pause`: seconds the registrar asks to wait, or None."""

    def __init__(self, text: str, *, final: bool, status: int = 0, pause: float | None = None) -> None:
        super().__init__(text)
        self.final = final
        self.status = status
        self.pause = pause


@dataclass(frozen=True, slots=True)
class Target:
    """Where the registrar is; `context` None means plain HTTP."""

    host: str
    port: int
    context: ssl.SSLContext | None

    @property
    def base(self) -> str:
        """Return the URL that paths are added to."""
        host = f"[{self.host}]" if ":" in self.host and not self.host.startswith("[") else self.host
        return f"{'http' if self.context is None else 'https'}://{host}:{self.port}"


class RegistrarClient:
    """Calls to one registrar. Made inside a running loop; `close` it."""

    def __init__(self, target: Target) -> None:
        """Connect with the first call."""
        self._target = target
        self._http = HttpClient(target.context, timeout=TIMEOUT_SECONDS, max_answer=MAX_ANSWER)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()

    async def candidate_versions(self, mine: Sequence[str]) -> tuple[str, ...]:
        """Return the API versions to try, best first. Raises EnrolmentError.

        The registrar's current version if we have it, else the newest common one; ours, newest first, when it does not
        tell.
        """
        log.info("Requesting registrar API version")
        answer = await self._send("GET", VERSION, None)
        if not 200 <= answer.status < 300:
            log.warning("The registrar does not tell its API versions (status %d); ours are tried", answer.status)
            return tuple(reversed(mine))
        try:
            theirs = wire.decode_versions(answer.body)
        except wire.BadAnswer as problem:
            raise EnrolmentError(f"The registrar's API versions cannot be read: {problem}.", final=False) from problem
        if theirs.current in mine:
            return (theirs.current,)
        common = negotiate(mine, theirs.supported)
        if common is None:
            raise EnrolmentError(
                f"The registrar serves none of the API versions {', '.join(mine)}; correct api_versions.", final=True
            )
        return (common,)

    async def register(self, version: str, agent_id: str, registration: wire.Registration) -> bytes:
        """Send the node's keys and return the challenge that only its TPM can open. Raises EnrolmentError."""
        body = wire.encode_registration(registration)
        answer = await self._send("POST", wire.node_path(version, agent_id), body)
        _check(answer, "registering")
        try:
            return wire.decode_challenge(answer.body)
        except wire.BadAnswer as problem:
            raise EnrolmentError(f"The registrar's challenge cannot be read: {problem}.", final=False) from problem

    async def activate(self, version: str, agent_id: str, auth_tag: str) -> None:
        """Prove that the challenge was opened. Raises EnrolmentError."""
        answer = await self._send("PUT", wire.node_path(version, agent_id), wire.encode_proof(auth_tag))
        _check(answer, "activating")

    async def _send(self, method: str, path: str, body: bytes | None) -> Answer:
        headers = {"X-Request-ID": _request_id(), "Accept": wire.BODY_TYPE}
        if body is not None:
            headers["Content-Type"] = wire.BODY_TYPE
        log.debug("connecting to %s:%d", clean(self._target.host), self._target.port)
        try:
            return await self._http.request(method, self._target.base + path, body=body, headers=headers)
        except Unreachable as problem:
            text = f"Network error: {method} {self._target.base}{path}: connection failed: {problem.reason}"
            raise EnrolmentError(text, final=False) from problem


def _check(answer: Answer, doing: str) -> None:
    if 200 <= answer.status < 300:
        return
    text = f"The registrar refused {doing} the node ({answer.status}): {clean(answer.body.decode('utf-8', 'replace'))}"
    passing = answer.status in RETRIED_STATUSES or answer.status >= 500
    raise EnrolmentError(text, final=not passing, status=answer.status, pause=_pause(answer))


def _pause(answer: Answer) -> float | None:
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdecimal() and len(text) <= 6 else None


def _request_id() -> str:
    return "".join(secrets.choice(_REQUEST_ID_ALPHABET) for _ in range(REQUEST_ID_LENGTH))
