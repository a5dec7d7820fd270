"""A simulated fleet that attests by itself: sessions, negotiation and evidence over the real interface, push model.

Each machine has a connection and a session of its own, as a node has. What it sends is what an agent sends; what is
measured is the verifier's.
"""

import asyncio
import datetime
import ssl
from dataclasses import dataclass, field
from typing import Any, Final

from limeguard.clients.verifier_push import Attestation, PushVerifier, Refused, Session
from limeguard.crypto.keys import spki_pem
from limeguard.evidence.tpm.structures import PublicArea
from limeguard.simulator.machine import Machine
from limeguard.simulator.operator import Site
from limeguard.simulator.report import Report
from limeguard.simulator.run import Meter, Plan, Simulation
from limeguard.web.answers import Unreachable
from limeguard.web.pinned import PinnedHttp
from limeguard.wire import push_agent_v3 as wire

MAX_ANSWER: Final = 1 << 24
TIMEOUT: Final = 5.0
UNAUTHORIZED, FORBIDDEN = 401, 403
USUAL_PORT: Final = 9002
NO_CERTIFICATE: Final = "disabled"
PAUSE: Final = 1.0
"""Seconds before a machine tries again what went wrong, unless the verifier names a time; sessions: an interval."""


@dataclass(slots=True)
class PushMachine:
    """A machine and what it keeps for the verifier. `sent` is its last evidence, for machines that replay it."""

    machine: Machine
    verifier: PushVerifier
    key: wire.CertificationKey
    binding: str
    session: Session | None = None
    started: int = 0
    accepted: int = 0
    sent: bytes | None = field(default=None, repr=False)

    async def open_session(self) -> bool:
        """Prove possession of the AK; say whether the verifier was convinced. Raises Refused, Unreachable."""
        opened = await self.verifier.open_session()
        self.session = await self.verifier.prove(opened, *self.machine.node.certify_itself(opened.challenge))
        self.started = self.machine.boottime
        return self.session is not None

    async def attest(self) -> float | None:
        """Give evidence once; return the seconds until the verifier wants the next. Raises Refused, Unreachable."""
        assert self.session is not None  # noqa: S101 - opened before
        begun = await self.verifier.negotiate(self.session, self._offer())
        if self.machine.behaviour.delay:
            await asyncio.sleep(self.machine.behaviour.delay)
        if not begun.requested:
            return None
        return await self.verifier.submit(begun, self.session, self._evidence(begun))

    def _offer(self) -> wire.Capabilities:
        boot = datetime.datetime.fromtimestamp(self.machine.boottime, datetime.UTC)
        return wire.Capabilities(
            key=self.key,
            hash_algorithm="sha256",
            signature_scheme="ecdsa",
            pcrs=tuple(range(24)),
            uefi_version="2.1",
            uefi_entries=0,
            ima_entries=self.machine.entries,
            boot_time=boot.strftime("%Y-%m-%dT%H:%M:%SZ"),
        )

    def _evidence(self, begun: Attestation) -> bytes:
        if self.machine.behaviour.replay is not None and self.sent is not None:
            return self.sent
        self.sent = wire.encode_evidence([self._collected(one) for one in begun.requested])
        return self.sent

    def _collected(self, one: wire.Requested) -> wire.Collected:
        match one:
            case wire.QuoteRequest():
                return wire.collected_quote(*self.machine.node.quote_parts(one.challenge, set(one.pcrs), self.binding))
            case wire.LogRequest(evidence_type="ima_log"):
                return wire.collected_ima_log(self.machine.lines_from(one.starting_offset))
        return wire.collected_uefi_log("")


