"""What the agent asks of a TPM: algorithm names, EK templates, the AK template, and the policies that free an EK.

Pure tables and bytes, from the TCG EK Credential Profile for TPM Family 2.0. Knows no TPM library.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

ALG_RSA, ALG_AES, ALG_NULL, ALG_ECC, ALG_CFB = 0x0001, 0x0006, 0x0010, 0x0023, 0x0043
"""TPM 2.0 Part 2 §6.3, TPM_ALG_ID."""

HASHES: Mapping[str, int] = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D}
SCHEMES: Mapping[str, int] = {"rsassa": 0x0014, "rsapss": 0x0016, "ecdsa": 0x0018, "ecschnorr": 0x001C}
RSA_SCHEMES = frozenset({"rsassa", "rsapss"})
KEYS: Mapping[str, tuple[int, int]] = {
    "rsa2048": (ALG_RSA, 2048),
    "rsa3072": (ALG_RSA, 3072),
    "rsa4096": (ALG_RSA, 4096),
    "ecc256": (ALG_ECC, 0x0003),
    "ecc384": (ALG_ECC, 0x0004),
    "ecc521": (ALG_ECC, 0x0005),
}
"""Key name -> type and, for RSA, bits; for ECC, curve (TPM 2.0 Part 2 §6.4, TPM_ECC_CURVE)."""
_ALIASES: Mapping[str, str] = {
    "rsa": "rsa2048",
    "ecc": "ecc256",
    "ecc_nist_p256": "ecc256",
    "ecc_nist_p384": "ecc384",
    "ecc_nist_p521": "ecc521",
}

EK_LOW_ATTRIBUTES = 0x000300B2
"""fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt."""
EK_HIGH_ATTRIBUTES = 0x000300F2
"""The same with userWithAuth."""
AK_ATTRIBUTES = 0x00050472
"""fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign.

