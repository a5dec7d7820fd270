"""The verifier's messages on the wire: members in order, types, and texts that scripts match."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.nodes import make_record

from limeguard.verifier.view import agent_status
from limeguard.wire import verifier_v2
from limeguard.wire.envelope import BadRequest


def test_a_status_has_its_members_in_the_order_of_the_wire() -> None:
    encoded = verifier_v2.encode_status(agent_status(make_record(), 0.0, 2.0))
    assert encoded.startswith(b'{"code":200,"status":"Success","results":{"operational_state":1,"v":null,"ip":"127')
    assert list(json.loads(encoded)["results"])[-3:] == [
        "attestation_status",
        "attestation_period",
        "maximum_attestation_interval",
    ]


def test_ids_stand_in_lists_of_their_own() -> None:
    assert json.loads(verifier_v2.encode_ids(("a", "b")))["results"] == {"uuids": [["a"], ["b"]]}
    assert json.loads(verifier_v2.encode_ids(()))["results"] == {"uuids": []}


def test_the_names_of_policies_have_a_blank_in_their_key() -> None:
    assert json.loads(verifier_v2.encode_runtime_policy_names(("p",)))["results"] == {"runtimepolicy names": ["p"]}
    assert json.loads(verifier_v2.encode_boot_policy_names(()))["results"] == {"mbpolicy names": []}


def test_an_identity_is_a_number_and_its_reason_is_json_in_json() -> None:
    assert json.loads(verifier_v2.encode_identity(verifier_v2.IdentityResult(1)))["results"] == {"valid": 1}
    refused = json.loads(verifier_v2.encode_identity(verifier_v2.identity_refused("why")))["results"]
    assert json.loads(refused["reason"]) == {"message": "Quote data validation", "error": "why"}


def test_secrets_do_not_show_in_representations() -> None:
    # trust: secret
    status = agent_status(make_record(), 0.0, 2.0)
    assert repr(status) == "AgentStatus(...)"


@pytest.mark.parametrize("good", ["a", "A-1.b_c", "d432fbb3-d2f1-4a97-9ef7-75bd81c00000", "f" * 64, "x" * 80])
def test_ids_of_every_customary_form_are_taken(good: str) -> None:
    verifier_v2.check_id(good)


@given(st.text(max_size=90))
def test_an_id_is_safe_in_paths_and_logs(text: str) -> None:
    # trust: hygiene
    if verifier_v2.valid_id(text):
        assert text.isascii()
        assert text.isprintable()
        assert 0 < len(text) <= 80
        assert not set(text) & set("/\\ %?#&;:'\"<>\n")
    else:
        with pytest.raises(BadRequest, match="agent_id not not valid"):
            verifier_v2.check_id(text)


@pytest.mark.parametrize(("given_value", "port"), [(1, 1), ("65535", 65535), (None, None), ("", None), ("0009", 9)])
def test_ports_come_as_number_or_text(given_value: int | str | None, port: int | None) -> None:
    assert verifier_v2.port_number(given_value, "port") == port


@pytest.mark.parametrize("bad", [0, -1, 65536, "0", "65536", "1e3", "+1", " 1", "\u0661", "999999"])
def test_what_is_no_port_is_refused(bad: int | str) -> None:
    with pytest.raises(BadRequest):
        verifier_v2.port_number(bad, "port")


def test_a_question_names_its_first_missing_part() -> None:
    query = {"agent_uuid": "a", "quote": "q", "nonce": "n", "hash_alg": "sha256"}
    assert verifier_v2.decode_identity_question(query).nonce == "n"
    for name in query:
        rest = {key: value for key, value in query.items() if key != name}
        with pytest.raises(BadRequest, match=f"missing query parameter '{name}'"):
            verifier_v2.decode_identity_question(rest)