class PushSimulation(Simulation):
    """A fleet of which each machine calls the verifier."""

    def __init__(self, plan: Plan, site: Site, meter: Meter | None = None, **options: Any) -> None:
        """Make the machines; none calls yet."""
        super().__init__(plan, site, meter, **options)
        self._working: list[asyncio.Task[None]] = []
        self._clients: list[PinnedHttp] = []

    async def run(self, agents: ssl.SSLContext, certificate: str) -> Report:
        """Register and enrol, play, and report. Machines that serve nothing have no certificate of their own."""
        del certificate
        return await super().run(agents, NO_CERTIFICATE)

    async def begin(self, agents: ssl.SSLContext) -> None:
        """Serve nothing: machines begin when they are enrolled. What is registered is an agent's usual port."""
        del agents
        self.server.port = USUAL_PORT

    def enrolled(self, machine: Machine) -> None:
        """Let a machine attest from now on."""
        self._working.append(asyncio.create_task(self._live(self._made(machine))))

    async def end(self) -> None:
        """Let every machine fall silent."""
        for task in self._working:
            task.cancel()
        outcomes = await asyncio.gather(*self._working, return_exceptions=True)
        for client in self._clients:
            await client.close()
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    def _made(self, machine: Machine) -> PushMachine:
        keep = 3 * self.plan.interval + 10
        http = PinnedHttp(self.site.nodes, timeout=TIMEOUT, max_answer=MAX_ANSWER, keepalive=keep)
        self._clients.append(http)
        verifier = PushVerifier(self.site.verifier, wire.DEFAULT_VERSION, machine.agent_id, http)
        area = machine.node.ak.area
        return PushMachine(machine, verifier, _offered_key(area), spki_pem(area.public_key()))

    async def _live(self, node: PushMachine) -> None:
        """Attest for ever, at moments that are spread over the interval."""
        due = self.clock() + self.random.random() * self.plan.interval
        while True:
            due = max(due, node.machine.behaviour.offline_until)
            await asyncio.sleep(max(due - self.clock(), 0.0))
            if node.machine.behaviour.offline_until > self.clock():
                continue
            due = await self._turn(node, due)

    async def _turn(self, node: PushMachine, due: float) -> float:
        """Do what is due, and return when the next is."""
        if node.session is None or node.started != node.machine.boottime:
            # A machine that started again has forgotten its token.
            pause = await self._open(node)
            if pause:
                return self.clock() + pause
        try:
            after = await node.attest()
        except Refused as refused:
            self._note(f"{refused.status} {refused.code}".strip())
            if refused.status in {UNAUTHORIZED, FORBIDDEN}:
                node.session = None
            return self.clock() + (PAUSE if refused.asked is None else refused.asked)
        except (Unreachable, wire.BadAnswer) as problem:
            self._note(getattr(problem, "kind", "unreadable"))
            return self.clock() + PAUSE
        now = self.clock()
        self.count(max(now - due, 0.0) if node.accepted else None)
        node.accepted += 1
        node.machine.asked_at = now
        if node.machine.last is None:
            node.machine.last = {}
        return now + (self.plan.interval if after is None else after)

    async def _open(self, node: PushMachine) -> float:
        """Open a session; return the seconds to wait when that failed, else 0."""
        self.report.sessions += 1
        try:
            if await node.open_session():
                return 0.0
        except Refused as refused:
            self._note(f"session {refused.status}")
            return max(refused.asked or 0.0, self.plan.interval)
        except (Unreachable, wire.BadAnswer) as problem:
            self._note(f"session {getattr(problem, 'kind', 'unreadable')}")
            return self.plan.interval
        self._note("session denied")
        return self.plan.interval

    def _note(self, what: str) -> None:
        self.report.refusals[what] = self.report.refusals.get(what, 0) + 1


def _offered_key(area: PublicArea) -> wire.CertificationKey:
    return wire.CertificationKey(
        key_algorithm="ecc",
        key_size=area.public_key().key_size,
        server_identifier="ak",
        local_identifier=area.name.hex(),
        public=wire.base64_text(area.raw),
        allowable_hash_algorithms=("sha256",),
        allowable_signature_schemes=("ecdsa",),
    )
