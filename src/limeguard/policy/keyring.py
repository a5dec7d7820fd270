"""Keys that sign files: the containers they come in, their key ids, and Keylime's text form of a keyring.

Decides which key a signature names. Whether a key deserves trust is decided by who puts it on a keyring.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
    load_pem_private_key,
    load_pem_public_key,
)

from limeguard.crypto.keys import PublicKey, spki_der
from limeguard.policy.errors import PolicyError

MAX_KEY_BYTES: Final = 64 * 1024
"""Bytes of a key or certificate; RSA-16384 with a long certificate stays below."""
MAX_KEYS: Final = 1_000
"""Keys of one keyring."""
_ID_BYTES: Final = 4


class KeyUnreadableError(ValueError):
    """Bytes in which there is no key of any accepted container."""


class UnsupportedKeyTypeError(ValueError):
    """A key, but neither RSA nor elliptic curve."""


@dataclass(frozen=True, slots=True)
class Keyring:
    """Public keys by key id (the last four bytes of the subject key identifier, as an integer)."""

    keys: Mapping[int, PublicKey] = field(default_factory=lambda: MappingProxyType({}))

    def with_key(self, key_id: int, key: PublicKey) -> "Keyring":
        """Return a keyring that holds this key as well."""
        return Keyring(MappingProxyType({**self.keys, key_id: key}))

    @property
    def text(self) -> str:
        """Keylime's text form, as `learned_ima_keyrings` and `verification-keys` carry it."""
        return keyring_text([(key, key_id) for key_id, key in self.keys.items()])


EMPTY_KEYRING: Final = Keyring()


def key_id_of(key: PublicKey) -> int:
    """Return the id of a bare key: the last 4 bytes of SHA-1 over PKCS#1 RSAPublicKey or the uncompressed EC point."""
    if isinstance(key, rsa.RSAPublicKey):
        raw = key.public_bytes(Encoding.DER, PublicFormat.PKCS1)
    else:
        raw = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return int.from_bytes(hashlib.sha1(raw, usedforsecurity=False).digest()[-_ID_BYTES:], "big")


def load_public_key(data: bytes) -> tuple[PublicKey, int]:
    """Return the RSA or EC key in `data` and its key id.

    Accepted, in this order: certificate, public key, unencrypted private key (whose public half is taken), each as DER
    or PEM. Raises KeyUnreadableError, UnsupportedKeyTypeError.
    """
    if len(data) > MAX_KEY_BYTES:
        raise KeyUnreadableError(f"longer than {MAX_KEY_BYTES} bytes")
    certificate = _certificate(data)
    if certificate is not None:
        try:
            key: object = certificate.public_key()
        except (ValueError, UnsupportedAlgorithm) as problem:
            raise UnsupportedKeyTypeError(f"Unsupported key in certificate: {problem}") from None
        supported = _supported(key)
        return supported, _subject_key_id(certificate) or key_id_of(supported)
    supported = _supported(_bare_key(data))
    return supported, key_id_of(supported)


def is_certificate(data: bytes) -> bool:
    """Say whether `data` is one DER certificate."""
    try:
        x509.load_der_x509_certificate(data)
    except (ValueError, UnsupportedAlgorithm):
        return False
    return True


def keyring_text(keys: Sequence[tuple[PublicKey, int]]) -> str:
    """Return Keylime's text form of a keyring: JSON with base64 DER keys and their ids, parallel by index."""
    encoded = [base64.b64encode(spki_der(key)).decode() for key, _ in keys]
    return json.dumps({"pubkeys": encoded, "keyids": [key_id for _, key_id in keys]})


def keyring_document(text: str) -> list[tuple[PublicKey, int]]:
    """Return the keys of a keyring text in order; none for an empty text. Raises PolicyError with all problems."""
    if not text:
        return []
    document = _decoded(text)
    problems = list(_shape_problems(document))
    if problems or not isinstance(document, dict):
        raise PolicyError(*(problems or ["JSON from string is not a valid IMA Keyring"]))
    keys: list[tuple[PublicKey, int]] = []
    ids: list[int] = document["keyids"]
    for index, encoded in enumerate(document["pubkeys"]):
        try:
            key = _supported(load_der_public_key(base64.b64decode(encoded, validate=True)))
        except (ValueError, UnsupportedAlgorithm, binascii.Error) as problem:
            problems.append(f"pubkeys[{index}] is not a key that can be used: {problem}")
            continue
        given = ids[index] if index < len(ids) else 0
        keys.append((key, given or key_id_of(key)))
    if problems:
        raise PolicyError(*problems)
    return keys


def parse_keyring(text: str) -> Keyring:
    """Return the keyring in its text form. Raises PolicyError with all problems."""
    return Keyring(MappingProxyType({key_id: key for key, key_id in reversed(keyring_document(text))}))


def _decoded(text: str) -> object:
    """Decode the JSON; a keyring may have been encoded twice."""
    try:
        document: object = json.loads(text)
        return json.loads(document) if isinstance(document, str) else document
    except (ValueError, RecursionError) as problem:
        raise PolicyError(f"the keyring is not JSON: {problem}") from None


def _shape_problems(document: object) -> Iterable[str]:
    if not isinstance(document, dict):
        yield "the keyring is not an object with pubkeys and keyids"
        return
    for member, kind, called in (("pubkeys", str, "strings"), ("keyids", int, "integers")):
        values = document.get(member)
        if not isinstance(values, list):
            yield f"'{member}' is a required property" if values is None else f"{member} is not an array"
        elif len(values) > MAX_KEYS:
            yield f"{member} has more than {MAX_KEYS} entries"
        elif not all(isinstance(value, kind) and not isinstance(value, bool) for value in values):
            yield f"{member} is not an array of {called}"
    meta = document.get("meta")
    if meta is not None and not (isinstance(meta, dict) and _version_fits(meta.get("version"))):
        yield "meta.version is not an integer of at least 1"


def _version_fits(version: object) -> bool:
    return isinstance(version, int) and not isinstance(version, bool) and version >= 1


def _supported(key: object) -> PublicKey:
    if isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        return key
    raise UnsupportedKeyTypeError(f"Unsupported key type {type(key).__name__}")


def _certificate(data: bytes) -> x509.Certificate | None:
    for load in (x509.load_der_x509_certificate, x509.load_pem_x509_certificate):
        try:
            return load(data)
        except (ValueError, UnsupportedAlgorithm):
            continue
    return None


def _bare_key(data: bytes) -> object:
    for load in (load_der_public_key, load_pem_public_key):
        try:
            return load(data)
        except (ValueError, UnsupportedAlgorithm):
            continue
    for load_private in (load_der_private_key, load_pem_private_key):
        try:
            return load_private(data, password=None).public_key()
        except (ValueError, TypeError, UnsupportedAlgorithm, AttributeError):
            continue
    raise KeyUnreadableError("neither a certificate nor a public or private key, as DER or PEM")


def _subject_key_id(certificate: x509.Certificate) -> int:
    """Return the id that the certificate states, 0 when it states none."""
    try:
        digest = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except (ValueError, x509.ExtensionNotFound):
        return 0
    return int.from_bytes(digest[-_ID_BYTES:], "big") if len(digest) >= _ID_BYTES else 0
