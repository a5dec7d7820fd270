"""TPM 2.0 structures as frozen values: public areas, attestations, signatures. TPM 2.0 Part 2 (Structures).

Each `parse_*` takes exact bytes, returns a value or raises MalformedEvidence, and reads nothing beyond its bounds. Each
`build_*` is its inverse. What a value means for trust is decided elsewhere.
"""

import functools
import struct
from dataclasses import dataclass, field
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from limeguard.crypto.hashes import HashAlgorithm, hash_by_tpm_id
from limeguard.crypto.keys import ECDSA, ECSCHNORR, RSAPSS, RSASSA, PublicKey
from limeguard.evidence.reader import Reader

TPM_GENERATED: Final = 0xFF544347  # Part 2 §6.2
ST_ATTEST_CERTIFY: Final = 0x8017  # Part 2 §6.9
ST_ATTEST_QUOTE: Final = 0x8018
ALG_RSA: Final = 0x0001  # Part 2 §6.3
ALG_AES: Final = 0x0006
ALG_SM4: Final = 0x0013
ALG_NULL: Final = 0x0010
ALG_ECC: Final = 0x0023
ALG_CFB: Final = 0x0043

FIXED_TPM: Final = 1 << 1  # TPMA_OBJECT, Part 2 §8.3
RESTRICTED: Final = 1 << 16
DECRYPT: Final = 1 << 17
SIGN: Final = 1 << 18

SCHEMES: Final = {0x0014: RSASSA, 0x0016: RSAPSS, 0x0018: ECDSA, 0x001C: ECSCHNORR}
SCHEME_IDS: Final = {name: number for number, name in SCHEMES.items()}
CURVES: Final[dict[int, tuple[str, type[ec.EllipticCurve], int]]] = {
    0x0003: ("ecc256", ec.SECP256R1, 32),
    0x0004: ("ecc384", ec.SECP384R1, 48),
    0x0005: ("ecc521", ec.SECP521R1, 66),
}
CURVE_IDS: Final = {name: number for number, (name, _, _) in CURVES.items()}
RSA_BITS: Final = (2048, 3072, 4096)
DEFAULT_EXPONENT: Final = 65537

MAX_DIGEST: Final = 64
MAX_NAME: Final = 2 + MAX_DIGEST
MAX_EXTRA_DATA: Final = MAX_NAME + 2
"""TPM2B_DATA holds at most a TPMT_HA: Part 2 §10.4.3."""
MAX_SIGNATURE: Final = 512
MAX_SELECTIONS: Final = 16
"""HASH_COUNT of TPML_PCR_SELECTION in the TSS; no TPM has as many banks."""
MAX_SELECT: Final = 4
MAX_PUBLIC: Final = 1024

_ATTEST_HEAD: Final = struct.Struct(">IH")  # magic, type
_ATTEST_CLOCK: Final = struct.Struct(">QIIBQ")  # clock, resetCount, restartCount, safe, firmwareVersion


@dataclass(frozen=True, slots=True)
class KeyScheme:
    """The signing scheme that a key is fixed to: Keylime's name and the hash."""

    name: str
    hash_alg: HashAlgorithm


@dataclass(frozen=True, slots=True)
class Symmetric:
    """The symmetric algorithm of a restricted decryption key: TPM_ALG_ID and key size in bits (mode is CFB)."""

    algorithm: int
    bits: int


@dataclass(frozen=True, slots=True)
class PublicArea:
    """TPMT_PUBLIC (Part 2 §12.2.4) of an RSA or ECC key. `raw` is the area as marshalled, without size."""

    type: str
    name_alg: HashAlgorithm
    attributes: int
    auth_policy: bytes
    symmetric: Symmetric | None
    scheme: KeyScheme | None
    key_algorithm: str
    raw: bytes
    name: bytes
    key: PublicKey = field(compare=False, repr=False)

    def public_key(self) -> PublicKey:
        """Return the key for pyca/cryptography."""
        return self.key

    @property
    def restricted_signing(self) -> bool:
        """Whether the TPM signs only what it made itself with this key: an attestation key."""
        return self.attributes & (RESTRICTED | SIGN | DECRYPT) == RESTRICTED | SIGN


def parse_public_2b(data: bytes) -> PublicArea:
    """Parse a TPM2B_PUBLIC: size and TPMT_PUBLIC, nothing behind. Raises MalformedEvidence."""
    reader = Reader(data, "TPM2B_PUBLIC")
    area = reader.sized("publicArea", MAX_PUBLIC)
    reader.finish()
    return parse_public(area)


