"""JSON of the registrar's interface, as both sides speak it: what is read, what is refused, and with which text."""

import json
from base64 import b64encode
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from limeguard.wire import registrar_agent_v2 as agent
from limeguard.wire import registrar_v2 as wire
from limeguard.wire.envelope import BadRequest
from limeguard.wire.registrar_v2 import INVALID, MalformedBody, RegistrationRequest

ID = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000"
BINARY = ("aik_tpm", "ek_tpm", "iak_tpm", "idevid_tpm", "iak_attest", "iak_sign")
CERTIFICATES = ("ekcert", "iak_cert", "idevid_cert", "mtls_cert")
MEMBERS = (*BINARY, *CERTIFICATES, "ip", "port")


def read(**members: Any) -> RegistrationRequest:
    agent_id, request = wire.decode_registration(json.dumps(members).encode(), ID)
    assert agent_id == ID
    return request


def b64(data: bytes) -> str:
    return b64encode(data).decode()


def refusal(**members: Any) -> str:
    with pytest.raises(BadRequest) as caught:
        read(**members)
    assert caught.value.code == 400
    return caught.value.status_text


# ---------------------------------------------------------------- registration


@pytest.mark.parametrize("body", [b"", b"{}", b' {"unknown": {"members": [1, null]}} '])
def test_what_is_absent_is_unset(body: bytes) -> None:
    agent_id, request = wire.decode_registration(body, ID)
    assert (agent_id, request) == (ID, RegistrationRequest())
    assert all(getattr(request, member) is UNSET for member in MEMBERS)
    assert not request.touches_identity


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("empty", ["", None])
def test_what_is_empty_is_null_and_not_absent(member: str, empty: str | None) -> None:
    request = read(**{member: empty})
    assert getattr(request, member) is None
    assert request.touches_identity == (member not in {"mtls_cert", "ip", "port", "iak_attest", "iak_sign"})


@pytest.mark.parametrize("member", BINARY)
@given(data=st.binary(min_size=1, max_size=300))
def test_binary_members_are_base64_or_hex(member: str, data: bytes) -> None:
    assert getattr(read(**{member: b64(data)}), member) == data
    pairs = data * 2  # of an odd number, `0x` and the digits would pass as base64
    assert getattr(read(**{member: "0x" + pairs.hex()}), member) == pairs


def test_base64_goes_before_hex() -> None:
    assert read(ek_tpm="ABCD").ek_tpm == b"\x00\x10\x83"
    assert read(ek_tpm="ABCDEF").ek_tpm == b"\xab\xcd\xef"  # its length is none of base64


@pytest.mark.parametrize(
    "text", ["A", "AA=", "AAAA ", " AAAA", "AA\nAA", "AA-_", "=", "====", "0x", "0xA", "xyz", "é", "\0", "A" * 8193]
)
@pytest.mark.parametrize("member", BINARY)
def test_what_is_neither_is_refused(member: str, text: str) -> None:
    assert refusal(**{member: text}) == INVALID


def test_sizes_are_bounded() -> None:
    # trust: bounded
    largest = bytes([7]) * wire.MAX_BINARY
    assert read(ek_tpm=b64(largest)).ek_tpm == largest
    assert refusal(ek_tpm=b64(largest + b"\1")) == INVALID
    assert refusal(ekcert="A" * (wire.MAX_CERTIFICATES + 4)) == INVALID


@pytest.mark.parametrize("member", CERTIFICATES)
@given(data=st.binary(min_size=1, max_size=300), more=st.binary(max_size=30))
def test_certificates_are_base64_or_the_first_of_a_bundle(member: str, data: bytes, more: bytes) -> None:
    for text in (b64(data), wire.pem(data), wire.pem(data) + wire.pem(more)):
        assert getattr(read(**{member: text}), member) == data


def test_disabled_is_a_word_for_the_server_certificate_alone() -> None:
    assert read(mtls_cert="disabled").mtls_cert == "disabled"
    for member in CERTIFICATES[:-1]:
        with pytest.raises(BadRequest):
            read(**{member: "disabled!"})
    assert refusal(mtls_cert="Disabled ") == INVALID


@pytest.mark.parametrize("port", [1, 9002, 65535, "1", "65535", "09002"])
def test_ports_are_numbers_or_digits(port: int | str) -> None:
    assert read(port=port).port == int(port)


