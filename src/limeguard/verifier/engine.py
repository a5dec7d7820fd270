"""Supervision at work: takes nodes that are due, has their jobs done, steps the lifecycle, carries out the effects.

The one place where a node's state changes in memory. Must not judge evidence (appraisal) nor decide what follows from
it (lifecycle). Whatever goes wrong in here, a supervised node gets a new timer, and no fault of ours makes trust.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from msgspec.structs import replace

from limeguard.appraisal.findings import Finding
from limeguard.appraisal.verdict import Integrity
from limeguard.store.database import StoreUnavailable
from limeguard.store.notices import Notice
from limeguard.telemetry import clean, get_logger
from limeguard.verifier import lifecycle
from limeguard.verifier.fleet import Fleet, Node
from limeguard.verifier.journal import log_event
from limeguard.verifier.lifecycle import Event, Step
from limeguard.verifier.poller import Facts, Result
from limeguard.verifier.record import afresh, supervision_of, with_facts, with_findings, with_supervision
from limeguard.verifier.supervision import Job, Phase, Rules, Supervision
from limeguard.verifier.view import condition_of
from limeguard.verifier.writer import Writer
from limeguard.web.beat import Beat
from limeguard.wire.notice import notice_text

log = get_logger("keylime.verifier")

JITTER: Final = 0.05
"""Part of a pause that is left to chance, so that a fleet does not march in step."""
BUSY_PAUSE: Final = 0.05
"""Seconds after which a node is looked at again whose last job is just being given up."""
STARTS_AT_ONCE: Final = 64
"""Jobs that are started until other work of the loop has its turn: when all come due at once, requests are heard."""
FAULT_PAUSE: Final = 1.0
"""Seconds until rounds are started again when that itself failed."""
FALLBACK_PAUSE: Final = 30.0
"""Seconds until the next try when even the handling of a job failed."""
QUIET_PAUSE: Final = 0.02
"""Seconds between two looks whether the last jobs of nodes have ended."""
REMOVE_PAUSE: Final = 2.0
"""Seconds between tries to delete a row while the database is away."""


_ROUNDS: Final = (lifecycle.RoundTrusted, lifecycle.RoundDistrusted)


class Performer(Protocol):
    """Does one job with one node's agent."""

    async def perform(self, node: Node, job: Job, /) -> Result:
        """Return what came of it; whatever is raised is our own fault."""
        ...


class Remover(Protocol):
    """Deletes rows."""

    async def delete(self, agent_id: str, epoch: int | None = None, /) -> bool:
        """Delete a node's row under that lease; False when that is not ours. Raises StoreUnavailable."""
        ...


