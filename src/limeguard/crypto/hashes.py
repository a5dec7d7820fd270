"""The one registry of hash algorithms: TPM identifier, name on the wire, digest length, and how to compute it.

Decides nothing about which algorithms are acceptable; that is policy.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes as pyca

if TYPE_CHECKING:
    from hashlib import _Hash


class UnsupportedAlgorithmError(ValueError):
    """An algorithm that is known by name but cannot be computed here."""


@dataclass(frozen=True, slots=True, eq=False)  # there is one object for each algorithm: identity is equality, and quick
class HashAlgorithm:
    """A hash algorithm: TPM_ALG_ID (TPM 2.0 Part 2 §6.3), Keylime's name, digest length in bytes."""

    tpm_id: int
    name: str
    size: int

    def new(self) -> "_Hash":
        """Return a fresh hash object. Raises UnsupportedAlgorithmError."""
        return _constructor(self)()

    def digest(self, data: bytes) -> bytes:
        """Return the digest of `data`. Raises UnsupportedAlgorithmError."""
        return _constructor(self)(data).digest()

    @property
    def constructor(self) -> "Callable[..., _Hash]":
        """The function that makes hash objects, for loops that hash a great deal. Raises UnsupportedAlgorithmError."""
        return _constructor(self)

    @property
    def pyca(self) -> pyca.HashAlgorithm:
        """The same algorithm for pyca/cryptography. Raises UnsupportedAlgorithmError."""
        try:
            return _PYCA[self.name]
        except KeyError:
            raise UnsupportedAlgorithmError(f"hash algorithm {self.name} is not supported") from None


SHA1 = HashAlgorithm(0x0004, "sha1", 20)
SHA256 = HashAlgorithm(0x000B, "sha256", 32)
SHA384 = HashAlgorithm(0x000C, "sha384", 48)
SHA512 = HashAlgorithm(0x000D, "sha512", 64)
SM3_256 = HashAlgorithm(0x0012, "sm3_256", 32)

ALL = (SHA1, SHA256, SHA384, SHA512, SM3_256)

_BY_NAME = {algorithm.name: algorithm for algorithm in ALL}
_BY_ID = {algorithm.tpm_id: algorithm for algorithm in ALL}
_CONSTRUCTORS: dict[str, Callable[..., "_Hash"]] = {
    "sha1": hashlib.sha1,
    "sha256": hashlib.sha256,
    "sha384": hashlib.sha384,
    "sha512": hashlib.sha512,
}
_PYCA: dict[str, pyca.HashAlgorithm] = {
    "sha1": pyca.SHA1(),  # noqa: S303 - only where an operator accepts it, and inside RSA-OAEP of the key exchange
    "sha256": pyca.SHA256(),
    "sha384": pyca.SHA384(),
    "sha512": pyca.SHA512(),
}


def _constructor(algorithm: HashAlgorithm) -> Callable[..., "_Hash"]:
    try:
        return _CONSTRUCTORS[algorithm.name]
    except KeyError:
        raise UnsupportedAlgorithmError(f"hash algorithm {algorithm.name} is not supported") from None


def hash_by_name(name: str) -> HashAlgorithm | None:
    """Return the algorithm of that name, or None."""
    return _BY_NAME.get(name)


def hash_by_tpm_id(tpm_id: int) -> HashAlgorithm | None:
    """Return the algorithm of that TPM_ALG_ID, or None."""
    return _BY_ID.get(tpm_id)