@pytest.mark.parametrize(
    "port", [0, -1, 65536, 2**63, 2**70, 1.5, True, "0", "65536", "-1", "+1", "1e3", " 1", "1\n", "٣", "000001", [], {}]
)
def test_other_ports_are_refused(port: object) -> None:
    assert refusal(port=port) == INVALID


@pytest.mark.parametrize(
    "host", ["192.0.2.1", "2001:db8::1", "[::1]", "fe80::1%eth0", "node-1.example", "a_b", "h" * 255]
)
def test_hosts_are_names_or_addresses(host: str) -> None:
    assert read(ip=host).ip == host


@pytest.mark.parametrize(
    "host", [" ", "a b", "a\n", "\0", "a/b", "a@b", "a?b", "a#b", "é", "http://a", "h" * 256, 1, []]
)
def test_what_would_lead_elsewhere_is_no_host(host: object) -> None:
    # trust: hygiene - the text becomes part of a URL
    assert refusal(ip=host) == INVALID


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("value", [True, 1.5, [], {}, [None], {"a": 1}])
def test_other_types_are_refused(member: str, value: object) -> None:
    assert refusal(**{member: value}) == INVALID


@pytest.mark.parametrize("body", [b"{", b"nonsense", b'{"ip": "\xff"}', b"[" * 100_000, b'{"a":' * 100_000, b"\0"])
def test_what_is_not_json_is_malformed(body: bytes) -> None:
    # trust: safe-parsing
    for path_id in (ID, None):
        with pytest.raises((MalformedBody, BadRequest)):
            wire.decode_registration(body, path_id)
    with pytest.raises(MalformedBody):
        wire.decode_activation(body)


# ---------------------------------------------------------------- ids


@given(st.text("abcXYZ019_.-", min_size=1, max_size=80), st.text(max_size=10))
def test_the_id_of_the_path_goes_before_that_of_the_body(agent_id: str, other: str) -> None:
    assert wire.decode_registration(json.dumps({"agent_id": other}).encode(), agent_id)[0] == agent_id
    assert wire.decode_registration(json.dumps({"agent_id": agent_id}).encode(), None)[0] == agent_id


@given(st.text(max_size=90))
def test_an_id_has_only_what_can_stand_in_a_path(agent_id: str) -> None:
    # trust: hygiene
    good = 0 < len(agent_id) <= 80 and all(c.isascii() and (c.isalnum() or c in "_.-") for c in agent_id)
    try:
        wire.check_id(agent_id)
    except BadRequest as refused:
        assert (good, refused.code, refused.status_text) == (False, 400, wire.BAD_ID)  # noqa: PT017 - both ends count
    else:
        assert good


@pytest.mark.parametrize("body", [b"", b"{}", b'{"agent_id": ""}', b'{"agent_id": null}'])
def test_a_registration_without_an_id_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedBody):
        wire.decode_registration(body, None)


@pytest.mark.parametrize("bad", ["a b", "a\n", "é", "a/b", "a%20", "\0", "a" * 81])
def test_an_id_that_is_none_is_refused(bad: str) -> None:
    for body, path_id in ((b"{}", bad), (json.dumps({"agent_id": bad}).encode(), None)):
        with pytest.raises(BadRequest, match="agent_id is not valid"):
            wire.decode_registration(body, path_id)


# ---------------------------------------------------------------- activation


@given(st.text())
def test_a_proof_is_read_as_it_was_sent(proof: str) -> None:
    body = json.dumps({"auth_tag": proof, "other": 1}).encode()
    assert wire.decode_activation(body) == proof
    assert wire.decode_activation(agent.encode_proof(proof)) == proof


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"null", b'{"auth_tag": null}', b'{"auth_tag": 1}', b'"auth_tag"'])
def test_an_activation_without_a_proof_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedBody):
        wire.decode_activation(body)


@pytest.mark.parametrize("deleted", [True, False])
def test_a_long_proof_is_not_repeated_in_full(*, deleted: bool) -> None:
    # trust: bounded
    assert len(wire.wrong_proof(ID, "x" * 100_000, deleted=deleted)) < 500