@dataclass(slots=True)
class Applied:
    """What is left to the caller of `apply`: a commit to wait for, and whether the node is to be removed."""

    committed: asyncio.Future[bool] | None = None
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
        beat: Beat | None = None,
        may_start: Callable[[], bool] = lambda: True,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Put the parts together. `now` is seconds since 1970; `clock` never goes back, timers run on it.

        Notices go over `channels`. Rounds begin at the beats of `beat`, each with all that came due since the last.
        Nothing is started while `may_start` says no; `wake` the engine when it says yes.
        """
        self._beat = beat
        self._again: asyncio.Handle | None = None
        self._may_start = may_start
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
        self._watchdog: asyncio.TimerHandle | None = None
        self._stopping = False

    # --- taking nodes in and stepping them ---------------------------------------------------------------------------

    def supervision(self, node: Node) -> Supervision:
        """Return what supervision knows of a node, with what is not stored."""
        enrolled = node.record.enrolled
        stored = supervision_of(node.state, has_v=enrolled.v is not None, push=enrolled.push)
        return replace(stored, job=node.job, key_delivered=node.key_delivered, faults=node.faults)

    def take_in(
        self, node: Node, event: lifecycle.Enrolled | lifecycle.Restarted, *, delay: float = 0.0, spread: float = 0.0
    ) -> Applied:
        """Add a node to the fleet and begin after `delay`; `spread` keeps a fleet from starting all at once."""
        self.fleet.add(node)
        return self.apply(node, event, delay=delay, spread=spread)

    def apply(
        self, node: Node, event: Event, facts: Facts | None = None, *, delay: float = 0.0, spread: float = 0.0
    ) -> Applied:
        """Step a node and carry out the effects that need no waiting."""
        before = self.supervision(node)
        step = lifecycle.step(before, event, self.rules)
        self._change(node, step, event, facts)
        log_event(node, event, before, step, self.rules)
        if isinstance(event, lifecycle.Reactivated | lifecycle.StopRequested | lifecycle.DeleteRequested):
            self._abandon(node)
        applied = Applied()
        for effect in step.effects:
            self._carry_out(node, event, effect, applied, delay, spread)
        return applied

    def _change(self, node: Node, step: Step, event: Event, facts: Facts | None) -> None:
        now, after = self._now(), step.state
        state = with_supervision(node.state, after)
        if facts is not None:
            trusted = isinstance(event, lifecycle.RoundTrusted) and after.integrity is Integrity.TRUSTED
            state = with_facts(state, facts, trusted=trusted)
        if isinstance(event, lifecycle.Enrolled | lifecycle.Reactivated):
            state = afresh(state)
        findings = _findings_of(event, step)
        for finding in findings:
            counted = self.fleet.counters.findings
            counted[finding.kind.id] = counted.get(finding.kind.id, 0) + 1
        state = with_findings(state, findings, self.rules.severity, now)
        node.job, node.key_delivered, node.faults = after.job, after.key_delivered, after.faults
        if state != node.state:
            node.become(state, now)

    def _carry_out(
        self, node: Node, event: Event, effect: lifecycle.Effect, applied: Applied, delay: float, spread: float
    ) -> None:
        match effect:
            case lifecycle.Schedule(after, _):
                start = self._due(node, after) if isinstance(event, _ROUNDS) else self._clock() + after + delay
                # Late rounds are spread, but never so far that trust would run out for it.
                slack = min(after, max(self.rules.trust_lifetime - 2 * after, 0.0))
                self.fleet.schedule(node, start, spread=max(spread, JITTER * after), catch_up=slack)
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

    def _due(self, node: Node, after: float) -> float:
        """Return when the next round is due at the earliest, `after` seconds past the beginning of the last one.

        So the time that rounds take does not add up; half of the pause is kept however long one took.
        """
        return max(node.began + (1 - JITTER / 2) * after, self._clock() + after / 2)

    def reserve_attestations(self, node: Node, limit: int) -> asyncio.Future[bool]:
        """Note that numbers below `limit` may be given to attestations of a node; says whether it is committed."""
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
            if node.begun:  # or else it would never be, and who waits for its end would wait for ever
                node.running.cancel()

    async def remove(self, node: Node) -> bool:
        """Delete the row, then forget the node; say whether there was a row that is ours.

        Raises StoreUnavailable; the node stays terminated then.
        """
        deleted = await self._rows.delete(node.agent_id, node.record.epoch)
        self.forget(node)
        return deleted

    def drop(self, node: Node) -> None:
        """Forget a node, and give up what runs with it: its row is no longer what we know."""
        self._abandon(node)
        self.forget(node)

    def forget(self, node: Node) -> None:
        """Forget a node whose row is gone."""
        self._writer.forget(node)
        if self.fleet.get(node.agent_id) is node:
            self.fleet.remove(node.agent_id)

    async def quiet(self, nodes: Sequence[Node], seconds: float) -> None:
        """Start nothing more with these nodes and let running jobs end for so long; then give them up.

        They have no timer afterwards: who does not forget them has to `resume` them.
        """
        end = self._clock() + seconds
        while True:
            for node in nodes:
                self.fleet.cancel(node)
            busy = [node for node in nodes if node.occupied]
            if not busy:
                return
            if self._clock() >= end:
                break
            await asyncio.sleep(QUIET_PAUSE)
        jobs = [node.running for node in busy if node.running is not None]
        for node in busy:
            self._abandon(node)
        if jobs:
            await asyncio.wait(jobs, timeout=1.0)
        for node in nodes:
            self.fleet.cancel(node)

    def resume(self, nodes: Sequence[Node]) -> None:
        """Give timers back to nodes that were made quiet."""
        for node in nodes:
            if node.record.enrolled.push and node.job is not Job.WATCH:
                continue  # it has no timer: there is no trust of it that could run out
            if node.due is None and not node.busy and lifecycle.supervised(self.supervision(node), self.rules):
                self.fleet.schedule(node, self._clock(), spread=self.rules.quote_interval)
        self._arm()

    def wake(self) -> None:
        """Start what has come due while nothing was to be started."""
        self._arm()

    # --- the loop ----------------------------------------------------------------------------------------------------

    @property
    def running_jobs(self) -> int:
        """How many jobs are being done."""
        return len(self._jobs)

    def overdue(self) -> int:
        """Return how many nodes wait although their time has come."""
        return self.fleet.overdue(self._clock())

    @property
    def draining(self) -> bool:
        """Whether no more jobs are started."""
        return self._stopping

    async def run(self) -> None:
        """Start jobs as they come due, until cancelled."""
        self._loop = asyncio.get_running_loop()
        if self._beat is None:
            self._beat = Beat(0.0)
        self._watch()
        try:
            await self._loop.create_future()
        finally:
            self._beat.cancel(self._fire)
            if self._watchdog is not None:
                self._watchdog.cancel()
            self._loop = None

    def _arm(self) -> None:
        """Have `_fire` called when the next node is due. One wish stands for the timers of all nodes."""
        if self._loop is None or self._beat is None or self._stopping:
            return
        if len(self._jobs) >= self._limits.jobs or not self._may_start():
            return
        due = self.fleet.next_due()
        if due is not None:
            self._beat.call_after(due - self._clock(), self._fire)

    def _fire(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        try:
            self._start_due()
        except Exception:
            log.exception("Error while starting rounds")
            self.fleet.counters.faults += 1
            if self._beat is not None:
                self._beat.call_after(FAULT_PAUSE, self._fire)
        else:
            self._arm()

    def _start_due(self) -> None:
        if self._loop is None or not self._may_start():
            return
        for _ in range(STARTS_AT_ONCE):
            if len(self._jobs) >= self._limits.jobs or self._stopping:
                return
            node = self.fleet.take_due(self._clock())
            if node is None:
                return
            if node.job is Job.WATCH:
                self.apply(node, lifecycle.DeadlinePassed(self._now()))
                continue
            if node.busy:
                self.fleet.schedule(node, self._clock() + BUSY_PAUSE)
                continue
            node.busy, node.begun = True, False
            task = asyncio.create_task(self._work(node, node.job or Job.FULL_ROUND))
            node.running = task
            self._jobs[task] = (node, self._clock() + self._limits.job_seconds)
            task.add_done_callback(self._job_done)
        self._again = self._loop.call_soon(self._fire)  # others have their turn first

    def _watch(self) -> None:
        """Give up jobs that take too long, and see that there is a timer; one look is cheaper than one for each job."""
        if self._loop is None:
            return
        self._watchdog = self._loop.call_later(min(self._limits.job_seconds / 4, 1.0), self._watch)
        now = self._clock()
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
        node.begun = True
        self.fleet.counters.rounds += 1
        try:
            try:
                result = None if node.abandoned else await self._performed(node, job)
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
            self.count_verdict(node)
            if applied.remove:
                await self._remove_terminated(node)

    def count_verdict(self, node: Node) -> None:
        """Count the condition that a round has left its node in."""
        verdicts, after = self.fleet.counters.verdicts, condition_of(node.state, self._now())
        verdicts[after] = verdicts.get(after, 0) + 1

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
    return random.random()  # noqa: S311 - nothing secret, and a tenth of the time


def _findings_of(event: Event, step: Step) -> tuple[Finding, ...]:
    """Return the findings of a step: all of a bad round, or the one for which supervision changed."""
    if isinstance(event, lifecycle.RoundDistrusted):
        return tuple(event.findings)
    for effect in step.effects:
        if isinstance(effect, lifecycle.Notify | lifecycle.SupervisionEnded):
            return (effect.finding,)
    return ()
