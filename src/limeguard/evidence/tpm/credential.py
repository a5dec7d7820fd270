"""Credential activation: a secret that only the TPM with this EK can open, and only if it holds this AK.

TPM 2.0 Part 1 §24 (Credential Protection), §11.4.10 (KDFa, KDFe), Annexes B.10.4 and C.6.4. The blob is the file layout
of tpm2-tools.
"""

import hmac
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

try:  # CFB moved in cryptography 47
    from cryptography.hazmat.decrepit.ciphers.modes import CFB
except ImportError:  # pragma: no cover - older releases
    from cryptography.hazmat.primitives.ciphers.modes import CFB

from limeguard.crypto.hashes import HashAlgorithm
from limeguard.evidence.reader import Reader
from limeguard.evidence.tpm.structures import ALG_AES, DECRYPT, RESTRICTED, PublicArea, to_2b

MAGIC: Final = 0xBADCC0DE
VERSION: Final = 1
MAX_ID_OBJECT: Final = 2 + 64 + 2 + 64
MAX_SECRET: Final = 512
IDENTITY: Final = b"IDENTITY"


class UnusableKeyError(ValueError):
    """An EK to which no credential can be made; the text says why."""


def kdf_a(algorithm: HashAlgorithm, key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """Derive `bits` bits from a key: HMAC in counter mode, one context (Part 1 §11.4.10.2)."""
    fixed = label + b"\0" + context + bits.to_bytes(4, "big")
    blocks = b"".join(
        hmac.new(key, counter.to_bytes(4, "big") + fixed, algorithm.name).digest()
        for counter in range(1, 2 + bits // (8 * algorithm.size))
    )
    return blocks[: bits // 8]


def kdf_e(algorithm: HashAlgorithm, z: bytes, label: bytes, party_u: bytes, party_v: bytes, bits: int) -> bytes:
    """Derive `bits` bits from an ECDH secret (Part 1 §11.4.10.3)."""
    fixed = z + label + b"\0" + party_u + party_v
    blocks = b"".join(
        algorithm.digest(counter.to_bytes(4, "big") + fixed) for counter in range(1, 2 + bits // (8 * algorithm.size))
    )
    return blocks[: bits // 8]


def make_credential(
    ek: PublicArea, ak_name: bytes, secret: bytes, *, seed: bytes, ephemeral_scalar: int | None = None
) -> bytes:
    """Return the blob by which the TPM that has `ek` and the AK named `ak_name` learns `secret`.

    `seed` is as many random bytes as the EK's name algorithm has (RSA); `ephemeral_scalar` is a random private scalar
    of the EK's curve (ECC, where the seed is derived and `seed` is not used). Raises UnusableKeyError.
    """
    if ek.symmetric is None or ek.symmetric.algorithm != ALG_AES:
        raise UnusableKeyError("the EK has no AES parameters, so it is not a storage key")
    if ek.attributes & (RESTRICTED | DECRYPT) != RESTRICTED | DECRYPT:
        raise UnusableKeyError("the EK is not a restricted decryption key")
    if len(secret) > ek.name_alg.size:
        raise UnusableKeyError(f"a secret of {len(secret)} bytes does not fit the EK's name algorithm")
    public = ek.key
    if isinstance(public, rsa.RSAPublicKey):
        if len(seed) != ek.name_alg.size:
            raise UnusableKeyError(f"the seed has {len(seed)} bytes, the EK's name algorithm {ek.name_alg.size}")
        encrypted_seed = _seal_seed(public, ek.name_alg, seed)
    else:
        if ephemeral_scalar is None:
            raise UnusableKeyError("an ECC EK needs an ephemeral key")
        seed, encrypted_seed = _agree_on_seed(public, ek.name_alg, ephemeral_scalar)
    id_object = _id_object(ek, ak_name, secret, seed)
    return b"".join((MAGIC.to_bytes(4, "big"), VERSION.to_bytes(4, "big"), to_2b(id_object), to_2b(encrypted_seed)))


def _seal_seed(key: rsa.RSAPublicKey, algorithm: HashAlgorithm, seed: bytes) -> bytes:
    # The label counts with its terminating zero: Part 1 Annex B.4.
    return key.encrypt(seed, padding.OAEP(padding.MGF1(algorithm.pyca), algorithm.pyca, IDENTITY + b"\0"))


def _agree_on_seed(key: ec.EllipticCurvePublicKey, algorithm: HashAlgorithm, scalar: int) -> tuple[bytes, bytes]:
    size = (key.key_size + 7) // 8
    ephemeral = ec.derive_private_key(scalar, key.curve)
    point = ephemeral.public_key().public_numbers()
    x, y = point.x.to_bytes(size, "big"), point.y.to_bytes(size, "big")
    z = ephemeral.exchange(ec.ECDH(), key)
    ek_x = key.public_numbers().x.to_bytes(size, "big")
    return kdf_e(algorithm, z, IDENTITY, x, ek_x, 8 * algorithm.size), to_2b(x) + to_2b(y)


def _id_object(ek: PublicArea, ak_name: bytes, secret: bytes, seed: bytes) -> bytes:
    algorithm = ek.name_alg
    bits = ek.symmetric.bits if ek.symmetric is not None else 0
    symmetric_key = kdf_a(algorithm, seed, b"STORAGE", ak_name, bits)
    hmac_key = kdf_a(algorithm, seed, b"INTEGRITY", b"", 8 * algorithm.size)
    encryptor = Cipher(algorithms.AES(symmetric_key), CFB(bytes(16))).encryptor()
    identity = encryptor.update(to_2b(secret)) + encryptor.finalize()
    return to_2b(hmac.new(hmac_key, identity + ak_name, algorithm.name).digest()) + identity


def parse_credential_blob(blob: bytes) -> tuple[bytes, bytes]:
    """Return the content of TPM2B_ID_OBJECT and of TPM2B_ENCRYPTED_SECRET. Raises MalformedEvidence."""
    reader = Reader(blob, "credential blob")
    if reader.u32("magic") != MAGIC:
        raise reader.refuse("magic", "is not that of a credential")
    if reader.u32("version") != VERSION:
        raise reader.refuse("version", "is not 1")
    id_object = reader.sized("credentialBlob", MAX_ID_OBJECT)
    secret = reader.sized("secret", MAX_SECRET)
    reader.finish()
    return id_object, secret
