"""Puts the push agent together and runs it: what root must do, the TPM, registration, and attestations until a signal.

The one place where its parts meet settings, options and environment.
"""

import asyncio
import os
import re
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import uvloop

from limeguard.agent.attester import Attester, TpmIdentity
from limeguard.agent.build import PRIVATE_UMASK, START_PROBLEMS
from limeguard.agent.identity import NoIdentity, resolve_agent_id
from limeguard.agent.logs import BootLog, ImaLog, boot_time, open_boot_log, open_ima_log
from limeguard.agent.privileges import become, find_account
from limeguard.agent.push import PushAgent
from limeguard.agent.push_evidence import EvidenceSource, Names
from limeguard.agent.push_step import Rules
from limeguard.agent.settings import AgentSettings
from limeguard.agent.starting import DISABLED, known_versions, register_node, tpm_options, until_signal
from limeguard.agent.tls import verifier_context
from limeguard.agent.worker import TpmThread
from limeguard.clients.verifier_push import PushVerifier, bases
from limeguard.evidence.tpm.structures import parse_public_2b
from limeguard.telemetry import clean, get_logger
from limeguard.web.answers import Answer
from limeguard.web.client import HttpClient
from limeguard.wire.push_agent_v3 import DEFAULT_VERSION

log = get_logger("keylime_push_model_agent")

MAX_ANSWER = 128 * 1024 * 1024
"""A verifier repeats the evidence in its answer, IMA log and all; it takes no more than 100 MB."""
SLOWEST = 64 * 1024
"""Bytes a second that a link is expected to carry: a long IMA log gets the time that it needs."""
KEEPALIVE_SECONDS = 5.0
"""Connections serve one round; the next is usually a minute away, and an idle one may be gone by then."""
AGENT_ID = re.compile(r"[\w.-]{1,80}", re.ASCII)
VERSION = re.compile(r"v[0-9]{1,2}(\.[0-9]{1,2})?", re.ASCII)
SHOW_TOKENS = "LIMEGUARD_LOG_TOKENS"
"""Variable that lets session tokens into the log at level trace, for tests of a site."""


class UnusableOption(Exception):  # noqa: N818 - a fact about the configuration
    """An option or setting of the push agent cannot be used; the text says what to write instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushOptions:
    """What the command line says; None and the defaults leave it to the settings. `timeout` is in seconds."""

    verifier_url: str | None = None
    agent_identifier: str | None = None
    api_version: str = DEFAULT_VERSION
    ca_certificate: str | None = None
    insecure: bool = False
    timeout: float = 5.0


@dataclass(frozen=True, slots=True)
class OpenLogs:
    """The measurement logs, opened while the agent may still have been root."""

    ima: ImaLog | None
    boot: BootLog | None


def prepare(settings: AgentSettings) -> OpenLogs:
    """Open what only root may open, and give up root."""
    os.umask(PRIVATE_UMASK)
    account = find_account(settings.run_as)
    logs = OpenLogs(open_ima_log(settings.ima_log_file), open_boot_log(settings.boot_log_file))
    if account is not None:
        become(account)
    return logs


@dataclass(frozen=True, slots=True)
class PatientHttp:
    """An HTTP client that gives a call more time the more it sends; the answer may be as long as the question."""

    http: HttpClient
    timeout: float

    async def request(
        self, method: str, url: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send one request and return its whole answer. Raises Unreachable."""
        seconds = self.timeout + 2 * len(body or b"") / SLOWEST
        return await self.http.request(method, url, body=body, headers=headers, timeout=seconds)


