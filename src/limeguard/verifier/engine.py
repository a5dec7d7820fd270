"""Supervision at work: takes nodes that are due, has their jobs done, steps the lifecycle, carries out the effects.

The one place where a node's state changes in memory. Must not judge evidence (appraisal) nor decide what follows from
it (lifecycle). Whatever goes wrong in here, a supervised node gets a new timer, and no fault of ours makes trust.
"""

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from msgspec.structs import replace

from limeguard.appraisal.findings import Finding
from limeguard.appraisal.ima.history import NO_IMA
from limeguard.appraisal.verdict import Integrity
from limeguard.store.database import StoreUnavailable
from limeguard.store.notices import Notice
from limeguard.telemetry import clean, get_logger
from limeguard.verifier import lifecycle
from limeguard.verifier.fleet import Fleet, Node
from limeguard.verifier.journal import log_event
from limeguard.verifier.lifecycle import Event, Step
from limeguard.verifier.poller import Facts, Result
from limeguard.verifier.record import supervision_of, with_facts, with_findings, with_supervision
from limeguard.verifier.supervision import Job, Phase, Rules, Supervision
from limeguard.verifier.writer import Writer
from limeguard.wire.notice import notice_text

log = get_logger("keylime.verifier")

JITTER: Final = 0.05
"""Part of a pause by which it is drawn out at random, so that a fleet does not march in step."""
TICK: Final = 0.002
"""Seconds for which rounds that come due close together wait for each other: one wake-up for several."""
BUSY_PAUSE: Final = 0.05
"""Seconds after which a node is looked at again whose last job is just being given up."""
FAULT_PAUSE: Final = 1.0
"""Seconds until rounds are started again when that itself failed."""
FALLBACK_PAUSE: Final = 30.0
"""Seconds until the next try when even the handling of a job failed."""
REMOVE_PAUSE: Final = 2.0
"""Seconds between tries to delete a row while the database is away."""


class Performer(Protocol):
    """Does one job with one node's agent."""

    async def perform(self, node: Node, job: Job, /) -> Result:
        """Return what came of it; whatever is raised is our own fault."""
        ...


class Remover(Protocol):
    """Deletes rows."""

    async def delete(self, agent_id: str, /) -> bool:
        """Delete a node's row. Raises StoreUnavailable."""
        ...


