"""A simulated fleet against real servers: enrols it, plays a scenario, and counts what the verifier does.

Decides when things happen and what is measured. What machines answer is `machine`'s business.
"""

import asyncio
import contextlib
import random
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from limeguard.clients.registrar_enrol import EnrolmentError
from limeguard.policy.runtime import empty_policy_document
from limeguard.simulator.machine import BootList, Machine, digest_of
from limeguard.simulator.operator import CONCURRENT, Operator, RefusedError, SimulationError, Site
from limeguard.simulator.report import Detection, Memory, Report, Rounds
from limeguard.simulator.scenario import ATTACKS, Happening
from limeguard.simulator.server import FleetServer, address_of

LOOKS_PER_SECOND: Final = 20.0
LATER_LOOKS_PER_SECOND: Final = 500.0
"""How often in all the verifier is asked for attacked machines while it is measured, and afterwards: a thousand of them
must not be its load."""
LOOK_SECONDS: Final = 0.05
DETECTION_PATIENCE: Final = 60.0
ALL_ASKED_SECONDS: Final = 60.0
DELETION_SECONDS: Final = 60.0
SAMPLE_SECONDS: Final = 1.0
FORGOTTEN_INTERVALS: Final = 3.0
FORGOTTEN_SECONDS: Final = 2.0
"""A machine waits too long that was not asked for so many intervals and seconds."""
NEED_LISTS: Final = frozenset({"measure", "unlisted", "forge"})

Meter = Callable[[], tuple[float, int]]
"""Returns seconds of CPU that the verifier has used so far, and the bytes that it has in memory."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to simulate. `interval` is the verifier's, by which lateness is measured; 0 files is no IMA at all.

    With `delete` the machines of an earlier run are deleted first, and those of this one at the end. Without
    `keep_alive` agents close the connection after each answer: what longer intervals than verifiers keep them come to.
    """

    nodes: int
    seconds: float
    interval: float
    warm_up: float = 0.0
    files: int = 0
    digests: int = 0
    scenario: tuple[Happening, ...] = ()
    seed: int = 1
    delete: bool = False
    keep_alive: bool = True

    def problems(self) -> list[str]:
        """Return why the scenario cannot be played with this plan: nothing when it can."""
        late = [one for one in self.scenario if one.at >= self.seconds]
        lists = sorted({one.do for one in self.scenario} & NEED_LISTS) if not self.files else []
        return [
            *(f"{one.do} at {one.at:g} s comes after the end: measure for more seconds than that" for one in late),
            *(f"{what} needs machines with an IMA log: more than 0 files" for what in lists),
        ]


