"""Results of rounds on their way into the database: gathered for a moment, or at once when trust changes.

Keeps only which nodes have something to write, so a database that is away costs no memory beyond the fleet itself; the
newest state of each is written when it is back. Must not know what the states mean.
"""

import asyncio
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from msgspec.structs import replace

from limeguard.store.database import Conflict, StoreUnavailable
from limeguard.store.node_record import NodeRecord
from limeguard.store.notices import Notice
from limeguard.telemetry import clean, get_logger
from limeguard.verifier.fleet import Node

log = get_logger("keylime.verifier")

BATCH_SECONDS = 1.0
"""Results of rounds wait at most this long for company by default. What readers decide by never waits (`save_now`);
what a crash loses of the rest is a count, and how far a log was read: the next round reads that part again."""
MAX_GATHER_SECONDS = 5.0
"""Results of rounds never wait longer, however long trust lasts: so much a worker that dies has not told."""
GAP_SECONDS = 0.1
"""Between two transactions, even for changes of trust: the first is written at once, those that follow it in numbers,
when many nodes fail together, a moment later and together. In memory distrust counts at once in any case."""
MAX_BATCH = 2000
"""Nodes in one transaction: a longer one would keep other writers out for too long."""
LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Bounds, in seconds, by which transactions are counted."""
RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Pauses while the database is away; the last one repeats."""


class RoundStore(Protocol):
    """What the writer needs of the store."""

    async def save_rounds(self, batch: list[NodeRecord], notices: list[Notice], /) -> frozenset[str]:
        """Write the states, and the notices with them; return the ids that were refused."""
        ...


@dataclass(slots=True)
class WriterCounters:
    """What happened since the start; read by metrics."""

    transactions: int = 0
    written: int = 0
    refused: int = 0
    failures: int = 0
    seconds: float = 0.0
    latency: list[int] = field(default_factory=lambda: [0] * (len(LATENCY) + 1))

    def took(self, seconds: float) -> None:
        """Count a transaction that took so long."""
        self.latency[bisect_left(LATENCY, seconds)] += 1
        self.seconds += seconds