def parse_public(data: bytes) -> PublicArea:
    """Parse a TPMT_PUBLIC. Raises MalformedEvidence for what is no key that can take part in attestation."""
    reader = Reader(data, "TPMT_PUBLIC")
    kind = reader.u16("type")
    name_alg = _hash(reader, "nameAlg")
    attributes = reader.u32("objectAttributes")
    auth_policy = reader.sized("authPolicy", MAX_DIGEST)
    if kind not in {ALG_RSA, ALG_ECC}:
        raise reader.refuse("type", f"0x{kind:04x} is neither RSA nor ECC")
    symmetric = _symmetric(reader)
    scheme = _scheme(reader)
    key_algorithm, key = _rsa_key(reader) if kind == ALG_RSA else _ecc_key(reader)
    reader.finish()
    return PublicArea(
        type="rsa" if kind == ALG_RSA else "ecc",
        name_alg=name_alg,
        attributes=attributes,
        auth_policy=auth_policy,
        symmetric=symmetric,
        scheme=scheme,
        key_algorithm=key_algorithm,
        raw=data,
        name=object_name(name_alg, data),
        key=key,
    )


def object_name(name_alg: HashAlgorithm, public_area: bytes) -> bytes:
    """Return the Name of an object: nameAlg || H(TPMT_PUBLIC), Part 1 §16."""
    return name_alg.tpm_id.to_bytes(2, "big") + name_alg.digest(public_area)


def to_2b(content: bytes) -> bytes:
    """Put a 16-bit size in front."""
    return len(content).to_bytes(2, "big") + content


def _hash(reader: Reader, field_name: str) -> HashAlgorithm:
    number = reader.u16(field_name)
    algorithm = hash_by_tpm_id(number)
    if algorithm is None or algorithm.name == "sm3_256":
        raise reader.refuse(field_name, f"hash algorithm 0x{number:04x} is not supported")
    return algorithm


def _symmetric(reader: Reader) -> Symmetric | None:
    algorithm = reader.u16("symmetric.algorithm")
    if algorithm == ALG_NULL:
        return None
    if algorithm not in {ALG_AES, ALG_SM4}:
        raise reader.refuse("symmetric.algorithm", f"0x{algorithm:04x} is not supported")
    bits = reader.u16("symmetric.keyBits")
    mode = reader.u16("symmetric.mode")
    if bits not in {128, 192, 256} or mode != ALG_CFB:
        raise reader.refuse("symmetric", f"{bits} bits in mode 0x{mode:04x} is not supported")
    return Symmetric(algorithm, bits)


def _scheme(reader: Reader) -> KeyScheme | None:
    number = reader.u16("scheme")
    if number == ALG_NULL:
        return None
    name = SCHEMES.get(number)
    if name is None:
        raise reader.refuse("scheme", f"0x{number:04x} is not a signing scheme of an attestation key")
    return KeyScheme(name, _hash(reader, "scheme.hashAlg"))


def _rsa_key(reader: Reader) -> tuple[str, PublicKey]:
    bits = reader.u16("keyBits")
    exponent = reader.u32("exponent") or DEFAULT_EXPONENT
    modulus = int.from_bytes(reader.sized("unique.rsa", MAX_SIGNATURE), "big")
    if bits not in RSA_BITS:
        raise reader.refuse(
            "keyBits", f"RSA keys of {bits} bits are not accepted, only {', '.join(map(str, RSA_BITS))}"
        )
    if modulus.bit_length() != bits:
        raise reader.refuse("unique.rsa", f"the modulus has {modulus.bit_length()} bits, the key says {bits}")
    try:
        return f"rsa{bits}", rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError as problem:
        raise reader.refuse("unique.rsa", f"not an RSA key: {problem}") from None


def _ecc_key(reader: Reader) -> tuple[str, PublicKey]:
    number = reader.u16("curveID")
    kdf = reader.u16("kdf")
    if number not in CURVES:
        raise reader.refuse("curveID", f"curve 0x{number:04x} is not supported")
    if kdf != ALG_NULL:
        raise reader.refuse("kdf", f"0x{kdf:04x} is not supported")
    name, curve, size = CURVES[number]
    # Coordinates may be shorter than the field: they are integers.
    x = int.from_bytes(reader.sized("unique.x", size), "big")
    y = int.from_bytes(reader.sized("unique.y", size), "big")
    try:
        return name, ec.EllipticCurvePublicNumbers(x, y, curve()).public_key()
    except ValueError as problem:
        raise reader.refuse("unique", f"not a point of {name}: {problem}") from None


