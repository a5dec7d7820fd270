"""Signatures of files: whether one verifies over the digest that the kernel logged, with a key that is on a keyring.

The header is the kernel's `signature_v2_hdr` (big-endian): type, version, hash id, key id, size. Decides nothing about
what an unsigned file may do.
"""

import struct
from collections.abc import Iterable
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from limeguard.crypto.keys import PublicKey
from limeguard.evidence.ima.templates import Entry
from limeguard.policy.keyring import Keyring

IMA_SIGNATURE: Final = 3
EVM_PORTABLE_SIGNATURE: Final = 5
VERITY_SIGNATURE: Final = 6
_HEADER: Final = struct.Struct(">BBBIH")
_VERSION: Final = 2
_VERITY_VERSION: Final = 3
_PKCS1: Final = padding.PKCS1v15()
_HASHES: Final[dict[int, tuple[str, hashes.HashAlgorithm]]] = {
    1: ("md5", hashes.MD5()),  # noqa: S303 - what was signed long ago is still verified as the operator's policy says
    2: ("sha1", hashes.SHA1()),  # noqa: S303
    4: ("sha256", hashes.SHA256()),
    5: ("sha384", hashes.SHA384()),
    6: ("sha512", hashes.SHA512()),
    7: ("sha224", hashes.SHA224()),
}
"""The kernel's `enum hash_algo`, as far as a signature can be verified with it."""


def verifies(entry: Entry, keyrings: Iterable[Keyring]) -> bool:
    """Say whether the entry's signature is good. The first keyring that has the key id decides; there is no second."""
    if entry.signature is None:
        return False
    kind, version, hash_id, key_id, _ = _HEADER.unpack_from(entry.signature)
    named = _HASHES.get(hash_id)
    if named is None or named[0] != entry.algorithm or len(entry.digest) != named[1].digest_size:
        return False
    signed = entry.digest
    if kind == VERITY_SIGNATURE and version == _VERITY_VERSION and entry.verity:
        # struct ima_file_id: the type and the hash algorithm are signed together with the fs-verity digest.
        whole = hashes.Hash(named[1])
        whole.update(bytes((kind, hash_id)) + entry.digest)
        signed = whole.finalize()
    elif kind not in {IMA_SIGNATURE, EVM_PORTABLE_SIGNATURE} or version != _VERSION or entry.verity:
        return False
    key = next((ring.keys[key_id] for ring in keyrings if key_id in ring.keys), None)
    return key is not None and _good(key, entry.signature[_HEADER.size :], signed, named[1])


def _good(key: PublicKey, signature: bytes, digest: bytes, algorithm: hashes.HashAlgorithm) -> bool:
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, digest, _PKCS1, Prehashed(algorithm))
        else:
            key.verify(signature, digest, ec.ECDSA(Prehashed(algorithm)))
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True
