"""Registration and activation as a state machine: unknown -> pending -> active, and what each message changes.

Check, judgement and write of one id are one step: in this process by a lock for each id, between processes by writes
that name the row they build on. Must not know HTTP; whether an identity is good is decided by `identity`.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final
from weakref import WeakValueDictionary

from limeguard.registrar.challenge import Challenge, is_answered, make_challenge
from limeguard.registrar.identity import IdentityRules, Judged, OtherIdentity, judge
from limeguard.store.database import Conflict
from limeguard.store.registrations import Registration, Registrations
from limeguard.telemetry import clean, get_logger
from limeguard.wire import registrar_v2
from limeguard.wire.envelope import BadRequest
from limeguard.wire.registrar_v2 import RegistrationRequest, UnknownNode

log = get_logger("keylime.registrar")

ATTEMPTS: Final = 4
"""How often a message is applied anew when another process wrote the same id in between."""


class RegistrarService:
    """What the registrar does, over one store. Every method may raise StoreUnavailable."""

    def __init__(self, store: Registrations, rules: IdentityRules, *, clock: Callable[[], float] = time.time) -> None:
        """Apply `rules`; `clock` gives seconds since 1970."""
        self._store = store
        self._rules = rules
        self._clock = clock
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def _lock(self, agent_id: str) -> asyncio.Lock:
        return self._locks.setdefault(agent_id, asyncio.Lock())

    async def register(self, agent_id: str, request: RegistrationRequest) -> bytes:
        """Take a registration and return the credential blob. Raises BadRequest."""
        async with self._lock(agent_id):
            for _ in range(ATTEMPTS):
                stored = await self._store.get(agent_id)
                judged, challenge = self._judged(agent_id, request, stored)
                record = replace(judged.record, proof_sha256=challenge.proof_sha256, registered_at=self._clock())
                try:
                    written = await self._store.save(record)
                except Conflict:
                    continue
                log.info("Agent %s registered, regcount %d", clean(agent_id), written.regcount)
                return challenge.blob
        log.warning("Agent %s is registered by others at the same time", clean(agent_id))
        raise BadRequest(registrar_v2.taken(agent_id), 403)

    def _judged(
        self, agent_id: str, request: RegistrationRequest, stored: Registration | None
    ) -> tuple[Judged, Challenge]:
        try:
            judged = judge(agent_id, request, stored, self._rules)
            challenge = make_challenge(judged.ek, judged.ak, agent_id)
        except OtherIdentity as problem:
            log.warning(
                "SECURITY: Rejected attempt to re-register agent %s with a different TPM identity (%s differs)",
                clean(agent_id),
                problem,
            )
            raise BadRequest(registrar_v2.OTHER_IDENTITY, 403) from problem
        except ValueError as problem:  # InvalidRegistration, UnusableKeyError, and what pyca says of odd keys
            log.warning("Agent %s was not registered: %s", clean(agent_id), clean(problem))
            raise BadRequest(registrar_v2.INVALID) from problem
        if stored is not None and stored.proven and not judged.record.proven:
            log.warning("SECURITY: Agent %s registers with a different TPM identity, as configured", clean(agent_id))
        return judged, challenge

    async def activate(self, agent_id: str, proof: str) -> None:
        """Take the answer to a challenge. Raises BadRequest.

        The good answer makes the node active, and again when it is repeated. A wrong one removes a registration that
        never was active; one that was keeps its id, else anybody could free the id for another TPM.
        """
        async with self._lock(agent_id):
            for _ in range(ATTEMPTS):
                stored = await self._known(agent_id)
                good = is_answered(proof, stored.proof_sha256)
                try:
                    if good and not stored.active:
                        await self._store.save(replace(stored, active=True, proven=True))
                    elif not good and not stored.proven:
                        await self._store.delete_as_read(stored)
                except Conflict:
                    continue
                return self._answered(stored, proof, good=good)
        raise BadRequest(registrar_v2.taken(agent_id), 403)

    def _answered(self, stored: Registration, proof: str, *, good: bool) -> None:
        node = clean(stored.agent_id)
        if good:
            log.info("Agent %s activated", node)
            return
        consequence = "it stays registered" if stored.proven else "its registration was deleted"
        log.warning("Agent %s gave a wrong answer to its challenge; %s", node, consequence)
        raise BadRequest(registrar_v2.wrong_proof(stored.agent_id, clean(proof), deleted=not stored.proven))

    async def _known(self, agent_id: str) -> Registration:
        stored = await self._store.get(agent_id)
        if stored is None:
            raise UnknownNode(agent_id)
        return stored

    async def read(self, agent_id: str) -> Registration:
        """Return an active registration. Raises UnknownNode."""
        stored = await self._known(agent_id)
        if not stored.active:
            raise UnknownNode(agent_id, "has not been activated")
        return stored

    async def ids(self) -> list[str]:
        """Return every id, activated or not."""
        return await self._store.ids()

    async def delete(self, agent_id: str) -> None:
        """Remove a registration in whatever state. Raises UnknownNode."""
        async with self._lock(agent_id):
            if not await self._store.delete(agent_id):
                raise UnknownNode(agent_id)
        log.info("Agent %s deleted", clean(agent_id))
