"""The payload key in halves, with known answers."""

from base64 import b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes import vectors

from limeguard.crypto.keys import spki_pem
from limeguard.crypto.keysplit import (
    KeyShareError,
    bootstrap_auth_tag,
    challenge_hmac,
    combine,
    decrypt_key_share,
    decrypt_payload,
    encrypt_key_share,
    encrypt_payload,
    registration_auth_tag,
    split,
)
from limeguard.simulator.softtpm import SoftAk, transport_key

VECTORS = vectors.load("tpm/protocol.json")
UUID = VECTORS["keys"]["uuid"]


def test_known_answers() -> None:
    known = VECTORS["bootstrap"]
    k, v, u = (bytes.fromhex(known[name]) for name in "kvu")
    assert split(k, v) == u
    assert combine(u, v) == k
    assert bootstrap_auth_tag(k, UUID) == known["auth_tag"]
    assert challenge_hmac(k, known["hmac_challenge"]) == known["hmac"]
    sealed = encrypt_payload(k, bytes.fromhex(known["payload_iv"]), known["payload_text"].encode())
    assert sealed == b64decode(known["payload"])
    registration = VECTORS["registration"]
    assert registration_auth_tag(registration["challenge"].encode(), UUID) == registration["auth_tag"]


@pytest.mark.parametrize("known", VECTORS["bootstrap"]["sealed"])
def test_known_payloads(known: dict[str, str]) -> None:
    sealed = encrypt_payload(known["key"].encode(), known["iv"].encode(), known["text"].encode())
    assert sealed.hex() == known["sealed"]
    assert decrypt_payload(known["key"].encode(), sealed) == known["text"].encode()


@given(st.binary(max_size=200), st.binary(min_size=16, max_size=16), st.sampled_from([16, 32]), st.data())
def test_a_payload_opens_with_its_key_and_not_when_altered(
    text: bytes, iv: bytes, size: int, data: st.DataObject
) -> None:
    key = data.draw(st.binary(min_size=size, max_size=size))
    sealed = encrypt_payload(key, iv, text)
    assert decrypt_payload(key, sealed) == text
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    altered = bytearray(sealed)
    altered[bit // 8] ^= 1 << bit % 8
    with pytest.raises(KeyShareError):
        decrypt_payload(key, bytes(altered))


@given(st.binary(max_size=40))
def test_a_short_payload_is_refused(data: bytes) -> None:
    with pytest.raises(KeyShareError):
        decrypt_payload(bytes(32), data)


@pytest.mark.parametrize(
    ("u", "v"), [(b"", b""), (bytes(16), bytes(32)), (bytes(31), bytes(31)), (bytes(64), bytes(64))]
)
def test_halves_of_wrong_length_are_refused(u: bytes, v: bytes) -> None:
    with pytest.raises(KeyShareError):
        combine(u, v)


def test_a_half_reaches_only_its_transport_key() -> None:
    key = transport_key()
    sealed = encrypt_key_share(spki_pem(key.public_key()), b"\x07" * 32)
    assert decrypt_key_share(key, sealed) == b"\x07" * 32
    with pytest.raises(KeyShareError):
        decrypt_key_share(transport_key(1), sealed)
    with pytest.raises(KeyShareError):
        decrypt_key_share(key, sealed[:-1])


@pytest.mark.parametrize("pem", ["", "nonsense", "-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_transport_key_is_refused(pem: str) -> None:
    with pytest.raises(KeyShareError):
        encrypt_key_share(pem, bytes(32))


def test_an_elliptic_transport_key_is_refused() -> None:
    with pytest.raises(KeyShareError, match="not an RSA key"):
        encrypt_key_share(spki_pem(SoftAk.generate("ecc256").area.key), bytes(32))