@dataclass(frozen=True, slots=True)
class PushProgram:
    """A configured push agent that may run once."""

    settings: AgentSettings
    options: PushOptions
    logs: OpenLogs
    env: Mapping[str, str]

    async def run(self) -> None:
        """Attest until cancelled. Raises one of START_PROBLEMS or UnusableOption when it cannot begin."""
        settings, options = self.settings, self.options
        insecure = options.insecure or settings.tls_accept_invalid_certs
        urls = self._urls(plain_allowed=insecure)
        ca = Path(options.ca_certificate) if options.ca_certificate else settings.verifier_ca_file
        context = verifier_context(ca, insecure=insecure, any_name=settings.tls_accept_invalid_hostnames)
        versions = known_versions(settings.registrar_api_versions, "registrar_api_versions")
        attester = Attester(tpm_options(settings, self.env))
        async with AsyncExitStack() as stack:
            thread = TpmThread()
            stack.push_async_callback(thread.stop)
            stack.push_async_callback(thread.run, attester.close)
            tpm = await thread.run(attester.open)
            agent_id = self._agent_id(tpm)
            log.info("Agent UUID: %s, verifier: %s", agent_id, ", ".join(urls))
            http = HttpClient(context, timeout=options.timeout, max_answer=MAX_ANSWER, keepalive=KEEPALIVE_SECONDS)
            stack.push_async_callback(http.close)
            agent = PushAgent(
                rules=self._rules(len(urls)),
                register=lambda: register_node(settings, agent_id, tpm, DISABLED, versions, thread, attester),
                verifiers=[self._verifier(url, agent_id, PatientHttp(http, options.timeout)) for url in urls],
                evidence=self._evidence(thread, attester, tpm),
            )
            await agent.run()

    def _urls(self, *, plain_allowed: bool) -> tuple[str, ...]:
        given = self.options.verifier_url
        try:
            return bases((given,) if given else self.settings.verifier_url, plain_allowed=plain_allowed)
        except ValueError as problem:
            raise UnusableOption(str(problem)) from None

    def _agent_id(self, tpm: TpmIdentity) -> str:
        given = self.options.agent_identifier
        if given is None:
            option = self.settings.uuid.strip()
            return resolve_agent_id("hash_ek" if option.lower() == "hash_ek" else option, tpm.ek_pem, self.env)
        if not AGENT_ID.fullmatch(given) or given in {".", ".."}:
            raise NoIdentity("--agent-identifier: use 1 to 80 letters, digits, '.', '_' or '-'.")
        return given

    def _rules(self, verifiers: int) -> Rules:
        settings = self.settings
        return Rules(
            interval=float(settings.attestation_interval_seconds),
            first_delay=settings.exponential_backoff_initial_delay / 1000,
            retries=settings.exponential_backoff_max_retries,
            longest_delay=settings.exponential_backoff_max_delay / 1000,
            verifiers=verifiers,
        )

    def _verifier(self, url: str, agent_id: str, http: PatientHttp) -> PushVerifier:
        version = self.options.api_version
        if not VERSION.fullmatch(version):
            raise UnusableOption(f"--api-version {clean(version, 40)} is no version; write {DEFAULT_VERSION}.")
        return PushVerifier(url, version, agent_id, http, show_tokens=self.env.get(SHOW_TOKENS) == "1")

    def _evidence(self, thread: TpmThread, attester: Attester, tpm: TpmIdentity) -> EvidenceSource:
        settings = self.settings
        return EvidenceSource(
            thread=thread,
            attester=attester,
            ak=parse_public_2b(tpm.ak_public),
            ima_log=self.logs.ima,
            boot_log=self.logs.boot,
            boot_time=boot_time(settings.work_dir / "boot_time.json"),
            names=Names(settings.certification_keys_server_identifier, settings.uefi_logs_evidence_version),
        )


def run_push_agent(settings: AgentSettings, options: PushOptions, env: Mapping[str, str]) -> int:
    """Run the push agent in the foreground until a signal; return the exit status."""
    if env.get(SHOW_TOKENS) == "1":
        log.warning("INSECURE: %s lets session tokens into the log at level trace", SHOW_TOKENS)
    try:
        program = PushProgram(settings, options, prepare(settings), env)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(until_signal(program.run))
    except (*START_PROBLEMS, UnusableOption) as problem:
        log.error("%s", problem)  # noqa: TRY400 - a sentence, no traceback
        return 1
    except OSError as problem:
        log.error("%s", clean(problem))  # noqa: TRY400 - a sentence, no traceback
        return 1
    log.info("Stopped")
    return 0