noDA: the AK has no secret to guess, and without it three power cuts lock it out (TPM 2.0 Part 1 §19.8).
"""

POLICY_A_256 = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
POLICY_B_256 = bytes.fromhex("ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0")
POLICY_B_384 = bytes.fromhex(
    "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
)
POLICY_B_512 = bytes.fromhex(
    "b8221ca69e8550a4914de3faa6a18c072cc01208073a928d5d66d59ef79e49a4"
    "29c41a6b269571d57edb25fbdb1838425608b413cd616a5f6db5b6071af99bea"
)

EK_POLICY_BRANCHES: Mapping[bytes, tuple[bytes, ...]] = {
    POLICY_A_256: (),
    POLICY_B_256: (
        POLICY_A_256,
        bytes.fromhex("3767e2edd43ff45a3a7e1eaefcef78643dca964632e7aad82c673a30d8633fde"),
    ),
    POLICY_B_384: (
        bytes.fromhex(
            "8bbf2266537c171cb56e403c4dc1d4b64f432611dc386e6f532050c3278c930e143e8bb1133824ccb431053871c6db53"
        ),
        bytes.fromhex(
            "d6032ce61f2fb3c240eb3cf6a33237ef2b6a16f4293c22b455e261cffd217ad5b4947c2d73e63005eed2dc2b3593d165"
        ),
    ),
    POLICY_B_512: (
        bytes.fromhex(
            "1e3b76502c8a1425aa0b7b3fc646a1b0fae063b03b5368f9c4cddecaff0891dd"
            "682bac1a85d4d832b781ea451915de5fc5bf0dc4a1917cd42fa041e3f998e0ee"
        ),
        bytes.fromhex(
            "589ee1e146544716e8deafe6db247b01b81e9f9c7dd16b814aa159138749105f"
            "ba5388dd1dea702f35240c184933121e2c61b8f50d3ef91393a49a38c3f73fc8"
        ),
    ),
}
"""authPolicy of an EK -> what PolicyOR is given after PolicySecret(endorsement); nothing: no PolicyOR."""

EK_CERTIFICATE_INDEX: Mapping[str, int] = {
    "rsa2048": 0x01C00002,
    "ecc256": 0x01C0000A,
    "ecc384": 0x01C00016,
    "ecc521": 0x01C00018,
    "rsa3072": 0x01C0001C,
    "rsa4096": 0x01C0001E,
}
EK_CHAIN_FIRST, EK_CHAIN_LAST = 0x01C00100, 0x01C001FF


class UnsupportedAlgorithm(ValueError):  # noqa: N818 - a fact about the configuration
    """The configured algorithms cannot be used; the text names the option and what may stand there."""


@dataclass(frozen=True, slots=True)
class Algorithms:
    """The configured algorithms in their sized spelling. EK and AK share the key algorithm."""

    hash: str
    key: str
    signing: str


def parse_algorithms(hash_name: str, key_name: str, signing_name: str) -> Algorithms:
    """Check the three options `tpm_hash_alg`, `tpm_encryption_alg`, `tpm_signing_alg`. Raises UnsupportedAlgorithm."""
    key = _ALIASES.get(key_name, key_name)
    for option, value, known in (
        ("tpm_hash_alg", hash_name, HASHES),
        ("tpm_encryption_alg", key, KEYS),
        ("tpm_signing_alg", signing_name, SCHEMES),
    ):
        if value not in known:
            raise UnsupportedAlgorithm(f"{option} = {value!r} is not supported; use one of {', '.join(known)}.")
    if (KEYS[key][0] == ALG_RSA) != (signing_name in RSA_SCHEMES):
        fitting = [name for name in SCHEMES if (KEYS[key][0] == ALG_RSA) == (name in RSA_SCHEMES)]
        raise UnsupportedAlgorithm(
            f"tpm_signing_alg = {signing_name!r} does not fit tpm_encryption_alg = {key_name!r}; "
            f"use one of {', '.join(fitting)}."
        )
    return Algorithms(hash_name, key, signing_name)


@dataclass(frozen=True, slots=True)
class _EkTemplate:
    name_alg: str
    attributes: int
    policy: bytes
    aes_bits: int
    unique: int
    """Bytes of zeros in each member of `unique`."""


_LOW_RSA = _EkTemplate("sha256", EK_LOW_ATTRIBUTES, POLICY_A_256, 128, 256)
_LOW_ECC = _EkTemplate("sha256", EK_LOW_ATTRIBUTES, POLICY_A_256, 128, 32)
_HIGH_384 = _EkTemplate("sha384", EK_HIGH_ATTRIBUTES, POLICY_B_384, 256, 0)
_HIGH_512 = _EkTemplate("sha512", EK_HIGH_ATTRIBUTES, POLICY_B_512, 256, 0)
_EK_TEMPLATES: Mapping[str, _EkTemplate] = {
    "rsa2048": _LOW_RSA,
    "ecc256": _LOW_ECC,
    "rsa3072": _HIGH_384,
    "rsa4096": _HIGH_384,
    "ecc384": _HIGH_384,
    "ecc521": _HIGH_512,
}


def ek_template(key: str) -> bytes:
    """Return the TPM2B_PUBLIC that makes the EK of that algorithm as a primary key (TPM 2.0 Part 2 §12.2.4)."""
    template = _EK_TEMPLATES[key]
    symmetric = struct.pack(">HHH", ALG_AES, template.aes_bits, ALG_CFB)
    scheme = struct.pack(">H", ALG_NULL)
    return _public(key, template.name_alg, template.attributes, template.policy, symmetric + scheme, template.unique)


def ak_template(algorithms: Algorithms) -> bytes:
    """Return the TPM2B_PUBLIC that makes the AK as a child of the EK."""
    scheme = struct.pack(">HHH", ALG_NULL, SCHEMES[algorithms.signing], HASHES[algorithms.hash])
    return _public(algorithms.key, algorithms.hash, AK_ATTRIBUTES, b"", scheme, 0)


def _public(key: str, name_alg: str, attributes: int, policy: bytes, head: bytes, unique: int) -> bytes:
    kind, size = KEYS[key]
    member = _sized(bytes(unique))
    tail = struct.pack(">HI", size, 0) + member if kind == ALG_RSA else struct.pack(">HH", size, ALG_NULL) + member * 2
    return _sized(struct.pack(">HHI", kind, HASHES[name_alg], attributes) + _sized(policy) + head + tail)


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data
