"""Puts the pull agent together and runs it: what root must do, the TPM, registration, and the server until a signal.

The one place where the agent's parts meet settings and environment.
"""

import asyncio
import codecs
import os
import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

import uvloop

from limeguard.agent.attester import Attester, TpmOptions
from limeguard.agent.bootstrap import Bootstrap, NoticeQueue
from limeguard.agent.device import TpmError
from limeguard.agent.files import UnsafeFile
from limeguard.agent.identity import NoIdentity, resolve_agent_id
from limeguard.agent.keys import (
    KeyFileError,
    ServerIdentity,
    load_server_identity,
    load_transport_key,
)
from limeguard.agent.logs import BootLog, ImaLog, boot_time, open_boot_log, open_ima_log
from limeguard.agent.notices import NoticeHandler, NoticeOptions
from limeguard.agent.payload import PayloadOptions, PayloadProcessor
from limeguard.agent.privileges import NoSuchAccount, become, find_account
from limeguard.agent.registration import RegistrationFailed
from limeguard.agent.routes import AgentApi, Node, QuoteFailed
from limeguard.agent.secure_store import SecureMountError, SecureStore, prepare_secure_store
from limeguard.agent.settings import AgentSettings
from limeguard.agent.shares import KeyHalves
from limeguard.agent.starting import DISABLED, known_versions, register_node, tpm_options, until_signal
from limeguard.agent.templates import UnsupportedAlgorithm
from limeguard.agent.tls import server_context
from limeguard.agent.worker import Busy, TpmThread
from limeguard.telemetry import clean, get_logger
from limeguard.web.serve import Listener

log = get_logger("keylime_agent")

PRIVATE_UMASK = 0o077


class CannotListen(Exception):  # noqa: N818 - a fact about the system
    """The agent's address cannot be bound."""


class InsecurePayload(Exception):  # noqa: N818 - a fact about the configuration
    """The configuration would run scripts that anybody may send."""


START_PROBLEMS = (
    CannotListen,
    InsecurePayload,
    TpmError,
    UnsafeFile,
    NoIdentity,
    KeyFileError,
    NoSuchAccount,
    SecureMountError,
    UnsupportedAlgorithm,
    RegistrationFailed,
)
"""What ends the agent with one sentence; anything else is a fault of ours and shows its traceback."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What had to be done as root."""

    ima_log: ImaLog | None
    boot_log: BootLog | None
    store: SecureStore


def check_address(host: str, port: int) -> None:
    """Raise OSError when the address cannot be bound now."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def prepare(settings: AgentSettings) -> Prepared:
    """Open what only root may open, mount the secure folder, and give up root."""
    os.umask(PRIVATE_UMASK)
    account = find_account(settings.run_as)
    ima_log = open_ima_log(settings.ima_log_file)
    boot_log = open_boot_log(settings.boot_log_file)
    owner = None if account is None else (account.uid, account.gid)
    store = prepare_secure_store(settings.work_dir, settings.secure_size, owner)
    if account is not None:
        # What Python would load on first use is loaded now: the account need not be able to read our installation.
        for codec in ("ascii", "idna", "latin-1"):
            codecs.lookup(codec)
        become(account)
    return Prepared(ima_log, boot_log, store)


class _TpmQuoter:
    """Quotes through the TPM's thread, bound to the transport key."""

    def __init__(self, thread: TpmThread, attester: Attester, binding: bytes) -> None:
        self._thread = thread
        self._attester = attester
        self._binding = binding

    async def quote(self, nonce: bytes, mask: int) -> str:
        try:
            return await self._thread.run(self._attester.quote, nonce, mask, self._binding)
        except TpmError as problem:
            log.error("%s", problem)  # noqa: TRY400 - a sentence, no traceback
        except Busy:
            log.error("A quote was refused: too many requests wait for the TPM")  # noqa: TRY400 - a sentence, no traceback
        raise QuoteFailed

    @property
    def key_number(self) -> int:
        return self._attester.ak_number


