"""Sessions of agents that push: challenge, proof of possession, token, and whom a token speaks for.

Decides who gets a token and how long it counts. Must not know what is done with it. A token stands in one answer and
nowhere else: what is kept is its SHA-256, which is enough for a secret of 256 random bits and costs a microsecond.
"""

import asyncio
import binascii
import hashlib
import re
import secrets
import time
import uuid
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass, replace
from hmac import compare_digest
from typing import Final, Protocol

from limeguard.evidence.tpm.possession import Possession, PossessionFault, verify_possession
from limeguard.store.database import StoreUnavailable
from limeguard.store.node_record import Enrolled
from limeguard.store.sessions import StoredSession
from limeguard.telemetry import clean, get_logger
from limeguard.verifier.enrolments import Enrolment, Enrolments
from limeguard.verifier.push.ratelimit import RateLimit
from limeguard.web.auth import Caller, CallerKind, Unauthorized
from limeguard.wire import verifier_v3
from limeguard.wire.verifier_v2 import valid_id
from limeguard.wire.verifier_v3 import Opening, Provided, SessionView

log = get_logger("keylime.verifier")
auth_log = get_logger("keylime.authentication")

CHALLENGE_BYTES: Final = 16
SECRET_BYTES: Final = 32
TICK_SECONDS: Final = 2.0
"""How often extensions of tokens are written, together."""
SWEEP_SECONDS: Final = 60.0
_TOKEN: Final = re.compile(r"([0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})\.[A-Za-z0-9_-]{43}")
_ID: Final = re.compile(r"[0-9a-f-]{36}")