def build_public(
    key: PublicKey,
    *,
    name_alg: HashAlgorithm,
    attributes: int,
    auth_policy: bytes = b"",
    symmetric: Symmetric | None = None,
    scheme: KeyScheme | None = None,
) -> bytes:
    """Marshal a TPMT_PUBLIC for a key. Raises ValueError for a curve that TPMs of this protocol do not use."""
    head = ALG_RSA if isinstance(key, rsa.RSAPublicKey) else ALG_ECC
    parts = [
        head.to_bytes(2, "big"),
        name_alg.tpm_id.to_bytes(2, "big"),
        attributes.to_bytes(4, "big"),
        to_2b(auth_policy),
        _u16s(ALG_NULL) if symmetric is None else _u16s(symmetric.algorithm, symmetric.bits, ALG_CFB),
        _u16s(ALG_NULL) if scheme is None else _u16s(SCHEME_IDS[scheme.name], scheme.hash_alg.tpm_id),
    ]
    if isinstance(key, rsa.RSAPublicKey):
        numbers = key.public_numbers()
        exponent = 0 if numbers.e == DEFAULT_EXPONENT else numbers.e
        modulus = numbers.n.to_bytes(key.key_size // 8, "big")
        parts += [_u16s(key.key_size), exponent.to_bytes(4, "big"), to_2b(modulus)]
    else:
        number = next((i for i, (_, curve, _) in CURVES.items() if isinstance(key.curve, curve)), None)
        if number is None:
            raise ValueError(f"curve {key.curve.name} is not supported")
        size = CURVES[number][2]
        point = key.public_numbers()
        parts += [_u16s(number, ALG_NULL), to_2b(point.x.to_bytes(size, "big")), to_2b(point.y.to_bytes(size, "big"))]
    return b"".join(parts)


def _u16s(*values: int) -> bytes:
    return b"".join(value.to_bytes(2, "big") for value in values)


class ClockInfo(msgspec.Struct, frozen=True):
    """TPMS_CLOCK_INFO (Part 2 §10.11.1): milliseconds powered, TPM resets, restarts, and whether the clock is sure."""

    clock: int
    reset_count: int
    restart_count: int
    safe: bool


class PcrSelection(msgspec.Struct, frozen=True):
    """TPMS_PCR_SELECTION (Part 2 §10.6.2): a bank and the numbers of its PCRs, ascending."""

    bank: HashAlgorithm
    pcrs: tuple[int, ...]


class QuoteAttest(msgspec.Struct, frozen=True):
    """TPMS_ATTEST of a quote (Part 2 §10.12.12 with TPMS_QUOTE_INFO)."""

    qualified_signer: bytes
    extra_data: bytes
    clock_info: ClockInfo
    firmware_version: int
    selection: tuple[PcrSelection, ...]
    pcr_digest: bytes


class CertifyAttest(msgspec.Struct, frozen=True):
    """TPMS_ATTEST of a certification (Part 2 §10.12.12 with TPMS_CERTIFY_INFO)."""

    qualified_signer: bytes
    extra_data: bytes
    clock_info: ClockInfo
    firmware_version: int
    name: bytes
    qualified_name: bytes


def parse_attest(data: bytes) -> QuoteAttest | CertifyAttest:
    """Parse a TPMS_ATTEST that is a quote or a certification. Raises MalformedEvidence."""
    reader = Reader(data, "TPMS_ATTEST")
    magic, kind = reader.unpack(_ATTEST_HEAD, "magic")
    if magic != TPM_GENERATED:
        raise reader.refuse("magic", f"0x{magic:08x} says that no TPM made this")
    if kind not in {ST_ATTEST_QUOTE, ST_ATTEST_CERTIFY}:
        raise reader.refuse("type", f"0x{kind:04x} is neither a quote nor a certification")
    signer = reader.sized("qualifiedSigner", MAX_NAME)
    extra_data = reader.sized("extraData", MAX_EXTRA_DATA)
    clock, resets, restarts, safe, firmware = reader.unpack(_ATTEST_CLOCK, "clockInfo")
    if safe > 1:
        raise reader.refuse("clockInfo.safe", f"{safe} is not a TPMI_YES_NO")
    clock_info = ClockInfo(clock, resets, restarts, bool(safe))
    attest: QuoteAttest | CertifyAttest
    if kind == ST_ATTEST_QUOTE:
        selection = _selections(reader)
        attest = QuoteAttest(signer, extra_data, clock_info, firmware, selection, reader.sized("pcrDigest", MAX_DIGEST))
    else:
        name = reader.sized("name", MAX_NAME)
        attest = CertifyAttest(signer, extra_data, clock_info, firmware, name, reader.sized("qualifiedName", MAX_NAME))
    reader.finish()
    return attest


def _selections(reader: Reader) -> tuple[PcrSelection, ...]:
    count = reader.u32("pcrSelect.count")
    if count > MAX_SELECTIONS:
        raise reader.refuse("pcrSelect.count", f"{count} banks, at most {MAX_SELECTIONS} are allowed")
    selections: list[PcrSelection] = []
    for _ in range(count):
        bank = _hash(reader, "pcrSelect.hash")
        size = reader.u8("pcrSelect.sizeofSelect")
        if size > MAX_SELECT:
            raise reader.refuse("pcrSelect.sizeofSelect", f"{size} bytes, at most {MAX_SELECT} are allowed")
        if any(bank == earlier.bank for earlier in selections):
            raise reader.refuse("pcrSelect", f"bank {bank.name} stands twice")
        selections.append(PcrSelection(bank, pcrs_of_bitmap(reader.take(size, "pcrSelect.bitmap"))))
    return tuple(selections)


@functools.lru_cache(maxsize=256)  # a fleet asks for few different selections, again and again
def pcrs_of_bitmap(bitmap: bytes) -> tuple[int, ...]:
    """Return the PCR numbers of a selection: PCR n is bit n % 8 of byte n / 8."""
    bits = int.from_bytes(bitmap, "little")
    return tuple(n for n in range(8 * len(bitmap)) if bits >> n & 1)


def bitmap_of_pcrs(pcrs: tuple[int, ...]) -> bytes:
    """Return the three bytes that select these PCRs (0 to 23)."""
    return sum(1 << n for n in set(pcrs)).to_bytes(3, "little")


def build_quote_attest(attest: QuoteAttest) -> bytes:
    """Marshal a TPMS_ATTEST of a quote."""
    selections = b"".join(_u16s(s.bank.tpm_id) + b"\x03" + bitmap_of_pcrs(s.pcrs) for s in attest.selection)
    body = len(attest.selection).to_bytes(4, "big") + selections + to_2b(attest.pcr_digest)
    return _attest_head(ST_ATTEST_QUOTE, attest) + body


def build_certify_attest(attest: CertifyAttest) -> bytes:
    """Marshal a TPMS_ATTEST of a certification."""
    return _attest_head(ST_ATTEST_CERTIFY, attest) + to_2b(attest.name) + to_2b(attest.qualified_name)


def _attest_head(kind: int, attest: QuoteAttest | CertifyAttest) -> bytes:
    clock = attest.clock_info
    return b"".join(
        (
            TPM_GENERATED.to_bytes(4, "big"),
            _u16s(kind),
            to_2b(attest.qualified_signer),
            to_2b(attest.extra_data),
            clock.clock.to_bytes(8, "big"),
            clock.reset_count.to_bytes(4, "big"),
            clock.restart_count.to_bytes(4, "big"),
            bytes([clock.safe]),
            attest.firmware_version.to_bytes(8, "big"),
        )
    )


class Signature(msgspec.Struct, frozen=True):
    """TPMT_SIGNATURE (Part 2 §11.3.4): scheme, hash, and the bytes (RSA) or the pair r, s (ECDSA)."""

    scheme: str
    hash_alg: HashAlgorithm
    value: bytes | tuple[int, int]


def parse_signature(data: bytes) -> Signature:
    """Parse a TPMT_SIGNATURE of RSASSA, RSAPSS or ECDSA. Raises MalformedEvidence."""
    reader = Reader(data, "TPMT_SIGNATURE")
    number = reader.u16("sigAlg")
    scheme = SCHEMES.get(number)
    if scheme is None or scheme == ECSCHNORR:
        raise reader.refuse("sigAlg", f"signature scheme 0x{number:04x} is not supported")
    hash_alg = _hash(reader, "hash")
    value: bytes | tuple[int, int]
    if scheme == ECDSA:
        r, s = reader.sized("signatureR", 66), reader.sized("signatureS", 66)
        if not r or not s:
            raise reader.refuse("signature", "r or s is empty")
        value = int.from_bytes(r, "big"), int.from_bytes(s, "big")
    else:
        value = reader.sized("sig", MAX_SIGNATURE)
        if not value:
            raise reader.refuse("sig", "is empty")
    reader.finish()
    return Signature(scheme, hash_alg, value)


def build_signature(signature: Signature) -> bytes:
    """Marshal a TPMT_SIGNATURE."""
    head = _u16s(SCHEME_IDS[signature.scheme], signature.hash_alg.tpm_id)
    if isinstance(signature.value, bytes):
        return head + to_2b(signature.value)
    return head + b"".join(to_2b(n.to_bytes((n.bit_length() + 7) // 8 or 1, "big")) for n in signature.value)
