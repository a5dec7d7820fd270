"""A TPM in software: real keys, real signatures, real structures, and hooks to make every part of it lie."""

import functools
import hmac
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from msgspec.structs import replace

try:
    from cryptography.hazmat.decrepit.ciphers.modes import CFB
except ImportError:
    from cryptography.hazmat.primitives.ciphers.modes import CFB

from limeguard.crypto.hashes import SHA256, SHA384, SHA512, HashAlgorithm, hash_by_name
from limeguard.crypto.keys import spki_pem
from limeguard.evidence.tpm.credential import IDENTITY, kdf_a, kdf_e, parse_credential_blob
from limeguard.evidence.tpm.pcrblob import build_pcr_blob
from limeguard.evidence.tpm.quote import build_quote_string
from limeguard.evidence.tpm.structures import (
    ALG_AES,
    CertifyAttest,
    ClockInfo,
    KeyScheme,
    PcrSelection,
    PublicArea,
    QuoteAttest,
    Signature,
    Symmetric,
    build_certify_attest,
    build_public,
    build_quote_attest,
    build_signature,
    parse_public,
    to_2b,
)

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

AK_ATTRIBUTES = 0x00050072
EK_LOW_ATTRIBUTES = 0x000300B2
EK_HIGH_ATTRIBUTES = 0x000300F2
FIRMWARE = 0x2019102300163636
CURVES: dict[str, ec.EllipticCurve] = {"ecc256": ec.SECP256R1(), "ecc384": ec.SECP384R1(), "ecc521": ec.SECP521R1()}
DEFAULT_CLOCK = ClockInfo(100_000, 2, 0, safe=True)


def algorithm(name: str) -> HashAlgorithm:
    """Return a hash by its name. Raises ValueError."""
    found = hash_by_name(name)
    if found is None:
        raise ValueError(f"{name} is not a hash that TPMs have")
    return found


@functools.cache
def private_key(kind: str, number: int = 0) -> PrivateKey:
    """Return a key of that kind, made once in this process for each number."""
    del number
    if kind.startswith("rsa"):
        return rsa.generate_private_key(65537, int(kind[3:]))
    return ec.generate_private_key(CURVES[kind])


