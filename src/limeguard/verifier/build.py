"""The verifier's composition root: makes every part and hands each what it needs; starts and stops them in order."""

import asyncio
import contextlib
import os
import resource
import signal
import ssl
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from limeguard.appraisal.appraise import appraise
from limeguard.clients.agent import AgentClient
from limeguard.store.attestations import Attestations
from limeguard.store.boot_policies import BootPolicies
from limeguard.store.changes import Changes, Ear
from limeguard.store.database import Database, Pulse, StoreUnavailable
from limeguard.store.leases import Leases, Worker
from limeguard.store.node_record import partition_of
from limeguard.store.nodes import COMPONENT, Nodes
from limeguard.store.notices import Outbox
from limeguard.store.runtime_policies import RuntimePolicies
from limeguard.store.sessions import SessionRows
from limeguard.telemetry import get_logger
from limeguard.telemetry.spans import tracer_for
from limeguard.verifier import memory
from limeguard.verifier.addressees import Everybody
from limeguard.verifier.bell import Bell
from limeguard.verifier.boot_policies import BootPolicyShelf
from limeguard.verifier.crew import Member
from limeguard.verifier.engine import Engine, Limits, Performer, shuffled
from limeguard.verifier.enrolment import Site
from limeguard.verifier.enrolments import Enrolments
from limeguard.verifier.figures import Siblings
from limeguard.verifier.fleet import Fleet, Node
from limeguard.verifier.from_settings import gather_seconds, make_rules, make_session_rules, make_signers
from limeguard.verifier.holdings import Holdings
from limeguard.verifier.metrics import Metrics
from limeguard.verifier.notices import AGENT, WEBHOOK, ZEROMQ, Agents, Channel, Dispatcher, Webhook
from limeguard.verifier.onetime import OneTime
from limeguard.verifier.ownership import Ownership, Timing, place
from limeguard.verifier.policies import PolicyShelf
from limeguard.verifier.policy_desk import PolicyDesk
from limeguard.verifier.poller import Judge, Poller
from limeguard.verifier.publisher import Publisher
from limeguard.verifier.push.attestation_log import AttestationLog
from limeguard.verifier.push.relay import Relay
from limeguard.verifier.push.rounds import PushRounds, PushRules, Watched, unwatched
from limeguard.verifier.push.sessions import Sessions
from limeguard.verifier.routes import RULES, Watch, make_routes, refuse
from limeguard.verifier.service import VerifierService
from limeguard.verifier.settings import VerifierSettings
from limeguard.verifier.writer import RoundStore, Writer
from limeguard.web.app import App
from limeguard.web.auth import Authorizer
from limeguard.web.beat import Beat
from limeguard.web.pinned import PinnedHttp, room_for_peers
from limeguard.web.serve import Listener
from limeguard.wire import versions

if TYPE_CHECKING:
    from limeguard.web.client import HttpClient

log = get_logger("keylime.verifier")

MAX_ANSWER: Final = 64 * 1024 * 1024
"""Bytes of one answer of an agent: measurement lists of machines that run for years have some ten million."""
MAX_JOBS: Final = 2048
"""Requests to agents at once. Agents that hang must be many before others have to wait."""
LATE_SECONDS: Final = 1.0
"""A round that starts so much past its time is counted as late."""
BEATS: Final = 20
"""Beats in one interval: rounds begin, and answers are looked at, many for one wake-up."""
MAX_BEAT_SECONDS: Final = 0.1
MAX_WEBHOOK_ANSWER: Final = 1 << 20
PUSH: Final = "push"
MIN_NOTICE_PAUSE: Final = 0.5
FINAL_FLUSH_SECONDS: Final = 3.0


