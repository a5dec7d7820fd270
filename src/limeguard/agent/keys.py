"""The agent's own key pairs: the transport key (NK) for secrets, and the key and certificate of its server.

Decides when a key or certificate is made and when the one on disk is kept. All are files readable by the agent alone.
"""

import datetime
import ipaddress
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import NameOID

from limeguard.agent.files import read_file, write_private
from limeguard.crypto.keys import spki_pem
from limeguard.telemetry import clean, get_logger

log = get_logger("keylime_agent")

MAX_PEM = 64 * 1024
TRANSPORT_BITS = 2048
"""The protocol knows no other size of transport key."""
CERTIFICATE_DAYS = 3650
"""Long, because the certificate is trusted as the one that was registered: a new one means enrolling the node again."""
_OWN_MARK = "localhost.domain"
"""A name that only certificates made by an agent carry; others belong to the operator and are never replaced."""


class KeyFileError(Exception):
    """A key or certificate file cannot be used; the text names the file and says what to do."""


@dataclass(frozen=True, slots=True)
class TransportKey:
    """The key pair that U, V and so the payload key are encrypted to. `public_pem` is what quotes bind into PCR 16."""

    private: rsa.RSAPrivateKey
    public_pem: str


def load_transport_key(path: Path, password: str) -> TransportKey:
    """Return the transport key, made on first use. Raises KeyFileError, UnsafeFile, OSError."""
    data = read_file(path, limit=MAX_PEM, secret=True)
    if data is None:
        private = rsa.generate_private_key(public_exponent=65537, key_size=TRANSPORT_BITS)
        write_private(path, _private_pem(private, password))
        log.info("Made the transport key %s", clean(path))
    else:
        loaded = _load_private(data, password, path, "payload_key_password")
        if not isinstance(loaded, rsa.RSAPrivateKey) or loaded.key_size != TRANSPORT_BITS:
            raise KeyFileError(f"{path} does not hold an RSA key of {TRANSPORT_BITS} bits; remove it to have one made.")
        private = loaded
    return TransportKey(private, spki_pem(private.public_key()))


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """What the agent's server presents: files for the TLS library, and the certificate text that is registered."""

    key_file: Path
    certificate_file: Path
    key_password: str
    certificate_pem: str


def load_server_identity(
    key_file: Path, certificate_file: Path, password: str, agent_id: str, contact: str
) -> ServerIdentity:
    """Return key and certificate of the server, made where absent.

    A certificate that an agent made is replaced when it has expired or fits neither key, id nor contact address any
    more; an operator's certificate is never touched. Raises KeyFileError, UnsafeFile, OSError.
    """
    key_data = read_file(key_file, limit=MAX_PEM, secret=True)
    if key_data is None:
        key: PrivateKeyTypes = ec.generate_private_key(ec.SECP256R1())
        write_private(key_file, _private_pem(key, password))
        log.info("Made the server key %s", clean(key_file))
    else:
        key = _load_private(key_data, password, key_file, "server_key_password")
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise KeyFileError(f"{key_file} must hold an RSA or EC key.")
    text = read_file(certificate_file, limit=MAX_PEM)
    if text is None or _is_stale(text, certificate_file, key, agent_id, contact):
        text = _self_signed(key, agent_id, contact, time.time())
        write_private(certificate_file, text)
        log.info("Made the server certificate %s", clean(certificate_file))
    return ServerIdentity(key_file, certificate_file, password, text.decode("ascii"))


def _private_pem(key: PrivateKeyTypes, password: str) -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password.encode())
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def _load_private(data: bytes, password: str, path: Path, option: str) -> PrivateKeyTypes:
    try:
        if b"ENCRYPTED" in data:
            return serialization.load_pem_private_key(data, password.encode())
        return serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The cause is left out: some libraries quote key material in their messages.
        raise KeyFileError(f"{path} cannot be read as a private key; check it and the option {option}.") from None


def _is_stale(
    text: bytes, path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, agent_id: str, contact: str
) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(text)
    except ValueError:
        raise KeyFileError(f"{path} cannot be read as a PEM certificate; remove it to have one made.") from None
    fits_key = certificate.public_key() == key.public_key()
    names = _alternative_names(certificate)
    if names is None or _OWN_MARK not in names.get_values_for_type(x509.DNSName):
        if not fits_key:
            raise KeyFileError(f"{path} is not the certificate of the server key; correct server_key or server_cert.")
        return False
    named = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    fits_id = bool(named) and named[0].value == agent_id
    expired = certificate.not_valid_after_utc.timestamp() <= time.time()
    fits_contact = _contact_name(contact) in list(names)
    if fits_key and fits_id and fits_contact and not expired:
        return False
    log.warning("The server certificate is out of date and is replaced; enrol the node again with its verifier")
    return True


def _alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return None


def _contact_name(contact: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(contact))
    except ValueError:
        return x509.DNSName(contact)


def _self_signed(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, agent_id: str, contact: str, now: float) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, agent_id)])
    start = datetime.datetime.fromtimestamp(now, datetime.UTC) - datetime.timedelta(days=1)
    names: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.DNSName(_OWN_MARK),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    own = _contact_name(contact)
    if own not in names:
        names.append(own)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)
