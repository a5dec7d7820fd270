"""The push interface from the agent's side: spellings, and answers that are hostile or of another version."""

import json
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes import vectors

from limeguard.wire import push_agent_v3 as wire

PUSH = vectors.load("tpm/protocol.json")["push"]
CHALLENGE = bytes(range(16))
KEY = wire.CertificationKey(
    key_algorithm="rsa",
    key_size=2048,
    server_identifier="ak",
    local_identifier=PUSH["name"],
    public=PUSH["public"],
    allowable_hash_algorithms=("sha256",),
    allowable_signature_schemes=("rsassa",),
)
HAVING = wire.Capabilities(
    key=KEY,
    hash_algorithm="sha256",
    signature_scheme="rsassa",
    pcrs=(0, 1, 2),
    uefi_version="2.1",
    uefi_entries=31,
    ima_entries=2,
    boot_time="2026-11-23T16:49:35Z",
)


def attributes(body: bytes, kind: str) -> dict[str, Any]:
    document = json.loads(body)
    assert set(document) == {"data"}
    assert document["data"]["type"] == kind
    found: dict[str, Any] = document["data"]["attributes"]
    return found


def data(**members: object) -> bytes:
    return json.dumps({"data": {"type": "x", **members}}).encode()


def test_a_session_is_asked_for_and_proven_as_deployed_agents_do() -> None:
    asked = attributes(wire.encode_session_request("node-1"), "session")
    pop = {"authentication_class": "pop", "authentication_type": "tpm_pop"}
    assert asked == {"agent_id": "node-1", "authentication_supported": [pop]}
    body = wire.encode_session_proof("sid", "node-1", b"message", b"signature")
    assert json.loads(body)["data"]["id"] == "sid"
    proof = {"message": b64encode(b"message").decode(), "signature": b64encode(b"signature").decode()}
    wanted = {"agent_id": "node-1", "authentication_provided": [{**pop, "data": proof}]}
    assert attributes(body, "session") == wanted


def test_capabilities_name_the_key_the_bank_and_both_logs() -> None:
    found = attributes(wire.encode_capabilities(HAVING), "attestation")
    assert found["system_info"] == {"boot_time": "2026-11-23T16:49:35Z"}
    quote, boot, ima = found["evidence_supported"]
    assert [one["evidence_type"] for one in (quote, boot, ima)] == ["tpm_quote", "uefi_log", "ima_log"]
    having = quote["capabilities"]
    assert having["component_version"] == "2.0"
    assert having["available_subjects"] == {"sha256": [0, 1, 2]}
    assert set(having["available_subjects"]) <= set(having["hash_algorithms"])
    (key,) = having["certification_keys"]
    assert key["key_class"] == "asymmetric"
    assert key["public"] == PUSH["public"]
    # Verifiers of 7.14 want the key's algorithm to begin one of the schemes.
    assert any(scheme.startswith(key["key_algorithm"]) for scheme in having["signature_schemes"])
    assert ima["capabilities"] == {
        "entry_count": 2,
        "supports_partial_access": True,
        "appendable": True,
        "formats": ["text/plain"],
    }
    assert boot["capabilities"]["formats"] == ["application/octet-stream"]
    assert boot["capabilities"]["evidence_version"] == "2.1"


def test_no_member_is_null() -> None:
    # Null values are refused with 400: an unknown time of boot is left out.
    unknown = wire.Capabilities(
        **{name: getattr(HAVING, name) for name in HAVING.__struct_fields__} | {"boot_time": None}
    )
    assert b"null" not in wire.encode_capabilities(unknown)
    assert "system_info" not in attributes(wire.encode_capabilities(unknown), "attestation")


def test_evidence_goes_out_in_the_order_asked_for() -> None:
    lines = "10 aa ima-ng sha256:bb /a\n10 cc ima-ng sha256:dd /b\n"
    collected = [wire.collected_quote(b"A", b"S", b"P"), wire.collected_uefi_log("bG9n"), wire.collected_ima_log(lines)]
    found = attributes(wire.encode_evidence(collected), "attestation")["evidence_collected"]
    assert [one["evidence_type"] for one in found] == ["tpm_quote", "uefi_log", "ima_log"]
    assert found[0]["data"] == {"message": "QQ==", "signature": "Uw==", "subject_data": "UA=="}
    assert found[1]["data"] == {"entries": "bG9n"}
    assert found[2]["data"] == {"entries": lines, "entry_count": 2}
    assert attributes(wire.encode_no_evidence(), "error") == {"evidence_collected": []}


def session(challenge: object = b64encode(CHALLENGE).decode(), id: object = "1f0c2a1e-52a8") -> bytes:  # noqa: A002
    asked = [
        {"authentication_class": "pop", "authentication_type": "newer", "chosen_parameters": {"challenge": "x"}},
        {
            "authentication_class": "pop",
            "authentication_type": "tpm_pop",
            "chosen_parameters": {"challenge": challenge, "new": 1},
        },
    ]
    return data(id=id, attributes={"agent_id": "n", "authentication_requested": asked, "created_at": "t"})


def test_a_challenge_is_read() -> None:
    assert wire.decode_session(session()) == wire.OpenSession(id="1f0c2a1e-52a8", challenge=CHALLENGE)
    assert wire.decode_session(session("not base64!")).challenge == b"not base64!"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        session(id=7),
        session(id="../../agents"),
        session(id=""),
        session(challenge=""),
        session(challenge="A" * 200),
        data(id="a", attributes={"authentication_requested": []}),
    ],
)
def test_a_session_that_cannot_be_used_is_refused(body: bytes) -> None:
    with pytest.raises(wire.BadAnswer):
        wire.decode_session(body)


