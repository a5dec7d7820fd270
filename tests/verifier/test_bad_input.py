"""Requests that are wrong in every way: the right status, an envelope that says what to do, no trace of the inside."""

import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fakes.soft_agent import enrolment
from tests.fakes.verifier_site import Site

from limeguard.simulator.softtpm import EK_LOW_ATTRIBUTES, SoftNode
from limeguard.store.node_record import Enrolled
from limeguard.verifier.enrolment import NewNode, examine
from limeguard.verifier.enrolment import Site as OurSite
from limeguard.wire.envelope import BadRequest
from limeguard.wire.verifier_v2 import decode_enrolment

INSIDES = re.compile(
    r"Traceback|File \"|\.py\b|site-packages|/src/|/tmp/|limeguard\.|msgspec"
    r"|sqlalchemy|aiohttp|asyncio|<class|object at"
)
PATH = "/v2.6/agents/node-1"
NODE = SoftNode.create("ecc256")
BODY = enrolment(NODE, "disabled", 9002)
SITE = OurSite(verifier_id="default", verifier_ip="127.0.0.1", verifier_port=8881, certificate_required=False)


@pytest.mark.services
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "Expected non zero content length"),
        (b"null", "Exception error: the body is a JSON NoneType, not an object"),
        (b"[]", "Exception error: the body is a JSON list, not an object"),
        (b'"x"', "Exception error: the body is a JSON str, not an object"),
        (b"{}", "Exception error: 'tpm_policy'"),
    ],
)
async def test_bodies_that_are_no_enrolment_say_what_is_missing(site: Site, body: bytes, said: str) -> None:
    answer = await site.ask("POST", PATH, body)
    assert (answer.status, answer.said) == (400, said)


@pytest.mark.services
@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000, b"{}x", b"{'a': 1}", b"NaN"])
async def test_malformed_json_has_a_bare_400_when_it_calls_itself_json(site: Site, body: bytes) -> None:
    # trust: safe-parsing
    answer = await site.ask("POST", PATH, body)
    assert (answer.status, answer.text) == (400, "")
    answer = await site.ask("POST", PATH, body, Content_Type="text/plain")
    assert answer.status == 400
    assert answer.said.startswith("Exception error: ")
    assert not INSIDES.search(answer.text)


@pytest.mark.services
async def test_ids_that_are_none_are_refused_on_every_route(site: Site) -> None:
    # trust: hygiene
    for bad in ("a b", "a%20b", "a%0ab", "a/../b".replace("/", "%2f"), "ä", "x" * 81, "a;b", "<script>", "a'--"):
        for method, suffix in (
            ("GET", ""),
            ("POST", ""),
            ("DELETE", ""),
            ("PUT", "/stop"),
            ("PUT", "/reactivate"),
        ):
            answer = await site.ask(method, f"/v2.6/agents/{bad}{suffix}", BODY)
            assert (answer.status, answer.said) == (400, "agent_id not not valid"), (method, bad)


