"""Public areas, attestations and signatures: captured ones, round trips, and everything that is none."""

from base64 import b64decode
from collections.abc import Callable
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import vectors

from limeguard.crypto.hashes import SHA1, SHA256, SHA384, SHA512
from limeguard.crypto.keys import spki_pem
from limeguard.evidence.reader import MalformedEvidence
from limeguard.evidence.tpm.structures import (
    CertifyAttest,
    ClockInfo,
    KeyScheme,
    PcrSelection,
    QuoteAttest,
    Signature,
    build_certify_attest,
    build_public,
    build_quote_attest,
    build_signature,
    parse_attest,
    parse_public,
    parse_public_2b,
    parse_signature,
    to_2b,
)
from limeguard.simulator.softtpm import SoftAk, SoftEk

VECTORS = vectors.load("tpm/protocol.json")
HASHES = [SHA1, SHA256, SHA384, SHA512]

digests = st.binary(max_size=64)
clocks = st.builds(
    ClockInfo, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.booleans()
)
selections = st.lists(
    st.builds(PcrSelection, st.sampled_from(HASHES), st.sets(st.integers(0, 23)).map(lambda s: tuple(sorted(s)))),
    max_size=4,
    unique_by=lambda s: s.bank,
).map(tuple)


def test_captured_keys_have_their_names() -> None:
    keys = VECTORS["keys"]
    ek, ak = parse_public_2b(b64decode(keys["ek_tpm"])), parse_public_2b(b64decode(keys["aik_tpm"]))
    assert ek.name.hex() == keys["ek_name"]
    assert ak.name.hex() == keys["ak_name"]
    assert SHA256.digest(spki_pem(ek.key).encode()).hex() == keys["hash_ek"]
    assert (ak.type, ak.key_algorithm, ak.scheme) == ("rsa", "rsa2048", KeyScheme("rsassa", SHA256))
    assert ak.restricted_signing
    assert not ek.restricted_signing
    assert ek.symmetric is not None
    assert ek.symmetric.bits == 128


def test_a_captured_ecc_key_has_its_name() -> None:
    captured = VECTORS["ecc_blob"]
    ek = parse_public_2b(b64decode(captured["ek_tpm"]))
    assert ek.name.hex() == captured["ek_name"]
    assert ek.key_algorithm == "ecc256"
    assert SHA256.digest(spki_pem(ek.key).encode()).hex() == captured["hash_ek"]


@pytest.mark.parametrize("kind", ["rsa2048", "rsa3072", "ecc256", "ecc384", "ecc521"])
def test_public_areas_come_back_as_they_were(kind: str) -> None:
    for area in (SoftAk.generate(kind, "sha384").area, SoftEk.generate(kind).area):
        again = parse_public_2b(to_2b(area.raw))
        assert again == area
        rebuilt = build_public(
            area.key,
            name_alg=area.name_alg,
            attributes=area.attributes,
            auth_policy=area.auth_policy,
            symmetric=area.symmetric,
            scheme=area.scheme,
        )
        assert rebuilt == area.raw


# trust: downgrade
def test_a_short_rsa_key_is_refused() -> None:
    weak = rsa.generate_private_key(65537, 1024).public_key()  # noqa: S505 - the weak key is the point
    raw = build_public(weak, name_alg=SHA256, attributes=0x50072, scheme=KeyScheme("rsassa", SHA256))
    with pytest.raises(MalformedEvidence, match="1024 bits are not accepted"):
        parse_public(raw)


# trust: downgrade
def test_a_modulus_shorter_than_the_key_says_is_refused() -> None:
    raw = bytearray(SoftAk.generate().area.raw)
    raw[-256] = 0
    with pytest.raises(MalformedEvidence, match="the key says 2048"):
        parse_public(bytes(raw))


def test_a_truncated_key_is_refused() -> None:
    whole = SoftAk.generate().public_2b
    for cut in (whole[:-1], whole[:40], whole[:1], b""):
        with pytest.raises(MalformedEvidence):
            parse_public_2b(cut)
    with pytest.raises(MalformedEvidence, match="too many"):
        parse_public_2b(whole + b"\0")


