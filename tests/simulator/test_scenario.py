"""Scenario files: what is read, what is refused, and quantiles of counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limeguard.simulator.run import Plan
from limeguard.simulator.scenario import Happening, ScenarioError, histogram_quantile, parse_scenario


def test_happenings_are_read_in_the_order_of_their_times() -> None:
    found = parse_scenario([{"at": 9, "do": "reboot", "nodes": "50%"}, {"at": 1.5, "do": "measure", "files": 3}])
    assert found == (Happening(1.5, "measure", 1, 0.0, files=3), Happening(9.0, "reboot", None, 0.5))
    assert [one.nodes(10) for one in found] == [1, 5]
    assert Happening(0, "forge", 99, 0.0).nodes(10) == 10
    assert Happening(0, "forge", None, 0.001).nodes(10) == 1


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({}, "a scenario is a list"),
        ([1], "happening 1 is not a map"),
        ([{"do": "forge"}], "happening 1: `at` is missing"),
        ([{"at": 1, "do": "explode"}], "do is one of unlisted, forge"),
        ([{"at": -1, "do": "forge"}], "at is not a number from 0 on"),
        ([{"at": 1, "do": "forge", "nodes": "150%"}], "nodes is a whole number above 0"),
        ([{"at": 1, "do": "forge", "nodes": 0}], "nodes is a whole number above 0"),
        ([{"at": 1, "do": "forge", "often": 2}], "'often' is not known"),
        ([{"at": float("inf"), "do": "forge"}], "at is not a number from 0 on"),
        ([{"at": 1, "do": "measure", "files": 1.5}], "files is a whole number"),
        ([{"at": 1, "do": "offline"}], "`seconds` says how long it is offline"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(document: object, said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        parse_scenario(document)


def test_all_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(ScenarioError) as found:
        parse_scenario([{"do": "explode"}, "reboot", {"at": "soon", "do": "reboot", "nodes": "200%"}])
    said = str(found.value).split("; ")
    assert [text.partition(":")[0].partition(" is")[0] for text in said] == [
        *("happening 1", "happening 1", "happening 2", "happening 3", "happening 3")
    ]


def test_a_scenario_that_does_not_fit_the_plan_is_refused() -> None:
    scenario = (Happening(1, "unlisted", 1, 0.0), Happening(9, "reboot", 1, 0.0))
    plan = Plan(nodes=1, seconds=5, interval=1, scenario=scenario)
    assert plan.problems() == [
        "reboot at 9 s comes after the end: measure for more seconds than that",
        "unlisted needs machines with an IMA log: more than 0 files",
    ]
    assert Plan(nodes=1, seconds=10, interval=1, files=1, scenario=scenario).problems() == []


@given(st.lists(st.integers(0, 99), min_size=1), st.floats(0.01, 1.0))
def test_a_quantile_is_the_bound_of_the_bucket_that_holds_it(values: list[int], part: float) -> None:
    buckets = [0] * 100
    for value in values:
        buckets[value] += 1
    bound = histogram_quantile(buckets, part, 1.0)
    assert sum(1 for value in values if value < bound) >= part * len(values) - 1e-9
    assert sum(1 for value in values if value < bound - 1) < part * len(values) + 1e-9
