"""Answers of servers, read loosely: everything is shown, what decides something is checked."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limeguard.wire.operator_view import (
    Document,
    UnreadableAnswer,
    code_of,
    read_document,
    read_enrolment,
    read_registration,
    results_of,
    server_versions,
    shown_enrolment,
    shown_fleet,
    status_of,
)

RECORD: Document = {
    "agent_id": "n1",
    "aik_tpm": "QUs=",
    "ek_tpm": "RUs=",
    "ekcert": None,
    "mtls_cert": "PEM",
    "ip": "127.0.0.1",
    "port": 9002,
    "regcount": 1,
}

json_values: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


def test_a_registration_is_shown_in_the_order_of_the_wire() -> None:
    shown = read_registration(RECORD).shown()
    assert list(shown) == ["aik_tpm", "regcount", "ek_tpm", "ip", "port", "mtls_cert", "ekcert", "operational_state"]
    assert shown["operational_state"] == "Registered"


@pytest.mark.parametrize("key", ["aik_tpm", "regcount", "ek_tpm", "ip", "port"])
def test_a_registration_without_a_needed_member_is_refused(key: str) -> None:
    with pytest.raises(UnreadableAnswer, match=key):
        read_registration({k: v for k, v in RECORD.items() if k != key})


@pytest.mark.parametrize(
    ("key", "value"),
    [("aik_tpm", ""), ("aik_tpm", 5), ("port", 70000), ("port", 0), ("port", True), ("port", "x"), ("regcount", [])],
)
def test_a_registration_with_a_wrong_member_is_refused(key: str, value: object) -> None:
    with pytest.raises(UnreadableAnswer, match=key):
        read_registration({**RECORD, key: value})


# trust: safe-parsing
@given(st.dictionaries(st.sampled_from([*RECORD, "provider_keys", "x"]), json_values))
def test_any_registration_is_read_or_refused(results: Document) -> None:
    try:
        registration = read_registration(results)
    except UnreadableAnswer:
        return
    assert registration.attestation_key


# trust: safe-parsing
@given(st.binary(max_size=200) | json_values.map(lambda v: json.dumps(v).encode()))
def test_any_body_is_read_or_refused(body: bytes) -> None:
    document = read_document(body)
    assert document is None or isinstance(document, dict)
    assert isinstance(status_of(document), str)
    assert code_of(document) is None or isinstance(code_of(document), int)
    assert isinstance(server_versions(document), tuple)


# trust: bounded
def test_nesting_that_is_too_deep_is_no_document() -> None:
    assert read_document(b'{"a":' * 200_000) is None
    assert read_document(b"[" * 200_000) is None


def test_a_state_is_shown_by_name_in_its_place() -> None:
    shown = shown_enrolment({"operational_state": 9, "v": None}, push=False)
    assert shown == {"operational_state": "Invalid Quote", "v": None}
    assert list(shown) == ["operational_state", "v"]


def test_a_push_node_has_no_state() -> None:
    assert shown_enrolment({"operational_state": 3, "v": None}, push=True) == {"v": None}


def test_a_record_without_state_is_refused() -> None:
    with pytest.raises(UnreadableAnswer, match="operational_state"):
        shown_enrolment({"v": None}, push=False)


def test_unknown_members_and_states_are_shown_as_they_came() -> None:
    assert shown_enrolment({"operational_state": 77, "new": [1]}, push=False) == {"operational_state": 77, "new": [1]}


def test_a_null_state_in_a_fleet_says_push() -> None:
    assert shown_fleet({"n": {"operational_state": None}}) == {"n": {"operational_state": "Not applicable (Push Mode)"}}


def test_the_supervisor_is_read_from_a_record() -> None:
    record: Document = {"verifier_ip": "h", "verifier_port": "8881", "verifier_id": "d", "ip": None, "port": None}
    found = read_enrolment(record)
    assert (found.verifier_ip, found.verifier_port, found.verifier_id) == ("h", 8881, "d")
    with pytest.raises(UnreadableAnswer, match="verifier_id"):
        read_enrolment({k: v for k, v in record.items() if k != "verifier_id"})


def test_results_must_be_an_object() -> None:
    with pytest.raises(UnreadableAnswer):
        results_of({"code": 200, "results": []})
