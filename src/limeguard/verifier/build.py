"""The verifier's composition root: makes every part and hands each what it needs; starts and stops them in order."""

import asyncio
import contextlib
import signal
import ssl
from pathlib import Path
from typing import Final

from limeguard.clients.agent import AgentClient
from limeguard.policy.dsse import load_signer
from limeguard.policy.severity import parse_severity
from limeguard.store.attestations import Attestations
from limeguard.store.database import Database, StoreUnavailable
from limeguard.store.nodes import COMPONENT, Nodes
from limeguard.store.notices import Outbox
from limeguard.store.runtime_policies import RuntimePolicies
from limeguard.store.sessions import SessionRows
from limeguard.telemetry import get_logger
from limeguard.verifier.attestation_log import AttestationLog
from limeguard.verifier.engine import Engine, Limits, shuffled
from limeguard.verifier.enrolment import Site
from limeguard.verifier.fleet import Fleet, Node
from limeguard.verifier.metrics import Metrics
from limeguard.verifier.notices import AGENT, WEBHOOK, ZEROMQ, Agents, Channel, Dispatcher, Webhook
from limeguard.verifier.policies import PolicyShelf, Signers
from limeguard.verifier.poller import Poller
from limeguard.verifier.publisher import Publisher
from limeguard.verifier.push import PushRounds, PushRules
from limeguard.verifier.routes import RULES, Watch, make_routes, refuse
from limeguard.verifier.service import VerifierService
from limeguard.verifier.sessions import SessionRules, Sessions
from limeguard.verifier.settings import VerifierSettings
from limeguard.verifier.supervision import Rules, default_trust_lifetime
from limeguard.verifier.writer import BATCH_SECONDS, Writer
from limeguard.web.app import App
from limeguard.web.auth import Authorizer
from limeguard.web.client import HttpClient
from limeguard.web.pinned import PinnedHttp
from limeguard.web.serve import Listener
from limeguard.wire import versions

log = get_logger("keylime.verifier")

MAX_ANSWER: Final = 64 * 1024 * 1024
"""Bytes of one answer of an agent: measurement lists of machines that run for years have some ten million."""
MAX_JOBS: Final = 2048
"""Requests to agents at once. Agents that hang must be many before others have to wait."""
LATE_SECONDS: Final = 1.0
"""A round that starts so much past its time is counted as late."""
MAX_GATHER_SECONDS: Final = 5.0
MAX_WEBHOOK_ANSWER: Final = 1 << 20
PUSH: Final = "push"
MIN_NOTICE_PAUSE: Final = 0.5
FINAL_FLUSH_SECONDS: Final = 3.0


def make_rules(settings: VerifierSettings) -> Rules:
    """Return the rules of supervision that the settings ask for."""
    lifetime = settings.trust_lifetime or default_trust_lifetime(settings.quote_interval)
    return Rules(
        quote_interval=settings.quote_interval,
        retry_interval=settings.retry_interval,
        exponential_backoff=settings.exponential_backoff,
        max_retries=settings.max_retries,
        trust_lifetime=lifetime,
        severity=parse_severity(settings.severity_labels, settings.severity_policy),
        continue_after_failure=settings.continue_after_failure,
        auto_recover=settings.auto_recover_attestation_failures,
    )


def make_session_rules(settings: VerifierSettings) -> SessionRules:
    """Return how sessions are given out."""
    return SessionRules(
        challenge_lifetime=settings.nonce_lifetime,
        token_lifetime=settings.session_lifetime,
        extend=settings.extend_token_on_attestation,
        per_address=settings.session_create_rate_limit_per_ip,
        address_window=settings.session_create_rate_limit_window_ip,
        per_agent=settings.session_create_rate_limit_per_agent,
        agent_window=settings.session_create_rate_limit_window_agent,
    )


def gather_seconds(trust_lifetime: float) -> float:
    """Return how long results of rounds may wait: what is stored of trust lasts three quarters of its life at least."""
    return min(max(trust_lifetime / 4, BATCH_SECONDS), MAX_GATHER_SECONDS)


