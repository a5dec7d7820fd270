"""The figures of several workers as one text."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from limeguard.verifier.figures import Siblings, merged


def text_of(rounds: int, trusted: int, label: str = "trusted") -> bytes:
    registry = CollectorRegistry()
    Counter("rounds", "Rounds.", registry=registry).inc(rounds)
    Gauge("nodes", "Nodes.", ["condition"], registry=registry).labels(label).set(trusted)
    return generate_latest(registry)


def samples(text: bytes) -> dict[tuple[str, str, str], float]:
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                found[sample.name, sample.labels["worker"], sample.labels.get("condition", "")] = sample.value
    return found


def test_each_sample_has_its_worker_and_each_family_stands_once() -> None:
    text = merged({"0": text_of(3, 2), "1": text_of(5, 7)})
    assert samples(text) == {
        ("rounds_total", "0", ""): 3,
        ("rounds_total", "1", ""): 5,
        ("nodes", "0", "trusted"): 2,
        ("nodes", "1", "trusted"): 7,
    }
    assert text.count(b"# TYPE nodes gauge") == 1


@given(st.text(max_size=20), st.integers(0, 10**6))
def test_labels_with_any_characters_survive(label: str, number: int) -> None:
    assert samples(merged({"4": text_of(1, number, label)}))["nodes", "4", label] == number


async def test_whoever_is_asked_answers_for_all(tmp_path: Path) -> None:
    crew = [Siblings(tmp_path, number, 3, lambda n=number: text_of(n, n)) for number in range(3)]  # type: ignore[misc]
    for one in crew[:2]:
        await one.start()
    for one in crew[:2]:
        found = samples(await one.text())
        assert {worker for _, worker, _ in found} == {"0", "1"}, "the third does not answer and is missing"
    await crew[0].stop()
    again = Siblings(tmp_path, 0, 3, lambda: text_of(9, 9))  # in the place of one that died
    await again.start()
    assert samples(await crew[1].text())["nodes", "0", "trusted"] == 9
    for one in (again, crew[1]):
        await one.stop()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", ['a_b{c="d e{"} 1', "plain 2.5", 'x{le="+Inf"} 3'])
def test_a_sample_keeps_its_value(line: str) -> None:
    assert merged({"7": line.encode()}) == b""  # nothing stands outside of a family
    text = merged({"7": b"# HELP f F.\n# TYPE f gauge\n" + line.encode()}).decode()
    assert text.splitlines()[-1].endswith(line.rpartition(" ")[2])
    assert 'worker="7"' in text
