"""What the verifier says of itself, in the text format of Prometheus: counted where it happens, shown when asked.

Names say what is counted and in which unit. No label has a value that a node chooses. The page of the reference about
metrics is made from `DESCRIPTIONS`, which also holds every text that is sent.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from limeguard.appraisal.verdict import Condition
from limeguard.clients.agent import AgentClient
from limeguard.verifier.engine import Engine
from limeguard.verifier.fleet import LATENESS, Fleet
from limeguard.verifier.notices import Dispatcher
from limeguard.verifier.ownership import Ownership
from limeguard.verifier.view import condition_of
from limeguard.verifier.writer import LATENCY, Writer
from limeguard.web.pinned import PinnedHttp

_PREFIX: Final = "limeguard_verifier"


@dataclass(frozen=True, slots=True)
class Description:
    """A metric without the prefix of its name: `kind` as Prometheus has it, what it says, and its label if any."""

    name: str
    kind: str
    text: str
    label: str = ""

    @property
    def shown(self) -> str:
        """The name as it is scraped."""
        return f"{_PREFIX}_{self.name}{'_total' if self.kind == 'counter' else ''}"


DESCRIPTIONS: Final = (
    Description("nodes", "gauge", "Nodes in each condition, as readers see them now.", "condition"),
    Description("rounds", "counter", "Jobs with agents that were begun."),
    Description("verdicts", "counter", "Rounds by the condition that their node had after them.", "condition"),
    Description("findings", "counter", "Findings by their id.", "id"),
    Description("lateness_seconds", "histogram", "Seconds by which jobs began after their time."),
    Description("late_rounds", "counter", "Jobs that began more than a second after their time."),
    Description("overdue_nodes", "gauge", "Nodes whose time has come and whose job has not begun."),
    Description("jobs_running", "gauge", "Requests to agents that are being done."),
    Description("connections_idle", "gauge", "Connections to agents that wait for their next request."),
    Description("answer_bytes", "counter", "Bytes of agents' answers, without heads and what TLS adds."),
    Description("faults", "counter", "Faults of this verifier itself."),
    Description("unwritten_nodes", "gauge", "Nodes whose state waits to be written."),
    Description("transactions", "counter", "Transactions with results of rounds."),
    Description("transaction_seconds", "counter", "Seconds that those took."),
    Description("transaction_duration_seconds", "histogram", "How long the database takes for one of them."),
    Description("failed_transactions", "counter", "Transactions that the database did not take."),
    Description("written_states", "counter", "States of nodes that were written."),
    Description("refused_states", "counter", "States whose row somebody else had changed."),
    Description("notices_waiting", "gauge", "Notices that have not arrived yet, counted every five seconds."),
    Description("notices", "counter", "Notices that arrived."),
    Description("failed_notices", "counter", "Tries to deliver a notice that failed."),
    Description("given_up_notices", "counter", "Notices that are not tried again."),
    Description("partitions", "gauge", "Partitions whose nodes this worker supervises."),
    Description("workers", "gauge", "Workers of this verifier that live, on all machines."),
    Description("leases_valid", "gauge", "Whether the leases of this worker count: 1, or 0."),
    Description("leases_taken", "counter", "Leases that were taken."),
    Description("leases_released", "counter", "Leases that were given back."),
    Description("leases_lost", "counter", "Leases that others took from this worker."),
    Description("lease_renewals", "counter", "Signs of life that the database took."),
    Description("lease_renewal_seconds", "counter", "Seconds that those took: the latency of the database."),
    Description("failed_lease_renewals", "counter", "Signs of life that the database did not take."),
    Description("changes_heard", "counter", "Changes of nodes by others that this worker went by."),
)
_BY_NAME: Final[Mapping[str, Description]] = {one.name: one for one in DESCRIPTIONS}


class Metrics(Collector):
    """The figures of one worker."""

    def __init__(
        self,
        engine: Engine,
        writer: Writer,
        http: PinnedHttp,
        dispatcher: Dispatcher,
        agents: AgentClient,
        ownership: Ownership,
    ) -> None:
        """Read from these parts."""
        self._ownership = ownership
        self._engine, self._writer, self._http, self._dispatcher = engine, writer, http, dispatcher
        self._agents = agents
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
        yield _gauge("jobs_running", self._engine.running_jobs)
        yield _gauge("connections_idle", self._http.idle)
        yield _counter("answer_bytes", self._agents.answer_bytes)
        yield _gauge("notices_waiting", self._dispatcher.waiting)
        yield _counter("notices", self._dispatcher.delivered)
        yield _counter("failed_notices", self._dispatcher.failed)
        yield _counter("given_up_notices", self._dispatcher.given_up)

    def _of_fleet(self, fleet: Fleet) -> Iterator[Metric]:
        counters, now = fleet.counters, time.time()
        conditions = Counter(condition_of(node.visible.state, now) for node in fleet)
        yield _labelled("nodes", {each.value: conditions[each] for each in Condition})
        yield _labelled("verdicts", {each.value: counters.verdicts.get(each, 0) for each in Condition})
        yield _labelled("findings", counters.findings)
        yield _gauge("overdue_nodes", self._engine.overdue())
        yield _counter("rounds", counters.rounds)
        yield _counter("late_rounds", counters.late_rounds)
        yield _counter("faults", counters.faults)
        yield _histogram("lateness_seconds", LATENESS, counters.lateness, counters.lateness_sum)

    def _of_writer(self, writer: Writer) -> Iterator[Metric]:
        counters = writer.counters
        yield _gauge("unwritten_nodes", writer.backlog)
        yield _counter("transactions", counters.transactions)
        yield _counter("transaction_seconds", counters.seconds)
        yield _histogram("transaction_duration_seconds", LATENCY, counters.latency, counters.seconds)
        yield _counter("written_states", counters.written)
        yield _counter("refused_states", counters.refused)
        yield _counter("failed_transactions", counters.failures)

    def _of_leases(self, ownership: Ownership) -> Iterator[Metric]:
        counters = ownership.counters
        yield _gauge("partitions", ownership.partitions)
        yield _gauge("workers", ownership.live)
        yield _gauge("leases_valid", int(ownership.open))
        yield _counter("leases_taken", counters.taken)
        yield _counter("leases_released", counters.released)
        yield _counter("leases_lost", counters.lost)
        yield _counter("lease_renewals", counters.beats)
        yield _counter("lease_renewal_seconds", counters.beat_seconds)
        yield _counter("failed_lease_renewals", counters.failed_beats)
        yield _counter("changes_heard", counters.changes)


def _counter(name: str, value: float) -> Metric:
    return CounterMetricFamily(f"{_PREFIX}_{name}", _BY_NAME[name].text, value=value)


def _gauge(name: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{_PREFIX}_{name}", _BY_NAME[name].text, value=value)


def _labelled(name: str, values: Mapping[str, float]) -> Metric:
    described = _BY_NAME[name]
    kind = CounterMetricFamily if described.kind == "counter" else GaugeMetricFamily
    family = kind(f"{_PREFIX}_{name}", described.text, labels=[described.label])
    for label, value in sorted(values.items()):
        family.add_metric([label], value)
    return family


def _histogram(name: str, bounds: Sequence[float], counts: Sequence[int], total: float) -> Metric:
    return HistogramMetricFamily(
        f"{_PREFIX}_{name}", _BY_NAME[name].text, buckets=_cumulative(bounds, counts), sum_value=total
    )


def _cumulative(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Return buckets as Prometheus wants them: each with all that are smaller."""
    total, buckets = 0, []
    for bound, count in zip((*map(str, bounds), "+Inf"), counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets
