"""JSON of the agent interface, both ways, and what is refused with which text."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limeguard.wire import agent_v2
from limeguard.wire.agent_v2 import AgentInfo, BadAnswer, Notice, QuoteAnswer, UKey
from limeguard.wire.envelope import BadRequest

QUOTE = QuoteAnswer(quote="rA:B:C", hash_alg="sha256", enc_alg="rsa2048", sign_alg="rsassa")


def test_members_that_are_not_set_are_left_out() -> None:
    assert json.loads(agent_v2.encode_quote(QUOTE)) == {
        "code": 200,
        "status": "Success",
        "results": {"quote": "rA:B:C", "hash_alg": "sha256", "enc_alg": "rsa2048", "sign_alg": "rsassa"},
    }


def test_entry_zero_is_sent_because_it_means_start_over() -> None:
    answer = QuoteAnswer(
        quote="r", hash_alg="h", enc_alg="e", sign_alg="s", ima_measurement_list="", ima_measurement_list_entry=0
    )
    results = json.loads(agent_v2.encode_quote(answer))["results"]
    assert results["ima_measurement_list_entry"] == 0
    assert results["ima_measurement_list"] == ""
    assert agent_v2.decode_quote(agent_v2.encode_quote(answer)) == answer


@given(
    st.builds(
        QuoteAnswer,
        quote=st.text(),
        hash_alg=st.text(),
        enc_alg=st.text(),
        sign_alg=st.text(),
        pubkey=st.none() | st.text(),
        ima_measurement_list=st.none() | st.text(),
        ima_measurement_list_entry=st.none() | st.integers(0, 2**40),
        mb_measurement_list=st.none() | st.text(),
        boottime=st.integers(0, 2**40),
    )
)
def test_a_quote_survives_the_way_there(answer: QuoteAnswer) -> None:
    assert agent_v2.decode_quote(agent_v2.encode_quote(answer)) == answer


@given(st.binary(max_size=200))
def test_a_boot_log_survives_the_way_there(log: bytes) -> None:
    text = base64.b64encode(log).decode()
    assert agent_v2.decode_boot_log(text) == log
    for broken in (f"{text}\n", f"{text}=", f" {text}", f"{text}\u00e9"):
        with pytest.raises(BadAnswer):
            agent_v2.decode_boot_log(broken)


def test_unknown_members_are_ignored() -> None:
    document = json.loads(agent_v2.encode_quote(QUOTE))
    document["results"]["new_in_3_1"] = [1, 2]
    document["more"] = None
    assert agent_v2.decode_quote(json.dumps(document).encode()) == QUOTE


@pytest.mark.parametrize(
    "change",
    [
        {"quote": None},
        {"quote": 7},
        {"hash_alg": ["sha256"]},
        {"pubkey": 1},
        {"ima_measurement_list_entry": "0"},
        {"ima_measurement_list_entry": -1},
        {"ima_measurement_list_entry": 1.5},
        {"boottime": "yesterday"},
        {"boottime": -5},
    ],
)
def test_a_member_of_the_wrong_kind_is_refused(change: dict[str, object]) -> None:
    document = json.loads(agent_v2.encode_quote(QUOTE))
    document["results"].update(change)
    with pytest.raises(BadAnswer):
        agent_v2.decode_quote(json.dumps(document).encode())


# trust: safe-parsing
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_decode_or_are_refused(body: bytes) -> None:
    for decode in (agent_v2.decode_quote, agent_v2.decode_version, agent_v2.decode_info, agent_v2.decode_hmac):
        with pytest.raises(BadAnswer):
            decode(body)
    for parse in (agent_v2.decode_ukey, agent_v2.decode_vkey, agent_v2.decode_notice):
        with pytest.raises(BadRequest):
            parse(body)
    agent_v2.decode_error_status(body)


# trust: bounded
def test_deep_nesting_is_refused() -> None:
    deep = b'{"results":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    with pytest.raises(BadAnswer):
        agent_v2.decode_quote(deep)
    assert agent_v2.decode_error_status(deep) == ""


# trust: secret
def test_a_refusal_does_not_quote_the_message() -> None:
    with pytest.raises(BadRequest) as problem:
        agent_v2.decode_ukey(b'{"encrypted_key": ["hush hush"], "auth_tag": "00"}')
    assert "hush" not in problem.value.status_text


def test_versions_go_both_ways_and_an_old_agent_names_one() -> None:
    body = agent_v2.encode_version(("2.1", "2.2"))
    assert json.loads(body)["results"] == {"supported_version": "2.2", "supported_versions": ["2.1", "2.2"]}
    assert agent_v2.decode_version(body) == ("2.1", "2.2")
    assert agent_v2.decode_version(b'{"results": {"supported_version": "2.0"}}') == ("2.0",)
    with pytest.raises(BadAnswer):
        agent_v2.decode_version(b'{"results": {}}')


@pytest.mark.parametrize(
    ("sized", "version", "spelled"),
    [
        ("rsa2048", "2.4", "rsa"),
        ("rsa2048", "2.5", "rsa2048"),
        ("ecc256", "2.1", "ecc"),
        ("ecc256", "2.6", "ecc256"),
        ("rsa3072", "2.1", "rsa3072"),
        ("ecc384", "2.4", "ecc384"),
    ],
)
def test_key_algorithms_are_spelled_for_the_version(sized: str, version: str, spelled: str) -> None:
    assert agent_v2.key_algorithm_name(sized, version) == spelled


def test_what_the_agent_says_of_itself_goes_both_ways() -> None:
    info = AgentInfo(agent_uuid="a", tpm_hash_alg="sha256", tpm_enc_alg="rsa", tpm_sign_alg="rsassa", ak_handle=7)
    assert agent_v2.decode_info(agent_v2.encode_info(info)) == info
    assert agent_v2.decode_pubkey(agent_v2.encode_pubkey("PEM\n")) == "PEM\n"
    assert agent_v2.decode_hmac(agent_v2.encode_hmac("ab")) == "ab"


def test_success_without_results_is_null_and_an_error_an_empty_object() -> None:
    assert json.loads(agent_v2.encode_success()) == {"code": 200, "status": "Success", "results": None}
    assert json.loads(agent_v2.encode_error(400, "no")) == {"code": 400, "status": "no", "results": {}}


def test_an_unsupported_version_is_recognised_by_its_text() -> None:
    assert agent_v2.says_unsupported(agent_v2.encode_error(400, "API version not supported: v9.9"))
    assert not agent_v2.says_unsupported(agent_v2.encode_error(400, "Not Implemented"))
    assert not agent_v2.says_unsupported(b"<html>")


@pytest.mark.parametrize("payload", [None, b"", b"sealed"])
def test_the_tenant_s_half_goes_both_ways(payload: bytes | None) -> None:
    message = UKey(encrypted_share=b"\x00\xff", auth_tag=b"\xab" * 48, payload=payload)
    body = agent_v2.encode_ukey(message)
    assert agent_v2.decode_ukey(body) == message
    assert ("payload" in json.loads(body)) == (payload is not None)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"encrypted_key": "*"}, "Invalid base64 encoding in encrypted_key"),
        ({"auth_tag": "zz" * 48}, "Invalid hex encoding in auth_tag"),
        ({"auth_tag": "ab"}, "Invalid auth_tag: expected 48 bytes, got 1"),
        ({"auth_tag": " ab" * 48}, "Invalid auth_tag"),
        ({"payload": "no base64 !"}, "Invalid base64 encoding in payload"),
        ({"payload": 5}, "Json deserialize error: "),
        ({"encrypted_key": None}, "Json deserialize error: "),
    ],
)
def test_a_bad_half_is_refused_with_the_known_text(change: dict[str, object], text: str) -> None:
    document = {"encrypted_key": "AAAA", "auth_tag": "ab" * 48, **change}
    with pytest.raises(BadRequest) as problem:
        agent_v2.decode_ukey(json.dumps(document).encode())
    assert problem.value.status_text.startswith(text)


@pytest.mark.parametrize("name", ["auth_tag", "encrypted_key"])
def test_a_missing_member_is_named(name: str) -> None:
    document = {"encrypted_key": "AAAA", "auth_tag": "ab" * 48}
    del document[name]
    with pytest.raises(BadRequest) as problem:
        agent_v2.decode_ukey(json.dumps(document).encode())
    assert problem.value.status_text == f"Json deserialize error: missing field `{name}`"


def test_the_verifier_s_half_and_notices_go_both_ways() -> None:
    assert agent_v2.decode_vkey(agent_v2.encode_vkey(b"share")) == b"share"
    with pytest.raises(BadRequest, match="Invalid base64 encoding in encrypted_key"):
        agent_v2.decode_vkey(b'{"encrypted_key": "\xc3\xa4"}')
    notice = Notice(msg='{"type": "revocation"}', signature="")
    assert agent_v2.decode_notice(agent_v2.encode_notice(notice)) == notice


def test_paths_carry_what_is_asked() -> None:
    assert agent_v2.identity_path("2.6", "abc") == "/v2.6/quotes/identity?nonce=abc"
    assert agent_v2.verify_path("2.1", "x&y") == "/v2.1/keys/verify?challenge=x%26y"
    path = agent_v2.integrity_path("2.5", "abc", "0x408000", partial=True, ima_entry=12)
    assert path == "/v2.5/quotes/integrity?nonce=abc&mask=0x408000&partial=1&ima_ml_entry=12"
