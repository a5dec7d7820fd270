"""Signing policies: a key that is there or is made, and the envelope around the policy."""

import json
import os
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from limeguard.authoring.policy.collected import SourceError
from limeguard.policy import dsse
from limeguard.policy.errors import PolicyError
from limeguard.policy.runtime import check_document, decode_policy

NAME = "dsse_lib"
"""Subject of the certificates; the wire contract has it."""
LIFETIME = timedelta(days=30)


def checked_policy(path: str) -> bytes:
    """Return the policy in a file, encoded anew. Raises SourceError when it is none."""
    try:
        text = Path(path).read_bytes()
    except OSError:
        raise SourceError(f"The runtime policy file specified ({path}) does not seem to exist") from None
    try:
        document = decode_policy(text)
        problems = check_document(document)
    except PolicyError as problem:
        document, problems = None, problem.problems
    if problems:
        raise SourceError(
            f"Unable to validate the runtime policy '{path}'; please make sure to provide a valid runtime policy: "
            + "; ".join(problems[:10])
        )
    return json.dumps(document).encode()


def load_key(path: str) -> ec.EllipticCurvePrivateKey:
    """Return the elliptic curve key in a PEM file. Raises SourceError."""
    try:
        key = load_pem_private_key(Path(path).read_bytes(), None)
    except (OSError, ValueError, TypeError) as problem:
        raise SourceError(f"Unable to obtain a valid signer from the input data: {problem}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SourceError("Unable to obtain a valid signer from the input data: Only elliptic curve keys are supported")
    return key


def make_key(path: str) -> ec.EllipticCurvePrivateKey:
    """Make a P-256 key and write it, readable by its owner alone. Raises SourceError; an old file is not replaced."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
    except OSError as problem:
        raise SourceError(f"The new key cannot be written: {problem}; name another file with --keypath") from None
    return key


def make_certificate(key: ec.EllipticCurvePrivateKey, now: datetime) -> bytes:
    """Return a self-signed certificate for the key, PEM."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + LIFETIME)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def sign(payload: bytes, key: ec.EllipticCurvePrivateKey, certificate_path: str | None, now: datetime) -> str:
    """Return the envelope; with a path, a certificate is made, written there and named in the signature."""
    if certificate_path is None:
        return dsse.sign(payload, key)
    certificate = make_certificate(key, now)
    try:
        Path(certificate_path).write_bytes(certificate)
    except OSError as problem:
        raise SourceError(f"The certificate cannot be written: {problem}") from None
    return dsse.sign(payload, key, certificate)


def verify(path: str, key_path: str) -> bytes:
    """Return the policy in a signed file when the key signed it. Raises SourceError."""
    try:
        key = dsse.load_signer(Path(key_path).read_bytes())
        document = decode_policy(Path(path).read_bytes())
        if not dsse.is_envelope(document):
            raise SourceError(f"{path} is not signed")
        envelope = dsse.parse_envelope(document)
    except (OSError, PolicyError) as problem:
        raise SourceError(f"{problem}") from None
    if not dsse.verifies(envelope, [key]):
        raise SourceError(f"The signature of {path} is not by this key, or the policy was changed")
    return envelope.payload
