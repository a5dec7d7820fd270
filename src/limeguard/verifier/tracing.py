"""Spans around a round: asking, appraising, writing. Only put together where tracing is on; nothing here is decided.

Attributes follow OpenTelemetry's conventions for HTTP clients and databases, our own begin with `limeguard.`. Nonces,
quotes, keys and shares are in none of them, nor are texts of exceptions, which may hold them.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from opentelemetry.trace import Link, SpanKind, StatusCode

from limeguard.appraisal.appraise import Evidence, Expected
from limeguard.appraisal.history import History
from limeguard.appraisal.verdict import Appraisal
from limeguard.clients.agent import AgentAddress, AgentClient, AgentRefused
from limeguard.store.node_record import NodeRecord
from limeguard.store.notices import Notice
from limeguard.verifier.engine import Performer
from limeguard.verifier.fleet import Node
from limeguard.verifier.poller import Judge, Result
from limeguard.verifier.supervision import Job
from limeguard.verifier.writer import RoundStore
from limeguard.web.answers import Answer, Requester, Unreachable

MAX_LINKS: Final = 128
MAX_RECENT: Final = 50_000
MAX_FINDINGS: Final = 20


class Traces:
    """One tracer, and the rounds whose results are not written yet."""

    def __init__(self, tracer: Any) -> None:
        """Make spans with this tracer."""
        self._tracer = tracer
        self._recent: dict[str, Any] = {}

    @contextmanager
    def span(
        self, name: str, about: Mapping[str, Any] | None = None, *, client: bool = False, links: Sequence[Link] = ()
    ) -> Iterator[Any]:
        """Run a block in a span. What the block raises sets its status, by the name of its type alone."""
        with self._tracer.start_as_current_span(
            name,
            kind=SpanKind.CLIENT if client else SpanKind.INTERNAL,
            attributes=about,
            links=links,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except BaseException as problem:
                fail(span, type(problem).__name__)
                raise

    @contextmanager
    def pushed(self, node: Node) -> Iterator[Any]:
        """Run the judgement of what a node has sent by itself in the span of a round."""
        with self.span("limeguard.round", {"limeguard.node.id": node.agent_id, "limeguard.job": "push"}) as span:
            self.remember(node.agent_id, span)
            yield span

    def remember(self, agent_id: str, span: Any) -> None:
        """Keep a round until its result is written."""
        if len(self._recent) < MAX_RECENT:
            self._recent[agent_id] = span.get_span_context()

    def links(self, batch: list[NodeRecord]) -> list[Link]:
        """Return the rounds whose results these are."""
        found = [self._recent.pop(record.enrolled.agent_id, None) for record in batch]
        return [Link(context) for context in found if context is not None][:MAX_LINKS]


def fail(span: Any, kind: str) -> None:
    """Mark a span as failed."""
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)


class TracedPerformer:
    """A span for each round, over those of what happens in it."""

    def __init__(self, traces: Traces, inner: Performer) -> None:
        """Watch `inner`."""
        self._traces, self._inner = traces, inner

    async def perform(self, node: Node, job: Job) -> Result:
        """Do one job."""
        about = {"limeguard.node.id": node.agent_id, "limeguard.job": job.value}
        with self._traces.span("limeguard.round", about) as span:
            self._traces.remember(node.agent_id, span)
            result = await self._inner.perform(node, job)
            span.set_attribute("limeguard.event", type(result.event).__name__)
            return result


class TracedAgents(AgentClient):
    """A span for each request to an agent. Its query, which holds the nonce, is left out."""

    def __init__(self, http: Requester, traces: Traces) -> None:
        """Call over this pool."""
        super().__init__(http)
        self._traces = traces

    async def _call(self, method: str, address: AgentAddress, path: str, body: bytes | None = None) -> Answer:
        plain = path.partition("?")[0]
        about = {
            "http.request.method": method,
            "url.scheme": "http" if address.pin is None else "https",
            "url.path": plain,
            "server.address": address.host,
            "server.port": address.port,
        }
        with self._traces.span(f"{method} {plain}", about, client=True) as span:
            try:
                answer = await super()._call(method, address, path, body)
            except AgentRefused as refused:
                span.set_attribute("http.response.status_code", refused.status)
                fail(span, str(refused.status))
                raise
            except Unreachable as problem:
                fail(span, problem.kind)
                raise
            span.set_attribute("http.response.status_code", answer.status)
            span.set_attribute("http.response.body.size", len(answer.body))
            return answer


def traced(traces: Traces, judge: Judge) -> Judge:
    """Return a judge whose every judgement is a span."""

    @functools.wraps(judge)
    def judged(evidence: Evidence, expected: Expected, history: History, now: float) -> Appraisal:
        with traces.span("limeguard.appraise") as span:
            appraisal = judge(evidence, expected, history, now)
            span.set_attribute("limeguard.outcome", appraisal.outcome.name.lower())
            span.set_attribute("limeguard.checks", sorted(appraisal.ran))
            found = [finding.kind.id for finding in appraisal.findings[:MAX_FINDINGS]]
            if found:
                span.set_attribute("limeguard.findings", found)
            return appraisal

    return judged


class TracedStore:
    """A span for each transaction, linked to the rounds whose results it holds."""

    def __init__(self, traces: Traces, inner: RoundStore, system: str) -> None:
        """Watch `inner`; `system` is the database's name in OpenTelemetry's conventions."""
        self._traces, self._inner, self._system = traces, inner, system

    async def save_rounds(self, batch: list[NodeRecord], notices: list[Notice]) -> frozenset[str]:
        """Write the states, and the notices with them; return the ids that were refused."""
        links = self._traces.links(batch)
        about = {"db.system.name": self._system, "db.operation.name": "UPDATE", "limeguard.notices": len(notices)}
        if len(batch) > 1:  # the convention has no batches of one
            about["db.operation.batch.size"] = len(batch)
        with self._traces.span("limeguard.write", about, client=True, links=links) as span:
            refused = await self._inner.save_rounds(batch, notices)
            span.set_attribute("limeguard.refused", len(refused))
            return refused
