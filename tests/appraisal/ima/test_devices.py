"""Device-mapper policies over measurement lists: reference sequences, belief, and what rounds hand on."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.shared import shared_path
from tests.policy.test_device_mapper import RULE

from limeguard.appraisal.ima.devices import Device, changed, judge_event, missing_devices
from limeguard.appraisal.ima.entries import Rules
from limeguard.appraisal.ima.history import NO_IMA, ImaHistory
from limeguard.appraisal.ima.measurements import ListAppraisal, appraise_list
from limeguard.crypto.hashes import SHA256
from limeguard.evidence.ima.measurement_list import parse_line
from limeguard.policy.device_mapper import compile_devices
from limeguard.policy.runtime import RuntimePolicy, compile_document, empty_policy_document
from limeguard.store.ima_history import history_text, parse_history

DEVICE = "name=test,uuid=,major=253,minor=0,minor_count=1,num_targets=1;"
LOAD = (
    f"dm_version=4.45.0;{DEVICE}target_index=0,target_begin=0,target_len=8,target_name=linear,target_version=1.4.0,"
    "device_name=8:1,start=0;"
)
REMOVE = (
    f"dm_version=4.45.0;device_active_metadata={DEVICE}active_table_hash=sha256:00,remove_all=n;"
    "current_device_capacity=8;"
)


def resume(load: str = LOAD) -> str:
    table = hashlib.sha256(load.encode()).hexdigest()
    return f"dm_version=4.45.0;{DEVICE}active_table_hash=sha256:{table};current_device_capacity=8;"


def line(name: str, text: str, algorithm: str = "sha256") -> bytes:
    """Return the entry of an event, as a kernel would write it."""
    digest = hashlib.new(algorithm, text.encode()).digest()
    fields = (f"{algorithm}:".encode() + b"\0" + digest, name.encode() + b"\0", text.encode())
    data = b"".join(len(field).to_bytes(4, "little") + field for field in fields)
    column = hashlib.sha1(data).hexdigest()  # noqa: S324 - the digest of the list's second column
    return f"10 {column} ima-buf {algorithm}:{digest.hex()} {name} {text.encode().hex()}".encode()


def policy(**changes: Any) -> RuntimePolicy:
    document = empty_policy_document()
    rule = {**RULE, **changes}
    document["ima"]["dm_policy"] = {"version": 1, "match_on": "name", "rules": {"root": rule}}
    return compile_document(document)


def quoted_after(lines: list[bytes]) -> bytes:
    value = bytes(32)
    for text in lines:
        value = SHA256.digest(value + SHA256.digest(parse_line(text).data))
    return value


def appraised(
    lines: list[bytes], under: RuntimePolicy, *, proven: int | None = None, history: ImaHistory = NO_IMA
) -> ListAppraisal:
    """Judge `lines`, of which the TPM vouches for the first `proven`."""
    value = history.pcr or bytes(32)
    for text in lines[:proven]:
        value = SHA256.digest(value + SHA256.digest(parse_line(text).data))
    return appraise_list(lines, bank=SHA256, rules=Rules(under), quoted=value, history=history, keyrings={})


def ids(result: ListAppraisal) -> list[str]:
    return [finding.event_id for finding in result.findings]


def sequences() -> list[int]:
    path = Path(__file__).parents[4] / "shared/fixtures/upstream/expected.json"
    return list(range(len(json.loads(path.read_text())["dm"]["sequences"]))) if path.exists() else [0]


@pytest.mark.parametrize("number", sequences())
def test_the_reference_sequences_have_their_event_ids(number: int) -> None:
    root = shared_path("fixtures/upstream")
    sequence = json.loads((root / "expected.json").read_text())["dm"]["sequences"][number]
    rules = compile_devices(json.loads((root / sequence["policy"]).read_text()))
    devices: dict[str, Device] = {}
    for step in sequence["steps"]:
        entry = parse_line((root / step["entry"]).read_bytes().strip())
        assert entry.buffer is not None
        verdict = judge_event(entry.name.decode(), entry.algorithm, entry.digest, entry.buffer, rules, devices)
        changed(devices, verdict.changes)
        assert [finding.event_id for finding in verdict.findings] == step["failures"], step["entry"]
    # A device between load and resume is a moment of every start: only what the policy requires is asked at the end.
    wanted = [it for it in sequence["final_state_check"] if it != "ima.validation.dm.device_invalid_state"]
    assert [finding.event_id for finding in missing_devices(rules, devices)] == wanted


def test_a_device_that_follows_its_rule_is_clean() -> None:
    result = appraised([line("dm_table_load", LOAD), line("dm_device_resume", resume())], policy())
    assert result.findings == ()
    assert result.history.devices.devices["test"].valid


# trust: fail-closed
def test_a_required_device_that_nobody_set_up_is_found() -> None:
    found = appraised([line("dm_table_load", LOAD)], policy())
    assert ids(found) == ["ima.validation.dm.required_policy_not_in_use"]
    assert appraised([line("dm_table_load", LOAD)], policy(required=False)).findings == ()


# trust: evidence-before-belief
def test_lines_behind_the_quoted_value_do_not_set_up_a_device() -> None:
    lines = [line("dm_table_load", LOAD), line("dm_device_resume", resume())]
    assert ids(appraised(lines, policy(), proven=1)) == ["ima.validation.dm.required_policy_not_in_use"]
    result = appraised(lines, policy(required=False), proven=1)
    assert result.findings == ()
    assert not result.history.devices.devices["test"].active
    again = appraised(lines[1:], policy(required=False), history=result.history)
    assert again.findings == ()
    assert again.history.devices.devices["test"].active


# trust: restart
def test_the_record_of_devices_outlives_a_restart() -> None:
    rules = policy()
    first = appraised([line("dm_table_load", LOAD), line("dm_device_resume", resume())], rules).history
    text = history_text(first)
    assert text is not None
    restored = parse_history(first.next_entry, text)
    assert restored == first
    assert appraised([], rules, history=restored).findings == ()
    removed = appraised([line("dm_device_remove", REMOVE)], rules, history=restored)
    assert ids(removed)[0] == "ima.validation.dm.dm_device_remove.device_removed"
    unknown = appraised([line("dm_device_remove", REMOVE)], rules)
    assert ids(unknown)[0] == "ima.validation.dm.dm_device_remove.remove_before_table_load"


def test_a_row_of_an_earlier_version_is_still_read() -> None:
    history = appraised([line("dm_table_load", LOAD), line("dm_device_resume", resume())], policy()).history
    row = json.loads(history_text(history) or "")
    del row["devices"]
    assert parse_history(2, json.dumps(row)).devices.checksum == ""


def test_a_text_that_is_not_what_its_digest_says_is_found() -> None:
    good = line("dm_table_load", LOAD).decode().split(" ")
    other = LOAD.replace("8:1", "8:2").encode()
    fields = (b"sha256:\0" + bytes.fromhex(good[3].split(":")[1]), b"dm_table_load\0", other)
    data = b"".join(len(field).to_bytes(4, "little") + field for field in fields)
    good[1], good[5] = hashlib.sha1(data).hexdigest(), other.hex()  # noqa: S324
    found = appraised([" ".join(good).encode()], policy(required=False))
    assert ids(found) == ["ima.validation.dm.invalid_data"]


def test_a_kernel_that_logs_another_hash_still_names_its_table() -> None:
    lines = [line("dm_table_load", LOAD, "sha1"), line("dm_device_resume", resume(), "sha1")]
    assert appraised(lines, policy()).findings == ()


def test_an_event_that_does_not_parse_is_found() -> None:
    assert ids(appraised([line("dm_table_load", "garbage")], policy(required=False))) == [
        "ima.validation.dm.parsing_failed"
    ]


def test_without_a_device_policy_an_event_is_a_buffer_like_others() -> None:
    plain = compile_document(empty_policy_document())
    assert ids(appraised([line("dm_table_load", LOAD)], plain)) == ["ima.validation.ima-ng.not_in_allowlist"]


def test_a_table_that_no_rule_allows_is_found_and_what_follows_cannot_use_it() -> None:
    other = LOAD.replace("name=test", "name=other")
    found = appraised([line("dm_table_load", other)], policy(required=False))
    assert ids(found) == ["ima.validation.dm.dm_table_load.no_matching_policy"]
    assert found.findings[0].context["device"] == "other"
    assert found.history is NO_IMA


def test_history_of_a_node_without_devices_stays_as_short_as_it_was() -> None:
    assert "devices" not in (history_text(ImaHistory(1, bytes(32))) or "")
