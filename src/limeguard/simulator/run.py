"""A simulated fleet against real servers: enrols it, plays a scenario, and counts what the verifier does.

Decides when things happen and what is measured. What machines answer is `machine`'s business.
"""

import asyncio
import contextlib
import json
import random
import ssl
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from limeguard.clients.registrar_enrol import EnrolmentError, RegistrarClient, Target
from limeguard.crypto.keysplit import registration_auth_tag
from limeguard.policy.runtime import empty_policy_document
from limeguard.simulator.machine import APPLICATION_PCR, BootList, Machine, digest_of
from limeguard.simulator.scenario import ATTACKS, Happening, histogram_quantile
from limeguard.simulator.server import FleetServer, address_of
from limeguard.web.client import HttpClient, Unreachable
from limeguard.wire.registrar_agent_v2 import Registration
from limeguard.wire.verifier_v2 import EnrolmentRequest

API: Final = "2.6"
POLICY: Final = "simulated-fleet"
CONCURRENT: Final = 64
BUCKET: Final = 0.001
BUCKETS: Final = 60_000
"""Lateness is counted in milliseconds up to a minute."""
LOOK_SECONDS: Final = 0.05
DETECTION_PATIENCE: Final = 60.0
ALL_ASKED_SECONDS: Final = 60.0

Meter = Callable[[], tuple[float, int]]
"""Returns seconds of CPU that the verifier has used so far, and the bytes that it has in memory."""


class SimulationError(Exception):
    """The fleet cannot be simulated; the text says why."""


@dataclass(frozen=True, slots=True)
class Site:
    """The servers: the verifier's URL and the operator's TLS context; the registrar's address for nodes, if wanted."""

    verifier: str
    operator: ssl.SSLContext
    registrar: Target | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to simulate. `interval` is the verifier's, by which lateness is measured; 0 digests is no IMA at all."""

    nodes: int
    seconds: float
    interval: float
    warm_up: float = 0.0
    files: int = 0
    digests: int = 0
    scenario: tuple[Happening, ...] = ()
    seed: int = 1


@dataclass(slots=True)
class Detection:
    """One attack: how long the verifier took to distrust the node, None when it did not."""

    attack: str
    agent_id: str
    seconds: float | None = None


@dataclass(slots=True)
class Report:
    """What was seen. Seconds, counts, and seconds of CPU."""

    nodes: int = 0
    registered_per_second: float | None = None
    enrolled_per_second: float = 0.0
    all_asked_after: float | None = None
    seconds: float = 0.0
    rounds: int = 0
    lateness: dict[str, float] = field(default_factory=dict)
    complaints: int = 0
    simulator_cpu: float = 0.0
    verifier_cpu: float = 0.0
    verifier_bytes: int = 0
    detections: list[Detection] = field(default_factory=list)
    conditions: dict[str, int] = field(default_factory=dict)

    @property
    def rounds_per_second(self) -> float:
        """Rounds that were answered in a second."""
        return self.rounds / self.seconds if self.seconds else 0.0