def sign(key: PrivateKey, scheme: str, hash_alg: HashAlgorithm, data: bytes) -> Signature:
    """Sign as a TPM does."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return Signature("ecdsa", hash_alg, decode_dss_signature(key.sign(data, ec.ECDSA(hash_alg.pyca))))
    kind = padding.PKCS1v15() if scheme == "rsassa" else padding.PSS(padding.MGF1(hash_alg.pyca), hash_alg.size)
    return Signature(scheme, hash_alg, key.sign(data, kind, hash_alg.pyca))


@dataclass(frozen=True)
class SoftAk:
    """An attestation key."""

    key: PrivateKey
    hash_alg: HashAlgorithm
    scheme: str
    area: PublicArea

    @classmethod
    def generate(
        cls,
        kind: str = "rsa2048",
        hash_name: str = "sha256",
        scheme: str | None = None,
        *,
        number: int = 0,
        attributes: int = AK_ATTRIBUTES,
    ) -> "SoftAk":
        """Return a key; the same `kind` and `number` share the key material."""
        key = private_key(kind, number)
        chosen = scheme or ("rsassa" if kind.startswith("rsa") else "ecdsa")
        hash_alg = algorithm(hash_name)
        raw = build_public(
            key.public_key(), name_alg=hash_alg, attributes=attributes, scheme=KeyScheme(chosen, hash_alg)
        )
        return cls(key, hash_alg, chosen, parse_public(raw))

    @property
    def public_2b(self) -> bytes:
        """The public area as TPM2B_PUBLIC."""
        return to_2b(self.area.raw)

    def quote_parts(
        self,
        nonce: bytes,
        pcrs: Mapping[int, bytes],
        bank: str = "sha256",
        clock: ClockInfo = DEFAULT_CLOCK,
    ) -> tuple[bytes, bytes, bytes]:
        """Return TPMS_ATTEST, TPMT_SIGNATURE and PCR blob of a quote over these PCR values."""
        chosen = algorithm(bank)
        numbers = tuple(sorted(pcrs))
        attest = build_quote_attest(
            QuoteAttest(
                qualified_signer=self.area.name,
                extra_data=nonce,
                clock_info=clock,
                firmware_version=FIRMWARE,
                selection=(PcrSelection(chosen, numbers),),
                pcr_digest=self.hash_alg.digest(b"".join(pcrs[n] for n in numbers)),
            )
        )
        signature = build_signature(sign(self.key, self.scheme, self.hash_alg, attest))
        return attest, signature, build_pcr_blob({chosen: pcrs})

    def quote(
        self, nonce: bytes, pcrs: Mapping[int, bytes], bank: str = "sha256", clock: ClockInfo = DEFAULT_CLOCK
    ) -> str:
        """Return a quote string over these PCR values."""
        return build_quote_string(*self.quote_parts(nonce, pcrs, bank, clock))

    def certify(self, subject: PublicArea, nonce: bytes, clock: ClockInfo = DEFAULT_CLOCK) -> tuple[bytes, bytes]:
        """Return TPMS_ATTEST and TPMT_SIGNATURE of TPM2_Certify over `subject`."""
        attest = build_certify_attest(CertifyAttest(self.area.name, nonce, clock, FIRMWARE, subject.name, subject.name))
        return attest, build_signature(sign(self.key, self.scheme, self.hash_alg, attest))


@dataclass(frozen=True)
class SoftEk:
    """An endorsement key, able to open credentials."""

    key: PrivateKey
    area: PublicArea

    @classmethod
    def generate(cls, kind: str = "rsa2048", *, number: int = 100) -> "SoftEk":
        """Return an EK like that of the TCG template for its kind."""
        key = private_key(kind, number)
        low = kind in {"rsa2048", "ecc256"}
        name_alg = SHA256 if low else SHA512 if kind == "ecc521" else SHA384
        raw = build_public(
            key.public_key(),
            name_alg=name_alg,
            attributes=EK_LOW_ATTRIBUTES if low else EK_HIGH_ATTRIBUTES,
            auth_policy=b"\x55" * name_alg.size,
            symmetric=Symmetric(ALG_AES, 128 if low else 256),
        )
        return cls(key, parse_public(raw))

    @property
    def public_2b(self) -> bytes:
        """The public area as TPM2B_PUBLIC."""
        return to_2b(self.area.raw)

    def activate(self, blob: bytes, ak_name: bytes) -> bytes:
        """Do what TPM2_ActivateCredential does. Raises ValueError when the blob is for another EK or AK."""
        id_object, encrypted = parse_credential_blob(blob)
        name_alg = self.area.name_alg
        seed = self._seed(encrypted)
        hmac_key = kdf_a(name_alg, seed, b"INTEGRITY", b"", 8 * name_alg.size)
        mac, identity = id_object[2 : 2 + name_alg.size], id_object[2 + name_alg.size :]
        if not hmac.compare_digest(mac, hmac.new(hmac_key, identity + ak_name, name_alg.name).digest()):
            raise ValueError("TPM_RC_INTEGRITY")
        bits = self.area.symmetric.bits if self.area.symmetric is not None else 128
        aes = kdf_a(name_alg, seed, b"STORAGE", ak_name, bits)
        decryptor = Cipher(algorithms.AES(aes), CFB(bytes(16))).decryptor()
        plain = decryptor.update(identity) + decryptor.finalize()
        return plain[2 : 2 + int.from_bytes(plain[:2], "big")]

    def _seed(self, encrypted: bytes) -> bytes:
        name_alg = self.area.name_alg
        if isinstance(self.key, rsa.RSAPrivateKey):
            oaep = padding.OAEP(padding.MGF1(name_alg.pyca), name_alg.pyca, IDENTITY + b"\0")
            return self.key.decrypt(encrypted, oaep)
        size = (self.key.curve.key_size + 7) // 8
        x, y = encrypted[2 : 2 + size], encrypted[4 + size :]
        point = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), self.key.curve)
        z = self.key.exchange(ec.ECDH(), point.public_key())
        own_x = self.key.public_key().public_numbers().x.to_bytes(size, "big")
        return kdf_e(name_alg, z, IDENTITY, x, own_x, 8 * name_alg.size)


@functools.cache
def transport_key(number: int = 0) -> rsa.RSAPrivateKey:
    """Return an agent's RSA transport key (NK)."""
    key = private_key("rsa2048", 200 + number)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise TypeError("transport keys are RSA keys")
    return key


@functools.cache
def _pem(key: rsa.RSAPrivateKey) -> str:
    return spki_pem(key.public_key())


