"""The encrypted store of a certificate authority (`private.yml`): its keys, its last serial, what it has revoked.

Text in, frozen values out, and back; salt and IV are handed in. Touches no files.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Self

import yaml
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from limeguard.crypto.keysplit import decrypt_payload, encrypt_payload

SALT_SIZE = 32
IV_SIZE = 16
ITERATIONS = 100_000
KEY_SIZE = 32

RESERVED = frozenset({"ca", "lastserial", "revoked_keys"})
"""Members of the store that cannot be names of certificates."""


class KeyStoreError(Exception):
    """The store cannot be opened; the text says why."""


@dataclass(frozen=True, slots=True)
class KeyStore:
    """What a CA must remember. Keys are PKCS#8 PEM; `keys` are those of the certificates by name."""

    ca_key: bytes = field(repr=False)
    last_serial: int
    revoked: tuple[int, ...] = ()
    keys: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def with_key(self, name: str, key: bytes, serial: int) -> Self:
        """Return the store with one more issued key."""
        return replace(self, keys=MappingProxyType({**self.keys, name: key}), last_serial=serial)

    def with_revoked(self, serial: int) -> Self:
        """Return the store with one more serial revoked; once is enough."""
        return self if serial in self.revoked else replace(self, revoked=(*self.revoked, serial))


def store_key(password: str, salt: str) -> bytes:
    """Derive the store's key; the salt is used as the text that it is, not as the bytes that it encodes."""
    derivation = PBKDF2HMAC(hashes.SHA256(), KEY_SIZE, salt.encode(), ITERATIONS)
    return derivation.derive(password.encode())


def seal(store: KeyStore, password: str, *, salt: bytes, iv: bytes) -> bytes:
    """Return the file that holds the store. `salt` has 32 random bytes, `iv` 16."""
    content: dict[str, Any] = {
        "ca": store.ca_key,
        "lastserial": store.last_serial,
        "revoked_keys": [str(serial) for serial in store.revoked],
        **store.keys,
    }
    salt_text = base64.b64encode(salt).decode()
    plaintext = yaml.safe_dump(content, sort_keys=False).encode()
    sealed = encrypt_payload(store_key(password, salt_text), iv, plaintext)
    outer = {"priv": base64.b64encode(sealed), "salt": salt_text}
    return yaml.safe_dump(outer, sort_keys=False).encode()


def unseal(data: bytes, password: str) -> KeyStore:
    """Open the file of a store. Raises KeyStoreError."""
    outer = _mapping(data, "the key store is no YAML mapping")
    salt, sealed = outer.get("salt"), outer.get("priv")
    if not isinstance(salt, str) or not isinstance(sealed, str | bytes):
        raise KeyStoreError("the key store lacks salt or priv")
    try:
        blob = base64.b64decode(sealed, validate=False)
        plaintext = decrypt_payload(store_key(password, salt), blob)
    except (InvalidTag, ValueError, binascii.Error):
        raise KeyStoreError("Invalid password for keystore") from None
    return _store(_mapping(plaintext, "the content of the key store is no YAML mapping"))


def _mapping(data: bytes, complaint: str) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError):
        loaded = None
    if not isinstance(loaded, dict):
        raise KeyStoreError(complaint)
    return {str(name): value for name, value in loaded.items()}


def _store(content: dict[str, Any]) -> KeyStore:
    try:
        return KeyStore(
            _pem(content["ca"]),
            int(content["lastserial"]),
            tuple(int(serial) for serial in content.get("revoked_keys") or ()),
            {name: _pem(value) for name, value in content.items() if name not in RESERVED},
        )
    except (KeyError, TypeError, ValueError):
        raise KeyStoreError("the content of the key store is not that of a CA") from None


def _pem(value: object) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise TypeError