def test_short_coordinates_are_numbers_all_the_same() -> None:
    area = SoftAk.generate("ecc256").area
    numbers = area.key.public_numbers()
    assert not isinstance(numbers, rsa.RSAPublicNumbers)
    x = numbers.x.to_bytes(32, "big")
    head = area.raw[: -2 * 34]
    stripped = x.lstrip(b"\0")
    again = parse_public(head + to_2b(stripped) + to_2b(numbers.y.to_bytes(32, "big")))
    assert again.key.public_numbers() == numbers


def test_a_point_off_the_curve_is_refused() -> None:
    raw = bytearray(SoftAk.generate("ecc256").area.raw)
    raw[-1] ^= 1
    with pytest.raises(MalformedEvidence, match="not a point"):
        parse_public(bytes(raw))


@given(digests, st.binary(max_size=66), clocks, st.integers(0, 2**64 - 1), selections, digests)
def test_a_quote_attestation_comes_back_as_it_was(
    signer: bytes,
    extra: bytes,
    clock: ClockInfo,
    firmware: int,
    selection: tuple[PcrSelection, ...],
    digest: bytes,
) -> None:
    attest = QuoteAttest(signer, extra, clock, firmware, selection, digest)
    assert parse_attest(build_quote_attest(attest)) == attest


@given(digests, st.binary(max_size=66), clocks, digests, digests)
def test_a_certification_comes_back_as_it_was(
    signer: bytes, extra: bytes, clock: ClockInfo, name: bytes, qualified: bytes
) -> None:
    attest = CertifyAttest(signer, extra, clock, 1, name, qualified)
    assert parse_attest(build_certify_attest(attest)) == attest


@given(
    st.one_of(
        st.builds(
            Signature,
            st.sampled_from(["rsassa", "rsapss"]),
            st.sampled_from(HASHES),
            st.binary(min_size=1, max_size=512),
        ),
        st.builds(
            Signature,
            st.just("ecdsa"),
            st.sampled_from(HASHES),
            st.tuples(st.integers(0, 2**528 - 1), st.integers(0, 2**528 - 1)),
        ),
    )
)
def test_a_signature_comes_back_as_it_was(signature: Signature) -> None:
    assert parse_signature(build_signature(signature)) == signature


def test_a_bank_that_stands_twice_is_refused() -> None:
    attest = build_quote_attest(
        QuoteAttest(b"", b"", ClockInfo(1, 1, 1, safe=True), 1, (PcrSelection(SHA256, (1,)),) * 2, b"")
    )
    with pytest.raises(MalformedEvidence, match="stands twice"):
        parse_attest(attest)


# trust: downgrade
@pytest.mark.parametrize("scheme", [0x0010, 0x001C, 0x0005, 0x0000])
def test_a_null_or_unknown_signature_scheme_is_refused(scheme: int) -> None:
    with pytest.raises(MalformedEvidence, match="not supported"):
        parse_signature(scheme.to_bytes(2, "big") + bytes.fromhex("000b0001ff"))


# trust: safe-parsing
@settings(max_examples=300)
@given(st.binary(max_size=400), st.sampled_from([parse_public, parse_public_2b, parse_attest, parse_signature]))
def test_any_bytes_are_a_structure_or_malformed(data: bytes, parse: Callable[[bytes], object]) -> None:
    with suppress(MalformedEvidence):
        parse(data)


# trust: safe-parsing
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["rsa2048", "ecc256"]), st.integers(0, 281), st.integers(0, 255))
def test_a_changed_byte_in_a_public_area_is_read_or_refused(kind: str, place: int, value: int) -> None:
    raw = bytearray(SoftEk.generate(kind).public_2b)
    raw[place % len(raw)] = value
    try:
        area = parse_public_2b(bytes(raw))
    except MalformedEvidence:
        return
    assert area.raw == bytes(raw[2:])
