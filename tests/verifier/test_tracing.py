"""Spans around a round: what they are called, what they tell, and that neither nonces nor keys are among it."""

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.pki import Authority
from tests.fakes.push_agent import enrolled
from tests.fakes.verifier_site import running_verifier

from limeguard.simulator.softtpm import SoftNode
from limeguard.telemetry.spans import tracer_for, wanted
from limeguard.verifier import build

export = pytest.importorskip(
    "opentelemetry.sdk.trace.export.in_memory_span_exporter", reason="needs opentelemetry-sdk, of the group dev"
)

pytestmark = pytest.mark.services

KINDS = {"limeguard.round", "GET /v2.6/quotes/integrity", "limeguard.appraise", "limeguard.write"}


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have a verifier that is started make spans, and return where they are kept."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    kept, provider = export.InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))

    def tracer(service: str, _env: Mapping[str, str]) -> Any:
        return provider.get_tracer(service)

    monkeypatch.setattr(build, "tracer_for", tracer)
    return kept


def under(spans: Any, parent: Any) -> set[str]:
    return {one.name for one in spans if one.parent is not None and one.parent.span_id == parent.context.span_id}


async def test_a_round_is_a_span_over_asking_and_appraising_and_a_write_leads_back_to_it(
    exported: Any, tmp_path: Path, authority: Authority
) -> None:
    async with running_verifier(tmp_path, authority) as site:
        agent = await site.add_agent()
        await site.enrol(agent, tpm_policy='{"23": ["%s"], "mask": "0x800000"}' % ("00" * 32))
        await site.reaches(agent, "trusted", rounds=2)
        agent.node.extend(23, bytes(32))
        await site.reaches(agent, "distrusted")
    spans = exported.get_finished_spans()
    rounds = [one for one in spans if one.name == "limeguard.round"]
    assert len(rounds) >= 3
    for one in rounds:
        assert one.attributes["limeguard.node.id"] == agent.agent_id
        assert under(spans, one) == {"GET /v2.6/quotes/integrity", "limeguard.appraise"}
    last = max(rounds, key=lambda one: one.start_time)
    assert last.attributes["limeguard.event"] == "RoundDistrusted"
    (judged,) = [one for one in spans if one.name == "limeguard.appraise" and "limeguard.findings" in one.attributes]
    assert judged.attributes["limeguard.findings"] == ("pcr.not-allowed",)
    asked = next(one for one in spans if one.name.startswith("GET "))
    assert asked.kind.name == "CLIENT"
    assert asked.attributes["http.response.status_code"] == 200
    assert (asked.attributes["server.address"], asked.attributes["server.port"]) == ("127.0.0.1", agent.port)
    linked = {link.context.span_id for one in spans if one.name == "limeguard.write" for link in one.links}
    assert last.context.span_id in linked
    assert {one.attributes["db.system.name"] for one in spans if one.name == "limeguard.write"} == {"sqlite"}


async def test_evidence_that_a_node_pushes_is_judged_in_the_span_of_a_round(
    exported: Any, tmp_path: Path, authority: Authority
) -> None:
    async with running_verifier(tmp_path, authority, mode="push", quote_interval=0.0) as site:
        agent = await enrolled(site, node=SoftNode.create("ecc256"))
        await agent.start()
        assert (await agent.evaluated())["evaluation"] == "pass"
        await agent.reaches("trusted")
        token = agent.token
    spans = exported.get_finished_spans()
    (one,) = [span for span in spans if span.name == "limeguard.round"]
    assert (one.attributes["limeguard.node.id"], one.attributes["limeguard.job"]) == (agent.agent_id, "push")
    assert under(spans, one) == {"limeguard.appraise"}
    linked = {link.context.span_id for span in spans if span.name == "limeguard.write" for link in span.links}
    assert one.context.span_id in linked
    assert token
    assert token not in "".join(span.to_json() for span in spans)


# trust: secret
async def test_no_nonce_and_no_quote_is_in_a_span(exported: Any, tmp_path: Path, authority: Authority) -> None:
    async with running_verifier(tmp_path, authority, retry_interval=0.05) as site:
        agent = await site.add_agent()
        await site.enrol(agent, v="A" * 43 + "=")
        await site.reaches(agent, "trusted", rounds=2)
        await agent.stop()  # failures are spans, too
        await site.shows(agent, lambda view: view["failed_attempts"] > 0)
        seen = "\n".join(one.to_json() for one in exported.get_finished_spans())
        nonces = [found for _, path in agent.requests for found in re.findall("nonce=([A-Za-z0-9]+)", path)]
    assert nonces
    assert "limeguard.round" in seen
    assert '"error.type": "' in seen
    assert agent.shares
    for secret in (*nonces, "A" * 43, "nonce=", "BEGIN"):
        assert secret not in seen


@pytest.mark.parametrize(
    ("env", "exporter"),
    [
        ({}, ""),
        ({"OTEL_TRACES_EXPORTER": "none"}, ""),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}, ""),
    ],
)
def test_the_standard_environment_decides(env: dict[str, str], exporter: str) -> None:
    assert wanted(env) == exporter
    if not exporter:
        assert tracer_for("verifier", env) is None


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("sys.modules['opentelemetry'] = None", "the library is not installed"),
        ("sys.modules['opentelemetry.sdk.trace'] = None", "the SDK is not installed"),
        ("", "no exporter odd is installed"),
    ],
)
def test_what_is_missing_is_said_and_nothing_is_traced(before: str, said: str) -> None:
    script = f"""
import logging, sys
logging.basicConfig(stream=sys.stdout)
{before}
from limeguard.simulator.softtpm import SoftNode
from limeguard.telemetry.spans import tracer_for
assert tracer_for("verifier", {{"OTEL_TRACES_EXPORTER": "odd"}}) is None
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/")
    assert said in done.stdout


def test_spans_go_out_when_they_are_asked_for() -> None:
    script = """
from limeguard.simulator.softtpm import SoftNode
from limeguard.telemetry.spans import tracer_for
tracer = tracer_for("verifier", {"OTEL_TRACES_EXPORTER": "console"})
with tracer.start_as_current_span("limeguard.round"):
    pass
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/")
    assert '"name": "limeguard.round"' in done.stdout
    assert '"service.name": "verifier"' in done.stdout


def test_without_tracing_its_library_is_not_even_loaded() -> None:
    script = """
import sys, limeguard.cli.verifier, limeguard.verifier.build
from limeguard.simulator.softtpm import SoftNode
from limeguard.telemetry.spans import tracer_for
assert tracer_for("verifier", {}) is None
print(sorted(name for name in sys.modules if name.startswith("opentelemetry")))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout == "[]\n"
