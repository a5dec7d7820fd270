"""EK certificates: reading them, also those with malformed DER, and finding their issuer in an operator's store.

Old TPMs carry certificates that strict parsers refuse (wrong lengths, wrong attribute types, trailing bytes). Those
are decoded leniently and re-encoded; the original bytes stay what is stored and compared. This module is the one home
of that tolerance. It knows no clock: whether a certificate has expired is for people, TPMs are used long after.
"""

import binascii
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.utils import CryptographyDeprecationWarning
from pyasn1.codec.der import decoder, encoder
from pyasn1.error import PyAsn1Error
from pyasn1_modules import rfc2459

MAX_CERTIFICATE = 64 * 1024
MAX_BUNDLE = 16
"""Certificates of one PEM bundle that are read."""
MAX_CHAIN = 8
_PEM_BEGIN = b"-----BEGIN CERTIFICATE-----"
_PEM_END = b"-----END CERTIFICATE-----"


_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)


class CertificateError(ValueError):
    """What was given is no certificate; the text says why."""


@dataclass(frozen=True, slots=True)
class ParsedCertificate:
    """A certificate: the bytes as they came, the parsed form, and whether it had to be re-encoded to be read."""

    der: bytes
    certificate: x509.Certificate
    malformed: bool


def parse_certificate(der: bytes) -> ParsedCertificate:
    """Read one DER certificate, strictly or else leniently. Raises CertificateError."""
    if not 0 < len(der) <= MAX_CERTIFICATE:
        raise CertificateError(f"a certificate of {len(der)} bytes")
    with _tolerated():
        try:
            certificate = x509.load_der_x509_certificate(der)
            _touch(certificate)
        except _UNREADABLE:
            return _lenient(der)
    return ParsedCertificate(der, certificate, malformed=False)


@contextmanager
def _tolerated() -> Iterator[None]:
    """Keep the library from warning, for each such TPM, of what this module is here to tolerate (a serial of zero)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        yield


def _touch(certificate: x509.Certificate) -> None:
    """Read the parts that are used later: the library parses lazily."""
    _ = certificate.issuer, certificate.subject
    certificate.public_key()


def _lenient(der: bytes) -> ParsedCertificate:
    try:
        decoded, _trailing = decoder.decode(der, asn1Spec=rfc2459.Certificate())
        certificate = x509.load_der_x509_certificate(encoder.encode(decoded))
        _touch(certificate)
    except (*_UNREADABLE, PyAsn1Error, RecursionError, IndexError, KeyError) as problem:
        raise CertificateError(f"not an X.509 certificate: {type(problem).__name__}") from None
    return ParsedCertificate(der, certificate, malformed=True)


def pem_blocks(text: bytes) -> list[bytes]:
    """Return the DER of every certificate in a PEM text. Raises CertificateError for a block that is not base64."""
    blocks: list[bytes] = []
    rest = text
    while len(blocks) < MAX_BUNDLE and _PEM_BEGIN in rest:
        inside, end, rest = rest.partition(_PEM_BEGIN)[2].partition(_PEM_END)
        if not end:
            raise CertificateError("a PEM block has no end")
        try:
            blocks.append(binascii.a2b_base64(b"".join(inside.split()), strict_mode=True))
        except ValueError:
            raise CertificateError("a PEM block is not base64") from None
    return blocks


def first_certificate(given: str | bytes) -> bytes:
    """Return the DER of the first certificate in a PEM bundle, base64 text, or DER bytes. Raises CertificateError."""
    data = given.encode() if isinstance(given, str) else given
    if len(data) > MAX_BUNDLE * MAX_CERTIFICATE:
        raise CertificateError(f"{len(data)} bytes are too many for certificates")
    if _PEM_BEGIN in data:
        return pem_blocks(data)[0]
    if data[:1] == b"\x30" and isinstance(given, bytes):
        return data
    try:
        return binascii.a2b_base64(data, strict_mode=True)
    except ValueError:
        raise CertificateError("neither PEM nor base64") from None


def public_key_der(certificate: ParsedCertificate) -> bytes:
    """Return the certificate's SubjectPublicKeyInfo as DER. Raises CertificateError."""
    try:
        return certificate.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm) as problem:
        raise CertificateError(f"the certificate's key cannot be used: {problem}") from None


def issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Say whether `issuer` names and signed `certificate`, by name and signature alone."""
    if certificate.issuer != issuer.subject:
        return False
    try:
        key = issuer.public_key()
        algorithm = certificate.signature_hash_algorithm
        if algorithm is None:
            return False
        if isinstance(key, rsa.RSAPublicKey):
            scheme = certificate.signature_algorithm_parameters
            if not isinstance(scheme, padding.PKCS1v15 | padding.PSS):
                return False
            key.verify(certificate.signature, certificate.tbs_certificate_bytes, scheme, algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(algorithm))
        else:
            return False
    except (InvalidSignature, *_UNREADABLE):
        return False
    return True


def issued_by_store(
    leaf: ParsedCertificate, store: Sequence[ParsedCertificate], intermediates: Iterable[ParsedCertificate] = ()
) -> bool:
    """Say whether a certificate of the store issued `leaf`, directly or through the intermediates given beside it.

    Everything in the store is trusted as it stands: an intermediate there needs no root.
    """
    known = list(intermediates)[:MAX_BUNDLE]
    frontier = [leaf.certificate]
    for _ in range(MAX_CHAIN):
        if any(issued_by(c, issuer.certificate) for c in frontier for issuer in store):
            return True
        used = frontier
        frontier = [
            i.certificate for i in known if _may_issue(i.certificate) and any(issued_by(c, i.certificate) for c in used)
        ]
        if not frontier:
            return False
    return False


def _may_issue(certificate: x509.Certificate) -> bool:
    """Say whether a certificate that is not in the store may stand between: it must be a CA's."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False
