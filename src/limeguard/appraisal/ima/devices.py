"""The life of device-mapper devices against the policy: load, resume, rename, update, clear, remove.

Decides about one event at a time and says what it changes; who believes an event, and when, is decided by the caller.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from limeguard.appraisal.findings import DEVICE_MAPPER, ContextValue, Finding
from limeguard.evidence.ima.device_mapper import (
    DeviceEvent,
    DeviceRemove,
    DeviceRename,
    DeviceResume,
    Fields,
    TableClear,
    TableLoad,
    Target,
    TargetUpdate,
    parse_event,
)
from limeguard.evidence.reader import MalformedEvidence
from limeguard.policy.device_mapper import DevicePolicy, DeviceRule

MAX_DEVICES: Final = 10_000
"""Devices that one node may have; more is a finding, so that a hostile list cannot fill the store."""


@dataclass(frozen=True, slots=True)
class Device:
    """What is known of a device: its rule, whether its table is active and proven, and `algorithm:digest` of the load.

    `rule` is empty for a table that no rule allows; nothing of it is ever valid.
    """

    rule: str
    active: bool
    valid: bool
    table: str


Devices = Mapping[str, Device]
"""Devices by name or UUID, whichever the policy matches on."""


@dataclass(frozen=True, slots=True)
class DeviceStates:
    """The devices that proven events made, under the device policy with this checksum (hex, empty for none)."""

    checksum: str
    devices: Devices


NO_DEVICES: Final = DeviceStates("", {})


@dataclass(frozen=True, slots=True)
class Change:
    """What an event did to the record of devices: None removes the key."""

    key: str
    device: Device | None


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Identifiers of what is wrong, with contexts, and what changes."""

    wrong: tuple[tuple[str, dict[str, ContextValue]], ...] = ()
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceVerdict:
    """Findings of an event, and its changes to the record; changes count although there are findings."""

    findings: tuple[Finding, ...] = ()
    changes: tuple[Change, ...] = field(default=())


def judge_event(
    name: str, algorithm: str, digest: bytes, buffer: bytes, policy: DevicePolicy, devices: Devices
) -> DeviceVerdict:
    """Judge event `name`, whose entry says that `buffer` has this digest."""
    findings: list[Finding] = []
    table = f"sha256:{hashlib.sha256(buffer).hexdigest()}"
    try:
        computed = hashlib.new(algorithm, buffer, usedforsecurity=False).digest()
    except (ValueError, TypeError):  # an algorithm that nobody knows, or one without a fixed length
        computed = b""
    if computed != digest:
        context: dict[str, ContextValue] = {"expected": computed.hex(), "got": digest.hex()}
        findings.append(_finding(name, "invalid_data", context, bare=True))
    try:
        event = parse_event(name, buffer)
    except MalformedEvidence as problem:
        findings.append(_finding(name, "parsing_failed", {"reason": str(problem)}, bare=True))
        return DeviceVerdict(tuple(findings))
    key = event.device.get(policy.match_on)
    shown: dict[str, ContextValue] = {"device": str(key)} if key is not None else {}
    outcome = _event(event, "" if key is None else str(key), table, policy, devices)
    findings.extend(_finding(name, what, shown | context) for what, context in outcome.wrong)
    return DeviceVerdict(tuple(findings), outcome.changes)


def missing_devices(policy: DevicePolicy, devices: Devices) -> tuple[Finding, ...]:
    """Return a finding for each required rule that no valid device follows."""
    used = {device.rule for device in devices.values() if device.valid}
    return tuple(
        _finding("", "required_policy_not_in_use", {"rule": rule.name}, bare=True)
        for rule in policy.rules.values()
        if rule.required and rule.name not in used
    )


def changed(devices: dict[str, Device], changes: tuple[Change, ...]) -> None:
    """Apply changes to a record."""
    for change in changes:
        if change.device is None:
            devices.pop(change.key, None)
        else:
            devices[change.key] = change.device


def _finding(event: str, what: str, context: dict[str, ContextValue], *, bare: bool = False) -> Finding:
    place = what if bare else f"{event}.{what}"
    text = f"Device mapper{f' event {event}' if event else ''}: {what.replace('_', ' ')}"
    named = f" ({context['device']})" if "device" in context else ""
    return Finding(DEVICE_MAPPER, {"event": place, "message": text + named, **context})