@pytest.mark.services
async def test_the_log_cannot_be_forged(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    # trust: hygiene
    caplog.set_level("DEBUG")
    await site.ask("POST", "/v2.6/agents/a%0a2026-01-01%20root%20-%20INFO%20-%20all%20is%20well", BODY)
    await site.ask("POST", PATH, {**BODY, "cloudagent_ip": "x\n2026 all is well\x1b[2J"})
    for record in caplog.records:
        assert "\n" not in record.getMessage()
        assert "\x1b" not in record.getMessage()


@pytest.mark.services
async def test_a_body_that_is_too_large_is_refused(site: Site) -> None:
    # trust: bounded
    answer = await site.ask("POST", PATH, b" " * 10, Content_Length=str(1 << 40))
    assert answer.status == 413
    assert not INSIDES.search(answer.text)


def examined(changes: dict[str, Any]) -> NewNode:
    body = json.dumps({**BODY, **changes}).encode()
    return examine("node-1", decode_enrolment(body, certificate_required=False), SITE, 0.0)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"tpm_policy": ""}, "tpm_policy cannot be used"),
    ({"tpm_policy": "[]"}, "tpm_policy cannot be used"),
    ({"tpm_policy": '{"mask": "zz"}'}, "tpm_policy cannot be used"),
    ({"tpm_policy": '{"24": ["00"], "mask": "0x0"}'}, "tpm_policy cannot be used"),
    ({"tpm_policy": '{"15": [], "mask": "0x8000"}'}, "tpm_policy cannot be used"),
    ({"tpm_policy": '{"15": ["00"], "mask": "0x8000"}'}, "tpm_policy cannot be used"),
    ({"ak_tpm": ""}, "ak_tpm is not a base64 TPM2B_PUBLIC"),
    ({"ak_tpm": "!!"}, "ak_tpm is not a base64 TPM2B_PUBLIC"),
    ({"ak_tpm": "AAAA"}, "ak_tpm is not a base64 TPM2B_PUBLIC"),
    ({"cloudagent_ip": None}, "cloudagent_ip and cloudagent_port are required in pull mode"),
    ({"cloudagent_port": None}, "cloudagent_ip and cloudagent_port are required in pull mode"),
    ({"cloudagent_ip": "a b"}, "cloudagent_ip is neither a host name nor an address"),
    ({"cloudagent_ip": "x/../../y"}, "cloudagent_ip is neither a host name nor an address"),
    ({"cloudagent_ip": "user@host"}, "cloudagent_ip is neither a host name nor an address"),
    ({"cloudagent_port": 0}, "cloudagent_port is not a port: 0"),
    ({"cloudagent_port": 65536}, "cloudagent_port is not a port: 65536"),
    ({"cloudagent_port": "9002x"}, "invalid literal for int() with base 10: '9002x'"),
    ({"v": "AAAA"}, "v is not the base64 of 16 or 32 bytes"),
    ({"v": "@@@"}, "v is not the base64 of 16 or 32 bytes"),
    ({"mtls_cert": "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----"}, "mtls_cert is not a PEM certificate"),
    ({"supported_version": "1.0"}, "agents of API version 1.0 are not supported"),
    ({"metadata": "x" * 70_000}, "metadata is longer than 65536 characters"),
    ({"metadata": "a\0b"}, "metadata holds a NUL character"),
    ({"verifier_ip": "a\0b"}, "verifier_ip holds a NUL character"),
    ({"accept_tpm_hash_algs": ["sha256"] * 33}, "a list of more than 32 algorithms"),
    ({"accept_tpm_hash_algs": ["sha\0"]}, "an algorithm's name is no word"),
    ({"accept_tpm_hash_algs": "sha256"}, ""),
    ({"accept_tpm_hash_algs": [1]}, ""),
    ({"metadata": 1}, ""),
    ({"cloudagent_port": 9002.5}, ""),
    ({"runtime_policy": None}, "argument should be a bytes-like object or ASCII string, not 'NoneType'"),
]


@pytest.mark.parametrize(("changes", "said"), WRONG, ids=lambda value: str(value)[:40])
def test_a_member_that_cannot_be_used_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequest) as refused:
        examined(changes)
    assert refused.value.code == 400
    assert refused.value.status_text.startswith("Exception error: ")
    assert said in refused.value.status_text
    assert not INSIDES.search(refused.value.status_text)


@pytest.mark.parametrize("member", sorted(set(BODY) - {"v", "cloudagent_ip", "cloudagent_port", "mtls_cert"}))
def test_a_required_member_that_is_missing_is_named(member: str) -> None:
    body = {name: value for name, value in BODY.items() if name != member}
    optional = {
        "verifier_ip",
        "verifier_port",
        "runtime_policy_name",
        "runtime_policy_key",
        "supported_version",
    }
    if member in optional:
        new = examine("n", decode_enrolment(json.dumps(body).encode(), certificate_required=False), SITE, 0.0)
        assert new.enrolled.agent_id == "n"
        return
    with pytest.raises(BadRequest) as refused:
        decode_enrolment(json.dumps(body).encode(), certificate_required=False)
    expected = "argument should be a bytes-like" if member == "runtime_policy" else f"'{member}'"
    assert expected in refused.value.status_text


def test_only_a_restricted_signing_key_can_be_enrolled() -> None:
    # trust: bound-identity
    import base64

    ek = base64.b64encode(SoftNode.create("ecc256").ek.public_2b).decode()
    assert EK_LOW_ATTRIBUTES
    with pytest.raises(BadRequest, match="ak_tpm is not a restricted signing key"):
        examined({"ak_tpm": ek})


def test_key_material_stays_out_of_what_is_shown() -> None:
    # trust: secret
    share = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY="
    new = examined({"v": share, "revocation_key": "-----BEGIN PRIVATE KEY-----"})
    assert isinstance(new.enrolled, Enrolled)
    for shown in (repr(new), str(new), f"{new}", repr(new.enrolled)):
        assert share not in shown
        assert "PRIVATE KEY" not in shown


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(BODY)), json_values)
def test_any_value_of_any_member_is_taken_or_refused_with_a_sentence(member: str, value: object) -> None:
    # trust: safe-parsing
    try:
        new = examined({member: value})
    except BadRequest as refused:
        told = refused
    else:
        assert "\0" not in str(new.enrolled)
        return
    assert told.code == 400
    assert not INSIDES.search(told.status_text)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused_with_a_sentence(body: bytes) -> None:
    # trust: safe-parsing
    with pytest.raises(BadRequest) as refused:
        decode_enrolment(body, certificate_required=True)
    assert not INSIDES.search(refused.value.status_text)
