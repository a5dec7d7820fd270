"""What the verifier says of itself, in the text format of Prometheus: counted where it happens, shown when asked.

Names say what is counted and in which unit. No label has a value that a node chooses.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from limeguard.appraisal.verdict import Condition
from limeguard.verifier.engine import Engine
from limeguard.verifier.fleet import LATENESS, Fleet
from limeguard.verifier.notices import Dispatcher
from limeguard.verifier.ownership import Ownership
from limeguard.verifier.view import condition_of
from limeguard.verifier.writer import Writer
from limeguard.web.pinned import PinnedHttp

_PREFIX: Final = "limeguard_verifier"


class Metrics(Collector):
    """The figures of one worker."""

    def __init__(
        self, engine: Engine, writer: Writer, http: PinnedHttp, dispatcher: Dispatcher, ownership: Ownership
    ) -> None:
        """Read from these parts."""
        self._ownership = ownership
        self._engine, self._writer, self._http, self._dispatcher = engine, writer, http, dispatcher
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """Return all figures as they are now."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Yield every figure."""
        yield from self._of_fleet(self._engine.fleet)
        yield from self._of_writer(self._writer)
        yield from self._of_leases(self._ownership)
        yield _gauge("jobs_running", "Requests to agents that are being done.", self._engine.running_jobs)
        yield _gauge("connections_idle", "Connections to agents that wait for their next request.", self._http.idle)
        yield _counter("notices", "Notices that arrived.", self._dispatcher.delivered)
        yield _counter("failed_notices", "Tries to deliver a notice that failed.", self._dispatcher.failed)
        yield _counter("given_up_notices", "Notices that are not tried again.", self._dispatcher.given_up)

    def _of_fleet(self, fleet: Fleet) -> Iterator[Metric]:
        counters, now = fleet.counters, time.time()
        conditions = Counter(condition_of(node.visible.state, now) for node in fleet)
        nodes = GaugeMetricFamily(f"{_PREFIX}_nodes", "Nodes in each condition.", labels=["condition"])
        for condition in Condition:
            nodes.add_metric([condition.value], conditions[condition])
        yield nodes
        yield _counter("rounds", "Jobs with agents that were begun.", counters.rounds)
        yield _counter("late_rounds", "Jobs that began more than a second after their time.", counters.late_rounds)
        yield _counter("faults", "Faults of this verifier itself.", counters.faults)
        yield HistogramMetricFamily(
            f"{_PREFIX}_lateness_seconds",
            "Seconds by which jobs began after their time.",
            buckets=_cumulative(counters.lateness),
            sum_value=counters.lateness_sum,
        )
        findings = CounterMetricFamily(f"{_PREFIX}_findings", "Findings by their id.", labels=["id"])
        for kind, count in sorted(counters.findings.items()):
            findings.add_metric([kind], count)
        yield findings

    def _of_writer(self, writer: Writer) -> Iterator[Metric]:
        counters = writer.counters
        yield _gauge("unwritten_nodes", "Nodes whose state waits to be written.", writer.backlog)
        yield _counter("transactions", "Transactions with results of rounds.", counters.transactions)
        yield _counter("transaction_seconds", "Seconds that those took.", counters.seconds)
        yield _counter("written_states", "States of nodes that were written.", counters.written)
        yield _counter("refused_states", "States whose row somebody else had changed.", counters.refused)
        yield _counter("failed_transactions", "Transactions that the database did not take.", counters.failures)

    def _of_leases(self, ownership: Ownership) -> Iterator[Metric]:
        counters = ownership.counters
        yield _gauge("partitions", "Partitions whose nodes this worker supervises.", ownership.partitions)
        yield _gauge("workers", "Workers of this verifier that live, on all machines.", ownership.live)
        yield _gauge("leases_valid", "Whether the leases of this worker count: 1, or 0.", int(ownership.open))
        yield _counter("leases_taken", "Leases that were taken.", counters.taken)
        yield _counter("leases_released", "Leases that were given back.", counters.released)
        yield _counter("leases_lost", "Leases that others took from this worker.", counters.lost)
        yield _counter("lease_renewals", "Signs of life that the database took.", counters.beats)
        yield _counter(
            "lease_renewal_seconds", "Seconds that those took: the latency of the database.", counters.beat_seconds
        )
        yield _counter("failed_lease_renewals", "Signs of life that the database did not take.", counters.failed_beats)
        yield _counter("changes_heard", "Changes of nodes by others that this worker went by.", counters.changes)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"{_PREFIX}_{name}", text, value=value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{_PREFIX}_{name}", text, value=value)


def _cumulative(counts: list[int]) -> list[tuple[str, float]]:
    """Return buckets as Prometheus wants them: each with all that are smaller."""
    total, buckets = 0, []
    for bound, count in zip((*map(str, LATENESS), "+Inf"), counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets
