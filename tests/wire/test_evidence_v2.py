"""Requests to verify evidence, and uploads of measured boot policies: whatever is sent is read or refused."""

import contextlib
import json
from base64 import b64encode
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limeguard.wire import verifier_v2
from limeguard.wire.envelope import BadRequest
from limeguard.wire.evidence_v2 import (
    EvidenceResult,
    Failure,
    MissingParameter,
    TeeEvidence,
    TpmEvidence,
    decode_evidence,
    encode_incomplete,
    encode_result,
    nonces,
    policy_text,
)

values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from([*TpmEvidence.__struct_fields__, "tee-evidence", "tee-pubkey-x-b64", "tee-pubkey-y-b64", "x"])
texts = st.text(min_size=1, max_size=20)


@given(st.binary(max_size=200) | st.fixed_dictionaries({"type": values, "data": values}).map(msgspec.json.encode))
def test_any_body_is_read_or_refused(body: bytes) -> None:
    # trust: safe-parsing
    for decode in (decode_evidence, verifier_v2.decode_boot_policy):
        with contextlib.suppress(BadRequest, MissingParameter):
            decode(body)


@given(st.sampled_from(["tpm", "tee"]), st.dictionaries(names, values))
def test_any_data_is_read_or_refused_and_comes_back_as_it_was(kind: str, data: dict[str, Any]) -> None:
    body = msgspec.json.encode({"type": kind, "data": data})
    try:
        evidence, claims = decode_evidence(body)
    except (BadRequest, MissingParameter):
        return
    assert isinstance(evidence, TpmEvidence if kind == "tpm" else TeeEvidence)
    answer = msgspec.json.decode(encode_result(EvidenceResult(valid=True, claims=claims)))
    assert answer["results"] == {
        "valid": True,
        "claims": msgspec.json.decode(msgspec.json.encode(data)),
        "failures": [],
    }


@given(st.dictionaries(st.sampled_from(["quote", "nonce", "hash_alg", "tpm_ek", "tpm_ak"]), texts | st.just("")))
def test_the_first_missing_member_is_named(data: dict[str, str]) -> None:
    missing = [name for name in ("quote", "nonce", "hash_alg", "tpm_ek", "tpm_ak") if not data.get(name)]
    body = json.dumps({"type": "tpm", "data": data}).encode()
    if not missing:
        assert decode_evidence(body)[0] == TpmEvidence(**data)
        return
    with pytest.raises(MissingParameter) as caught:
        decode_evidence(body)
    assert (caught.value.kind, caught.value.name) == ("tpm", missing[0])


@given(st.binary(max_size=40))
def test_a_nonce_may_stand_for_itself_or_for_bytes(data: bytes) -> None:
    text = b64encode(data).decode()
    assert nonces(text) == (text.encode(), data)


def test_a_nonce_that_is_no_base64_stands_for_itself() -> None:
    assert nonces("ab-c") == (b"ab-c",)


@pytest.mark.parametrize("policy", [None, "", {}])
def test_a_policy_that_says_nothing_is_none(policy: str | dict[str, Any] | None) -> None:
    assert policy_text(policy) == ""


def test_what_is_missing_is_told_with_the_outcome() -> None:
    answer = json.loads(encode_incomplete(Failure("default.missing_param", {"message": "x"})))
    failure = {"type": "default.missing_param", "context": {"message": "x"}}
    results = {"valid": False, "claims": {}, "failures": [failure]}
    assert answer == {"code": 400, "status": "Bad Request", "results": results}


def test_a_boot_policy_that_was_forgotten_is_not_null() -> None:
    # trust: empty-is-not-valid
    assert verifier_v2.decode_boot_policy(b'{"mb_policy": null}').mb_policy is None
    with pytest.raises(BadRequest, match="'mb_policy'"):
        verifier_v2.decode_boot_policy(b"{}")
