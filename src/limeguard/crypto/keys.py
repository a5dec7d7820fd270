"""Public keys and one way to verify a signature with them. Decides nothing about whose key it is."""

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

from limeguard.crypto.hashes import HashAlgorithm

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

RSASSA = "rsassa"
RSAPSS = "rsapss"
ECDSA = "ecdsa"
ECSCHNORR = "ecschnorr"

_PKCS1 = padding.PKCS1v15()


class UnsupportedKeyError(ValueError):
    """Not a public key, or of a kind that takes no part in attestation."""


def load_public_key(data: bytes) -> PublicKey:
    """Return the RSA or EC key in a SubjectPublicKeyInfo, PEM or DER. Raises UnsupportedKeyError."""
    try:
        key = load_pem_public_key(data) if data.lstrip().startswith(b"-----") else load_der_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as problem:
        raise UnsupportedKeyError(f"not a public key: {problem}") from None
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise UnsupportedKeyError("only RSA and elliptic curve keys are supported")
    return key


def spki_pem(key: PublicKey) -> str:
    """Return the SubjectPublicKeyInfo as PEM text: 64 characters a line, LF, a newline at the end."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def spki_der(key: PublicKey) -> bytes:
    """Return the SubjectPublicKeyInfo as DER."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def verify_rsa(key: rsa.RSAPublicKey, scheme: str, algorithm: HashAlgorithm, signature: bytes, data: bytes) -> bool:
    """Say whether an RSASSA or RSAPSS signature (salt as long as the digest) over `data` is good."""
    if scheme == RSASSA:
        kind: padding.AsymmetricPadding = _PKCS1
    elif scheme == RSAPSS:
        kind = padding.PSS(padding.MGF1(algorithm.pyca), algorithm.size)
    else:
        return False
    try:
        key.verify(signature, data, kind, algorithm.pyca)
    except InvalidSignature:
        return False
    return True


def verify_ecdsa(
    key: ec.EllipticCurvePublicKey, algorithm: HashAlgorithm, signature: tuple[int, int], data: bytes
) -> bool:
    """Say whether an ECDSA signature (r, s) over `data` is good."""
    r, s = signature
    if r <= 0 or s <= 0:
        return False
    try:
        key.verify(encode_dss_signature(r, s), data, ec.ECDSA(algorithm.pyca))
    except InvalidSignature:
        return False
    return True
