"""The push agent at work: performs what `push_step` decides, and tells it what came of each action.

Owns the session's token and the evidence under way. Decides nothing about what comes next.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from limeguard.agent import push_step
from limeguard.agent.device import TpmError
from limeguard.agent.logs import LogTooLarge
from limeguard.agent.push_evidence import EvidenceSource, Unavailable
from limeguard.agent.push_step import Do, Event, Rules, State, Step, step
from limeguard.agent.registration import RegistrationFailed
from limeguard.agent.worker import Busy
from limeguard.clients.verifier_push import Attestation, PushVerifier, Refused, Session
from limeguard.telemetry import clean, get_logger
from limeguard.web.answers import Unreachable
from limeguard.wire import push_agent_v3 as wire

log = get_logger("keylime_push_model_agent")

SPREAD = 0.2
"""Waits after failures are lengthened by up to this part: a fleet does not come back all at once."""


@dataclass(slots=True)
class PushAgent:
    """One node that attests by itself, for as long as it runs.

    `register` raises RegistrationFailed; `verifiers` are tried in order.
    """

    rules: Rules
    register: Callable[[], Awaitable[None]]
    verifiers: Sequence[PushVerifier]
    evidence: EvidenceSource
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    state: State = push_step.START
    _session: Session | None = field(default=None, repr=False)
    _attestation: Attestation | None = None
    _body: bytes | None = field(default=None, repr=False)

    async def run(self) -> None:
        """Work until cancelled."""
        now = Step(self.state)
        while True:
            now = await self.turn(now)

    async def turn(self, now: Step) -> Step:
        """Perform one action and return the next."""
        event = await self._perform(now)
        self._tell(now.state, event)
        following = step(now.state, event, self.rules)
        if not following.state.session:
            self._session = None
        self.state = following.state
        return following

    @property
    def _verifier(self) -> PushVerifier:
        return self.verifiers[self.state.verifier]

    async def _act(self, now: Step) -> Event:
        match now.state.doing:
            case Do.WAIT:
                return await self._wait(now)
            case Do.REGISTER:
                return await self._register()
            case Do.AUTHENTICATE:
                return await self._authenticate()
            case Do.NEGOTIATE:
                return await self._negotiate()
            case Do.ATTEST:
                return await self._attest()

    async def _perform(self, now: Step) -> Event:
        """Perform the action and say what came of it, whatever that is."""
        try:
            return await self._act(now)
        except Refused as refused:
            log.warning("%s refused to %s: %s", self._verifier.base, now.state.doing.value, refused)
            return push_step.Refused(refused.status, refused.code, refused.asked)
        except (Unreachable, wire.BadAnswer) as problem:
            log.warning("Network error: %s: %s", self._verifier.base, clean(problem))
            return push_step.NoAnswer()
        except (TpmError, Busy, Unavailable, LogTooLarge, OSError, ValueError) as problem:
            # ValueError: what the TPM or a file of this node says cannot be read. The node goes on trying.
            log.error("%s", clean(problem) or type(problem).__name__)  # noqa: TRY400 - a sentence, no traceback
            return push_step.LocalFault()
        except Exception:
            # A fault of ours is told in full, and is no reason to fall silent: a silent node looks like a bad one.
            log.exception("Could not %s", now.state.doing.value)
            return push_step.LocalFault()

    async def _wait(self, now: Step) -> Event:
        spread = 1.0 + SPREAD * secrets.randbelow(1000) / 1000 if now.spread else 1.0
        log.debug("Next: %s in %.1f s", now.state.then.value, now.seconds * spread)
        await self.sleep(now.seconds * spread)
        return push_step.WaitOver()

    async def _register(self) -> Event:
        try:
            await self.register()
        except (RegistrationFailed, TpmError, Busy, OSError) as problem:
            log.error("%s", clean(problem))  # noqa: TRY400 - a sentence, no traceback
            return push_step.NotRegistered()
        return push_step.Registered()

    async def _authenticate(self) -> Event:
        opened = await self._verifier.open_session()
        message, signature = await self.evidence.certify(opened.challenge)
        self._session = await self._verifier.prove(opened, message, signature)
        if self._session is None:
            return push_step.SessionDenied()
        log.debug("Authenticated at %s", self._verifier.base)
        return push_step.SessionGranted()

    async def _negotiate(self) -> Event:
        self._body = None
        if self._session is None:
            return push_step.Refused(push_step.UNAUTHORIZED)
        self._attestation = await self._verifier.negotiate(self._session, await self.evidence.capabilities())
        if not self._attestation.requested:
            return push_step.NothingRequested()
        return push_step.EvidenceRequested()

    async def _attest(self) -> Event:
        if self._session is None or self._attestation is None:
            return push_step.EvidenceMissing()
        if self._body is None:
            # Kept until it is accepted or refused: a repetition is the same evidence, byte for byte.
            try:
                self._body = wire.encode_evidence(await self.evidence.collect(self._attestation.requested))
            except Unavailable as problem:
                log.warning("The evidence asked for cannot be given: %s", problem)
                await self._confess(self._attestation, self._session)
                return push_step.EvidenceMissing()
        after = await self._verifier.submit(self._attestation, self._session, self._body)
        self._body = None
        return push_step.EvidenceAccepted(after)

    async def _confess(self, attestation: Attestation, session: Session) -> None:
        """Tell the verifier that there is no evidence; its answer changes nothing."""
        try:
            await self._verifier.submit(attestation, session, wire.encode_no_evidence())
        except (Refused, Unreachable) as answer:
            log.debug("Said that there is no evidence: %s", clean(answer))

    def _tell(self, before: State, event: Event) -> None:
        """Say in the log what people and scripts look for."""
        match event:
            case push_step.EvidenceAccepted():
                log.info("SUCCESS! Evidence accepted by the Verifier.")
            case push_step.NothingRequested():
                log.info("The verifier asks for no evidence: it has no policy for this node that needs any")
            case push_step.SessionDenied():
                log.error(
                    "Authentication failed with evaluation: fail. Is this node enrolled at %s with its present AK?",
                    self._verifier.base,
                )
            case push_step.Refused(push_step.UNAUTHORIZED, _, _) if before.doing in {Do.NEGOTIATE, Do.ATTEST}:
                if before.proven:
                    log.warning("Received 401 Unauthorized, retrying immediately to re-authenticate")
                else:
                    log.error("Received 401 Unauthorized for a session that was just granted; waiting")
            case _:
                pass
