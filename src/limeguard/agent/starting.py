"""What both agents, the one that is asked and the one that asks, make of their settings when they start."""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Mapping

from limeguard.agent.attester import Attester, TpmIdentity, TpmOptions
from limeguard.agent.device import choose_tcti
from limeguard.agent.identity import NoIdentity
from limeguard.agent.registration import Backoff, register
from limeguard.agent.settings import AgentSettings
from limeguard.agent.templates import parse_algorithms
from limeguard.agent.tls import registrar_context
from limeguard.agent.worker import TpmThread
from limeguard.clients.registrar_enrol import Target
from limeguard.telemetry import clean, get_logger
from limeguard.wire.registrar_agent_v2 import Registration
from limeguard.wire.versions import AGENT_VERSIONS

log = get_logger("keylime_agent")

DISABLED = "disabled"
"""What an agent without TLS registers in place of a certificate."""


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


def known_versions(wanted: tuple[str, ...], option: str) -> tuple[str, ...]:
    """Return the API versions that are meant, oldest first: all, the latest, or those of a list that exist."""
    if wanted in {(), ("default",)}:
        return AGENT_VERSIONS
    if wanted == ("latest",):
        return AGENT_VERSIONS[-1:]
    for unknown in (version for version in wanted if version not in AGENT_VERSIONS):
        log.warning("%s: API version %s is not supported and is left out", option, clean(unknown))
    return tuple(version for version in AGENT_VERSIONS if version in wanted) or AGENT_VERSIONS


async def register_node(
    settings: AgentSettings,
    agent_id: str,
    tpm: TpmIdentity,
    certificate: str,
    versions: tuple[str, ...],
    thread: TpmThread,
    attester: Attester,
) -> None:
    """Register a node with the PEM certificate of its server, and close its endorsement key.

    Raises RegistrationFailed, TpmError, KeyFileError.
    """
    registration = Registration(
        ek_public=tpm.ek_public,
        ek_certificates=tpm.ek_certificates,
        ak_public=tpm.ak_public,
        server_certificate=certificate,
        ip=settings.contact_ip,
        port=settings.contact_port,
    )

    async def activate(blob: bytes) -> bytes:
        return await thread.run(attester.activate, blob)

    await register(registrar_target(settings), agent_id, registration, versions, retry_rules(settings), activate)
    await thread.run(attester.release_endorsement_key)


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
