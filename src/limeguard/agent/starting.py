"""What both agents, the one that is asked and the one that asks, make of their settings when they start."""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Mapping

from limeguard.agent.attester import TpmOptions
from limeguard.agent.device import choose_tcti
from limeguard.agent.identity import NoIdentity
from limeguard.agent.registration import Backoff
from limeguard.agent.settings import AgentSettings
from limeguard.agent.templates import parse_algorithms
from limeguard.agent.tls import registrar_context
from limeguard.clients.registrar_enrol import Target
from limeguard.telemetry import get_logger

log = get_logger("keylime_agent")


def parse_password(text: str) -> bytes:
    """Return the bytes of a TPM password: as written, or hex digits after `hex:`. Raises NoIdentity."""
    if not text.startswith("hex:"):
        return text.encode()
    try:
        return bytes.fromhex(text.removeprefix("hex:"))
    except ValueError:
        raise NoIdentity("tpm_ownerpassword begins with hex: and what follows are not hex digits.") from None


def tpm_options(settings: AgentSettings, env: Mapping[str, str]) -> TpmOptions:
    """Return which TPM and which keys are meant. Raises UnsupportedAlgorithm, NoIdentity."""
    return TpmOptions(
        tcti=choose_tcti(env),
        algorithms=parse_algorithms(settings.tpm_hash_alg, settings.tpm_encryption_alg, settings.tpm_signing_alg),
        owner_password=parse_password(settings.tpm_ownerpassword),
        ek_handle=None if settings.ek_handle == "generate" else int(settings.ek_handle, 16),
        agent_data=settings.agent_data_file,
    )


def registrar_target(settings: AgentSettings) -> Target:
    """Return where the registrar is. Raises KeyFileError."""
    tls = settings.registrar_tls_enabled
    return Target(
        host=settings.registrar_ip,
        port=settings.registrar_tls_port if tls else settings.registrar_port,
        context=registrar_context(settings.registrar_ca_file) if tls else None,
    )


def retry_rules(settings: AgentSettings) -> Backoff:
    """Return how often and how long apart tries to register are."""
    return Backoff(
        first=settings.exponential_backoff_initial_delay / 1000,
        retries=settings.exponential_backoff_max_retries,
        longest=settings.exponential_backoff_max_delay / 1000,
    )


async def until_signal(run: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run an agent; SIGTERM and SIGINT end it in order, and a second one changes nothing."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine runs in a task
    stopping = False

    def stop() -> None:
        nonlocal stopping
        if not stopping:
            stopping = True
            log.info("Stopping")
            task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        await run()
    except asyncio.CancelledError:
        if not stopping:
            raise
