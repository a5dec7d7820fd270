"""The payload key in two halves: K = U xor V, the proofs that a half belongs to a node, and the sealing of payloads.

Both halves are 16 or 32 bytes. Randomness is passed in, except what RSA-OAEP draws inside the library.
"""

import hashlib
import hmac
from base64 import b64encode

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from limeguard.crypto.hashes import SHA1
from limeguard.crypto.keys import UnsupportedKeyError, load_public_key

SHARE_SIZES = (16, 32)
IV_SIZE = 16
"""Bytes of the GCM nonce: the protocol uses 16, not the usual 12."""
TAG_SIZE = 16

# The key exchange is fixed to OAEP with SHA-1 on the wire; OAEP does not lean on collision resistance.
_OAEP = padding.OAEP(padding.MGF1(SHA1.pyca), SHA1.pyca, None)


class KeyShareError(ValueError):
    """A key half, a sealed half or a sealed payload cannot be used; the text says why."""


def _check(share: bytes) -> None:
    if len(share) not in SHARE_SIZES:
        raise KeyShareError(f"a key half has 16 or 32 bytes, not {len(share)}")


def combine(u: bytes, v: bytes) -> bytes:
    """Return K out of its halves. Raises KeyShareError when their lengths are wrong."""
    _check(u)
    _check(v)
    if len(u) != len(v):
        raise KeyShareError(f"the key halves differ in length: {len(u)} and {len(v)}")
    return bytes(a ^ b for a, b in zip(u, v, strict=True))


def split(key: bytes, v: bytes) -> bytes:
    """Return U for a key and V. Raises KeyShareError."""
    return combine(key, v)


def bootstrap_auth_tag(key: bytes, agent_id: str) -> str:
    """Return the tag by which an agent knows that U and V belong together: hex of HMAC-SHA384(K, id)."""
    return hmac.new(key, agent_id.encode(), hashlib.sha384).hexdigest()


def registration_auth_tag(challenge: bytes, agent_id: str) -> str:
    """Return the proof that a challenge was opened: hex of HMAC-SHA384(base64 text of the challenge, id)."""
    return hmac.new(b64encode(challenge), agent_id.encode(), hashlib.sha384).hexdigest()


def challenge_hmac(key: bytes, challenge: str) -> str:
    """Return an agent's proof that it has K: hex of HMAC-SHA384(K, challenge)."""
    return hmac.new(key, challenge.encode(), hashlib.sha384).hexdigest()


def encrypt_payload(key: bytes, iv: bytes, plaintext: bytes) -> bytes:
    """Return IV || AES-GCM ciphertext || tag under K. `iv` is 16 fresh random bytes. Raises KeyShareError."""
    _check(key)
    if len(iv) != IV_SIZE:
        raise KeyShareError(f"the nonce has {IV_SIZE} bytes, not {len(iv)}")
    encryptor = Cipher(algorithms.AES(key), modes.GCM(iv)).encryptor()
    sealed = encryptor.update(plaintext) + encryptor.finalize()
    return iv + sealed + encryptor.tag


def decrypt_payload(key: bytes, blob: bytes) -> bytes:
    """Return the plaintext of a payload. Raises KeyShareError when it was sealed under another key or altered."""
    _check(key)
    if len(blob) < IV_SIZE + TAG_SIZE:
        raise KeyShareError("the sealed payload is too short")
    iv, sealed, tag = blob[:IV_SIZE], blob[IV_SIZE:-TAG_SIZE], blob[-TAG_SIZE:]
    decryptor = Cipher(algorithms.AES(key), modes.GCM(iv, tag)).decryptor()
    try:
        return decryptor.update(sealed) + decryptor.finalize()
    except InvalidTag:
        raise KeyShareError("the sealed payload was altered or belongs to another key") from None


def encrypt_key_share(public_key_pem: str, share: bytes) -> bytes:
    """Seal a half for an agent's RSA transport key (PEM). Raises KeyShareError."""
    _check(share)
    try:
        key = load_public_key(public_key_pem.encode())
    except UnsupportedKeyError as problem:
        raise KeyShareError(f"the transport key cannot be used: {problem}") from None
    if not isinstance(key, rsa.RSAPublicKey):
        raise KeyShareError("the transport key is not an RSA key")
    return key.encrypt(share, _OAEP)


def decrypt_key_share(private_key: rsa.RSAPrivateKey, data: bytes) -> bytes:
    """Open a half that was sealed for this transport key. Raises KeyShareError."""
    try:
        share = private_key.decrypt(data, _OAEP)
    except ValueError:
        raise KeyShareError("the sealed key half was not made for this transport key") from None
    _check(share)
    return share