@dataclass(slots=True)
class Applied:
    """What is left to the caller of `apply`: a commit to wait for, and whether the node is to be removed."""

    committed: asyncio.Future[None] | None = None
    remove: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the engine: jobs at once, and seconds that one job may take in all."""

    jobs: int
    job_seconds: float


class Engine:
    """Supervises the nodes of a fleet until it is stopped."""

    def __init__(
        self,
        fleet: Fleet,
        performer: Performer,
        writer: Writer,
        rows: Remover,
        rules: Rules,
        limits: Limits,
        *,
        channels: tuple[str, ...] = (),
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Put the parts together. `now` is seconds since 1970; `clock` never goes back, timers run on it.

        Notices go over `channels`.
        """
        self._channels = channels
        self.fleet = fleet
        self.rules = rules
        self._performer = performer
        self._writer = writer
        self._rows = rows
        self._limits = limits
        self._now = now
        self._clock = clock
        self._jobs: dict[asyncio.Task[None], tuple[Node, float]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._armed_for = 0.0
        self._stopping = False

    # --- taking nodes in and stepping them ---------------------------------------------------------------------------

    def supervision(self, node: Node) -> Supervision:
        """Return what supervision knows of a node, with what is not stored."""
        enrolled = node.record.enrolled
        stored = supervision_of(node.state, has_v=enrolled.v is not None, push=enrolled.push)
        return replace(stored, job=node.job, key_delivered=node.key_delivered, faults=node.faults)

    def take_in(self, node: Node, event: lifecycle.Enrolled | lifecycle.Restarted, *, spread: float = 0.0) -> Applied:
        """Add a node to the fleet and begin; `spread` seconds keep a fleet from starting all at once."""
        self.fleet.add(node)
        return self.apply(node, event, spread=spread)

    def apply(self, node: Node, event: Event, facts: Facts | None = None, *, spread: float = 0.0) -> Applied:
        """Step a node and carry out the effects that need no waiting."""
        before = self.supervision(node)
        step = lifecycle.step(before, event, self.rules)
        self._change(node, step, event, facts)
        log_event(node, event, before, step, self.rules)
        if isinstance(event, lifecycle.Reactivated | lifecycle.StopRequested | lifecycle.DeleteRequested):
            self._abandon(node)
        applied = Applied()
        for effect in step.effects:
            self._carry_out(node, effect, applied, spread)
        return applied

    def _change(self, node: Node, step: Step, event: Event, facts: Facts | None) -> None:
        now, after = self._now(), step.state
        state = with_supervision(node.state, after)
        if facts is not None:
            trusted = isinstance(event, lifecycle.RoundTrusted) and after.integrity is Integrity.TRUSTED
            state = with_facts(state, facts, trusted=trusted)
        if isinstance(event, lifecycle.Enrolled | lifecycle.Reactivated):
            state = replace(state, findings=(), required_checks=(), ran_checks=(), ima=NO_IMA)
        findings = _findings_of(event, step)
        for finding in findings:
            counted = self.fleet.counters.findings
            counted[finding.kind.id] = counted.get(finding.kind.id, 0) + 1
        state = with_findings(state, findings, self.rules.severity, now)
        node.job, node.key_delivered, node.faults = after.job, after.key_delivered, after.faults
        if state != node.state:
            node.become(state, now)

    def _carry_out(self, node: Node, effect: lifecycle.Effect, applied: Applied, spread: float) -> None:
        match effect:
            case lifecycle.Schedule(after, _):
                self.fleet.schedule(node, self._clock() + after, spread=max(spread, JITTER * after))
                self._arm()
            case lifecycle.Watch(until):
                self.fleet.schedule(node, self._clock() + max(until - self._now(), 0.0))
                self._arm()
            case lifecycle.Unschedule():
                self.fleet.cancel(node)
            case lifecycle.Persist() if node.state is node.stored:
                return
            case lifecycle.Persist(now=True):
                applied.committed = self._writer.save_now(node)
            case lifecycle.Persist():
                self._writer.save(node)
            case lifecycle.Remove():
                applied.remove = True
            case lifecycle.Notify():
                node.notices += self._notices(node, effect)
            case lifecycle.SupervisionEnded() | lifecycle.Alarm():
                return  # said in the log

    def reserve_attestations(self, node: Node, limit: int) -> asyncio.Future[None]:
        """Note that numbers below `limit` may be given to attestations of a node; done when it is committed."""
        node.become(replace(node.state, attestation_limit=limit), self._now())
        return self._writer.save_now(node)

    def _notices(self, node: Node, notify: lifecycle.Notify) -> list[Notice]:
        """Return what is told of a node, once for each channel."""
        if not self._channels:
            return []
        enrolled, finding = node.record.enrolled, notify.finding
        text = notice_text(
            kind=notify.kind.value,
            ip=enrolled.ip,
            agent_id=enrolled.agent_id,
            port=enrolled.port,
            tpm_policy=enrolled.tpm_policy,
            meta_data=enrolled.meta_data,
            at=time.asctime(time.localtime(self._now())),
            event_id=finding.event_id,
            severity_label=notify.label,
            context=dict(finding.context),
        )
        return [Notice(channel, enrolled.agent_id, text) for channel in self._channels]

    def _abandon(self, node: Node) -> None:
        """Give up the running job: an operator has spoken, its result would be about the past."""
        node.generation += 1
        if node.running is not None and not node.abandoned:
            node.abandoned = True
            node.running.cancel()

    async def remove(self, node: Node) -> None:
        """Delete the row, then forget the node. Raises StoreUnavailable; the node stays terminated then."""
        await self._rows.delete(node.agent_id)
        self.forget(node)

    def forget(self, node: Node) -> None:
        """Forget a node whose row is gone."""
        self._writer.forget(node)
        if self.fleet.get(node.agent_id) is node:
            self.fleet.remove(node.agent_id)

    # --- the loop ----------------------------------------------------------------------------------------------------

    @property
    def running_jobs(self) -> int:
        """How many jobs are being done."""
        return len(self._jobs)

    @property
    def draining(self) -> bool:
        """Whether no more jobs are started."""
        return self._stopping

    async def run(self) -> None:
        """Start jobs as they come due, until cancelled."""
        self._loop = asyncio.get_running_loop()
        self._watch()
        self._arm()
        try:
            await self._loop.create_future()
        finally:
            for timer in (self._timer, self._watchdog):
                if timer is not None:
                    timer.cancel()
            self._loop = None

    def _arm(self) -> None:
        """Have `_fire` called when the next node is due. One timer of the loop stands for those of all nodes."""
        if self._loop is None or self._stopping or len(self._jobs) >= self._limits.jobs:
            return
        due = self.fleet.next_due()
        if due is None or (self._timer is not None and self._armed_for <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._armed_for = due
        self._timer = self._loop.call_later(max(due - self._clock(), TICK), self._fire)

    def _fire(self) -> None:
        self._timer = None
        try:
            self._start_due()
        except Exception:
            log.exception("Error while starting rounds")
            self.fleet.counters.faults += 1
            if self._loop is not None:
                self._armed_for = self._clock() + FAULT_PAUSE
                self._timer = self._loop.call_later(FAULT_PAUSE, self._fire)
        else:
            self._arm()

    def _start_due(self) -> None:
        while len(self._jobs) < self._limits.jobs and not self._stopping:
            node = self.fleet.take_due(self._clock())
            if node is None:
                return
            if node.job is Job.WATCH:
                self.apply(node, lifecycle.DeadlinePassed(self._now()))
                continue
            if node.busy:
                self.fleet.schedule(node, self._clock() + BUSY_PAUSE)
                continue
            node.busy = True
            task = asyncio.create_task(self._work(node, node.job or Job.FULL_ROUND))
            node.running = task
            self._jobs[task] = (node, self._clock() + self._limits.job_seconds)
            task.add_done_callback(self._job_done)

    def _watch(self) -> None:
        """Give up jobs that take too long, and see that the timer runs; one look is cheaper than a timer for each."""
        if self._loop is None:
            return
        self._watchdog = self._loop.call_later(min(self._limits.job_seconds / 4, 1.0), self._watch)
        now = self._clock()
        if self._timer is not None and self._armed_for < now - FAULT_PAUSE:
            self._timer.cancel()
            self._timer = None
        self._arm()
        for task, (node, end) in self._jobs.items():
            if end < now and not node.abandoned and not node.late:
                node.late = True
                task.cancel()

    def _job_done(self, task: asyncio.Task[None]) -> None:
        self._jobs.pop(task, None)
        self._arm()
        if not task.cancelled() and (fault := task.exception()) is not None:
            log.error("A job ended with a fault: %s", clean(f"{type(fault).__name__}: {fault}"))
            self.fleet.counters.faults += 1

    async def _work(self, node: Node, job: Job) -> None:
        """Do one job and step the node, whatever happens on the way."""
        generation = node.generation
        self.fleet.counters.rounds += 1
        try:
            try:
                result = await self._performed(node, job)
            finally:
                node.busy, node.abandoned, node.late, node.running = False, False, False, None
            await self._finish(node, result, generation)
        except Exception:
            log.exception("Error while handling a job of agent %s", clean(node.agent_id))
            self.fleet.counters.faults += 1
        finally:
            self._keep_supervised(node)

    async def _performed(self, node: Node, job: Job) -> Result | None:
        """Return what came of the job; None when it was given up for an operator's word."""
        try:
            return await self._performer.perform(node, job)
        except asyncio.CancelledError:
            if not (node.abandoned or node.late) or self._stopping:
                raise
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
            if node.abandoned:
                return None
            return Result(lifecycle.Unreachable(f"timeout: not done within {self._limits.job_seconds:.0f} s"))
        except Exception as problem:
            log.exception("Error while attesting agent %s", clean(node.agent_id))
            self.fleet.counters.faults += 1
            return Result(lifecycle.OurFault(f"{type(problem).__name__} in this verifier"))

    async def _finish(self, node: Node, result: Result | None, generation: int) -> None:
        if self.fleet.get(node.agent_id) is not node:
            return
        terminated = node.state.phase == Phase.TERMINATED
        if terminated:
            await self._remove_terminated(node)
        elif result is not None and node.generation == generation:
            applied = self.apply(node, result.event, result.facts)
            if applied.remove:
                await self._remove_terminated(node)

    async def _remove_terminated(self, node: Node) -> None:
        while True:
            try:
                await self.remove(node)
            except StoreUnavailable as problem:
                log.error("Agent %s cannot be deleted yet: %s", clean(node.agent_id), clean(problem))  # noqa: TRY400
                await asyncio.sleep(REMOVE_PAUSE)
            else:
                return

    def _keep_supervised(self, node: Node) -> None:
        """Give a node a timer that should have one and has none: supervision never ends by accident."""
        if self.fleet.get(node.agent_id) is not node or node.due is not None or node.busy or self._stopping:
            return
        try:
            wanted = lifecycle.supervised(self.supervision(node), self.rules)
        except ValueError:
            wanted = True
        if wanted:
            log.error("Agent %s had no next round; it gets one", clean(node.agent_id))
            node.job = Job.FULL_ROUND
            self.fleet.schedule(node, self._clock() + FALLBACK_PAUSE)
            self._arm()

    # --- stopping ----------------------------------------------------------------------------------------------------

    async def drain(self, seconds: float) -> None:
        """Start nothing more, let running jobs end for so long, then cancel what is left."""
        self._stopping = True
        log.info("Cancelled %d pending attestation event(s) for shutdown", self.fleet.pending())
        if self._jobs:
            await asyncio.wait(self._jobs, timeout=seconds)
        if self._jobs:
            log.warning("%d attestation(s) still running after %.0f s are cancelled", len(self._jobs), seconds)
            for task in self._jobs:
                task.cancel()
            await asyncio.wait(self._jobs, timeout=1.0)


def shuffled() -> float:
    """Return a number from 0 to 1 for spreading timers."""
    return secrets.randbelow(1 << 24) / (1 << 24)


def _findings_of(event: Event, step: Step) -> tuple[Finding, ...]:
    """Return the findings of a step: all of a bad round, or the one for which supervision changed."""
    if isinstance(event, lifecycle.RoundDistrusted):
        return tuple(event.findings)
    for effect in step.effects:
        if isinstance(effect, lifecycle.Notify | lifecycle.SupervisionEnded):
            return (effect.finding,)
    return ()