@dataclass
class SoftNode:
    """A machine: EK, AK, transport key, PCRs of one bank, and a clock that advances with each quote."""

    ek: SoftEk
    ak: SoftAk
    transport: rsa.RSAPrivateKey
    pcrs: dict[int, bytes] = field(default_factory=dict)
    clock: ClockInfo = DEFAULT_CLOCK

    @classmethod
    def create(cls, kind: str = "rsa2048", hash_name: str = "sha256", *, number: int = 0) -> "SoftNode":
        """Return a machine whose keys differ from those of every other `number`."""
        ek = SoftEk.generate(kind, number=100 + number)
        ak = SoftAk.generate(kind, hash_name, number=number)
        size = ak.hash_alg.size
        pcrs = {n: b"\xff" * size if 17 <= n <= 22 else bytes(size) for n in range(24)}
        return cls(ek, ak, transport_key(number), pcrs)

    @property
    def pubkey(self) -> str:
        """The transport key as agents send it."""
        return _pem(self.transport)

    @property
    def kind(self) -> str:
        """The kind of the AK, such as `ecc256`."""
        return self.ak.area.key_algorithm

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extend one PCR."""
        self.pcrs[pcr] = self.ak.hash_alg.digest(self.pcrs[pcr] + digest)

    def reboot(self) -> None:
        """Go through an orderly shutdown and start."""
        clock = self.clock
        self.clock = ClockInfo(clock.clock + 5, clock.reset_count + 1, 0, safe=True)
        size = self.ak.hash_alg.size
        self.pcrs = {n: b"\xff" * size if 17 <= n <= 22 else bytes(size) for n in range(24)}

    def quote(self, nonce: str | bytes, pcrs: set[int] | None = None) -> str:
        """Bind the transport key into PCR 16 and quote it with these PCRs."""
        data = nonce.encode() if isinstance(nonce, str) else nonce
        return build_quote_string(*self.quote_parts(data, pcrs or set(), self.pubkey))

    def quote_parts(self, nonce: bytes, pcrs: set[int], binding: str) -> tuple[bytes, bytes, bytes]:
        """Return TPMS_ATTEST, TPMT_SIGNATURE and PCR blob over these PCRs and PCR 16, which vouches for `binding`."""
        hash_alg = self.ak.hash_alg
        self.pcrs[16] = hash_alg.digest(bytes(hash_alg.size) + hash_alg.digest(binding.encode()))
        self.clock = replace(self.clock, clock=self.clock.clock + 7)
        chosen = {n: self.pcrs[n] for n in sorted({16} | pcrs)}
        return self.ak.quote_parts(nonce, chosen, hash_alg.name, self.clock)

    def certify_itself(self, challenge: bytes) -> tuple[bytes, bytes]:
        """Return TPMS_ATTEST and TPMT_SIGNATURE of the AK's certification of itself."""
        self.clock = replace(self.clock, clock=self.clock.clock + 7)
        return self.ak.certify(self.ak.area, challenge, self.clock)

    def algorithms(self, version: str = "2.6") -> dict[str, str]:
        """Return the algorithm members of a quote answer, spelled for an API version."""
        enc = self.kind
        if tuple(map(int, version.split("."))) < (2, 5):
            enc = {"rsa2048": "rsa", "ecc256": "ecc"}.get(enc, enc)
        return {"hash_alg": self.ak.hash_alg.name, "enc_alg": enc, "sign_alg": self.ak.scheme}

    def identity_answer(self, nonce: str, version: str = "2.6") -> dict[str, Any]:
        """Return `results` of an identity quote."""
        return {"quote": self.quote(nonce), **self.algorithms(version), "pubkey": self.pubkey}

    def integrity_answer(self, nonce: str, mask: str, *, partial: bool = False, version: str = "2.6") -> dict[str, Any]:
        """Return `results` of an integrity quote over the PCRs of a hex mask and PCR 16."""
        bits = int(mask, 16)
        results = {"quote": self.quote(nonce, {n for n in range(24) if bits >> n & 1}), **self.algorithms(version)}
        if not partial:
            results["pubkey"] = self.pubkey
        return results

    def registration_fields(self, *, mtls_cert: str | None = "disabled", ekcert: str = "") -> dict[str, Any]:
        """Return the body of a registration as the Rust agent sends it."""
        return {
            "ek_tpm": b64encode(self.ek.public_2b).decode(),
            "ekcert": ekcert,
            "aik_tpm": b64encode(self.ak.public_2b).decode(),
            "iak_cert": None,
            "idevid_cert": None,
            "ip": "127.0.0.1",
            "port": 9002,
            "mtls_cert": mtls_cert,
        }

    def activate(self, blob: bytes) -> bytes:
        """Open a credential."""
        return self.ek.activate(blob, self.ak.area.name)
