"""Which nodes are this worker's: its leases, when they count, and what is done when they come and go.

Decides by the clock of this machine alone whether rounds may be started and nodes answered for: a worker that was
paused past its leases' end finds that out before it does anything. Must not know SQL, nor what a round is.
"""

import asyncio
import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Protocol

from limeguard.store.changes import Look
from limeguard.store.database import Conflict, StoreUnavailable
from limeguard.store.leases import Standing
from limeguard.store.node_record import partition_of
from limeguard.store.schema_verifier import PARTITIONS
from limeguard.telemetry import clean, get_logger

log = get_logger("keylime.verifier")

LEASE_SECONDS: Final = 5.0
"""A worker that the database has not heard of for so long has lost its nodes to others."""
OUTAGE_SECONDS: Final = 300.0
"""So long rounds go on while the database is away: nobody can take the nodes over, and nobody can be told either."""
RECONCILE_SECONDS: Final = 30.0
"""How often rows and memory are compared, should a change ever have been missed."""
RETRY_SECONDS: Final = 0.5
CALL_PAUSE: Final = 0.005
"""Seconds between a call and the look that follows: several calls are one look."""
CALLS_PAUSE: Final = 0.05
"""Seconds between looks while calls come one after the other."""
START_SECONDS: Final = 3.0
"""So long after its start a worker counts its crew as alive, seen or not: the first shall not take all."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds: how long leases last, between two signs of life, and between two looks at what others have changed.

    `look_called` is for databases that call, `look_quiet` for a worker that is the only one: a look is then no more
    than a safeguard.
    """

    lease: float = LEASE_SECONDS
    beat: float = LEASE_SECONDS / 4
    look: float = 0.25
    look_called: float = 2.0
    look_quiet: float = 5.0
    outage: float = OUTAGE_SECONDS

    @property
    def margin(self) -> float:
        """How much earlier than the database a worker counts its leases as ended."""
        return self.lease / 20


class LeaseTable(Protocol):
    """What is needed of `store.leases`."""

    async def beat(
        self,
        held: Mapping[int, int],
        gone: Callable[[str, int], bool],
        /,
        *,
        crew: int = 1,
        leaving: bool = False,
        patient: bool = False,
    ) -> Standing:
        """Say that we live; take what is missing to our share."""
        ...

    async def release(self, partitions: Collection[int], /) -> None:
        """Give leases back."""
        ...

    async def leave(self) -> None:
        """Give all back."""
        ...


class ChangeTable(Protocol):
    """What is needed of `store.changes`."""

    async def look(self) -> Look:
        """Say whether there is anything to do."""
        ...

    async def mine(self) -> list[tuple[int, str]]:
        """Return changes of our nodes."""
        ...

    async def heard(self, numbers: Collection[int], /) -> None:
        """Remove changes that we go by."""
        ...


class Keeper(Protocol):
    """Who keeps the nodes of partitions that come and go. Each method may raise StoreUnavailable."""

    async def taken(self, epochs: Mapping[int, int], /) -> None:
        """Take up the nodes of these partitions."""
        ...

    def lost(self, partitions: Collection[int], /) -> None:
        """Forget the nodes of these partitions at once: somebody else may have them."""
        ...

    async def let_go(self, partitions: Collection[int], /) -> bool:
        """End what runs with these nodes, write what was learned, forget them; False when that could not be written."""
        ...

    async def changed(self, agent_ids: Collection[str], /) -> None:
        """Go by what the rows of these nodes say now."""
        ...

    async def policies_changed(self) -> None:
        """Go by what the policies say now."""
        ...

    async def reconcile(self, partitions: Collection[int], /) -> None:
        """Take up what the rows have and memory has not."""
        ...


def boot_clock() -> float:
    """Return seconds that go on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@lru_cache(maxsize=1)
def place() -> str:
    """Return a name for this machine and its numbering of processes: the same for all who can see each other's."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"[:100]
    except OSError:
        return ""


