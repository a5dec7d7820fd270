"""DSSE envelopes around policies: signed bytes, signatures, and nothing of what is inside.

(Dead Simple Signing Envelope, protocol: the signature covers `PAE(payloadType, payload)`.) Decides whether a key signed
an envelope. A certificate that travels inside an envelope is never believed: whoever forges the one forges the other.
"""

import json
from base64 import b64decode, b64encode, urlsafe_b64decode
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from limeguard.policy.errors import PolicyError

PAYLOAD_TYPE: Final = "application/vnd.keylime+json"
MAX_SIGNATURES: Final = 64
_SHA256: Final = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True, slots=True)
class Envelope:
    """A signed document: its type, its bytes, and signatures with the ids that they carry."""

    payload_type: str
    payload: bytes
    signatures: tuple[tuple[str, bytes], ...]

    @property
    def signed_bytes(self) -> bytes:
        """The pre-authentication encoding that signatures cover."""
        head = f"DSSEv1 {len(self.payload_type)} {self.payload_type} {len(self.payload)} "
        return head.encode() + self.payload


def is_envelope(document: object) -> bool:
    """Say whether a JSON value is an envelope: an object with a payload."""
    return isinstance(document, dict) and bool(document.get("payload"))


def parse_envelope(document: object) -> Envelope:
    """Read an envelope from its JSON value. Raises PolicyError with what is wrong."""
    if not isinstance(document, dict):
        raise PolicyError("the envelope is not an object")
    payload, kind, signatures = (document.get(name) for name in ("payload", "payloadType", "signatures"))
    if not isinstance(kind, str):
        raise PolicyError("payloadType of the envelope is not a string")
    if not isinstance(signatures, list) or not 1 <= len(signatures) <= MAX_SIGNATURES:
        raise PolicyError(f"signatures of the envelope are not an array of 1 to {MAX_SIGNATURES}")
    return Envelope(kind, _decoded(payload, "payload"), tuple(_signature(one) for one in signatures))


def verifies(envelope: Envelope, keys: Iterable[ec.EllipticCurvePublicKey]) -> bool:
    """Say whether one of these keys made one of the signatures (ECDSA with SHA-256, DER)."""
    signed = envelope.signed_bytes
    return any(_good(key, signature, signed) for key in keys for _, signature in envelope.signatures)


def load_signer(data: bytes) -> ec.EllipticCurvePublicKey:
    """Return the elliptic curve key in a PEM public key or certificate. Raises PolicyError."""
    try:
        if b"-----BEGIN CERTIFICATE-----" in data:
            key: object = x509.load_pem_x509_certificate(data).public_key()
        else:
            key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as problem:
        raise PolicyError(f"the key that signs policies is not a PEM public key: {problem}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise PolicyError("Only elliptic curve keys are supported")
    return key


def sign(payload: bytes, key: ec.EllipticCurvePrivateKey, certificate: bytes | None = None) -> str:
    """Return the JSON text of an envelope signed with `key`.

    The key id is SHA-256 of the public key's PEM text, or the base64 of the certificate's PEM text where one is given.
    """
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    key_id = sha256(pem).hexdigest() if certificate is None else b64encode(certificate).decode()
    signature = key.sign(Envelope(PAYLOAD_TYPE, payload, ()).signed_bytes, _SHA256)
    signatures = [{"keyid": key_id, "sig": b64encode(signature).decode()}]
    return json.dumps({"payload": b64encode(payload).decode(), "payloadType": PAYLOAD_TYPE, "signatures": signatures})


def _signature(one: Any) -> tuple[str, bytes]:
    if not isinstance(one, dict) or not isinstance(one.get("keyid", ""), str):
        raise PolicyError("a signature of the envelope is not an object with keyid and sig")
    try:
        return one.get("keyid", ""), _decoded(one.get("sig"), "sig")
    except PolicyError:
        return one.get("keyid", ""), b""  # a signature that cannot be read is one that nobody made


def _decoded(text: object, member: str) -> bytes:
    """Decode standard or URL-safe base64."""
    if isinstance(text, str):
        for decode in (lambda value: b64decode(value, validate=True), urlsafe_b64decode):
            try:
                return decode(text)
            except ValueError:
                continue
    raise PolicyError(f"{member} of the envelope is not base64")


def _good(key: ec.EllipticCurvePublicKey, signature: bytes, signed: bytes) -> bool:
    try:
        key.verify(signature, signed, _SHA256)
    except InvalidSignature:
        return False
    return True