# ---------------------------------------------------------------- any bytes


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
OBJECTS = st.dictionaries(st.sampled_from([*MEMBERS, "agent_id", "auth_tag"]) | st.text(), VALUES, max_size=6)
BODIES = (
    st.binary() | OBJECTS.map(lambda given: json.dumps(given).encode()) | VALUES.map(lambda v: json.dumps(v).encode())
)


@given(BODIES, st.none() | st.just(ID))
def test_any_body_is_read_or_refused(body: bytes, path_id: str | None) -> None:
    # trust: safe-parsing
    try:
        agent_id, request = wire.decode_registration(body, path_id)
    except (MalformedBody, BadRequest):
        pass
    else:
        wire.check_id(agent_id)
        for member in (*BINARY, *CERTIFICATES[:-1]):
            assert isinstance(getattr(request, member), bytes | None | type(UNSET))
        assert isinstance(request.port, type(UNSET) | None) or 0 < request.port < 65536
    with suppress(MalformedBody):
        assert isinstance(wire.decode_activation(body), str)


# ---------------------------------------------------------------- both sides


@given(
    ek=st.binary(min_size=1, max_size=400),
    ak=st.binary(min_size=1, max_size=400),
    certificate=st.none() | st.binary(min_size=1, max_size=400),
    ip=st.sampled_from(["192.0.2.1", "2001:db8::1", "node.example"]),
    port=st.integers(1, 65535),
)
def test_what_an_agent_sends_is_what_the_registrar_reads(
    ek: bytes, ak: bytes, certificate: bytes | None, ip: str, port: int
) -> None:
    sent = agent.Registration(
        ek_public=ek,
        ek_certificates="" if certificate is None else wire.pem(certificate),
        ak_public=ak,
        server_certificate="disabled" if certificate is None else wire.pem(certificate),
        ip=ip,
        port=port,
    )
    _, request = wire.decode_registration(agent.encode_registration(sent), ID)
    expected = RegistrationRequest(
        ek_tpm=ek,
        aik_tpm=ak,
        ekcert=certificate,
        iak_cert=None,
        idevid_cert=None,
        mtls_cert=certificate or "disabled",
        ip=ip,
        port=port,
    )
    assert request == expected
    assert request.touches_identity


@given(st.binary(max_size=600))
def test_a_challenge_arrives_as_it_was_made(blob: bytes) -> None:
    assert agent.decode_challenge(wire.encode_challenge(blob)) == blob


def test_versions_are_advertised_as_agents_look_for_them() -> None:
    assert json.loads(wire.encode_versions()) == {
        "code": 200,
        "status": "Success",
        "results": {
            "current_version": "2.6",
            "supported_versions": ["1.0", "2.0", "2.1", "2.2", "2.3", "2.4", "2.5", "2.6", "3.0"],
        },
    }
    assert agent.decode_versions(wire.encode_versions()).current == "2.6"


@given(st.lists(st.text(max_size=20), max_size=5))
def test_ids_are_listed_flat(ids: list[str]) -> None:
    assert json.loads(wire.encode_ids(ids)) == {"code": 200, "status": "Success", "results": {"uuids": ids}}


def test_a_record_has_all_its_members_also_when_they_are_null() -> None:
    record = wire.RecordResults(
        agent_id=ID, ek_tpm=None, ekcert=None, aik_tpm="AAAA", mtls_cert=None, ip=None, port=None, regcount=1
    )
    assert json.loads(wire.encode_record(record))["results"] == {
        "agent_id": ID,
        "ek_tpm": None,
        "ekcert": None,
        "aik_tpm": "AAAA",
        "mtls_cert": None,
        "ip": None,
        "port": None,
        "regcount": 1,
    }


def test_the_texts_that_clients_and_people_know() -> None:
    assert wire.wrong_proof("a", "00", deleted=True) == (
        "Auth tag '00' for agent 'a' does not match expected value. The agent has been deleted from the database and "
        "will need to be restarted to reattempt registration"
    )
    assert wire.taken("a") == (
        "Agent with UUID 'a' cannot be registered. This UUID is already in use or a concurrent registration is in "
        "progress."
    )
    assert str(wire.UnknownNode("a")) == "Agent with ID 'a' not found"
    assert wire.OTHER_IDENTITY == (
        "Agent re-registration with different TPM identity is forbidden for security reasons"
    )
    assert wire.INVALID == "Could not register agent with invalid data"
