"""Certificates of the simulated: one for all agents, self-signed, as agents make theirs; and a maker of TPMs."""

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from limeguard.crypto.keys import PublicKey


def make_identity(folder: Path, now: float) -> tuple[Path, Path]:
    """Write the certificate that all simulated agents present, and its key; return their paths.

    `now` is seconds since 1970.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("simulated agent")
    certificate = _builder(name, name, key.public_key(), now).sign(key, hashes.SHA256())
    paths = folder / "simulated-agent.crt", folder / "simulated-agent.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].touch(mode=0o600)
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


@dataclass(frozen=True, slots=True)
class TpmMaker:
    """A maker of software TPMs: who trusts its certificate takes the EKs that it certified for those of TPMs."""

    certificate: x509.Certificate
    _key: ec.EllipticCurvePrivateKey
    _now: float

    @classmethod
    def create(cls, now: float) -> "TpmMaker":
        """Return a maker with a key of its own. `now` is seconds since 1970."""
        key, name = ec.generate_private_key(ec.SECP256R1()), _name("maker of software TPMs")
        builder = _builder(name, name, key.public_key(), now).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        return cls(builder.sign(key, hashes.SHA256()), key, now)

    @property
    def pem(self) -> str:
        """The maker's certificate, for a TPM certificate store."""
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def certify(self, endorsement_key: PublicKey) -> str:
        """Return the PEM certificate of an EK."""
        builder = _builder(_name("software TPM"), self.certificate.subject, endorsement_key, self._now)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject: x509.Name, issuer: x509.Name, key: PublicKey, now: float) -> x509.CertificateBuilder:
    """Return what all these certificates have in common: they are good for a year from yesterday on."""
    start = datetime.datetime.fromtimestamp(now, datetime.UTC) - datetime.timedelta(days=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=365))
    )
