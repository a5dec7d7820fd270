"""Device-mapper policies: the object `ima.dm_policy` of a runtime policy, checked in full and compiled.

Decides what a policy may say and what a reference value accepts; the life of a device is followed in `appraisal`.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from limeguard.evidence.ima.device_mapper import Value
from limeguard.policy.errors import PolicyError
from limeguard.policy.excludes import compile_excludes

Accepts = Callable[[Value], bool]
"""A compiled reference value."""

METADATA: Final = ("name", "uuid", "major", "minor", "minor_count")
"""Fields of a device that a rule refers to, in the order in which they are looked at."""
_MATCH_ON: Final = ("name", "uuid")
_YES: Final = frozenset({"y", "yes", "t", "true", "on", "1"})
_NO: Final = frozenset({"n", "no", "f", "false", "off", "0"})
_RULE: Final = ("required", "device_resume_required", "allow_clear", "device_rename", "device_remove", "table_load")
_MAX_RULES: Final = 1_000


@dataclass(frozen=True, slots=True)
class DeviceRule:
    """What devices of one kind may do. References are compiled; `targets` has one map by field for each target."""

    name: str
    required: bool
    resume_required: bool
    clear_allowed: bool
    removal_allowed: bool
    several_loads_allowed: bool
    new_name: Accepts
    new_uuid: Accepts
    device: Mapping[str, Accepts]
    targets_wanted: int
    targets: tuple[Mapping[str, Accepts], ...]


@dataclass(frozen=True, slots=True)
class DevicePolicy:
    """Rules in the order of the document, and the field that devices are known by. `checksum` is over its JSON."""

    match_on: Literal["name", "uuid"]
    rules: Mapping[str, DeviceRule]
    checksum: str


def compile_devices(document: Mapping[str, Any]) -> DevicePolicy:
    """Compile an object that `device_problems` found nothing wrong with."""
    rules = {name: _rule(name, rule) for name, rule in document["rules"].items()}
    text = json.dumps(document, separators=(",", ":"))  # the order of rules decides, so it counts
    return DevicePolicy(document["match_on"], rules, hashlib.sha256(text.encode()).hexdigest())


def reference(value: object) -> Accepts:
    """Compile a reference value: null accepts all, a string is a regular expression for the whole of the text.

    Raises PolicyError for a pattern that cannot be used.
    """
    if value is None:
        return lambda _actual: True
    if isinstance(value, bool):
        return lambda actual: _truth(actual) is value
    if isinstance(value, int):
        return lambda actual: _number(actual) == value
    whole = rf"(?:{value})\Z"
    try:
        pattern = compile_excludes((whole,))
    except PolicyError as problem:
        raise PolicyError(*(text.replace(whole, str(value)) for text in problem.problems)) from None
    return lambda actual: actual is not None and pattern.match(str(actual).encode())


def _truth(actual: Value) -> bool | None:
    """Return what a value says as a word of truth, None for any other word."""
    word = str(actual).lower()
    return True if word in _YES else False if word in _NO else None


def _number(actual: Value) -> int | None:
    try:
        return None if actual is None else int(actual)
    except ValueError:
        return None


def _rule(name: str, rule: Mapping[str, Any]) -> DeviceRule:
    load = rule["table_load"]
    return DeviceRule(
        name=name,
        required=rule["required"],
        resume_required=rule["device_resume_required"],
        clear_allowed=rule["allow_clear"],
        removal_allowed=rule["device_remove"]["allow_removal"],
        several_loads_allowed=load["allow_multiple_loads"],
        new_name=reference(rule["device_rename"]["valid_name"]),
        new_uuid=reference(rule["device_rename"]["valid_uuid"]),
        device={field: reference(load[field]) for field in (*METADATA, "num_targets")},
        targets_wanted=load["num_targets"],
        targets=tuple({field: reference(value) for field, value in target.items()} for target in load["targets"]),
    )


def device_problems(document: object, place: str = "ima.dm_policy") -> Iterator[str]:
    """Yield what is wrong with a device-mapper policy, in the words of JSON Schema validators."""
    if not isinstance(document, dict):
        yield _not_of_type(document, "object", place)
        return
    if document.get("version") != 1 or isinstance(document.get("version"), bool):
        yield f"1 was expected ({place}.version)"
    if document.get("match_on") not in _MATCH_ON:
        yield f"{str(document.get('match_on'))[:80]!r} is not one of {list(_MATCH_ON)!r} ({place}.match_on)"
    rules = document.get("rules")
    if not isinstance(rules, dict):
        yield _not_of_type(rules, "object", f"{place}.rules")
    elif len(rules) > _MAX_RULES:
        yield f"{len(rules)} rules are more than {_MAX_RULES} ({place}.rules)"
    else:
        for name, rule in rules.items():
            yield from _rule_problems(rule, f"{place}.rules.{name[:80]}")


def _rule_problems(rule: object, place: str) -> Iterator[str]:
    """Yield problems of one rule; a member that is not known is one, for a misspelt rule would allow."""
    yield from _object_problems(rule, _RULE, place)
    if not isinstance(rule, dict):
        return
    for name in _RULE[:3]:
        yield from _flag_problems(rule, name, place)
    rename, remove, load = rule.get("device_rename"), rule.get("device_remove"), rule.get("table_load")
    if "device_rename" in rule:
        yield from _object_problems(rename, ("valid_name", "valid_uuid"), f"{place}.device_rename")
        yield from _reference_problems(rename, ("valid_name", "valid_uuid"), f"{place}.device_rename")
    if "device_remove" in rule:
        yield from _object_problems(remove, ("allow_removal",), f"{place}.device_remove")
        if isinstance(remove, dict):
            yield from _flag_problems(remove, "allow_removal", f"{place}.device_remove")
    if "table_load" in rule:
        yield from _load_problems(load, f"{place}.table_load")


def _load_problems(load: object, place: str) -> Iterator[str]:
    yield from _object_problems(load, ("allow_multiple_loads", *METADATA, "num_targets", "targets"), place)
    if not isinstance(load, dict):
        return
    yield from _flag_problems(load, "allow_multiple_loads", place)
    yield from _reference_problems(load, METADATA, place)
    wanted, targets = load.get("num_targets"), load.get("targets")
    if "num_targets" in load and (isinstance(wanted, bool) or not isinstance(wanted, int)):
        yield _not_of_type(wanted, "integer", f"{place}.num_targets")
    if "targets" not in load:
        return
    if not isinstance(targets, list):
        yield _not_of_type(targets, "array", f"{place}.targets")
        return
    if isinstance(wanted, int) and wanted != len(targets):
        yield f"num_targets is {wanted}, but there are {len(targets)} targets ({place})"
    for number, target in enumerate(targets):
        if isinstance(target, dict):
            yield from _reference_problems(target, tuple(target), f"{place}.targets[{number}]")
        else:
            yield _not_of_type(target, "object", f"{place}.targets[{number}]")


def _object_problems(value: object, names: tuple[str, ...], place: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield _not_of_type(value, "object", place)
        return
    yield from (f"{name!r} is a required property ({place})" for name in names if name not in value)
    yield from (f"{name[:80]!r} is not known here ({place})" for name in value if name not in names)


def _flag_problems(members: Mapping[str, object], name: str, place: str) -> Iterator[str]:
    if name in members and not isinstance(members[name], bool):
        yield _not_of_type(members[name], "boolean", f"{place}.{name}")


def _reference_problems(members: object, names: tuple[str, ...], place: str) -> Iterator[str]:
    if not isinstance(members, dict):
        return
    for name in names:
        value = members.get(name)
        if value is not None and not isinstance(value, bool | int | str):
            yield f"{str(value)[:80]!r} is neither null, boolean, integer nor string ({place}.{name})"
            continue
        try:
            reference(value)
        except PolicyError as problem:
            yield from (f"{text} ({place}.{name})" for text in problem.problems)


def _not_of_type(value: object, kind: str, place: str) -> str:
    return f"{str(value)[:80]!r} is not of type '{kind}' ({place})"
