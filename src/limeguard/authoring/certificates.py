"""X.509 profiles of the certificate authority: the CA itself, the certificates that it issues, and its revocation list.

Builds and reads documents; time and serials are handed in (keys and signatures draw their randomness in the crypto
library). Touches no files.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import NameOID

from limeguard.authoring.settings import CaSettings

CA_SERIAL = 1
NETSCAPE_COMMENT = x509.ObjectIdentifier("2.16.840.1.113730.1.13")
COMMENT = b"SSL Server"
"""Raw, as Keylime writes it; DER would wrap it in an IA5String."""

CRL_LIFETIME = timedelta(days=365)
"""Keylime's lists are out of date when they are made; software that checks dates could not use them."""

MAX_NAME = 64
"""Characters of a common name (X.520)."""


def new_key(bits: int) -> rsa.RSAPrivateKey:
    """Make an RSA key."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def key_pem(key: rsa.RSAPrivateKey, password: str = "") -> bytes:
    """Return a private key as PKCS#8 PEM, encrypted when there is a password."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password.encode())
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def public_pem(certificate: x509.Certificate) -> bytes:
    """Return the public key of a certificate as PEM."""
    return certificate.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def subject(settings: CaSettings, name: str) -> x509.Name:
    """Return the distinguished name that goes with a common name."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, settings.cert_country),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
            x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, settings.cert_state),
            x509.NameAttribute(NameOID.LOCALITY_NAME, settings.cert_locality),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, settings.cert_organization),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, settings.cert_org_unit),
        ]
    )


def alternative_names(names: Iterable[str]) -> x509.SubjectAlternativeName:
    """Return the extension that lists names and addresses, each once, in order."""
    entries: dict[str, x509.GeneralName] = {}
    for name in names:
        try:
            entries.setdefault(name, x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            entries.setdefault(name, x509.DNSName(name))
    return x509.SubjectAlternativeName(entries.values())


def build_ca(settings: CaSettings, key: rsa.RSAPrivateKey, now: datetime) -> x509.Certificate:
    """Return the certificate of a new CA."""
    name = subject(settings, settings.cert_ca_name)
    builder = (
        _builder(settings, name, name, key.public_key(), CA_SERIAL, now, settings.cert_ca_lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(_ca_usage(), critical=True)
    )
    return builder.sign(key, hashes.SHA256())


def build_leaf(
    settings: CaSettings,
    issuer: x509.Certificate,
    issuer_key: CertificateIssuerPrivateKeyTypes,
    public_key: rsa.RSAPublicKey,
    *,
    name: str,
    serial: int,
    names: Sequence[str],
    now: datetime,
) -> x509.Certificate:
    """Return a certificate for servers and clients alike. `names` are its DNS names and addresses."""
    builder = (
        _builder(settings, subject(settings, name), issuer.subject, public_key, serial, now, settings.cert_lifetime)
        .add_extension(x509.UnrecognizedExtension(NETSCAPE_COMMENT, COMMENT), critical=False)
        .add_extension(alternative_names(names), critical=False)
        .add_extension(_issuer_identifier(issuer), critical=False)
    )
    return builder.sign(issuer_key, hashes.SHA256())


def _issuer_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        key = issuer.public_key()
        if not isinstance(key, rsa.RSAPublicKey):
            raise TypeError("the CA's certificate has neither a key identifier nor an RSA key") from None
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _builder(
    settings: CaSettings,
    name: x509.Name,
    issuer: x509.Name,
    key: rsa.RSAPublicKey,
    serial: int,
    now: datetime,
    days: int,
) -> x509.CertificateBuilder:
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=days))
    )
    if settings.cert_crl_dist:
        where = [x509.UniformResourceIdentifier(settings.cert_crl_dist)]
        point = x509.DistributionPoint(full_name=where, relative_name=None, reasons=None, crl_issuer=None)
        builder = builder.add_extension(x509.CRLDistributionPoints([point]), critical=False)
    return builder


def _ca_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )


def build_crl(
    issuer: x509.Certificate, key: CertificateIssuerPrivateKeyTypes, revoked: Iterable[int], now: datetime
) -> x509.CertificateRevocationList:
    """Return the list of revoked serials, valid for a year."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(now)
        .next_update(now + CRL_LIFETIME)
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(key, hashes.SHA256())


def whole_seconds(epoch: float) -> datetime:
    """Return a moment as certificates can carry it."""
    return datetime.fromtimestamp(int(epoch), tz=UTC)