@dataclass(frozen=True, slots=True)
class Agent:
    """A configured agent that may run once."""

    settings: AgentSettings
    prepared: Prepared
    env: Mapping[str, str]

    async def run(self) -> None:
        """Start, register, and serve until cancelled. Raises one of START_PROBLEMS when it cannot go on."""
        versions = known_versions(self.settings.api_versions, "api_versions")
        log.info("Starting server with API versions: %s", ", ".join(versions))
        options = tpm_options(self.settings, self.env)
        attester = Attester(options)
        async with AsyncExitStack() as stack:
            thread = TpmThread()
            stack.push_async_callback(thread.stop)
            stack.push_async_callback(thread.run, attester.close)
            tpm = await thread.run(attester.open)
            agent_id = resolve_agent_id(self.settings.uuid, tpm.ek_pem, self.env)
            log.info("Agent UUID: %s", agent_id)
            node = self._node(agent_id, versions, options, thread, attester)
            identity = self._server_identity(agent_id)
            listener = self._listener(AgentApi(node), identity)
            certificate = DISABLED if identity is None else identity.certificate_pem
            await register_node(self.settings, agent_id, tpm, certificate, versions, thread, attester)
            await self._listen(listener, stack)
            async with asyncio.TaskGroup() as group:
                group.create_task(node.bootstrap.work())
                group.create_task(node.notices.work())

    def _node(
        self, agent_id: str, versions: tuple[str, ...], options: TpmOptions, thread: TpmThread, attester: Attester
    ) -> Node:
        settings = self.settings
        transport = load_transport_key(settings.payload_key_file, settings.payload_key_password)
        notices = NoticeHandler(self._notice_options())
        return Node(
            agent_id=agent_id,
            versions=versions,
            algorithms=options.algorithms,
            transport=transport,
            quoter=_TpmQuoter(thread, attester, transport.public_pem.encode("ascii")),
            ima_log=self.prepared.ima_log,
            boot_log=self.prepared.boot_log,
            boot_time=boot_time(settings.work_dir / "boot_time.json"),
            bootstrap=Bootstrap(KeyHalves(agent_id), self._processor(), notices),
            notices=NoticeQueue(notices),
        )

    def _processor(self) -> PayloadProcessor | None:
        settings = self.settings
        if not settings.enable_agent_mtls:
            log.warning("mTLS disabled, Tenant and Verifier will reach out to agent via HTTP")
            if not settings.enable_insecure_payload:
                if settings.payload_script:
                    raise InsecurePayload(
                        "With mTLS off and a payload_script set, 'enable_insecure_payload' has to be set to 'True'; "
                        "better turn enable_agent_mtls on, or leave payload_script empty."
                    )
                log.warning("mTLS is off and enable_insecure_payload is not set: payloads cannot be deployed")
                return None
        options = PayloadOptions(
            key_name=settings.enc_keyname,
            payload_name=settings.dec_payload_file,
            unpack=settings.extract_payload_zip,
            script=settings.payload_script,
        )
        if options.bad_name is not None:
            raise InsecurePayload(f"{clean(options.bad_name)} must be the plain name of a file, without a directory.")
        return PayloadProcessor(self.prepared.store, options)

    def _notice_options(self) -> NoticeOptions:
        settings = self.settings
        return NoticeOptions(
            work_folder=settings.work_dir,
            unzipped=self.prepared.store.path / "unzipped",
            certificate=settings.revocation_cert_file,
            actions=settings.revocation_actions,
            actions_folder=settings.work_dir / settings.revocation_actions_dir,
            allow_payload_actions=settings.allow_payload_revocation_actions,
        )

    def _server_identity(self, agent_id: str) -> ServerIdentity | None:
        settings = self.settings
        if not settings.enable_agent_mtls:
            return None
        return load_server_identity(
            settings.server_key_file,
            settings.server_cert_file,
            settings.server_key_password,
            agent_id,
            settings.contact_ip.strip("[]"),
        )

    def _listener(self, api: AgentApi, identity: ServerIdentity | None) -> Listener:
        """Prepare the server, so that wrong files and a taken port are known before the node is registered."""
        settings = self.settings
        context = None if identity is None else server_context(identity, settings.trusted_client_ca_files)
        address = settings.ip.strip("[]")
        try:
            check_address(address, settings.port)
        except OSError as problem:
            raise self._cannot_listen(problem) from problem
        return Listener(api.answer, address, settings.port, context)

    async def _listen(self, listener: Listener, stack: AsyncExitStack) -> None:
        """Serve, after registering: an open port tells that the node is registered."""
        try:
            await listener.start()
        except OSError as problem:
            raise self._cannot_listen(problem) from problem
        stack.push_async_callback(listener.stop)
        log.info("Listening on %s port %d", self.settings.ip, listener.port)

    def _cannot_listen(self, problem: OSError) -> CannotListen:
        where = f"{self.settings.ip} port {self.settings.port}"
        return CannotListen(f"The agent cannot listen on {where}: {clean(problem.strerror)}; check ip and port.")


def run_agent(settings: AgentSettings, env: Mapping[str, str]) -> int:
    """Run the pull agent in the foreground until a signal; return the exit status."""
    try:
        agent = Agent(settings, prepare(settings), env)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(until_signal(agent.run))
    except START_PROBLEMS as problem:
        log.error("%s", problem)  # noqa: TRY400 - a sentence, no traceback
        return 1
    except OSError as problem:
        log.error("%s", clean(problem))  # noqa: TRY400 - a sentence, no traceback
        return 1
    log.info("Stopped")
    return 0
