"""Signed runtime policies: an envelope is passed on only when the operator's own key signed what is in it.

The envelope is DSSE (https://github.com/secure-systems-lab/dsse, protocol version 1) with ECDSA over SHA-256. The key
comes from the operator, never from the envelope.
"""

from base64 import b64decode, urlsafe_b64decode
from binascii import Error as Base64Error
from collections.abc import Mapping

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from limeguard.tenant.errors import TenantError

MAX_SIGNATURES = 64


def is_envelope(document: Mapping[str, object]) -> bool:
    """Whether a policy document is wrapped in an envelope."""
    return bool(document.get("payload"))


def check_signed_policy(document: Mapping[str, object], key_pem: bytes) -> None:
    """Check a policy against the operator's key (empty: none was given). Raises TenantError."""
    if not is_envelope(document):
        if key_pem:
            raise TenantError("Runtime policy is not signed!")
        return
    if not key_pem:
        raise TenantError("Runtime policy signature verification required but no key was given!")
    try:
        key = load_pem_public_key(key_pem)
    except ValueError as problem:
        raise TenantError(f"--runtime-policy-sig-key is no public key in PEM: {problem}") from problem
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TenantError("--runtime-policy-sig-key is no elliptic curve key")
    if not _signed_by(document, key):
        raise TenantError("Runtime policy failed DSSE signature verification!")


def _signed_by(document: Mapping[str, object], key: ec.EllipticCurvePublicKey) -> bool:
    payload, kind = _decoded(document.get("payload")), document.get("payloadType")
    signatures = document.get("signatures")
    if payload is None or not isinstance(kind, str) or not isinstance(signatures, list):
        return False
    message = signed_bytes(kind, payload)
    for entry in signatures[:MAX_SIGNATURES]:
        signature = _decoded(entry.get("sig")) if isinstance(entry, dict) else None
        if signature is not None and _verifies(key, signature, message):
            return True
    return False


def _verifies(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def signed_bytes(kind: str, payload: bytes) -> bytes:
    """Return what a DSSE signature is over (its pre-authentication encoding)."""
    name = kind.encode("utf-8")
    return b"DSSEv1 %d %s %d %s" % (len(name), name, len(payload), payload)


def _decoded(text: object) -> bytes | None:
    """Decode base64 of either alphabet."""
    if not isinstance(text, str):
        return None
    try:
        return b64decode(text, validate=True)
    except (Base64Error, ValueError):
        pass
    try:
        return urlsafe_b64decode(text.encode("ascii"))
    except (Base64Error, ValueError):
        return None
