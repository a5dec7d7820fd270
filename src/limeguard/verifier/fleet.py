"""The nodes of this process in memory, and when each is due: one slotted object a node, one timer heap for all.

Decides which rounds are due and which come late. Must not know what a round is, and neither waits nor writes.
"""

import asyncio
import heapq
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from msgspec.structs import replace

from limeguard.clients.agent import AgentAddress
from limeguard.evidence.tpm.structures import PublicArea
from limeguard.policy.pcrs import PcrPolicy
from limeguard.store.node_record import Enrolled, NodeRecord, NodeState
from limeguard.store.notices import Notice
from limeguard.verifier.push.attestation import Attestation
from limeguard.verifier.supervision import Job
from limeguard.verifier.view import shows_trust


class Node:
    """One supervised node.

    `record` is what supervision works with; `visible` is what readers are told. They differ only while a rise of trust
    waits for its commit: nobody hears of trust that the database does not hold.

    `stored` is the state that the database holds. `job` is what the timer is for, `busy` says that it is being done,
    `began` is when the last one was due, or began where that was late, `begun` whether the running one has, which its
    task says itself.
    `generation` counts the words of operators: what a job from before the last one brings back is dropped. `abandoned`
    says that the running job was cancelled for such a word, `late` that it was for taking too long.
    `notices` go into the outbox with the next write. `boot_log_length` is that of the last boot log, as it was sent.
    `overdue` is by how many seconds the last job began too late. Of a node that attests by itself, `attestation` is the
    latest, `next_attestation` the number of the next one, and `reserving` says that more numbers are being reserved.
    """

    __slots__ = (
        "abandoned",
        "address",
        "ak",
        "attestation",
        "began",
        "begun",
        "boot_log_length",
        "busy",
        "due",
        "faults",
        "generation",
        "job",
        "key_delivered",
        "late",
        "next_attestation",
        "notices",
        "overdue",
        "policy",
        "record",
        "reserving",
        "running",
        "stored",
        "visible",
    )

    def __init__(self, record: NodeRecord, ak: PublicArea, policy: PcrPolicy, address: AgentAddress) -> None:
        self.record = record
        self.visible = record
        self.stored = record.state
        self.ak = ak
        self.policy = policy
        self.address = address
        self.due: float | None = None
        self.overdue = 0.0
        self.began = 0.0
        self.job: Job | None = None
        self.busy = False
        self.begun = False
        self.abandoned = False
        self.late = False
        self.notices: list[Notice] = []
        self.boot_log_length = 0
        self.running: asyncio.Task[None] | None = None
        self.generation = 0
        self.key_delivered = False
        self.faults = 0
        self.attestation: Attestation | None = None
        self.next_attestation = record.state.attestation_limit
        self.reserving = False

    @property
    def agent_id(self) -> str:
        """The node's id."""
        return self.record.enrolled.agent_id

    @property
    def occupied(self) -> bool:
        """Whether a job is being done with the node, or evidence that it has sent is being judged."""
        return self.busy or (self.attestation is not None and self.attestation.judging)

    @property
    def state(self) -> NodeState:
        """What supervision knows now."""
        return self.record.state

    def become(self, state: NodeState, now: float) -> None:
        """Take a new state; readers see it at once unless it would turn the node green."""
        self.record = replace(self.record, state=state)
        if shows_trust(self.visible.state, now) or not shows_trust(state, now):
            self.visible = self.record

    def note_enrolled(self, enrolled: Enrolled) -> None:
        """Note what was enrolled, with what a replaced policy says now."""
        same = self.visible is self.record
        self.record = replace(self.record, enrolled=enrolled)
        self.visible = self.record if same else replace(self.visible, enrolled=enrolled)

    def committed(self, written: NodeRecord) -> None:
        """Note what the database now holds.

        The state may have moved on during the write; what readers see never falls back to an older, greener one. What
        was noted of the enrolment meanwhile stays.
        """
        current = self.visible.state is self.record.state or written.state is self.record.state
        self.stored = written.state
        self.record = replace(self.record, version=written.version)
        self.visible = self.record if current else replace(written, enrolled=self.record.enrolled)


