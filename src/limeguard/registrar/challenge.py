"""The challenge of a registration: a fresh secret that only the TPM with this EK and this AK can read.

What is kept of it is the digest of the one good answer, so that nothing at rest can activate a node.
"""

import hashlib
import hmac
import secrets
import string
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from limeguard.crypto.keysplit import registration_auth_tag
from limeguard.evidence.tpm.credential import make_credential
from limeguard.evidence.tpm.structures import PublicArea

ALPHABET: Final = (string.ascii_uppercase + string.digits + string.ascii_lowercase).encode()
LENGTH: Final = 32
_BYTE_TO_CHARACTER: Final = bytes(ALPHABET[byte % len(ALPHABET)] for byte in range(256))


@dataclass(frozen=True, slots=True)
class Challenge:
    """What goes to the node, and the SHA-256 of the answer that it must give."""

    blob: bytes
    proof_sha256: bytes


def fresh_secret() -> bytes:
    """Return 32 letters and digits from the system's random source."""
    return secrets.token_bytes(LENGTH).translate(_BYTE_TO_CHARACTER)


def make_challenge(ek: PublicArea, ak: PublicArea, agent_id: str) -> Challenge:
    """Wrap a fresh secret for the TPM that has both keys. Raises UnusableKeyError (a ValueError) for an unfit EK."""
    secret = fresh_secret()
    blob = make_credential(
        ek, ak.name, secret, seed=secrets.token_bytes(ek.name_alg.size), ephemeral_scalar=_ephemeral_scalar(ek)
    )
    return Challenge(blob, digest_of(registration_auth_tag(secret, agent_id)))


def _ephemeral_scalar(ek: PublicArea) -> int | None:
    key = ek.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return None
    return ec.generate_private_key(key.curve).private_numbers().private_value


def digest_of(proof: str) -> bytes:
    """Return what is kept of an answer."""
    return hashlib.sha256(proof.encode("utf-8", "surrogatepass")).digest()


def is_answered(proof: str, expected_sha256: bytes) -> bool:
    """Say in constant time whether an answer is the good one."""
    return hmac.compare_digest(digest_of(proof), expected_sha256)
