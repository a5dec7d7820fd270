"""The verifier's composition root: makes every part and hands each what it needs; starts and stops them in order."""

import asyncio
import contextlib
import gc
import signal
import ssl
from pathlib import Path
from typing import Final

from limeguard.clients.agent import AgentClient
from limeguard.policy.dsse import load_signer
from limeguard.policy.severity import parse_severity
from limeguard.store.database import Database
from limeguard.store.nodes import COMPONENT, Nodes
from limeguard.store.notices import Outbox
from limeguard.store.runtime_policies import RuntimePolicies
from limeguard.telemetry import get_logger
from limeguard.verifier.engine import Engine, Limits, shuffled
from limeguard.verifier.enrolment import Site
from limeguard.verifier.fleet import Fleet, Node
from limeguard.verifier.metrics import Metrics
from limeguard.verifier.notices import AGENT, WEBHOOK, ZEROMQ, Agents, Channel, Dispatcher, Webhook
from limeguard.verifier.policies import PolicyShelf, Signers
from limeguard.verifier.poller import Poller
from limeguard.verifier.publisher import Publisher
from limeguard.verifier.routes import RULES, Watch, make_routes, refuse
from limeguard.verifier.service import VerifierService
from limeguard.verifier.settings import VerifierSettings
from limeguard.verifier.supervision import Rules, default_trust_lifetime
from limeguard.verifier.writer import BATCH_SECONDS, Writer
from limeguard.web.app import App
from limeguard.web.auth import Authorizer
from limeguard.web.beat import Beat
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
BEATS: Final = 40
"""Beats in one interval: rounds begin, and answers are looked at, many for one wake-up."""
MAX_BEAT_SECONDS: Final = 0.05
MAX_GATHER_SECONDS: Final = 5.0
MAX_WEBHOOK_ANSWER: Final = 1 << 20
MIN_NOTICE_PAUSE: Final = 0.5
FINAL_FLUSH_SECONDS: Final = 3.0
COLLECT_AFTER: Final = 20_000
"""New objects until garbage is collected: rounds make nearly none that reference counts do not free."""


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
    )


def gather_seconds(trust_lifetime: float) -> float:
    """Return how long results of rounds may wait: what is stored of trust lasts half of its life at least."""
    return min(max(trust_lifetime / 2, BATCH_SECONDS), MAX_GATHER_SECONDS)


def make_signers(settings: VerifierSettings) -> Signers:
    """Return whose signatures of policies count. Raises PolicyError for a file that holds no such key."""
    pinned = tuple(load_signer(Path(path).read_bytes()) for path in settings.policy_signing_keys)
    return Signers(settings.require_allow_list_signatures or bool(pinned), pinned)


def make_app(service: VerifierService, watch: Watch, max_body: int) -> App:
    """Return the app over a service."""
    return App(
        make_routes(service, watch), Authorizer(RULES), versions=versions.PREFIXES, max_body=max_body, on_error=refuse
    )


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

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._listener.port if self._listener is not None else self._settings.port

    async def start(self) -> None:
        """Open the database, take up the stored nodes, listen, supervise. Raises OSError, StoreUnavailable."""
        settings = self._settings
        if settings.auto_migrate_db:
            await self._database.migrate(COMPONENT)
        beat = Beat(min(MAX_BEAT_SECONDS, settings.quote_interval / BEATS))
        self._http = PinnedHttp(
            self._agents_context, timeout=settings.request_timeout, max_answer=MAX_ANSWER, beat=beat
        )
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
        self.engine = Engine(
            Fleet(late_after=LATE_SECONDS, jitter=shuffled),
            Poller(
                agents,
                answer_within=settings.request_timeout + LATE_SECONDS,
                policies=shelf,
                violations_found=not settings.ignore_tomtou_errors,
            ),
            self.writer,
            self._rows,
            rules,
            # One job asks three times at most: twice for a quote, when a machine was started again, and for versions.
            Limits(MAX_JOBS, 3 * settings.request_timeout + LATE_SECONDS),
            channels=tuple(channels),
            beat=beat,
        )
        site = Site(
            verifier_id=settings.uuid,
            verifier_ip=settings.ip,
            verifier_port=settings.port,
            certificate_required=settings.enable_agent_mtls,
        )
        self._service = VerifierService(self._rows, self.engine, site, shelf)
        await self._service.take_up()
        metrics = Metrics(self.engine, self.writer, self._http, self._dispatcher)
        app = make_app(self._service, Watch(self._not_ready, metrics.text), settings.max_upload_size)
        self._listener = Listener(app, settings.ip, settings.port, self._server_context)
        await self._listener.start()
        self._tasks = [asyncio.create_task(part.run()) for part in (self.writer, self.engine, shelf, self._dispatcher)]
        log.info("Listening on %s:%d (HTTPS) with 1 worker processes...", settings.ip, self.port)

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
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.writer is not None and self.writer.backlog:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FINAL_FLUSH_SECONDS):
                    await self.writer.flush()
        for client in (self._http, self._webhook):
            if client is not None:
                await client.close()
        if self._publisher is not None:
            self._publisher.close()
        await self._database.close()


def _settle_memory() -> None:
    """Spare what lives as long as the process from being looked at by each collection of garbage."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])


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
        _settle_memory()
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
