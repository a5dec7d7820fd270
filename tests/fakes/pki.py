"""A throw-away certificate authority for tests, and self-signed certificates such as agents present."""

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
END = START + datetime.timedelta(days=36500)


@dataclass(frozen=True)
class Identity:
    """Key and certificate in PEM files."""

    certificate: Path
    key: Path

    @property
    def pem(self) -> str:
        return self.certificate.read_text()

    @property
    def der(self) -> bytes:
        return ssl.PEM_cert_to_DER_cert(self.pem)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])


def _write(folder: Path, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> Identity:
    folder.mkdir(parents=True, exist_ok=True)
    identity = Identity(folder / f"{name}.crt", folder / f"{name}.pem")
    identity.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    identity.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return identity


def _builder(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(START)
        .not_valid_after(END)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
    )


def self_signed(folder: Path, name: str) -> Identity:
    """Make what an agent makes for itself: a certificate that nobody else signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    return _write(folder, name, key, _builder(name, name, key).sign(key, hashes.SHA256()))


class Authority:
    """A CA in a folder."""

    def __init__(self, folder: Path, name: str = "Test CA") -> None:
        self.folder = folder
        self._name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(name, name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.identity = _write(folder, "cacert", self._key, certificate)

    def issue(self, name: str) -> Identity:
        """Issue a certificate with that common name; "" is one without."""
        key = ec.generate_private_key(ec.SECP256R1())
        return _write(self.folder, name, key, _builder(name, self._name, key).sign(self._key, hashes.SHA256()))


def server_context(identity: Identity, clients: Path, *, required: bool = False) -> ssl.SSLContext:
    """Make a server's context; client certificates of the CA in `clients` are asked for, or demanded."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate, identity.key)
    context.load_verify_locations(clients)
    context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context


def client_context(identity: Identity | None, servers: Path | None = None) -> ssl.SSLContext:
    """Make a client's context without host names; without `servers` any certificate passes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE if servers is None else ssl.CERT_REQUIRED
    if servers is not None:
        context.load_verify_locations(servers)
    if identity is not None:
        context.load_cert_chain(identity.certificate, identity.key)
    return context
