"""Registering the node: offer its keys, open the challenge, prove it; again after a pause while there is hope.

Decides which failures are final and how long to wait. How requests are spelled is the client's business.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from limeguard.clients.registrar_enrol import EnrolmentError, RegistrarClient, Target
from limeguard.crypto.keysplit import registration_auth_tag
from limeguard.telemetry import get_logger
from limeguard.wire.registrar_agent_v2 import Registration

log = get_logger("keylime_agent")

Activate = Callable[[bytes], Awaitable[bytes]]
"""Opens a credential blob with the TPM. Raises TpmError, ValueError."""
FORBIDDEN = 403


class RegistrationFailed(Exception):  # noqa: N818 - a fact about the node
    """The node is not registered and trying again will not change that; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """How often and how long apart attempts are, in seconds: `first`, then twice as long each time up to `longest`."""

    first: float
    retries: int
    longest: float

    def pause(self, attempt: int, asked: float | None) -> float:
        """Return the pause after failed attempt number `attempt`, counted from 0; what the registrar asked for wins."""
        if asked is not None:
            return min(asked, self.longest)
        return min(self.first * 2.0 ** min(attempt, 64), self.longest)


async def register(
    target: Target,
    agent_id: str,
    registration: Registration,
    versions: Sequence[str],
    backoff: Backoff,
    activate: Activate,
) -> None:
    """Register and activate the node. Raises RegistrationFailed, TpmError."""
    client = RegistrarClient(target)
    try:
        for attempt in range(backoff.retries + 1):
            try:
                await _attempt(client, agent_id, registration, versions, activate)
            except EnrolmentError as problem:
                log.error("%s", problem)  # noqa: TRY400 - a sentence, no traceback
                if problem.final or attempt == backoff.retries:
                    raise RegistrationFailed(_advice(problem)) from problem
                pause = backoff.pause(attempt, problem.pause)
                log.warning("Registering again in %.1f s (try %d of %d)", pause, attempt + 2, backoff.retries + 1)
                await asyncio.sleep(pause)
            else:
                return
    finally:
        await client.close()


def _advice(problem: EnrolmentError) -> str:
    if problem.status == FORBIDDEN:
        return (
            "The node was not registered: the registrar knows this id with another TPM or another AK. "
            "Delete the node from the registrar if the change was meant, or give this node an id of its own (uuid)."
        )
    if problem.final:
        return "The node was not registered: the registrar refused it."
    return "The node was not registered: no try succeeded. Check registrar_ip and registrar_port, and the registrar."


async def _attempt(
    client: RegistrarClient, agent_id: str, registration: Registration, versions: Sequence[str], activate: Activate
) -> None:
    candidates = await client.candidate_versions(versions)
    for left, version in zip(range(len(candidates) - 1, -1, -1), candidates, strict=True):
        try:
            blob = await client.register(version, agent_id, registration)
        except EnrolmentError as problem:
            if not left or problem.status == FORBIDDEN or not problem.status:
                raise
            continue
        log.info("SUCCESS: Agent %s registered", agent_id)
        try:
            secret = await activate(blob)
        except ValueError as problem:
            raise EnrolmentError(f"The registrar's challenge cannot be opened: {problem}.", final=False) from problem
        await client.activate(version, agent_id, registration_auth_tag(secret, agent_id))
        log.info("SUCCESS: Agent %s activated", agent_id)
        return