class Writer:
    """One task that writes; everybody else only says what is to be written."""

    def __init__(
        self,
        store: RoundStore,
        on_refused: Callable[[Node], None],
        *,
        gather: float | None = None,
        on_notices: Callable[[], None] | None = None,
    ) -> None:
        """Write to `store`; `on_refused` hears of nodes whose row was changed or removed by somebody else.

        Results wait up to `gather` seconds for company. `on_notices` hears that there is something in the outbox.
        """
        self._gather_seconds = BATCH_SECONDS if gather is None else gather
        self._on_notices = on_notices
        self._store = store
        self._on_refused = on_refused
        self._waiting: dict[str, Node] = {}
        self._waits_since: float | None = None
        self._urgent: dict[str, Node] = {}
        self._committed: dict[str, list[asyncio.Future[bool]]] = {}
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._lock = asyncio.Lock()
        self._failed = 0
        self._wrote_at = -GAP_SECONDS
        self.counters = WriterCounters()

    @property
    def backlog(self) -> int:
        """How many nodes have something to write."""
        return len(self._waiting) + len(self._urgent)

    @property
    def failing(self) -> bool:
        """Whether the last try to write failed."""
        return self._failed > 0

    def save(self, node: Node) -> None:
        """Have the node's state written with the next batch."""
        if node.agent_id not in self._urgent:
            self._waiting[node.agent_id] = node
            if self._waits_since is None:
                self._waits_since = time.monotonic()
        self._wake.set()

    def save_now(self, node: Node) -> asyncio.Future[bool]:
        """Have the node's state written at once; the future says that it is committed, or False: that it never will."""
        self._waiting.pop(node.agent_id, None)
        self._urgent[node.agent_id] = node
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._committed.setdefault(node.agent_id, []).append(done)
        self._wake.set()
        self._hurry.set()
        return done

    def forget(self, node: Node) -> None:
        """Write nothing more of this node."""
        queues = (self._waiting, self._urgent)
        if any(queue.get(node.agent_id, node) is not node for queue in queues):
            return  # the id has been taken up anew
        for queue in queues:
            queue.pop(node.agent_id, None)
        self._settle(node.agent_id, written=False)

    async def run(self) -> None:
        """Write until cancelled. A fault of ours is logged and the work is tried again: results are not lost."""
        while True:
            await self._wake.wait()
            try:
                await self._gather()
                await self._let_pass()
                await self.flush(gathering=self._left() > 0)
            except Exception:
                log.exception("Error while writing results of rounds")
                self._failed += 1
            if self._failed:
                await asyncio.sleep(RETRY_SECONDS[min(self._failed, len(RETRY_SECONDS)) - 1])

    def _left(self) -> float:
        """Return for how many seconds what can wait may wait on."""
        now = time.monotonic()
        return self._gather_seconds if self._waits_since is None else self._waits_since + self._gather_seconds - now

    async def _gather(self) -> None:
        """Wait until trust changes, or what can wait has waited long enough."""
        self._hurry.clear()
        if self._urgent:
            return
        try:
            async with asyncio.timeout(max(self._left(), 0.0)):
                await self._hurry.wait()
        except TimeoutError:
            return

    async def _let_pass(self) -> None:
        """Let a moment pass since the last transaction: many changes of trust in a row share one."""
        left = self._wrote_at + GAP_SECONDS - time.monotonic()
        if left > 0:
            await asyncio.sleep(left)

    async def flush(self, *, gathering: bool = False) -> bool:
        """Write changes of trust, then, unless `gathering`, what else there is; False when the database takes nothing.

        Many nodes that fail one after the other do not have the results of all others written each time.
        """
        async with self._lock:
            self._wake.clear()
            self._hurry.clear()
            while self._urgent or (self._waiting and not gathering):
                queue = self._urgent or self._waiting
                batch = [queue[agent_id] for agent_id in list(queue)[:MAX_BATCH]]
                if not await self._write(batch):
                    self._wake.set()
                    return False
            if self._waiting:
                self._wake.set()
            else:
                self._waits_since = None
            return True

    async def _write(self, batch: list[Node]) -> bool:
        records = [node.record for node in batch]
        began = time.monotonic()
        try:
            notices = [notice for node in batch for notice in node.notices]
            refused = await self._store.save_rounds(records, notices)
        except (StoreUnavailable, Conflict) as problem:
            self._note_failure(problem)
            return False
        self._wrote_at = time.monotonic()
        self.counters.took(self._wrote_at - began)
        self._note_success(len(records), len(refused))
        if notices:
            for node in batch:
                node.notices = [notice for notice in node.notices if notice not in notices]
            if self._on_notices is not None:
                self._on_notices()
        for node, record in zip(batch, records, strict=True):
            if node.agent_id in refused:
                self.forget(node)
                self._on_refused(node)
            else:
                self._done(node, record)
        return True

    def _done(self, node: Node, record: NodeRecord) -> None:
        unchanged = node.record.state is record.state
        node.committed(replace(record, version=record.version + 1))
        for queue in (self._waiting, self._urgent):
            if queue.get(node.agent_id) is node and unchanged:
                del queue[node.agent_id]
        if unchanged:
            self._settle(node.agent_id, written=True)

    def _settle(self, agent_id: str, *, written: bool) -> None:
        for future in self._committed.pop(agent_id, ()):
            if not future.done():
                future.set_result(written)

    def _note_failure(self, problem: Exception) -> None:
        self.counters.failures += 1
        self._failed += 1
        if self._failed == 1:
            log.error("Results of rounds cannot be written, they are kept and tried again: %s", clean(problem))

    def _note_success(self, written: int, refused: int) -> None:
        if self._failed:
            log.info("Results of rounds are written again, after %d failed tries", self._failed)
        self._failed = 0
        self.counters.transactions += 1
        self.counters.written += written - refused
        self.counters.refused += refused
