"""What a verifier says of itself: to load balancers, and to Prometheus."""

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.fakes.verifier_site import Site

from limeguard.verifier.metrics import DESCRIPTIONS
from limeguard.verifier.writer import WriterCounters

pytestmark = pytest.mark.services


def figures(text: str) -> dict[str, float]:
    """Return the value of each sample, labels in its name."""
    return {
        sample.name + "".join(f"{{{value}}}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def metrics(site: Site) -> dict[str, float]:
    answer = await site.ask("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return figures(answer.text)


async def test_figures_follow_what_happens(site: Site) -> None:
    good, bad = await site.add_agent("good"), await site.add_agent("bad")
    for agent in (good, bad):
        await site.enrol(agent, tpm_policy='{"23": ["%s"], "mask": "0x800000"}' % ("00" * 32))
        await site.reaches(agent, "trusted", rounds=1)
    before = await metrics(site)
    assert before["limeguard_verifier_nodes{trusted}"] == 2
    bad.node.extend(23, bytes(32))
    view: dict[str, Any] = await site.reaches(bad, "distrusted")
    after = await metrics(site)
    assert after["limeguard_verifier_nodes{trusted}"] == 1
    assert after["limeguard_verifier_nodes{distrusted}"] == 1
    assert after[f"limeguard_verifier_findings_total{{{view['findings'][0]['id']}}}"] == 1
    assert after["limeguard_verifier_rounds_total"] > before["limeguard_verifier_rounds_total"]
    assert (
        after["limeguard_verifier_lateness_seconds_count"] == after["limeguard_verifier_lateness_seconds_bucket{+Inf}"]
    )
    assert after["limeguard_verifier_transactions_total"] > 0
    assert (
        after["limeguard_verifier_transaction_duration_seconds_count"] == after["limeguard_verifier_transactions_total"]
    )
    assert after["process_resident_memory_bytes"] > 0
    assert after["limeguard_verifier_verdicts_total{distrusted}"] == 1
    assert after["limeguard_verifier_verdicts_total{trusted}"] >= view["attestation_count"] + 1
    assert after["limeguard_verifier_answer_bytes_total"] > 500 * after["limeguard_verifier_verdicts_total{trusted}"]
    assert after["limeguard_verifier_overdue_nodes"] <= 2


async def test_every_metric_is_described_and_every_description_is_a_metric(site: Site) -> None:
    answer = await site.ask("GET", "/metrics")
    found = {
        (family.name.removeprefix("limeguard_verifier_"), family.type, family.documentation)
        for family in text_string_to_metric_families(answer.text)
        if family.name.startswith("limeguard_")
    }
    assert found == {(one.name, one.kind, one.text) for one in DESCRIPTIONS}


async def test_how_long_the_database_takes_is_counted_in_buckets() -> None:
    counters = WriterCounters()
    for seconds in (0.0005, 0.003, 0.004, 9.0):
        counters.took(seconds)
    assert counters.seconds == pytest.approx(9.0075)
    assert [count for count in counters.latency if count] == [1, 2, 1]
    assert counters.latency[-1] == 1


async def test_health_and_readiness_are_for_everybody(site: Site) -> None:
    nobody = site.tls(certificate=False)
    for path in ("/healthz", "/readyz"):
        answer = await site.ask("GET", path, tls=nobody)
        assert (answer.status, answer.text) == (200, "ok\n")
    assert (await site.ask("GET", "/metrics", tls=nobody)).status == 403


async def test_a_verifier_whose_database_is_away_is_not_ready(site: Site) -> None:
    assert site.verifier.writer is not None
    site.verifier.writer._failed = 1
    answer = await site.ask("GET", "/readyz")
    assert (answer.status, answer.text) == (503, "the database cannot be used now\n")
    site.verifier.writer._failed = 0
    assert site.verifier.engine is not None
    site.verifier.engine._stopping = True
    assert (await site.ask("GET", "/readyz")).text == "the verifier is stopping\n"
    site.verifier.engine._stopping = False