class SessionRefused(Exception):  # noqa: N818 - an answer, not a fault
    """The request about a session cannot be served; `title` and `detail` are the answer."""

    def __init__(self, status: int, title: str, detail: str, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.title, self.detail, self.retry_after = status, title, detail, retry_after


class Rows(Protocol):
    """What is needed of the store. Every method may raise StoreUnavailable."""

    async def add(self, session: StoredSession, /) -> None:
        """Insert a session."""
        ...

    async def get(self, session_id: str, /) -> StoredSession | None:
        """Return one session."""
        ...

    async def activate(self, session: StoredSession, /) -> bool:
        """Exchange the challenge for the token; False when it was used already."""
        ...

    async def drop(self, session_id: str, /) -> None:
        """Forget a session."""
        ...

    async def extend(self, until: dict[str, float], /) -> frozenset[str]:
        """Let tokens live longer; return the ids of sessions that are gone."""
        ...

    async def sweep(self, before: float, /) -> None:
        """Forget what expired before then."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRules:
    """How sessions are given out. Times are seconds; a limit of 0 is none.

    Tokens that are `shared` with other workers live on in the database as soon as they do in memory.
    """

    challenge_lifetime: float = 60.0
    token_lifetime: float = 180.0
    extend: bool = True
    per_address: int = 50
    address_window: float = 60.0
    per_agent: int = 15
    agent_window: float = 60.0
    shared: bool = False


@dataclass(slots=True)
class _Held:
    """A token as this process knows it. The database may say that it expires earlier, by half a lifetime at most."""

    session: StoredSession
    expires_at: float


class Sessions:
    """The sessions of one verifier."""

    def __init__(
        self,
        rows: Rows,
        enrolments: Enrolments,
        rules: SessionRules,
        *,
        now: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """Keep sessions in `rows` for the nodes in `enrolments`. `now` is seconds since 1970."""
        self._rows, self._enrolments, self._rules = rows, enrolments, rules
        self._now, self._random = now, random
        self._addresses = RateLimit(rules.per_address, rules.address_window)
        self._agents = RateLimit(rules.per_agent, rules.agent_window)
        self._held: dict[str, _Held] = {}
        self._of_agent: dict[str, str] = {}
        self._extended: dict[str, float] = {}

    # --- opening and proving -----------------------------------------------------------------------------------------

    def admit(self, peer: str) -> None:
        """Count a request for a session by its address, before its body is looked at. Raises SessionRefused."""
        wait = self._addresses.check(peer, self._now())
        if wait is not None:
            auth_log.warning("Too many sessions are asked for from %s, blocked for %d s", clean(peer), wait)
            raise SessionRefused(429, "Too Many Requests", verifier_v3.TOO_MANY, wait)

    async def open(self, opening: Opening) -> SessionView:
        """Give out a challenge, also for an agent that nobody knows. Raises SessionRefused."""
        now = self._now()
        if opening.agent_id is None:
            raise SessionRefused(400, "Bad Request", verifier_v3.NO_AGENT_ID)
        if not valid_id(opening.agent_id):
            raise SessionRefused(400, "Bad Request", verifier_v3.BAD_AGENT_ID)
        wait = self._agents.check(opening.agent_id, now)
        if wait is not None:
            auth_log.warning("Too many sessions are asked for agent %s, blocked for %d s", opening.agent_id, wait)
            raise SessionRefused(429, "Too Many Requests", verifier_v3.TOO_MANY_OF_AGENT, wait)
        if not opening.offers_possession:
            raise SessionRefused(400, "Bad Request", verifier_v3.NO_POP)
        session = StoredSession(
            session_id=str(uuid.UUID(bytes=self._random(16), version=4)),
            agent_id=opening.agent_id,
            challenge=self._random(CHALLENGE_BYTES),
            created_at=now,
            expires_at=now + self._rules.challenge_lifetime,
        )
        await self._rows.add(session)
        return _view(session)

    async def prove(self, session_id: str, provided: Provided) -> SessionView:
        """Judge a proof of possession; whoever gave a good one gets a token. Raises SessionRefused."""
        if provided.agent_id is None:
            raise SessionRefused(400, "Bad Request", verifier_v3.NO_AGENT_ID)
        session = await self._rows.get(session_id) if _ID.fullmatch(session_id) else None
        if session is None or session.challenge is None:
            raise SessionRefused(404, "Not Found", verifier_v3.UNKNOWN_SESSION)
        if session.agent_id != provided.agent_id:
            raise SessionRefused(400, "Bad Request", verifier_v3.OTHER_AGENT)
        now, agent = self._now(), clean(session.agent_id)
        answer = replace(_view(session), provided=provided, received_at=now)
        enrolment = await self._enrolments.of(session.agent_id)
        if not session.created_at - self._rules.challenge_lifetime <= now < session.expires_at:
            auth_log.info("Agent %s answered its challenge too late", agent)
            await self._rows.drop(session_id)
            return replace(answer, expired=True)
        if enrolment is None:
            auth_log.info("Agent %s asks for a session, but no such node is enrolled", agent)
            await self._rows.drop(session_id)
            return answer
        proven = _judge(enrolment, session.challenge, provided)
        if isinstance(proven, PossessionFault):
            auth_log.warning("Agent %s did not prove that it has its key: %s", agent, proven.value)
            await self._rows.drop(session_id)
            raise BadProof(answer)
        return await self._activate(session, enrolment.enrolled, proven, answer)

    async def _activate(
        self, session: StoredSession, enrolled: Enrolled, proven: Possession, answer: SessionView
    ) -> SessionView:
        now = self._now()
        secret = urlsafe_b64encode(self._random(SECRET_BYTES)).rstrip(b"=").decode()
        token = f"{session.session_id}.{secret}"
        active = replace(
            session,
            challenge=None,
            token_sha256=_digest(token),
            enrolled_at=enrolled.enrolled_at,
            reset_count=proven.clock.reset_count,
            expires_at=now + self._rules.token_lifetime,
        )
        if not await self._rows.activate(active):
            raise SessionRefused(404, "Not Found", verifier_v3.UNKNOWN_SESSION)
        self._hold(active)
        auth_log.info("Agent %s has proven that it has its key", clean(session.agent_id))
        return replace(answer, passed=True, token=token, token_expires_at=active.expires_at)

    # --- tokens ------------------------------------------------------------------------------------------------------

    async def caller(self, token: str) -> Caller:
        """Return for whom a token speaks. Raises Unauthorized, StoreUnavailable."""
        match = _TOKEN.fullmatch(token)
        if match is None:
            raise Unauthorized(verifier_v3.NO_TOKEN)
        held = self._held.get(match[1])
        if held is None or self._now() >= held.expires_at:
            held = await self._load(match[1])  # another worker may have given it out, or extended it
        session = held.session
        if session.token_sha256 is None:
            raise Unauthorized(verifier_v3.TOKEN_NOT_ACTIVE)
        if not compare_digest(session.token_sha256, _digest(token)):
            raise Unauthorized(verifier_v3.NO_TOKEN)
        if not await self._counts(session):
            raise Unauthorized(verifier_v3.NO_TOKEN)
        if self._now() >= held.expires_at:
            raise Unauthorized(verifier_v3.TOKEN_EXPIRED)
        auth_log.debug("Authentication token validated for agent %s", session.agent_id)
        return Caller(CallerKind.AGENT, session.agent_id)

    async def _load(self, session_id: str) -> _Held:
        session = await self._rows.get(session_id)
        if session is None:
            raise Unauthorized(verifier_v3.NO_TOKEN)
        if session.token_sha256 is None:
            return _Held(session, session.expires_at)
        return self._hold(session)

    async def _counts(self, session: StoredSession) -> bool:
        """Say whether the node is still enrolled as it was when its key was proven: tokens end with the enrolment.

        Of a node that another worker supervises that one says so: whatever the token is for, it goes there.
        """
        if not self._enrolments.are_here(session.agent_id):
            return True
        enrolled_at = await self._enrolments.enrolled_at(session.agent_id)
        return enrolled_at is not None and enrolled_at == session.enrolled_at

    def _hold(self, session: StoredSession) -> _Held:
        """Keep a token at hand; an agent has one at a time."""
        before = self._of_agent.get(session.agent_id)
        if before is not None and before != session.session_id:
            self._held.pop(before, None)
        self._of_agent[session.agent_id] = session.session_id
        held = self._held[session.session_id] = _Held(session, session.expires_at)
        return held

    def reset_count(self, agent_id: str) -> int | None:
        """Return how often the agent's TPM had been reset when it proved itself, None when that is not known here."""
        held = self._held.get(self._of_agent.get(agent_id, ""))
        return None if held is None else held.session.reset_count

    def passed(self, agent_id: str) -> None:
        """Let the token of an agent live on whose evidence passed.

        Written when half of its life is over; at once, with others, when other workers have to know.
        """
        held = self._held.get(self._of_agent.get(agent_id, ""))
        if held is None or not self._rules.extend:
            return
        held.expires_at = self._now() + self._rules.token_lifetime
        if self._rules.shared or held.expires_at - held.session.expires_at > self._rules.token_lifetime / 2:
            self._extended[held.session.session_id] = held.expires_at
        auth_log.debug("Extended auth token for agent '%s'", agent_id)

    def _forget(self, session_id: str) -> None:
        held = self._held.pop(session_id, None)
        self._extended.pop(session_id, None)
        if held is not None and self._of_agent.get(held.session.agent_id) == session_id:
            del self._of_agent[held.session.agent_id]

    # --- upkeep ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write extensions and forget what has expired, until cancelled. What cannot be written is tried again."""
        sweep_at = self._now()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                await self.flush()
                if self._now() >= sweep_at:
                    sweep_at = self._now() + SWEEP_SECONDS
                    await self._sweep()
            except StoreUnavailable as problem:
                log.warning("Sessions cannot be written now: %s", clean(problem))
            except Exception:
                log.exception("Error while keeping sessions")

    async def flush(self) -> None:
        """Write how long tokens live. Raises StoreUnavailable; nothing is lost then."""
        if not self._extended:
            return
        batch = dict(self._extended)
        gone = await self._rows.extend(batch)
        for session_id, until in batch.items():
            if self._extended.get(session_id) == until:
                del self._extended[session_id]
            held = self._held.get(session_id)
            if held is not None:
                held.session = replace(held.session, expires_at=until)
        for session_id in gone:
            self._forget(session_id)

    async def _sweep(self) -> None:
        """Forget what expired a while ago; just expired sessions are kept, since agents are told that of them."""
        before = self._now() - self._rules.token_lifetime
        await self._rows.sweep(before)
        for session_id in [one for one, held in self._held.items() if held.expires_at < before]:
            self._forget(session_id)


class BadProof(Exception):  # noqa: N818 - an answer, not a fault
    """The proof proves nothing; `view` is the answer (401)."""

    def __init__(self, view: SessionView) -> None:
        super().__init__("the proof proves nothing")
        self.view = view


def _judge(enrolment: Enrolment, challenge: bytes, provided: Provided) -> Possession | PossessionFault:
    enrolled = enrolment.enrolled
    try:
        message = binascii.a2b_base64(provided.message, strict_mode=True)
        signature = binascii.a2b_base64(provided.signature, strict_mode=True)
    except ValueError:
        return PossessionFault.MALFORMED
    return verify_possession(
        message,
        signature,
        key=enrolment.ak,
        challenge=challenge,
        accepted_hashes=enrolled.accept_hash,
        accepted_schemes=enrolled.accept_sign,
    )


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _view(session: StoredSession) -> SessionView:
    return SessionView(
        session_id=session.session_id,
        agent_id=session.agent_id,
        challenge=b64encode(session.challenge or b"").decode(),
        created_at=session.created_at,
        challenges_expire_at=session.expires_at,
    )