def _event(event: DeviceEvent, key: str, table: str, policy: DevicePolicy, devices: Devices) -> _Outcome:
    if isinstance(event, TableLoad):
        return _load(event, key, table, policy, devices)
    device = devices.get(key) if event.device else None
    if device is None:
        return _Outcome(((f"{_VERBS[type(event)]}_before_table_load", {}),))
    rule = policy.rules.get(device.rule)
    match event:
        case DeviceResume():
            return _resume(event, key, device)
        case DeviceRename():
            return _rename(event, key, device, rule, policy.match_on)
        case DeviceRemove():
            return _remove(key, device, rule)
        case TargetUpdate():
            return _Outcome(_checked(event.target, rule, event.target.index))
    cleared = rule is not None and rule.clear_allowed
    return _Outcome() if cleared else _refused("table_cleared", key, device)


_VERBS: Final = {
    DeviceResume: "resume",
    DeviceRename: "rename",
    DeviceRemove: "remove",
    TableClear: "clear",
    TargetUpdate: "update",
}


def _refused(what: str, key: str, device: Device, context: dict[str, ContextValue] | None = None) -> _Outcome:
    """Return a finding that leaves the device on record, but never valid again before a new load."""
    return _Outcome(((what, context or {}),), (Change(key, replace(device, valid=False)),))


def _load(event: TableLoad, key: str, table: str, policy: DevicePolicy, devices: Devices) -> _Outcome:
    known = devices.get(key)
    if known is not None:
        earlier = policy.rules.get(known.rule)
        if earlier is None or not earlier.several_loads_allowed:
            return _Outcome((("multiple_table_loads", {}),))
    elif len(devices) >= MAX_DEVICES:
        return _Outcome((("too_many_devices", {"expected": MAX_DEVICES}),))
    rule = next((rule for rule in policy.rules.values() if rule.device[policy.match_on](key)), None)
    if rule is None:
        return _Outcome((("no_matching_policy", {}),))
    for field_name, accepts in rule.device.items():
        if not accepts(event.device[field_name]):
            context: dict[str, ContextValue] = {"field": field_name, "got": str(event.device[field_name])}
            return _Outcome((("invalid_entry", context),))
    wrong: list[tuple[str, dict[str, ContextValue]]] = []
    if len(event.targets) != rule.targets_wanted:
        wrong.append(("num_targets_mismatch", {"expected": rule.targets_wanted, "got": len(event.targets)}))
    else:
        for number, target in enumerate(event.targets):
            wrong.extend(_checked(target, rule, number))
    recorded = Device(rule.name, active=False, valid=not rule.resume_required, table=table)
    return _Outcome(tuple(wrong), (Change(key, recorded),))


def _resume(event: DeviceResume, key: str, device: Device) -> _Outcome:
    if device.active:
        return _refused("already_active", key, device)
    if event.table != device.table:
        return _refused("active_table_mismatch", key, device, {"expected": device.table, "got": str(event.table)})
    return _Outcome(changes=(Change(key, replace(device, active=True, valid=True)),))


def _remove(key: str, device: Device, rule: DeviceRule | None) -> _Outcome:
    if rule is None or not rule.removal_allowed:
        return _refused("device_removed", key, device)
    return _Outcome(changes=(Change(key, None),))


def _rename(event: DeviceRename, key: str, device: Device, rule: DeviceRule | None, match_on: str) -> _Outcome:
    attributes = (
        ("name", event.new_name, rule.new_name if rule is not None else None),
        ("uuid", event.new_uuid, rule.new_uuid if rule is not None else None),
    )
    wrong: list[tuple[str, dict[str, ContextValue]]] = []
    new_key = key
    for attribute, new, accepts in attributes:
        if new == event.device[attribute]:
            continue
        if accepts is None or not accepts(new):
            wrong.append((f"new_{attribute}_invalid", {"got": new}))
        elif attribute == match_on:
            new_key = new
    kept = replace(device, valid=False) if wrong else device
    if new_key == key:
        return _Outcome(tuple(wrong), (Change(key, kept),))
    return _Outcome(tuple(wrong), (Change(key, None), Change(new_key, kept)))


def _checked(target: Target, rule: DeviceRule | None, number: int) -> tuple[tuple[str, dict[str, ContextValue]], ...]:
    """Compare a target with the rule's target of this number; each field that differs, and that it is invalid."""
    references = rule.targets[number] if rule is not None and number < len(rule.targets) else None
    if references is None:
        return (("target_data_invalid", {"target": number}),)
    wrong: list[tuple[str, dict[str, ContextValue]]] = []
    values: Fields = {**target.fields, **target.attributes}
    for name, accepts in references.items():
        if name not in values:
            wrong.append(("target_attribute_not_found", {"target": number, "field": name}))
        elif not accepts(values[name]):
            wrong.append(("target_data_mismatch", {"target": number, "field": name, "got": str(values[name])}))
    differs = any(what == "target_data_mismatch" for what, _ in wrong)
    return (*wrong, ("target_data_invalid", {"target": number})) if differs else tuple(wrong)
