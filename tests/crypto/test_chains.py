"""EK certificates: strict and lenient reading, and issuers in a store."""

import base64
import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.shared import shared_path

from limeguard.crypto.chains import (
    CertificateError,
    ParsedCertificate,
    first_certificate,
    issued_by_store,
    parse_certificate,
    public_key_der,
)
from limeguard.crypto.keys import spki_der
from limeguard.simulator.softtpm import private_key

START = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


def key(number: int) -> ec.EllipticCurvePrivateKey:
    made = private_key("ecc256", 500 + number)
    assert isinstance(made, ec.EllipticCurvePrivateKey)
    return made


def certificate(subject: str, number: int, issuer: str, issuer_number: int, *, ca: bool = False) -> ParsedCertificate:
    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    made = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key(number).public_key())
        .serial_number(number + 1)
        .not_valid_before(START)
        .not_valid_after(START + datetime.timedelta(days=3))  # long over: TPM certificates are used all the same
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(key(issuer_number), hashes.SHA256())
    )
    return parse_certificate(made.public_bytes(Encoding.DER))


ROOT = certificate("root", 0, "root", 0, ca=True)
MIDDLE = certificate("middle", 1, "root", 0, ca=True)
LEAF = certificate("leaf", 2, "middle", 1)


def test_the_direct_issuer_in_the_store_is_enough() -> None:
    assert issued_by_store(LEAF, [MIDDLE])
    assert issued_by_store(MIDDLE, [ROOT])


def test_a_chain_is_built_through_what_came_with_the_certificate() -> None:
    assert not issued_by_store(LEAF, [ROOT])
    assert issued_by_store(LEAF, [ROOT], [MIDDLE])


# trust: bound-identity
def test_a_name_without_its_key_is_no_issuer() -> None:
    impostor = certificate("middle", 3, "middle", 3, ca=True)
    assert not issued_by_store(LEAF, [impostor])
    assert not issued_by_store(LEAF, [ROOT], [impostor])
    assert not issued_by_store(LEAF, [])


# trust: bound-identity
def test_a_certificate_that_is_no_ca_may_not_stand_between() -> None:
    not_ca = certificate("middle", 1, "root", 0, ca=False)
    assert not issued_by_store(LEAF, [ROOT], [not_ca])


def test_a_ring_of_issuers_ends() -> None:
    first = certificate("a", 4, "b", 5, ca=True)
    second = certificate("b", 5, "a", 4, ca=True)
    assert not issued_by_store(first, [ROOT], [first, second])


def test_every_form_gives_the_first_certificate() -> None:
    pem = LEAF.certificate.public_bytes(Encoding.PEM)
    bundle = pem + ROOT.certificate.public_bytes(Encoding.PEM)
    for form in (LEAF.der, pem, bundle, pem.decode(), base64.b64encode(LEAF.der).decode()):
        assert first_certificate(form) == LEAF.der
    assert public_key_der(LEAF) == spki_der(key(2).public_key())


def test_trailing_bytes_are_tolerated_and_kept() -> None:
    padded = LEAF.der + b"\xff" * 20
    parsed = parse_certificate(padded)
    assert parsed.malformed
    assert parsed.der == padded
    assert public_key_der(parsed) == public_key_der(LEAF)
    assert issued_by_store(parsed, [MIDDLE])


@pytest.mark.parametrize("junk", [b"", b"\x30", b"nonsense", b"\x30\x82\xff\xff", b"x" * 70000])
def test_what_is_no_certificate_is_refused(junk: bytes) -> None:
    with pytest.raises(CertificateError):
        parse_certificate(junk)


@pytest.mark.parametrize("text", ["", "nonsense!", "-----BEGIN CERTIFICATE-----\nAAAA"])
def test_what_holds_no_certificate_is_refused(text: str) -> None:
    with pytest.raises(CertificateError):
        parse_certificate(first_certificate(text))


# trust: safe-parsing
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_certificate_is_read_or_refused_and_never_believed(place: int, value: int) -> None:
    changed = bytearray(LEAF.der)
    changed[place % len(changed)] = value
    try:
        parsed = parse_certificate(bytes(changed))
        believed = issued_by_store(parsed, [MIDDLE])
    except CertificateError:
        return
    assert not believed or public_key_der(parsed) == public_key_der(LEAF)


def test_malformed_certificates_of_real_tpms_are_read() -> None:
    folder = shared_path("fixtures/upstream")
    found = [path for path in folder.rglob("*") if path.is_file() and "nuvoton" in path.name.lower()]
    for path in found:
        parse_certificate(first_certificate(path.read_bytes()))
