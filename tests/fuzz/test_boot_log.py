"""A few seconds of the boot log fuzzer, always the same inputs; the long run is recorded in `bench/RESULTS.md`."""

import random

import pytest
from tests.fakes.boot_logs import samples
from tests.fuzz import boot_log

INPUTS = 30_000


# trust: safe-parsing
def test_mutated_logs_are_refused_or_read_and_nothing_else() -> None:
    figures = boot_log.run(INPUTS, seed=20, say=lambda _text: None)
    assert figures["inputs"] == INPUTS
    assert (
        INPUTS / 20 < figures["accepted"] < INPUTS / 2
    )  # neither are all refused at once, nor do mutations do nothing
    assert figures["memory_growth_mib"] < 50


def test_each_mutation_changes_logs() -> None:
    seeds = list(samples().values())
    rng = random.Random(1)
    for mutation in set(boot_log.MUTATIONS):
        changed = 0
        for seed in seeds:
            data = bytearray(seed)
            mutation(data, rng, seeds)
            changed += bytes(data) != seed
        assert changed > len(seeds) // 3, mutation.__name__


def test_a_failure_ends_the_run_with_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_data: bytes) -> None:
        raise IndexError("out of range")

    monkeypatch.setattr(boot_log, "parse_boot_log", broken)
    with pytest.raises(AssertionError, match=r"seed 1, input 0: IndexError\('out of range'\): [0-9a-f]+"):
        boot_log.run(1, seed=1, say=lambda _text: None)
