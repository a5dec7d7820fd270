"""Encrypts a payload under a fresh key and splits the key; randomness is handed in."""

import base64
from collections.abc import Callable
from dataclasses import dataclass

from limeguard.crypto.keysplit import encrypt_payload, split

KEY_SIZE = 32
IV_SIZE = 16


@dataclass(frozen=True, slots=True, repr=False)
class UserData:
    """A payload for a node, and its key as K, V and U."""

    key: bytes
    v: bytes
    u: bytes
    payload: bytes

    @property
    def key_file(self) -> str:
        """Three lines of base64, in the order in which Keylime writes them: K, V, U."""
        return "".join(base64.b64encode(part).decode() + "\n" for part in (self.key, self.v, self.u))

    @property
    def payload_file(self) -> str:
        """The encrypted payload in base64."""
        return base64.b64encode(self.payload).decode()


def encrypt_userdata(plaintext: bytes, randomness: Callable[[int], bytes]) -> UserData:
    """Encrypt a payload. K is U xor V."""
    key, v = randomness(KEY_SIZE), randomness(KEY_SIZE)
    return UserData(key, v, split(key, v), encrypt_payload(key, randomness(IV_SIZE), plaintext))