def process_gone(where: str, pid: int) -> bool:
    """Say whether a process of our own place is dead; of other places nothing is known."""
    if not where or where != place() or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Say whether a process has ended and nobody has taken note of it, as in containers without an init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False


@dataclass(slots=True)
class LeaseCounters:
    """What happened since the start; read by metrics."""

    taken: int = 0
    released: int = 0
    lost: int = 0
    failed_beats: int = 0
    beats: int = 0
    beat_seconds: float = 0.0
    changes: int = 0


class Ownership:
    """The leases of this worker, kept up by `run`."""

    def __init__(
        self,
        leases: LeaseTable,
        changes: ChangeTable,
        *,
        crew: int = 1,
        timing: Timing | None = None,
        opened: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        """Hold leases as one of `crew` workers that start together. `opened` hears when rounds may go on again."""
        self._leases, self._changes = leases, changes
        self._crew = crew
        self._timing = timing or Timing()
        self._opened = opened
        self._clock = clock
        self._keeper: Keeper | None = None
        self._held: dict[int, int] = {}
        self._loaded: dict[int, int] = {}
        self._live = 1
        self._share = 0
        self._started = clock()
        self._valid_until = float("-inf")
        self._failed_at = float("-inf")
        self._patient_until = float("-inf")
        self._beat_due = clock()
        self._look_due = clock()
        self._looked_at = float("-inf")
        self._reconcile_due = clock() + RECONCILE_SECONDS
        self._policies: float | None = None
        self._wake = asyncio.Event()
        self._called = False
        self._moving: asyncio.Task[None] | None = None
        self._releasing: frozenset[int] = frozenset()
        self._doubt = False
        # One for the table and what is known of it, one for the nodes that come and go.
        self._table = asyncio.Lock()
        self._turn = asyncio.Lock()
        self._leaving = False
        self.listening: Callable[[], bool] = lambda: False
        self.counters = LeaseCounters()

    # --- what others ask ----------------------------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Whether our leases count now: rounds may start, and nodes be answered for from memory.

        While the database cannot be reached they go on counting for a while: it was tried a moment ago, and failed.
        """
        now = self._clock()
        if now < self._valid_until:
            return True
        return now < self._failed_at + self._timing.lease and now < self._valid_until + self._timing.outage

    @property
    def partitions(self) -> int:
        """How many partitions are held."""
        return len(self._held)

    @property
    def live(self) -> int:
        """How many workers there were at the last beat."""
        return self._live

    @property
    def alone(self) -> bool:
        """Whether every node of this verifier is this worker's, and in its memory."""
        return self._live == 1 and self.open and len(self._loaded) == len(self._held) == PARTITIONS

    def epoch_of(self, agent_id: str) -> int | None:
        """Return the epoch under which a node is ours, None when it is not."""
        partition = partition_of(agent_id)
        if partition in self._releasing or not self.open:
            return None
        return self._held.get(partition)

    def keeps(self, agent_id: str) -> bool:
        """Say whether a node is ours now, and in memory if it was enrolled before we looked last."""
        partition = partition_of(agent_id)
        return self.epoch_of(agent_id) is not None and self._loaded.get(partition) == self._held.get(partition)

    def holds(self, agent_id: str, epoch: int) -> bool:
        """Say whether the lease of a node's partition is still this very one."""
        return self._held.get(partition_of(agent_id)) == epoch

    def call(self) -> None:
        """Look at the database soon: something has changed, or a write was refused."""
        self._called = True
        self._wake.set()

    def beat_soon(self) -> None:
        """Ask the database what is ours, whatever we believe: a write was refused."""
        self._doubt = True
        self._beat_due = self._clock()
        self._wake.set()

    # --- life ---------------------------------------------------------------------------------------------------------

    async def begin(self, keeper: Keeper) -> None:
        """Take a first share and its nodes. Raises StoreUnavailable."""
        self._keeper = keeper
        began = self._clock()
        for turn in range(self._crew + 2):
            try:
                standing = await self._leases.beat(self._held, process_gone, crew=self._crew)
                break
            except Conflict:  # others start at the same time
                await asyncio.sleep(0.05 * (turn + 1))
        else:
            raise StoreUnavailable("the leases of this verifier cannot be taken")
        self._beat_due = self._clock() + self._timing.beat
        taken = self._settle(standing, began)
        await keeper.taken(taken)
        self._loaded.update(taken)

    async def run(self) -> None:
        """Keep the leases and go by changes, until cancelled. A fault of ours is logged and tried again."""
        try:
            while True:
                await self._pause()
                try:
                    await self._turn_of_the_wheel()
                except (StoreUnavailable, Conflict) as problem:
                    log.debug("Changes cannot be looked for: %s", clean(problem))
                    self._look_due = self._clock() + RETRY_SECONDS
                except Exception:
                    log.exception("Error while keeping leases")
                    await asyncio.sleep(RETRY_SECONDS)
        finally:
            if self._moving is not None:
                self._moving.cancel()

    async def _pause(self) -> None:
        if self._called:
            self._called = False
            soon = max(self._clock() + CALL_PAUSE, self._looked_at + CALLS_PAUSE)
            self._look_due = min(self._look_due, soon)
        self._wake.clear()
        seconds = min(self._beat_due, self._look_due) - self._clock()
        if seconds <= 0:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _turn_of_the_wheel(self) -> None:
        now = self._clock()
        if now >= self._beat_due:
            await self.beat()
        if now >= self._look_due:
            self._look_due, self._looked_at = now + self._look_pause(), now
            await self._look()
        if now >= self._reconcile_due and self._moving is None and self._keeper is not None and self.open:
            self._reconcile_due = now + RECONCILE_SECONDS
            async with self._turn:
                await self._keeper.reconcile(tuple(self._loaded))

    def _look_pause(self) -> float:
        if self._live == 1 and self._crew == 1:
            return self._timing.look_quiet
        return self._timing.look_called if self.listening() else self._timing.look

    async def beat(self) -> None:
        """Say that we live, and go by what the database says is ours."""
        async with self._table:
            await self._beat()

    async def _beat(self) -> None:
        began = self._clock()
        self._beat_due = began + self._timing.beat
        crew = self._crew if began < self._started + START_SECONDS else 1
        try:
            async with asyncio.timeout(self._timing.lease / 2):
                known = {} if self._doubt else self._held
                standing = await self._leases.beat(
                    known, process_gone, crew=crew, leaving=self._leaving, patient=began < self._patient_until
                )
        except (StoreUnavailable, Conflict, TimeoutError) as problem:
            self.counters.failed_beats += 1
            if self._failed_at == float("-inf"):
                log.error("Leases cannot be renewed, rounds go on meanwhile: %s", clean(problem) or "no answer")  # noqa: TRY400
            self._failed_at = self._clock()
            # When the database is back, others are given the time to say that they live.
            self._patient_until = float("inf")
            self._beat_due = min(self._beat_due, self._failed_at + RETRY_SECONDS)
            return
        self.counters.beats += 1
        self.counters.beat_seconds += self._clock() - began
        if self._failed_at != float("-inf"):
            log.info("Leases are renewed again")
            self._patient_until = self._clock() + self._timing.lease
        was_open = self.open
        self._doubt = False
        self._settle(standing, began)
        if not was_open:
            self._opened()
        self._move()

    def _settle(self, standing: Standing, began: float) -> dict[int, int]:
        """Go by a beat that was sent at `began`; return what is ours now and was not before."""
        self._valid_until = began + self._timing.lease - self._timing.margin
        self._failed_at = float("-inf")
        lost = {one for one, epoch in self._held.items() if standing.held.get(one) != epoch}
        taken = {one: epoch for one, epoch in standing.held.items() if self._held.get(one) != epoch}
        if lost:
            log.warning("%d partitions were lost to other workers", len(lost))
            self.counters.lost += len(lost)
            for one in lost:
                self._loaded.pop(one, None)
        self._held = dict(standing.held)
        if lost and self._keeper is not None:
            self._keeper.lost(lost)
        if taken:
            self.counters.taken += len(taken)
            log.info("%d partitions were taken; %d of %d are held", len(taken), len(self._held), standing.share)
        if standing.live != self._live:
            self._look_due = self._clock()
        self._live, self._share = standing.live, standing.share
        return taken

    # --- partitions that come and go ----------------------------------------------------------------------------------

    def _move(self) -> None:
        """Have what is new loaded and what is too much released, beside the beats: both may take seconds."""
        pending = any(self._loaded.get(one) != epoch for one, epoch in self._held.items())
        if self._moving is None and (pending or len(self._held) > self._share) and not self._leaving:
            self._moving = asyncio.create_task(self._moved())
            self._moving.add_done_callback(self._move_done)

    def _move_done(self, task: asyncio.Task[None]) -> None:
        self._moving = None
        if not task.cancelled() and (fault := task.exception()) is not None:
            log.error("Partitions could not be moved: %s", clean(f"{type(fault).__name__}: {fault}"))
            self._beat_due = min(self._beat_due, self._clock() + RETRY_SECONDS)

    async def _moved(self) -> None:
        keeper = self._keeper
        if keeper is None:
            return
        async with self._turn:
            fresh = {one: epoch for one, epoch in self._held.items() if self._loaded.get(one) != epoch}
            if fresh:
                await keeper.taken(fresh)
                self._loaded.update({one: epoch for one, epoch in fresh.items() if self._held.get(one) == epoch})
        extra = sorted(self._held)[self._share :]
        if extra:
            await self._release(extra)

    async def _release(self, partitions: Collection[int]) -> None:
        if self._keeper is None:
            return
        self._releasing = frozenset(partitions)
        try:
            async with self._turn:
                if not await self._keeper.let_go(partitions):
                    return
                for one in partitions:
                    self._loaded.pop(one, None)
                async with self._table:
                    self._doubt = True
                    await self._leases.release(partitions)
                    for one in partitions:
                        self._held.pop(one, None)
        finally:
            self._releasing = frozenset()
        self.counters.released += len(partitions)
        log.info("%d partitions were given back", len(partitions))

    async def hand_over(self, idle: Callable[[int], bool]) -> None:
        """Take nothing more, and give back at once what is `idle`: others need not wait for the last job."""
        self._leaving = True
        await self.beat()
        if self.open and (ready := [one for one in self._held if idle(one)]):
            await self._release(ready)

    async def leave(self) -> None:
        """Give everything back, at the end. What cannot be given back runs out by itself."""
        self._leaving = True
        self._held, self._loaded = {}, {}
        self._valid_until = self._failed_at = float("-inf")
        try:
            async with asyncio.timeout(self._timing.lease / 2):
                await self._leases.leave()
        except (StoreUnavailable, Conflict, TimeoutError) as problem:
            log.warning("Leases could not be given back, they end by themselves: %s", clean(problem) or "no answer")

    # --- changes ------------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        seen = await self._changes.look()
        if not seen.present or (seen.free and len(self._held) <= self._share and not self._leaving):
            await self.beat()
        if self._keeper is None:
            return
        if seen.policies != self._policies:
            await self._keeper.policies_changed()
            self._policies = seen.policies  # not before: the database may have been away in between
        if seen.changed and self.open:
            await self._hear()

    async def _hear(self) -> None:
        async with self._turn:
            lines = await self._changes.mine()
            if not lines or self._keeper is None:
                return
            await self._keeper.changed({agent_id for _, agent_id in lines})
            await self._changes.heard([number for number, _ in lines])
            self.counters.changes += len(lines)
