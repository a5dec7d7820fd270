"""What a simulation has seen: counted while it runs, handed out as plain figures at its end. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from limeguard.simulator.scenario import histogram_quantile

BUCKET: Final = 0.001
BUCKETS: Final = 60_000
"""Lateness is counted in milliseconds up to a minute."""
QUANTILES: Final = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))


@dataclass(slots=True)
class Detection:
    """One attack: how long the verifier took to distrust the node, None when it did not."""

    attack: str
    agent_id: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of the verifier's processes: before any machine was enrolled, and while it was measured.

    `start` is the end of the warm-up.
    """

    empty: int = 0
    start: int = 0
    end: int = 0
    mean: int = 0
    peak: int = 0

    @classmethod
    def of(cls, empty: int, samples: Sequence[int]) -> "Memory":
        """Return the figures of samples in the order of time, all zero for none."""
        if not samples:
            return cls(empty)
        return cls(empty, samples[0], samples[-1], sum(samples) // len(samples), max(samples))

    @property
    def growth(self) -> int:
        """By how much it grew after the warm-up: what is flat does not."""
        return self.end - self.start


class Rounds:
    """Counts questions while they come in: how many, how late, how many in the busiest second."""

    def __init__(self) -> None:
        """Count from here on."""
        self._buckets = [0] * (BUCKETS + 1)
        self._seconds: Counter[int] = Counter()
        self.count = 0

    def add(self, now: float, late: float) -> None:
        """Count a round at `now` that came `late` seconds after its time."""
        self.count += 1
        self._seconds[int(now)] += 1
        self._buckets[min(int(late / BUCKET), BUCKETS)] += 1

    @property
    def busiest_second(self) -> int:
        """Questions in the second with most of them."""
        return max(self._seconds.values(), default=0)

    def lateness(self) -> dict[str, float]:
        """Return quantiles in seconds."""
        return {name: histogram_quantile(self._buckets, part, BUCKET) for name, part in QUANTILES}


@dataclass(slots=True)
class Report:
    """What was seen. Seconds, counts, seconds of CPU, and bytes.

    `waiting` counts machines with which nothing was wrong and which were not asked in the last intervals. `bytes_asked`
    and `bytes_answered` are of HTTP, without what TLS adds. `sessions` and `refusals` are of machines that call the
    verifier. `errors` counts by kind what did not go as it must.
    """

    nodes: int = 0
    registered_per_second: float | None = None
    enrolled_per_second: float = 0.0
    all_asked_after: float | None = None
    seconds: float = 0.0
    rounds: int = 0
    busiest_second: int = 0
    lateness: dict[str, float] = field(default_factory=dict)
    waiting: int = 0
    connections: int = 0
    bytes_asked: int = 0
    bytes_answered: int = 0
    notices: int = 0
    sessions: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    complaints: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    simulator_cpu: float = 0.0
    verifier_cpu: float = 0.0
    verifier_bytes: int = 0
    memory: Memory = field(default_factory=Memory)
    detections: list[Detection] = field(default_factory=list)
    conditions: dict[str, int] = field(default_factory=dict)

    @property
    def rounds_per_second(self) -> float:
        """Rounds that were answered in a second."""
        return self.rounds / self.seconds if self.seconds else 0.0

    def figures(self) -> dict[str, Any]:
        """Return everything as JSON has it, with what follows from it: cost of a round, and growth of memory."""
        rounds = self.rounds or 1
        return {
            **asdict(self),
            "rounds_per_second": self.rounds_per_second,
            "verifier_cpu_per_round": self.verifier_cpu / rounds,
            "simulator_cpu_per_round": self.simulator_cpu / rounds,
            "bytes_per_round": (self.bytes_asked + self.bytes_answered) / rounds,
            "memory_growth": self.memory.growth,
            "bytes_per_machine": (self.memory.end - self.memory.empty) / max(self.nodes, 1),
        }