def make_app(
    service: VerifierService,
    onetime: OneTime,
    watch: Watch,
    sessions: Sessions,
    rounds: PushRounds,
    relay: Relay,
    settings: VerifierSettings,
) -> App:
    """Return the app over the services."""
    push = settings.mode == PUSH
    routes = make_routes(service, onetime, watch, sessions, rounds, relay.at_owner, push_by_default=push)
    authorizer = Authorizer(RULES, sessions.caller)
    return App(routes, authorizer, versions=versions.PREFIXES, max_body=settings.max_upload_size, on_error=refuse)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What does the work of rounds, as it is or with spans around it."""

    agents: AgentClient
    judge: Judge
    rounds: RoundStore
    watched: Callable[[Poller], Performer]
    pushed: Watched = unwatched


def _traced(tracer: Any, http: PinnedHttp, rows: Nodes, system: str) -> _Parts:
    from limeguard.verifier import tracing

    traces = tracing.Traces(tracer)
    return _Parts(
        tracing.TracedAgents(http, traces),
        tracing.traced(traces, appraise),
        tracing.TracedStore(traces, rows, system),
        lambda poller: tracing.TracedPerformer(traces, poller),
        traces.pushed,
    )


@dataclass(frozen=True, slots=True)
class _Core:
    """What asks nodes, judges them, writes what came of it and tells of it."""

    http: PinnedHttp
    parts: _Parts
    poller: Poller
    writer: Writer
    engine: Engine
    dispatcher: Dispatcher
    beat: Beat


@dataclass(frozen=True, slots=True)
class _Push:
    """What serves nodes that attest by themselves."""

    sessions: Sessions
    records: AttestationLog
    rounds: PushRounds


class Verifier:
    """A whole verifier in this process. `start` it inside a running loop, `stop` it there too."""

    def __init__(
        self,
        settings: VerifierSettings,
        server: ssl.SSLContext,
        agents: ssl.SSLContext,
        servers: ssl.SSLContext | None = None,
        *,
        member: Member | None = None,
        timing: Timing | None = None,
    ) -> None:
        """Prepare; nothing is opened yet. `agents` is the one context for all agents, `servers` that for webhooks.

        `member` says which of several workers this is.
        """
        self._member = member or Member()
        self._timing = timing or Timing()
        self._siblings: Siblings | None = None
        self._ownership: Ownership | None = None
        self._servers_context = servers
        self._settings = settings
        self._agents_context = agents
        self._server_context = server
        pool_size, overflow = settings.database_pool_sz_ovfl
        self._database = Database(settings.database, pool_size=pool_size, overflow=overflow)
        self._pulse = Pulse(self._database)
        self._worker = Worker(str(uuid.uuid4()), place(), os.getpid())
        self._rows = Nodes(self._database, settings.uuid, worker=self._worker.id)
        self._tasks: list[asyncio.Task[None]] = []
        self._http: PinnedHttp | None = None
        self._webhook: HttpClient | None = None
        self._publisher: Publisher | None = None
        self._listener: Listener | None = None
        self.engine: Engine | None = None
        self.writer: Writer | None = None
        self._attesting: _Push | None = None
        self._relay: Relay | None = None
        self._bell: Bell | None = None

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._listener.port if self._listener is not None else self._settings.port

    async def start(self) -> None:
        """Open the database, take up the stored nodes, listen, supervise. Raises OSError, StoreUnavailable."""
        settings, member = self._settings, self._member
        if settings.auto_migrate_db and member.of == 1:
            await self._database.migrate(COMPONENT)
        changes = Changes(self._database, settings.uuid, self._worker.id)
        leases = Leases(self._database, settings.uuid, self._worker, self._timing.lease)
        ownership = self._ownership = Ownership(
            leases, changes, crew=member.of, timing=self._timing, opened=self._opened
        )
        ear = Ear(self._database, settings.uuid, ownership.call)
        bell = self._bell = self._hung(ownership)
        ownership.listening = lambda: ear.listening or (bell is not None and ownership.live <= member.of)
        fleet = Fleet(late_after=LATE_SECONDS, jitter=shuffled)
        shelf = PolicyShelf(RuntimePolicies(self._database), make_signers(settings))
        boot_shelf = BootPolicyShelf(BootPolicies(self._database), settings.measured_boot_policy_name)
        core = self._supervise(fleet, shelf, boot_shelf, ownership)
        enrolments = Enrolments(fleet.get, ownership, self._rows, settings.uuid)
        push = self._push(core, enrolments)
        desk = PolicyDesk(self._rows, fleet, shelf, boot_shelf)
        holdings = self._holdings = Holdings(
            self._rows, core.engine, settings.uuid, desk, ownership, core.writer.flush, push.records
        )
        site = self._site()
        service = VerifierService(self._rows, core.engine, site, desk, holdings, ownership, changes, push.records)
        # Written and told from here on: what is taken up may have something to say at once.
        self._tasks = [asyncio.create_task(core.writer.run())]
        await ownership.begin(holdings)
        metrics = Metrics(core.engine, core.writer, core.http, core.dispatcher, core.parts.agents, ownership)
        self._relay = Relay(
            member.folder,
            self._worker.id,
            ownership,
            leases.owners,
            fleet.get,
            self._rows.enrolled_at,
            max_body=settings.max_upload_size,
        )
        await self._listen(service, push, self._relay, await self._figures(metrics), core.beat)
        running = (core.engine, shelf, boot_shelf, core.dispatcher, ownership, ear, push.sessions, push.records)
        self._tasks += [asyncio.create_task(part.run()) for part in (*running, memory.Memory())]
        if member.of == 1:
            log.info("Listening on %s:%d (HTTPS) with 1 worker processes...", settings.ip, self.port)
        member.ready()

    def _supervise(self, fleet: Fleet, shelf: PolicyShelf, boot_shelf: BootPolicyShelf, ownership: Ownership) -> _Core:
        """Put together what asks nodes, judges them, writes what came of it and tells of it."""
        settings = self._settings
        beat = Beat(min(MAX_BEAT_SECONDS, settings.quote_interval / BEATS))
        room = room_for_peers(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        http = self._http = PinnedHttp(
            self._agents_context,
            timeout=settings.request_timeout,
            max_answer=MAX_ANSWER,
            most=room,
            beat=beat,
        )
        rules = make_rules(settings)
        tracer = tracer_for("verifier", os.environ)
        parts = _Parts(AgentClient(http), appraise, self._rows, lambda poller: poller)
        if tracer is not None:
            parts = _traced(tracer, http, self._rows, self._database.dialect)
        channels = self._channels(parts.agents, Everybody(self._rows, fleet, ownership))
        # One worker takes what is left over: what is for channels that are not enabled any more.
        outbox = Outbox(self._database, settings.uuid, None if self._member.number == 0 else channels)
        dispatcher = Dispatcher(outbox, channels, pause=max(settings.retry_interval, MIN_NOTICE_PAUSE))
        writer = self.writer = Writer(
            parts.rounds,
            self._changed_elsewhere,
            gather=gather_seconds(rules.trust_lifetime),
            on_notices=dispatcher.wake,
        )
        poller = Poller(
            parts.agents,
            answer_within=settings.request_timeout + LATE_SECONDS,
            policies=shelf,
            boot_policies=boot_shelf,
            violations_found=not settings.ignore_tomtou_errors,
            boot_always=settings.measured_boot_evaluate == "always",
            judge=parts.judge,
        )
        engine = self.engine = Engine(
            fleet,
            parts.watched(poller),
            writer,
            self._rows,
            rules,
            # One job asks three times at most: twice for a quote, when a machine was started again, and for versions.
            Limits(min(MAX_JOBS, room), 3 * settings.request_timeout + LATE_SECONDS),
            channels=self._told(),
            beat=beat,
            may_start=lambda: ownership.open,
        )
        return _Core(http, parts, poller, writer, engine, dispatcher, beat)

    def _site(self) -> Site:
        settings = self._settings
        return Site(
            verifier_id=settings.uuid,
            verifier_ip=settings.ip,
            verifier_port=settings.port,
            certificate_required=settings.enable_agent_mtls,
            push=settings.mode == PUSH,
        )

    async def _listen(
        self,
        service: VerifierService,
        push: _Push,
        relay: Relay,
        figures: Callable[[], Awaitable[bytes]],
        rest: Beat,
    ) -> None:
        """Serve requests, those that other workers hand over too."""
        settings, member = self._settings, self._member
        onetime = OneTime(settings.measured_boot_policy_name, violations_found=not settings.ignore_tomtou_errors)
        watch = Watch(self._not_ready, figures)
        app = make_app(service, onetime, watch, push.sessions, push.rounds, relay, settings)
        await relay.serve(app.handle)
        port = member.port or settings.port
        shared = member.of > 1
        self._listener = Listener(app, settings.ip, port, self._server_context, reuse_port=shared, rest=rest)
        await self._listener.start()

    async def _figures(self, metrics: Metrics) -> Callable[[], Awaitable[bytes]]:
        """Return what answers for the metrics: of this process alone, or of all of its crew."""
        if self._member.folder is not None:
            self._siblings = Siblings(self._member.folder, self._member.number, self._member.of, metrics.text)
            await self._siblings.start()
            return self._siblings.text

        async def own() -> bytes:
            return metrics.text()

        return own

    def _hung(self, ownership: Ownership) -> Bell | None:
        """Let workers of one crew call each other. Workers of other crews are not heard that way."""
        if self._member.folder is None:
            return None
        bell = Bell(self._member.folder, self._member.number, self._member.of, ownership.call)
        self._database.on_announced = bell.ring
        return bell

    def _opened(self) -> None:
        if self.engine is not None:
            self.engine.wake()

    def _told(self) -> tuple[str, ...]:
        """Return the channels for which notices are written, whoever of the crew sends them."""
        wanted = self._settings.enabled_revocation_notifications
        every = (AGENT, *((WEBHOOK,) if self._settings.webhook_url else ()), ZEROMQ)
        return tuple(channel for channel in every if channel in wanted)

    def _push(self, core: _Core, enrolments: Enrolments) -> _Push:
        """Put together what serves nodes that attest by themselves."""
        settings = self._settings
        rows = SessionRows(self._database, settings.uuid)
        sessions = Sessions(rows, enrolments, make_session_rules(settings, shared=self._member.folder is not None))
        records = AttestationLog(Attestations(self._database))
        rules = PushRules(settings.quote_interval, settings.challenge_lifetime)
        parts = core.parts
        rounds = PushRounds(core.engine, sessions, records, core.poller, rules, judge=parts.judge, watched=parts.pushed)
        self._attesting = _Push(sessions, records, rounds)
        return self._attesting

    def _channels(self, agents: AgentClient, everybody: Everybody) -> dict[str, Channel]:
        """Return the ways on which notices go out. Raises ValueError for one that cannot be used."""
        settings, wanted = self._settings, self._settings.enabled_revocation_notifications
        channels: dict[str, Channel] = {}
        if AGENT in wanted:
            channels[AGENT] = Agents(agents, everybody.found, interval=settings.quote_interval)
        if WEBHOOK in wanted and settings.webhook_url:
            from limeguard.web.client import HttpClient  # few want it, and it takes nine megabytes

            self._webhook = HttpClient(
                self._servers_context, timeout=settings.request_timeout, max_answer=MAX_WEBHOOK_ANSWER
            )
            channels[WEBHOOK] = Webhook(self._webhook, settings.webhook_url)
        if ZEROMQ in wanted and self._member.number == 0:  # a port has room for one
            self._publisher = Publisher(settings.zmq_ip, settings.zmq_port)
            channels[ZEROMQ] = self._publisher
        return channels

    async def _not_ready(self) -> str | None:
        """Return why requests should go elsewhere, None when they are welcome here."""
        if self.engine is None or self.engine.draining:
            return "the verifier is stopping"
        if (self.writer is not None and self.writer.failing) or not await self._pulse.beats():
            return "the database cannot be used now"
        if self._ownership is not None and not self._ownership.open:
            return "the leases of this worker are not renewed"
        return None

    def _changed_elsewhere(self, node: Node) -> None:
        self._holdings.changed_elsewhere(node)

    async def failed(self) -> None:
        """Wait until one of the tasks that must run for ever has ended: a fault of ours."""
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    async def _hand_over(self) -> None:
        """Give back nodes with which nothing runs, while the last rounds with others end."""
        if self._ownership is None or self.engine is None or len(self._tasks) < 2:
            return
        await asyncio.sleep(0)  # the engine drains from now on
        busy = {partition_of(node.agent_id) for node in self.engine.fleet if node.occupied}
        with contextlib.suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout(FINAL_FLUSH_SECONDS):
                await self._ownership.hand_over(lambda partition: partition not in busy)

    async def _leave(self) -> None:
        """Give back what is held and say so, then leave the other workers."""
        if self._ownership is not None:
            await self._ownership.leave()
        if self._bell is not None:
            self._bell.close()
        if self._siblings is not None:
            await self._siblings.stop()

    async def _write_push(self) -> None:
        """Write what is kept of nodes that attest by themselves."""
        for part in () if self._attesting is None else (self._attesting.sessions, self._attesting.records):
            with contextlib.suppress(TimeoutError, StoreUnavailable):
                async with asyncio.timeout(FINAL_FLUSH_SECONDS):
                    await part.flush()

    async def stop(self) -> None:
        """Take no more requests, let running rounds end, write what they learned, close everything."""
        if self._relay is not None:
            await self._relay.stop()
        closing = [self._listener.stop()] if self._listener is not None else []
        draining = [self.engine.drain(self._settings.shutdown_drain_timeout)] if self.engine is not None else []
        await asyncio.gather(*draining, *closing, self._hand_over())
        if self._attesting is not None:
            await self._attesting.rounds.drain(self._settings.shutdown_drain_timeout)
        if self.writer is not None and self.writer.backlog:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FINAL_FLUSH_SECONDS):
                    await self.writer.flush()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._write_push()
        await self._leave()
        for client in (self._http, self._webhook):
            if client is not None:
                await client.close()
        if self._publisher is not None:
            self._publisher.close()
        await self._database.close()


async def migrate(settings: VerifierSettings) -> None:
    """Bring the tables up to date, before several workers need them. Raises StoreUnavailable."""
    database = Database(settings.database)
    try:
        await database.migrate(COMPONENT)
    finally:
        await database.close()


async def run_verifier(
    settings: VerifierSettings,
    server: ssl.SSLContext,
    agents: ssl.SSLContext,
    servers: ssl.SSLContext | None = None,
    member: Member | None = None,
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
    verifier = Verifier(settings, server, agents, servers, member=member)
    try:
        await verifier.start()
        memory.settle()
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