class Simulation:
    """One fleet and what is known of it."""

    def __init__(
        self, plan: Plan, site: Site, meter: Meter | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Make the machines; nothing listens yet. `meter` tells what the verifier uses."""
        self.plan, self.site, self.clock = plan, site, clock
        self._meter = meter or (lambda: (0.0, 0))
        self.random = random.Random(plan.seed)  # noqa: S311 - which machines a scenario picks is no secret
        names = ("boot_aggregate", *(f"/usr/lib/simulated/file{number}" for number in range(max(plan.files - 1, 0))))
        boot = BootList.of(names if plan.files else ())
        self.machines = [Machine.make(number, boot) for number in range(plan.nodes)]
        at = {address_of(number): machine for number, machine in enumerate(self.machines)}
        self.server = FleetServer(at, self._asked, clock, keep_alive=plan.keep_alive)
        self._rounds = Rounds()
        self._counting = False
        self._never_asked = plan.nodes
        self._all_asked = asyncio.Event()
        self._ended = asyncio.Event()
        self._errors: Counter[str] = Counter()
        self._empty = 0
        self._memory: list[int] = []
        self._attacked: set[str] = set()
        self._watched = 0
        self._doing: Callable[[], str] = lambda: "starting"
        self.report = Report(nodes=plan.nodes)

    @property
    def progress(self) -> str:
        """What is being done just now, for people."""
        return self._doing()

    # --- what the server tells ---------------------------------------------------------------------------------------

    def _asked(self, machine: Machine) -> float:
        now, delay = self.clock(), machine.behaviour.delay
        # The verifier's interval begins when the answer has gone out.
        before, machine.asked_at = machine.asked_at, now + delay
        self.count(None if before is None else max(now - before - self.plan.interval, 0.0))
        return delay

    def count(self, late: float | None) -> None:
        """Count a round that came so late; None for a machine's first."""
        if late is None:
            self._not_waited_for(1)
        elif self._counting:
            self._rounds.add(self.clock(), late)

    def _not_waited_for(self, machines: int) -> None:
        self._never_asked -= machines
        if self._never_asked <= 0:
            self._all_asked.set()

    # --- the run -----------------------------------------------------------------------------------------------------

    async def run(self, agents: ssl.SSLContext, certificate: str) -> Report:
        """Serve with `agents`, register and enrol with the PEM `certificate`, play, and report.

        Raises SimulationError.
        """
        if problems := self.plan.problems():
            raise SimulationError("; ".join(problems))
        operator = Operator(self.site)
        try:
            await self.begin(agents)
            self._empty = self._meter()[1]
            if self.plan.delete:
                await self._delete(operator)
            await self._register(operator, certificate)
            await self._enrol(operator, certificate)
            await self._play(operator)
            if self.plan.delete:
                await self._delete(operator)
        except OSError as problem:
            raise SimulationError(f"The simulated agents cannot be served: {problem}") from None
        finally:
            await self.end()
            await operator.close()
        self._add_errors()
        return self.report

    async def begin(self, agents: ssl.SSLContext) -> None:
        """Let the machines be asked."""
        await self.server.start(agents)

    def enrolled(self, machine: Machine) -> None:
        """Note that the verifier took a machine."""

    async def end(self) -> None:
        """Let nobody be asked any more."""
        await self.server.stop()

    def _add_errors(self) -> None:
        complaints, report = self.server.complaints, self.report
        report.complaints = complaints.total()
        refused = {f"refused: {kind}": count for kind, count in complaints.items()}
        answers = {f"answered: {kind}": count for kind, count in report.refusals.items()}
        report.errors = {**self._errors, **refused, **answers}

    async def _delete(self, operator: Operator) -> None:
        there = list(await operator.conditions())
        await self._each("deleting", there, operator.delete)
        end = self.clock() + DELETION_SECONDS
        while there and self.clock() < end:  # a node is gone when the running request to it has ended
            await asyncio.sleep(LOOK_SECONDS)
            there = list(await operator.conditions())

    async def _register(self, operator: Operator, certificate: str) -> None:
        if not operator.registers:
            return

        async def register(machine: Machine) -> None:
            try:
                await operator.register(machine, self.server.port, certificate)
            except EnrolmentError as problem:
                kind = f"registration: {problem.status or 'no answer'}"
                raise RefusedError(kind, f"The registrar did not take {machine.agent_id}: {problem}") from None

        self.report.registered_per_second = await self._each("registering", self.machines, register)

    async def _enrol(self, operator: Operator, certificate: str) -> None:
        with_policy = self.plan.files > 0
        if with_policy:
            await operator.store_policy(self._policy())

        async def enrol(machine: Machine) -> None:
            try:
                await operator.enrol(machine, self.server.port, certificate, with_policy=with_policy)
            except RefusedError:
                self._not_waited_for(1)
                raise
            self.enrolled(machine)

        began = self.clock()
        self.report.enrolled_per_second = await self._each("enrolling", self.machines, enrol)
        self._doing = lambda: f"waiting until all are asked, {self._never_asked:,} left"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_asked.wait(), ALL_ASKED_SECONDS)
            self.report.all_asked_after = self.clock() - began

    async def _each(self, doing: str, things: Sequence[T], work: Callable[[T], Awaitable[None]]) -> float:
        """Do the work for each, some at a time; return how many were done in a second.

        Single refusals are counted. Raises SimulationError when nothing was done.
        """
        left, began, done, last = iter(things), self.clock(), 0, None
        self._doing = lambda: f"{doing}, {done:,} of {len(things):,}"

        async def worker() -> None:
            nonlocal done, last
            for thing in left:
                try:
                    await work(thing)
                except RefusedError as problem:
                    self._errors[problem.kind] += 1
                    last = problem
                    if not done and self._errors[problem.kind] >= CONCURRENT:
                        raise
                else:
                    done += 1

        async with contextlib.AsyncExitStack() as stack:
            tasks = [asyncio.create_task(worker()) for _ in range(min(CONCURRENT, len(things)))]
            for task in tasks:
                stack.callback(task.cancel)
            await asyncio.gather(*tasks)
        if last is not None and not done:
            raise last
        return done / max(self.clock() - began, 1e-9)

    def _policy(self) -> dict[str, Any]:
        """Return the policy: what machines measure at their start, what they may run later, and more to fill it."""
        plan, document = self.plan, empty_policy_document()
        digests = document["digests"]
        for name in self.machines[0].boot.names:
            digests[name] = [digest_of(name)]
        for number in range(_files_later(plan.scenario)):
            digests[_later(number)] = [digest_of(_later(number))]
        for number in range(plan.digests - len(digests)):
            name = f"/usr/share/filling/{number}"
            digests[name] = [digest_of(name)]
        return document

    # --- what happens ------------------------------------------------------------------------------------------------

    async def _play(self, operator: Operator) -> None:
        plan, report, server = self.plan, self.report, self.server
        self._doing = lambda: f"warming up for {plan.warm_up:g} s"
        await asyncio.sleep(plan.warm_up)
        began, own, (cpu, size) = self.clock(), time.process_time(), self._meter()
        counted = server.connections_made, server.bytes_in, server.bytes_out, server.notices
        self._memory, self._counting = [size], True
        self._doing = lambda: self._measuring(began)
        sampling = asyncio.create_task(self._sample())
        try:
            watching = await self._happen_all(operator, began)
            await asyncio.sleep(max(began + plan.seconds - self.clock(), 0.0))
        finally:
            self._counting = False
            sampling.cancel()
        report.seconds = self.clock() - began
        report.simulator_cpu = time.process_time() - own
        after, report.verifier_bytes = self._meter()
        report.verifier_cpu = after - cpu
        report.memory = Memory.of(self._empty, [*self._memory, report.verifier_bytes])
        report.connections = server.connections_made - counted[0]
        report.bytes_asked, report.bytes_answered = server.bytes_in - counted[1], server.bytes_out - counted[2]
        report.notices = server.notices - counted[3]
        report.rounds, report.lateness = self._rounds.count, self._rounds.lateness()
        report.busiest_second = self._rounds.busiest_second
        report.waiting = self._waiting()
        self._ended.set()
        self._doing = lambda: f"looking for {self._watched} attacked machines that are not distrusted yet"
        await asyncio.gather(*watching)
        try:
            report.conditions = dict(Counter((await operator.conditions()).values()))
        except RefusedError as problem:
            self._errors[f"question: {problem.kind}"] += 1

    def _measuring(self, began: float) -> str:
        passed = max(self.clock() - began, 0.1)
        attacked = f", {self._watched} attacked not found yet" if self._watched else ""
        rate = self._rounds.count / passed
        return f"measuring, {passed:.0f} of {self.plan.seconds:g} s: {rate:,.0f} rounds/s{attacked}"

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            self._memory.append(self._meter()[1])

    def _waiting(self) -> int:
        """Return how many machines were not asked for long, though they answer and nobody attacked them."""
        now, plan = self.clock(), self.plan
        longest = FORGOTTEN_INTERVALS * plan.interval + FORGOTTEN_SECONDS
        return sum(
            1
            for one in self.machines
            if one.asked_at is not None
            and now - one.asked_at > longest
            and one.agent_id not in self._attacked
            and one.behaviour.offline_until < now - longest
        )

    async def _happen_all(self, operator: Operator, began: float) -> list[asyncio.Task[None]]:
        watching: list[asyncio.Task[None]] = []
        for happening in self.plan.scenario:
            await asyncio.sleep(max(began + happening.at - self.clock(), 0.0))
            watching += self._happen(operator, happening)
        return watching

    def _happen(self, operator: Operator, happening: Happening) -> list[asyncio.Task[None]]:
        """Let it happen to machines that nothing bad has happened to yet; return who waits for their detection."""
        healthy = [machine for machine in self.machines if machine.agent_id not in self._attacked]
        chosen = self.random.sample(healthy, min(happening.nodes(len(self.machines)), len(healthy)))
        watching = []
        for machine in chosen:
            self._change(machine, happening)
            if happening.do in ATTACKS:
                self._attacked.add(machine.agent_id)
                detection = Detection(happening.do, machine.agent_id)
                self.report.detections.append(detection)
                watching.append(asyncio.create_task(self._watch(operator, detection)))
        return watching

    def _change(self, machine: Machine, happening: Happening) -> None:
        match happening.do:
            case "measure":
                for number in range(happening.files):
                    machine.measure(_later(number))
            case "offline":
                machine.behaviour.offline_until = self.clock() + happening.seconds
            case "latency":
                machine.behaviour.delay = happening.seconds
            case _:
                _DEEDS[happening.do](machine)

    async def _watch(self, operator: Operator, detection: Detection) -> None:
        """Look until the machine is distrusted. It counts when the verifier found it, not when we looked."""
        began, at = self.clock(), time.time()
        self._watched += 1
        try:
            while (passed := self.clock() - began) < DETECTION_PATIENCE:
                await self._pause_between_looks()  # before the first as well: what is measured is not to be our asking
                try:
                    condition, found_at = await operator.condition(detection.agent_id)
                except RefusedError as problem:
                    self._errors[f"question: {problem.kind}"] += 1
                    condition, found_at = "", None
                if condition == "distrusted":
                    passed = self.clock() - began
                    detection.seconds = found_at - at if found_at and 0 <= found_at - at <= passed else passed
                    return
        finally:
            self._watched -= 1

    async def _pause_between_looks(self) -> None:
        looks = LATER_LOOKS_PER_SECOND if self._ended.is_set() else LOOKS_PER_SECOND
        pause = max(LOOK_SECONDS, self._watched / looks) * self.random.uniform(0.5, 1.5)
        if self._ended.is_set():
            await asyncio.sleep(pause)
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), pause)


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
