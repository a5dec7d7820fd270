"""Reading device-mapper events: reference results, and texts that nobody's kernel wrote."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.shared import shared_path

from limeguard.evidence.ima.device_mapper import (
    EVENTS,
    DeviceEvent,
    DeviceRemove,
    DeviceRename,
    DeviceResume,
    TableLoad,
    TargetUpdate,
    parse_event,
)
from limeguard.evidence.reader import MalformedEvidence

DEVICE = "name=d,uuid=,major=253,minor=0,minor_count=1,num_targets=1;"
VERSION = "dm_version=4.45.0;"
TARGET = "target_index=0,target_begin=0,target_len=8,target_name={},target_version=1.0.0,"
HASHES = "active_table_hash=sha256:00,inactive_table_hash=sha256:00"
CAPACITY = "current_device_capacity=8;"
TARGETS = {
    "cache": (
        "metadata_mode=rw,cache_metadata_device=253:1,cache_device=253:2,cache_origin_device=253:3,writethrough=y,"
        "writeback=n,passthrough=n,metadata2=n,no_discard_passdown=n"
    ),
    "crypt": (
        "allow_discards=n,same_cpu_crypt=n,submit_from_crypt_cpus=n,no_read_workqueue=n,no_write_workqueue=n,"
        "iv_large_sectors=n,cipher_string=aes-xts-plain64,key_size=32,key_parts=1,key_extra_size=0,key_mac_size=0"
    ),
    "integrity": (
        "dev_name=253:1,start=0,tag_size=4,mode=J,recalculate=n,allow_discards=n,fix_padding=n,fix_hmac=n,"
        "legacy_recalculate=n,journal_sectors=88,interleave_sectors=32768,buffer_sectors=128"
    ),
    "mirror": (
        "nr_mirrors=2,mirror_device_0=253:1,mirror_device_0_status=A,mirror_device_1=253:2,mirror_device_1_status=A,"
        "handle_errors=y,keep_log=n,log_type_status=core"
    ),
    "snapshot": "snap_origin_name=o,snap_cow_name=c,snap_valid=y,snap_merge_failed=n,snapshot_overflowed=n",
}


def buffer_of(line: str) -> tuple[str, bytes]:
    """Return the name of the event in a line, and its text."""
    *_, name, buffer = line.split(" ")
    return name, bytes.fromhex(buffer)


def described(event: DeviceEvent) -> dict[str, Any]:
    """Return what the reference results say about an event, as far as policies look at it."""
    found: dict[str, Any] = {"device": dict(event.device)}
    if isinstance(event, TableLoad | TargetUpdate):
        targets = event.targets if isinstance(event, TableLoad) else (event.target,)
        found["targets"] = [{**it.fields, "target_attributes": dict(it.attributes)} for it in targets]
    if isinstance(event, DeviceResume):
        found["table"] = event.table
    if isinstance(event, DeviceRename):
        found["new"] = (event.new_name, event.new_uuid)
    return found


def expected(parsed: dict[str, Any]) -> dict[str, Any]:
    """Return the same from a reference result."""
    device = parsed.get("device_metadata") or parsed.get("device_active_metadata")
    found: dict[str, Any] = {"device": device}
    if "targets" in parsed or "target" in parsed:
        found["targets"] = parsed.get("targets") or [parsed["target"]]
    if "active_table_hash" in parsed and "device_metadata" in parsed:
        found["table"] = parsed["active_table_hash"]
    if "new_name" in parsed:
        found["new"] = (parsed["new_name"], parsed["new_uuid"])
    return found


def test_events_of_real_kernels_are_read_as_the_reference_reads_them() -> None:
    root = shared_path("fixtures/upstream")
    reference = json.loads((root / "expected.json").read_text())["dm"]["parsed"]
    assert len(reference) == 9
    for file, wanted in reference.items():
        name, buffer = buffer_of((root / "dm" / file).read_text().strip())
        assert name == wanted["event"]
        assert described(parse_event(name, buffer)) == expected(wanted["parsed"]), file


@pytest.mark.parametrize("kind", TARGETS)
def test_every_kind_of_target_is_read(kind: str) -> None:
    text = f"{VERSION}{DEVICE}{TARGET.format(kind)}{TARGETS[kind]};"
    event = parse_event("dm_table_load", text.encode())
    assert isinstance(event, TableLoad)
    (target,) = event.targets
    written = dict(item.split("=") for item in TARGETS[kind].split(","))
    read = {key: str(value) for key, value in target.attributes.items() if value is not None}
    assert read == written


def test_a_table_of_several_targets_is_read_in_order() -> None:
    rows = "".join(
        f"target_index={index},target_begin=0,target_len=8,target_name=linear,target_version=1.0.0,"
        f"device_name=8:{index},start=0;"
        for index in range(3)
    )
    event = parse_event("dm_table_load", f"{VERSION}{DEVICE}{rows}".encode())
    assert isinstance(event, TableLoad)
    assert [target.index for target in event.targets] == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dm_device_resume", f"{DEVICE}device_resume=no_data;{CAPACITY}"),
        ("dm_device_resume", f"name=d,uuid=;device_resume=no_data;{CAPACITY}"),
        ("dm_table_clear", f"{DEVICE}inactive_table_hash=sha256:00;{CAPACITY}"),
        ("dm_table_clear", f"name=d,uuid=;table_clear=no_data;{CAPACITY}"),
        ("dm_device_remove", f"name=d,uuid=;device_remove=no_data;remove_all=n;{CAPACITY}"),
        ("dm_device_remove", f"device_inactive_metadata={DEVICE}inactive_table_hash=sha256:00,remove_all=n;{CAPACITY}"),
        (
            "dm_device_remove",
            f"device_active_metadata={DEVICE}device_inactive_metadata={DEVICE}{HASHES},remove_all=y;{CAPACITY}",
        ),
    ],
)
def test_forms_that_keylime_cannot_build_are_read(name: str, text: str) -> None:
    event = parse_event(name, (VERSION + text).encode())
    inactive_only = isinstance(event, DeviceRemove) and "device_active" not in text and "no_data" not in text
    assert event.device.get("name") == (None if inactive_only else "d")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("dm_table_load", "", "expected dm_version"),
        ("dm_table_load", VERSION + DEVICE, "expected target_index"),
        ("dm_table_load", f"{VERSION}{DEVICE}{TARGET.format('raid')}x=y;", "unknown kind 'raid'"),
        ("dm_table_load", f"{VERSION}{DEVICE}{TARGET.format('mirror')}nr_mirrors=99999,", "99999 mirrors"),
        ("dm_device_resume", f"{VERSION}{DEVICE}active_table_hash=sha256:00;{CAPACITY}more", "expected the end"),
        ("dm_device_resume", f"{VERSION}{DEVICE}device_resume=data;{CAPACITY}", "no_data"),
        ("dm_device_resume", f"{VERSION}{DEVICE}active_table_hash=sha\0256:00;{CAPACITY}", "active_table_hash"),
        ("dm_device_rename", f"{VERSION}{DEVICE}new_name=a b,new_uuid=;{CAPACITY}", "new_name"),
        ("dm_device_remove", f"{VERSION}remove_all=n;{CAPACITY}", "expected a device"),
        ("dm_table_clear", f"{VERSION}{DEVICE}inactive_table_hash=sha256:00;{CAPACITY}é", "not ASCII"),
        ("dm_table_clear", "x" * (1 << 21), "longer than"),
    ],
)
def test_a_malformed_text_is_refused_with_its_place(name: str, text: str, said: str) -> None:
    with pytest.raises(MalformedEvidence, match=said):
        parse_event(name, text.encode())


WORDS = st.sampled_from([VERSION, DEVICE, CAPACITY, TARGET.format("linear"), "start=0;", "\0\0", "=", ";", ",", "n=1"])


@given(st.sampled_from(sorted(EVENTS)), st.lists(st.one_of(WORDS, st.text(max_size=8)), max_size=12))
def test_no_text_does_anything_but_be_read_or_refused(name: str, parts: list[str]) -> None:
    with suppress(MalformedEvidence):
        assert parse_event(name, "".join(parts).encode("utf-8", "surrogatepass")) is not None
