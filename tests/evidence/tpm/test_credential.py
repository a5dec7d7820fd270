"""Credentials: known answers, and only the right EK with the right AK opens one."""

from base64 import b64decode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import vectors

from limeguard.crypto.hashes import SHA256
from limeguard.evidence.reader import MalformedEvidence
from limeguard.evidence.tpm.certify import certification_fault
from limeguard.evidence.tpm.credential import UnusableKeyError, kdf_a, make_credential, parse_credential_blob
from limeguard.evidence.tpm.structures import parse_public_2b
from limeguard.simulator.softtpm import SoftAk, SoftEk, SoftNode

VECTORS = vectors.load("tpm/protocol.json")
SECRET = b"abcdefghijklmnopqrstuvwxyz012345"
TOTAL = {"rsa2048": 336, "ecc256": 148, "rsa3072": 480, "ecc384": 196, "ecc521": 248}


def seed(ek: SoftEk) -> bytes:
    return bytes(range(ek.area.name_alg.size))


def test_the_symmetric_part_has_its_known_answer() -> None:
    known, name = VECTORS["symmetric"], bytes.fromhex(VECTORS["keys"]["ak_name"])
    given_seed = bytes.fromhex(known["seed"])
    assert kdf_a(SHA256, given_seed, b"STORAGE", name, 128).hex() == known["symKey"]
    assert kdf_a(SHA256, given_seed, b"INTEGRITY", b"", 256).hex() == known["hmacKey"]
    ek = parse_public_2b(b64decode(VECTORS["keys"]["ek_tpm"]))
    id_object, _ = parse_credential_blob(make_credential(ek, name, SECRET, seed=given_seed))
    assert id_object.hex() == "0020" + known["mac"] + known["encIdentity"]


def test_a_whole_blob_for_an_ecc_ek_has_its_known_answer() -> None:
    known, name = VECTORS["ecc_blob"], bytes.fromhex(VECTORS["keys"]["ak_name"])
    ek = parse_public_2b(b64decode(known["ek_tpm"]))
    scalar = int.from_bytes(b"\x02" * 32, "big")
    assert make_credential(ek, name, SECRET, seed=b"", ephemeral_scalar=scalar).hex() == known["blob"]


@pytest.mark.parametrize("kind", list(TOTAL))
def test_the_right_tpm_opens_a_credential(kind: str) -> None:
    ek, ak = SoftEk.generate(kind), SoftAk.generate()
    blob = make_credential(ek.area, ak.area.name, SECRET, seed=seed(ek), ephemeral_scalar=1234567)
    assert len(blob) == TOTAL[kind]
    assert ek.activate(blob, ak.area.name) == SECRET


# trust: bound-identity
@pytest.mark.parametrize("kind", ["rsa2048", "ecc256"])
def test_another_ak_or_another_ek_does_not_open_it(kind: str) -> None:
    ek, other_ek = SoftEk.generate(kind), SoftEk.generate(kind, number=101)
    ak, other_ak = SoftAk.generate(), SoftAk.generate(number=1)
    blob = make_credential(ek.area, ak.area.name, SECRET, seed=seed(ek), ephemeral_scalar=99)
    with pytest.raises(ValueError, match="INTEGRITY"):
        ek.activate(blob, other_ak.area.name)
    with pytest.raises(ValueError, match=r"."):
        other_ek.activate(blob, ak.area.name)


def test_a_key_that_is_no_ek_is_refused() -> None:
    ak = SoftAk.generate()
    with pytest.raises(UnusableKeyError):
        make_credential(ak.area, ak.area.name, SECRET, seed=bytes(32))


def test_wrong_randomness_is_refused() -> None:
    name = SoftAk.generate().area.name
    with pytest.raises(UnusableKeyError, match="seed"):
        make_credential(SoftEk.generate().area, name, SECRET, seed=b"short")
    with pytest.raises(UnusableKeyError, match="ephemeral"):
        make_credential(SoftEk.generate("ecc256").area, name, SECRET, seed=bytes(32))
    with pytest.raises(UnusableKeyError, match="does not fit"):
        make_credential(SoftEk.generate().area, name, bytes(33), seed=bytes(32))


# trust: safe-parsing
@settings(max_examples=200)
@given(st.binary(max_size=400))
def test_any_bytes_are_a_credential_or_malformed(data: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        parse_credential_blob(data)
    head = bytes.fromhex("badcc0de00000001")
    try:
        id_object, secret = parse_credential_blob(head + data)
    except MalformedEvidence:
        return
    assert len(id_object) + len(secret) + 4 == len(data)


def test_a_captured_certification_of_an_ak_by_an_iak_holds() -> None:
    iak, keys = VECTORS["iak"], VECTORS["keys"]
    proof = b64decode(iak["iak_attest"]), b64decode(iak["iak_sign"])
    key, ak = parse_public_2b(b64decode(iak["iak_tpm"])), parse_public_2b(b64decode(keys["aik_tpm"]))
    assert certification_fault(key, ak, keys["uuid"], *proof) is None
    assert "another id" in (certification_fault(key, ak, "someone-else", *proof) or "")
    assert "another key" in (certification_fault(key, key, keys["uuid"], *proof) or "")


# trust: bound-identity
def test_a_certification_must_come_from_the_iak_itself() -> None:
    node, iak, stranger = SoftNode.create(), SoftAk.generate(number=5), SoftAk.generate(number=6)
    for nonce in (b"node-1", SHA256.digest(b"node-1")):
        proof = iak.certify(node.ak.area, nonce)
        assert certification_fault(iak.area, node.ak.area, "node-1", *proof) is None
        fault = certification_fault(stranger.area, node.ak.area, "node-1", *proof)
        assert fault == "the certification was not signed by the IAK"
    quote, signature, _ = iak.quote_parts(b"node-1", {0: bytes(32)})
    assert "not a certification" in (certification_fault(iak.area, node.ak.area, "node-1", quote, signature) or "")
