"""Device-mapper policies: what is refused, and what a reference value accepts."""

import copy
from typing import Any

import pytest

from limeguard.policy.device_mapper import compile_devices, device_problems, reference
from limeguard.policy.errors import PolicyError

RULE: dict[str, Any] = {
    "required": True,
    "device_resume_required": True,
    "allow_clear": False,
    "device_rename": {"valid_name": False, "valid_uuid": None},
    "device_remove": {"allow_removal": False},
    "table_load": {
        "allow_multiple_loads": False,
        "name": "test",
        "uuid": "",
        "major": 253,
        "minor": None,
        "minor_count": 1,
        "num_targets": 1,
        "targets": [{"target_name": "linear", "start": 0}],
    },
}
POLICY: dict[str, Any] = {"version": 1, "match_on": "name", "rules": {"root": RULE}}


def test_a_complete_policy_has_no_problems() -> None:
    assert list(device_problems(POLICY)) == []
    assert compile_devices(POLICY).rules["root"].targets_wanted == 1


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("version",), 2, "1 was expected (ima.dm_policy.version)"),
        (("match_on",), "major", "'major' is not one of ['name', 'uuid'] (ima.dm_policy.match_on)"),
        (("rules",), [], "'[]' is not of type 'object' (ima.dm_policy.rules)"),
        (("rules", "root"), 1, "'1' is not of type 'object' (ima.dm_policy.rules.root)"),
        (("rules", "root", "required"), "yes", "is not of type 'boolean' (ima.dm_policy.rules.root.required)"),
        (("rules", "root", "allow_removal"), True, "'allow_removal' is not known here (ima.dm_policy.rules.root)"),
        (("rules", "root", "device_rename"), {}, "'valid_name' is a required property"),
        (("rules", "root", "device_remove"), None, "'None' is not of type 'object'"),
        (("rules", "root", "table_load", "name"), "(", "Invalid regex"),
        (("rules", "root", "table_load", "name"), [], "is neither null, boolean, integer nor string"),
        (("rules", "root", "table_load", "num_targets"), 2, "num_targets is 2, but there are 1 targets"),
        (("rules", "root", "table_load", "targets"), [1], "'1' is not of type 'object'"),
        (("rules", "root", "table_load", "targets"), {}, "'{}' is not of type 'array'"),
    ],
)
def test_each_problem_is_named_with_its_place(path: tuple[str, ...], value: object, said: str) -> None:
    document = copy.deepcopy(POLICY)
    inner = document
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    assert any(said in problem for problem in device_problems(document)), list(device_problems(document))


def test_a_policy_that_is_no_object_is_refused() -> None:
    assert list(device_problems([])) == ["'[]' is not of type 'object' (ima.dm_policy)"]


@pytest.mark.parametrize(
    ("wanted", "accepted", "refused"),
    [
        (None, ("", "x", 1, None), ()),
        (True, ("y", "YES", "on", "1", 1), ("", "n", "maybe", None, 0, 5)),
        (False, ("n", "Off", "0", 0), ("", "y", "test", None)),
        (5, (5, "5"), ("", "five", 6, None)),
        ("t.*|x", ("test", "x"), ("atest", "xx", "", None)),
        ("25[0-9]", (253, "253"), (2530,)),
        ("", ("",), ("x", None)),
    ],
)
def test_a_reference_accepts_what_it_says(wanted: object, accepted: tuple[Any, ...], refused: tuple[Any, ...]) -> None:
    accepts = reference(wanted)
    assert [value for value in accepted if not accepts(value)] == []
    assert [value for value in refused if accepts(value)] == []


def test_a_pattern_that_could_explode_costs_nothing() -> None:
    assert not reference("(a+)+b")("a" * 4_000)
    with pytest.raises(PolicyError, match="look-around"):
        reference("a(?<=a)")