LATENESS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds, in seconds, by which late rounds are counted."""


@dataclass(slots=True)
class Counters:
    """What happened since the start; read by metrics."""

    rounds: int = 0
    late_rounds: int = 0
    faults: int = 0
    lateness: list[int] = field(default_factory=lambda: [0] * (len(LATENESS) + 1))
    lateness_sum: float = 0.0
    findings: dict[str, int] = field(default_factory=dict)
    verdicts: dict[str, int] = field(default_factory=dict)

    def began_late(self, seconds: float) -> None:
        """Count a job that began so long after its time."""
        self.lateness[bisect_left(LATENESS, seconds)] += 1
        self.lateness_sum += seconds


class Fleet:
    """Nodes by id, and a heap of when they are due. Times are seconds of a clock that never goes back."""

    def __init__(self, *, late_after: float, jitter: Callable[[], float]) -> None:
        """Count rounds as late that start `late_after` seconds past their time; `jitter` gives 0 <= x < 1."""
        self._nodes: dict[str, Node] = {}
        self._heap: list[tuple[float, int, Node]] = []
        self._sequence = 0
        self._late_after = late_after
        self._jitter = jitter
        self.counters = Counters()

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(list(self._nodes.values()))

    def get(self, agent_id: str) -> Node | None:
        """Return the node of that id."""
        return self._nodes.get(agent_id)

    def add(self, node: Node) -> None:
        """Take a node in; it is not due before it is scheduled. Raises ValueError when the id is there already."""
        if node.agent_id in self._nodes:
            raise ValueError(f"{node.agent_id} is in the fleet already")
        self._nodes[node.agent_id] = node

    def remove(self, agent_id: str) -> Node | None:
        """Forget a node and its timer."""
        node = self._nodes.pop(agent_id, None)
        if node is not None:
            node.due = None
        return node

    def schedule(self, node: Node, at: float, *, spread: float = 0.0, catch_up: float = 0.0) -> None:
        """Make a node due at `at`, up to `spread` seconds later so that a fleet does not march in step.

        After a job that began late it is up to as much later as that was, at most `catch_up` seconds: what came due
        together while we were held up would else come due together for ever. A node has one timer: the last call
        counts.
        """
        if self._nodes.get(node.agent_id) is not node:
            return
        node.due = at + max(spread, min(node.overdue, catch_up)) * self._jitter()
        node.overdue = 0.0
        self._sequence += 1
        heapq.heappush(self._heap, (node.due, self._sequence, node))
        if len(self._heap) > 64 + 4 * len(self._nodes):
            self._sweep()

    def cancel(self, node: Node) -> None:
        """Take the timer of a node away."""
        node.due = None

    def next_due(self) -> float | None:
        """Return when the next node is due."""
        while self._heap and self._heap[0][2].due != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take_due(self, now: float) -> Node | None:
        """Return one node that is due and take its timer; a round is never owed twice, however late it is."""
        due = self.next_due()
        if due is None or due > now:
            return None
        # Counted first: a fault in here leaves the node due.
        self.counters.began_late(now - due)
        node = heapq.heappop(self._heap)[2]
        # One that waited for no more than a beat began when its time came, so that such waits do not add up.
        node.due, node.overdue, node.began = None, 0.0, due
        if now - due > self._late_after:
            self.counters.late_rounds += 1
            node.overdue, node.began = now - due, now
        return node

    def overdue(self, now: float) -> int:
        """Return how many nodes are due by now."""
        return sum(1 for node in self._nodes.values() if node.due is not None and node.due <= now)

    def pending(self) -> int:
        """Return how many nodes have a timer."""
        return sum(1 for node in self._nodes.values() if node.due is not None)

    def _sweep(self) -> None:
        """Drop the entries of timers that were taken away or replaced."""
        self._heap = [entry for entry in self._heap if entry[2].due == entry[0]]
        heapq.heapify(self._heap)