class Simulation:
    """One fleet and what is known of it."""

    def __init__(
        self, plan: Plan, site: Site, meter: Meter | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Make the machines; nothing listens yet. `meter` tells what the verifier uses."""
        self._plan, self._site, self._clock = plan, site, clock
        self._meter = meter or (lambda: (0.0, 0))
        self._random = random.Random(plan.seed)  # noqa: S311 - which machines a scenario picks is no secret
        names = ("boot_aggregate", *(f"/usr/lib/simulated/file{number}" for number in range(max(plan.files - 1, 0))))
        boot = BootList.of(names if plan.files else ())
        self.machines = [Machine.make(number, boot) for number in range(plan.nodes)]
        self.server = FleetServer(
            {address_of(number): machine for number, machine in enumerate(self.machines)}, self._asked, clock
        )
        self._buckets = [0] * (BUCKETS + 1)
        self._counting = False
        self._rounds = 0
        self._never_asked = plan.nodes
        self._all_asked = asyncio.Event()
        self._http: HttpClient | None = None
        self.report = Report(nodes=plan.nodes)

    # --- what the server tells ---------------------------------------------------------------------------------------

    def _asked(self, machine: Machine) -> float:
        now = self._clock()
        before, machine.asked_at = machine.asked_at, now
        if before is None:
            self._never_asked -= 1
            if not self._never_asked:
                self._all_asked.set()
        elif self._counting:
            self._rounds += 1
            late = max(now - before - self._plan.interval, 0.0)
            self._buckets[min(int(late / BUCKET), BUCKETS)] += 1
        return machine.behaviour.delay

    # --- the run -----------------------------------------------------------------------------------------------------

    async def run(self, agents: ssl.SSLContext, certificate: str) -> Report:
        """Serve with `agents`, register and enrol with the PEM `certificate`, play, and report.

        Raises SimulationError.
        """
        self._http = HttpClient(self._site.operator, timeout=60.0, max_answer=1 << 28, connections=CONCURRENT)
        try:
            await self.server.start(agents)
            await self._register(certificate)
            await self._enrol(certificate)
            await self._play()
            self.report.conditions = await self._conditions()
        except OSError as problem:
            raise SimulationError(f"The simulated agents cannot be served: {problem}") from None
        finally:
            await self.server.stop()
            await self._http.close()
        self.report.complaints = self.server.complaints
        return self.report

    async def _register(self, certificate: str) -> None:
        if self._site.registrar is None:
            return
        client = RegistrarClient(self._site.registrar)

        async def register(machine: Machine) -> None:
            node = machine.node
            registration = Registration(
                ek_public=node.ek.public_2b,
                ek_certificates="",
                ak_public=node.ak.public_2b,
                server_certificate=certificate,
                ip=address_of(machine.number),
                port=self.server.port,
            )
            challenge = await client.register(API, machine.agent_id, registration)
            await client.activate(
                API, machine.agent_id, registration_auth_tag(node.activate(challenge), machine.agent_id)
            )

        began = self._clock()
        try:
            await _each(self.machines, register)
        except EnrolmentError as problem:
            raise SimulationError(f"The registrar did not take the fleet: {problem}") from None
        finally:
            await client.close()
        self.report.registered_per_second = self._plan.nodes / (self._clock() - began)

    async def _enrol(self, certificate: str) -> None:
        if self._plan.files:
            text = json.dumps(self._policy())
            body = {"runtime_policy": b64encode(text.encode()).decode()}
            status, said = await self._ask("POST", f"/v{API}/allowlists/{POLICY}", body)
            if status == 409:
                status, said = await self._ask("PUT", f"/v{API}/allowlists/{POLICY}", body)
            if status != 201:
                raise SimulationError(f"The verifier did not take the policy: {status} {said}")

        async def enrol(machine: Machine) -> None:
            body = self._enrolment(machine, address_of(machine.number), certificate)
            status, said = await self._ask("POST", f"/v{API}/agents/{machine.agent_id}", body)
            if status != 200:
                raise SimulationError(f"The verifier did not take {machine.agent_id}: {status} {said}")

        began = self._clock()
        await _each(self.machines, enrol)
        self.report.enrolled_per_second = self._plan.nodes / (self._clock() - began)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_asked.wait(), ALL_ASKED_SECONDS)
            self.report.all_asked_after = self._clock() - began

    def _policy(self) -> dict[str, Any]:
        """Return the policy: what machines measure at their start, what they may run later, and more to fill it."""
        plan, document = self._plan, empty_policy_document()
        digests = document["digests"]
        for name in self.machines[0].boot.names:
            digests[name] = [digest_of(name)]
        for number in range(_files_later(plan.scenario)):
            digests[_later(number)] = [digest_of(_later(number))]
        for number in range(plan.digests - len(digests)):
            name = f"/usr/share/filling/{number}"
            digests[name] = [digest_of(name)]
        return document

    def _enrolment(self, machine: Machine, address: str, certificate: str) -> EnrolmentRequest:
        mask = 1 << APPLICATION_PCR
        return EnrolmentRequest(
            cloudagent_ip=address,
            cloudagent_port=self.server.port,
            tpm_policy=json.dumps({str(APPLICATION_PCR): ["00" * 32], "mask": hex(mask)}),
            verifier_ip="127.0.0.1",
            verifier_port=8881,
            runtime_policy="",
            runtime_policy_name=POLICY if self._plan.files else "",
            runtime_policy_key="",
            mb_policy=None,
            mb_policy_name="",
            ima_sign_verification_keys="",
            metadata="{}",
            revocation_key="",
            accept_tpm_hash_algs=("sha256",),
            accept_tpm_encryption_algs=("ecc",),
            accept_tpm_signing_algs=("ecdsa",),
            ak_tpm=b64encode(machine.node.ak.public_2b).decode(),
            mtls_cert=certificate,
            supported_version=API,
        )

    async def _play(self) -> None:
        plan = self._plan
        if plan.warm_up:
            await asyncio.sleep(plan.warm_up)
        began, cpu, (before, _) = self._clock(), time.process_time(), self._meter()
        self._counting = True
        watching: list[asyncio.Task[None]] = []
        for happening in plan.scenario:
            if happening.at >= plan.seconds:
                break
            await asyncio.sleep(max(began + happening.at - self._clock(), 0.0))
            watching += self._happen(happening)
        await asyncio.sleep(max(began + plan.seconds - self._clock(), 0.0))
        self._counting = False
        self.report.seconds = self._clock() - began
        self.report.simulator_cpu = time.process_time() - cpu
        after, self.report.verifier_bytes = self._meter()
        self.report.verifier_cpu = after - before
        self.report.rounds = self._rounds
        self.report.lateness = {
            name: histogram_quantile(self._buckets, part, BUCKET)
            for name, part in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))
        }
        await asyncio.gather(*watching)

    def _happen(self, happening: Happening) -> list[asyncio.Task[None]]:
        """Let it happen to machines that nothing bad has happened to yet; return who waits for their detection."""
        healthy = [machine for machine in self.machines if machine.agent_id not in self._attacked]
        chosen = self._random.sample(healthy, min(happening.nodes(len(self.machines)), len(healthy)))
        watching = []
        for machine in chosen:
            self._change(machine, happening)
            if happening.do in ATTACKS:
                detection = Detection(happening.do, machine.agent_id)
                self.report.detections.append(detection)
                watching.append(asyncio.create_task(self._watch(detection)))
        return watching

    @property
    def _attacked(self) -> set[str]:
        return {detection.agent_id for detection in self.report.detections}

    def _change(self, machine: Machine, happening: Happening) -> None:
        match happening.do:
            case "measure":
                for number in range(happening.files):
                    machine.measure(_later(number))
            case "offline":
                machine.behaviour.offline_until = self._clock() + happening.seconds
            case "latency":
                machine.behaviour.delay = happening.seconds
            case _:
                _DEEDS[happening.do](machine)

    async def _watch(self, detection: Detection) -> None:
        began = self._clock()
        while self._clock() < began + DETECTION_PATIENCE:
            _, view = await self._ask("GET", f"/limeguard/v1/nodes/{detection.agent_id}")
            if isinstance(view, dict) and view.get("condition") == "distrusted":
                detection.seconds = self._clock() - began
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def _conditions(self) -> dict[str, int]:
        status, found = await self._ask("GET", "/limeguard/v1/nodes")
        counts: dict[str, int] = {}
        views = found.get("nodes", []) if status == 200 and isinstance(found, dict) else []
        for view in views:
            if str(view.get("id", "")).startswith("simulated-"):
                counts[view["condition"]] = counts.get(view["condition"], 0) + 1
        return counts

    async def _ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        assert self._http is not None  # noqa: S101 - `run` made it
        data = None if body is None else msgspec.json.encode(body)
        headers = {} if data is None else {"Content-Type": "application/json"}
        try:
            answer = await self._http.request(method, self._site.verifier + path, body=data, headers=headers)
        except Unreachable as problem:
            raise SimulationError(f"The verifier cannot be reached: {problem}") from None
        try:
            return answer.status, json.loads(answer.body or b"null")
        except ValueError:
            return answer.status, answer.body.decode("utf-8", "replace")


_DEEDS: Final[dict[str, Callable[[Machine], None]]] = {
    "unlisted": lambda machine: machine.measure("/tmp/implant"),  # noqa: S108 - a name in a list, no file
    "forge": Machine.forge,
    "extend": Machine.extend,
    "replay": Machine.replay,
    "rollback": Machine.roll_back,
    "reboot": Machine.reboot,
}


def _later(number: int) -> str:
    """Return the name of the file that machines run as number `number` after their start."""
    return f"/usr/bin/simulated{number}"


def _files_later(scenario: Iterable[Happening]) -> int:
    return max((one.files for one in scenario if one.do == "measure"), default=0)


async def _each(machines: list[Machine], work: Callable[[Machine], Awaitable[None]]) -> None:
    """Do the work for each machine, some at a time. The first failure ends it."""
    left = iter(machines)

    async def worker() -> None:
        for machine in left:
            await work(machine)

    tasks = [asyncio.create_task(worker()) for _ in range(CONCURRENT)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