def make_signers(settings: VerifierSettings) -> Signers:
    """Return whose signatures of policies count. Raises PolicyError for a file that holds no such key."""
    pinned = tuple(load_signer(Path(path).read_bytes()) for path in settings.policy_signing_keys)
    return Signers(settings.require_allow_list_signatures or bool(pinned), pinned)


def make_app(
    service: VerifierService, watch: Watch, sessions: Sessions, rounds: PushRounds, settings: VerifierSettings
) -> App:
    """Return the app over the services."""
    routes = make_routes(service, watch, sessions, rounds, push_by_default=settings.mode == PUSH)
    authorizer = Authorizer(RULES, sessions.caller)
    return App(routes, authorizer, versions=versions.PREFIXES, max_body=settings.max_upload_size, on_error=refuse)


class Verifier:
    """A whole verifier in this process. `start` it inside a running loop, `stop` it there too."""

    def __init__(
        self,
        settings: VerifierSettings,
        server: ssl.SSLContext,
        agents: ssl.SSLContext,
        servers: ssl.SSLContext | None = None,
    ) -> None:
        """Prepare; nothing is opened yet. `agents` is the one context for all agents, `servers` that for webhooks."""
        self._servers_context = servers
        self._settings = settings
        self._agents_context = agents
        self._server_context = server
        pool_size, overflow = settings.database_pool_sz_ovfl
        self._database = Database(settings.database, pool_size=pool_size, overflow=overflow)
        self._rows = Nodes(self._database, settings.uuid)
        self._tasks: list[asyncio.Task[None]] = []
        self._http: PinnedHttp | None = None
        self._webhook: HttpClient | None = None
        self._publisher: Publisher | None = None
        self._listener: Listener | None = None
        self.engine: Engine | None = None
        self.writer: Writer | None = None
        self._sessions: Sessions | None = None
        self._records: AttestationLog | None = None
        self._rounds: PushRounds | None = None

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._listener.port if self._listener is not None else self._settings.port

    async def start(self) -> None:
        """Open the database, take up the stored nodes, listen, supervise. Raises OSError, StoreUnavailable."""
        settings = self._settings
        if settings.auto_migrate_db:
            await self._database.migrate(COMPONENT)
        self._http = PinnedHttp(self._agents_context, timeout=settings.request_timeout, max_answer=MAX_ANSWER)
        shelf = PolicyShelf(RuntimePolicies(self._database), make_signers(settings))
        rules = make_rules(settings)
        agents = AgentClient(self._http)
        channels = self._channels(agents)
        self._dispatcher = Dispatcher(
            Outbox(self._database, settings.uuid), channels, pause=max(settings.retry_interval, MIN_NOTICE_PAUSE)
        )
        self.writer = Writer(
            self._rows,
            self._changed_elsewhere,
            gather=gather_seconds(rules.trust_lifetime),
            on_notices=self._dispatcher.wake,
        )
        poller = Poller(
            agents,
            answer_within=settings.request_timeout + LATE_SECONDS,
            policies=shelf,
            violations_found=not settings.ignore_tomtou_errors,
        )
        self.engine = Engine(
            Fleet(late_after=LATE_SECONDS, jitter=shuffled),
            poller,
            self.writer,
            self._rows,
            rules,
            # One job asks three times at most: twice for a quote, when a machine was started again, and for versions.
            Limits(MAX_JOBS, 3 * settings.request_timeout + LATE_SECONDS),
            channels=tuple(channels),
        )
        site = Site(
            verifier_id=settings.uuid,
            verifier_ip=settings.ip,
            verifier_port=settings.port,
            certificate_required=settings.enable_agent_mtls,
            push=settings.mode == PUSH,
        )
        self._sessions, self._records, self._rounds = self._push(self.engine, poller)
        self._service = VerifierService(self._rows, self.engine, site, shelf, self._records)
        await self._service.take_up()
        metrics = Metrics(self.engine, self.writer, self._http, self._dispatcher)
        watch = Watch(self._not_ready, metrics.text)
        app = make_app(self._service, watch, self._sessions, self._rounds, settings)
        self._listener = Listener(app, settings.ip, settings.port, self._server_context)
        await self._listener.start()
        parts = (self.writer, self.engine, shelf, self._dispatcher, self._sessions, self._records)
        self._tasks = [asyncio.create_task(part.run()) for part in parts]
        log.info("Listening on %s:%d (HTTPS) with 1 worker processes...", settings.ip, self.port)

    def _push(self, engine: Engine, poller: Poller) -> tuple[Sessions, AttestationLog, PushRounds]:
        """Return what serves nodes that attest by themselves."""
        settings = self._settings
        rows = SessionRows(self._database, settings.uuid)
        sessions = Sessions(rows, engine.fleet.get, make_session_rules(settings))
        records = AttestationLog(Attestations(self._database))
        rules = PushRules(settings.quote_interval, settings.challenge_lifetime)
        return sessions, records, PushRounds(engine, sessions, records, poller.runtime, rules)

    def _channels(self, agents: AgentClient) -> dict[str, Channel]:
        """Return the ways on which notices go out. Raises ValueError for one that cannot be used."""
        settings, wanted = self._settings, self._settings.enabled_revocation_notifications
        channels: dict[str, Channel] = {}
        if AGENT in wanted:
            channels[AGENT] = Agents(agents, lambda: self.engine.fleet if self.engine is not None else ())
        if WEBHOOK in wanted and settings.webhook_url:
            self._webhook = HttpClient(
                self._servers_context, timeout=settings.request_timeout, max_answer=MAX_WEBHOOK_ANSWER
            )
            channels[WEBHOOK] = Webhook(self._webhook, settings.webhook_url)
        if ZEROMQ in wanted:
            self._publisher = Publisher(settings.zmq_ip, settings.zmq_port)
            channels[ZEROMQ] = self._publisher
        return channels

    def _not_ready(self) -> str | None:
        """Return why requests should go elsewhere, None when they are welcome here."""
        if self.engine is None or self.engine.draining:
            return "the verifier is stopping"
        if self.writer is not None and self.writer.failing:
            return "the database cannot be used now"
        return None

    def _changed_elsewhere(self, node: Node) -> None:
        self._service.changed_elsewhere(node)

    async def failed(self) -> None:
        """Wait until one of the tasks that must run for ever has ended: a fault of ours."""
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    async def stop(self) -> None:
        """Take no more requests, let running rounds end, write what they learned, close everything."""
        closing = [self._listener.stop()] if self._listener is not None else []
        draining = [self.engine.drain(self._settings.shutdown_drain_timeout)] if self.engine is not None else []
        await asyncio.gather(*closing, *draining)
        if self._rounds is not None:
            await self._rounds.drain(self._settings.shutdown_drain_timeout)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.writer is not None and self.writer.backlog:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FINAL_FLUSH_SECONDS):
                    await self.writer.flush()
        for part in (self._sessions, self._records):
            if part is not None:
                with contextlib.suppress(TimeoutError, StoreUnavailable):
                    async with asyncio.timeout(FINAL_FLUSH_SECONDS):
                        await part.flush()
        for client in (self._http, self._webhook):
            if client is not None:
                await client.close()
        if self._publisher is not None:
            self._publisher.close()
        await self._database.close()


async def run_verifier(
    settings: VerifierSettings, server: ssl.SSLContext, agents: ssl.SSLContext, servers: ssl.SSLContext | None = None
) -> int:
    """Run until a signal asks for the end; return the exit status."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        if asked.is_set():
            log.warning("Received %s, already shutting down", number.name)
        else:
            log.info("Received %s, shutting down", number.name)
            asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    verifier = Verifier(settings, server, agents, servers)
    try:
        await verifier.start()
        ended = asyncio.create_task(verifier.failed())
        waiting = asyncio.create_task(asked.wait())
        await asyncio.wait({ended, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not asked.is_set():
            log.critical("Supervision ended by a fault of this program; it stops so that it can be started again")
            return 1
        ended.cancel()
        return 0
    finally:
        await verifier.stop()