def outcome(**members: object) -> bytes:
    return data(id="s", attributes=members)


def test_only_a_pass_gives_a_token() -> None:
    assert wire.decode_session_outcome(outcome(evaluation="pass", token="a.b", authentication=[])) == "a.b"
    assert wire.decode_session_outcome(outcome(evaluation="fail", token="a.b")) is None
    assert wire.decode_session_outcome(outcome(evaluation="fail")) is None
    # A token that ends the header and begins another is none.
    for token in ("", "a\r\nX: y", "a b", "ä", "x" * 5000):
        with pytest.raises(wire.BadAnswer):
            wire.decode_session_outcome(outcome(evaluation="pass", token=token))


def requested(*items: dict[str, Any]) -> bytes:
    return data(attributes={"stage": "awaiting_evidence", "evidence_requested": items, "system_info": {}})


QUOTE = {
    "evidence_class": "certification",
    "evidence_type": "tpm_quote",
    "chosen_parameters": {
        "challenge": PUSH["challenge"],
        "signature_scheme": "rsassa",
        "hash_algorithm": "sha256",
        "selected_subjects": {"sha256": [10, 0, 10], "sha1": None},
        "certification_key": {"public": "x"},
    },
}


def chosen(**changed: object) -> dict[str, Any]:
    return {**QUOTE, "chosen_parameters": {**QUOTE["chosen_parameters"], **changed}}  # type: ignore[dict-item]


def test_what_is_asked_for_is_read_in_order() -> None:
    ima = {
        "evidence_class": "log",
        "evidence_type": "ima_log",
        "chosen_parameters": {"starting_offset": 3, "format": "text/plain"},
    }
    other = {"evidence_class": "log", "evidence_type": "newer_log"}
    found = wire.decode_requested(
        requested(QUOTE, {**ima, "evidence_type": "uefi_log", "chosen_parameters": None}, ima, other)
    )
    assert found == (
        wire.QuoteRequest(challenge=CHALLENGE, signature_scheme="rsassa", hash_algorithm="sha256", pcrs=(0, 10)),
        wire.LogRequest(evidence_type="uefi_log", starting_offset=0, entry_count=None),
        wire.LogRequest(evidence_type="ima_log", starting_offset=3, entry_count=None),
        wire.UnknownRequest(evidence_type="newer_log"),
    )
    assert wire.decode_requested(requested()) == ()


def test_only_the_bank_of_the_hash_counts() -> None:
    cases: tuple[object, ...] = ({"sha256": None, "sha1": [1]}, {"sha256": []}, {}, None)
    for subjects in cases:
        (found,) = wire.decode_requested(requested(chosen(selected_subjects=subjects)))
        assert isinstance(found, wire.QuoteRequest)
        assert found.pcrs == ()


@pytest.mark.parametrize(
    "body",
    [
        requested(chosen(challenge=None)),
        requested(chosen(hash_algorithm=None)),
        requested(chosen(signature_scheme=7)),
        requested(chosen(challenge=b64encode(bytes(100)).decode())),
        requested(*[QUOTE] * 9),
        requested(chosen(selected_subjects={"sha256": ["x"]})),
        requested({"evidence_class": "log", "evidence_type": "ima_log", "chosen_parameters": {"starting_offset": -1}}),
        requested({"evidence_class": "log", "evidence_type": "ima_log", "chosen_parameters": {"entry_count": 1 << 50}}),
        requested({"evidence_type": "ima_log"}),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(body: bytes) -> None:
    # trust: bounded
    with pytest.raises(wire.BadAnswer):
        wire.decode_requested(body)


@pytest.mark.parametrize(
    ("meta", "wanted"),
    [
        ({"seconds_to_next_attestation": 60}, 60),
        ({"seconds_to_next_attestation": 0}, 0),
        ({"seconds_to_next_attestation": 7.5}, 7.5),
        ({"seconds_to_next_attestation": -1}, None),
        ({"seconds_to_next_attestation": 10**9}, None),
        ({"seconds_to_next_attestation": "60"}, None),
        ({}, None),
        (None, None),
    ],
)
def test_the_next_attestation_is_told_or_left_to_the_settings(meta: object, wanted: float | None) -> None:
    assert wire.decode_accepted(json.dumps({"data": {}, "meta": meta}).encode()) == wanted


def test_a_refusal_is_read_as_far_as_it_can_be() -> None:
    errors = [{"status": "403", "code": "challenges_expired", "detail": "one."}, {"title": "two."}]
    assert wire.decode_refusal(json.dumps({"errors": errors}).encode()) == wire.Refusal(
        "challenges_expired", "one. two."
    )
    assert wire.decode_refusal(b"") == wire.Refusal("", "")
    assert wire.decode_refusal(b"<html>\xff") == wire.Refusal("", "<html>\ufffd")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("Fri, 27 Nov 2026 22:00:10 GMT", 10.0),
        ("Fri, 27 Nov 2026 21:00:00 GMT", 0.0),
        ("soon", None),
        ("", None),
        ("-5", None),
        ("9" * 40, None),
    ],
)
def test_retry_after_is_a_number_or_a_date(text: str, wanted: float | None) -> None:
    assert wire.retry_after(text, 1795816800.0) == wanted


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_no_answer_is_more_than_bad(body: bytes) -> None:
    # trust: safe-parsing
    for decode in (wire.decode_session, wire.decode_session_outcome, wire.decode_requested):
        with pytest.raises(wire.BadAnswer):
            decode(body)
    assert wire.decode_accepted(body) is None
    wire.decode_refusal(body)


@given(st.text(max_size=60))
def test_no_retry_after_is_negative_or_an_error(text: str) -> None:
    found = wire.retry_after(text, 1e9)
    assert found is None or found >= 0
