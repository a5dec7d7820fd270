"""The kernel's part of IMA in this process: measures names into a list and extends PCR 10 of a software TPM."""

import hashlib
import struct
from typing import Any

from aiohttp import web
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from limeguard.policy.keyring import key_id_of
from limeguard.policy.runtime import empty_policy_document
from limeguard.simulator.machine import digest_of
from limeguard.simulator.softtpm import SoftNode

IMA_PCR = 10


def field(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def signature(key: ec.EllipticCurvePrivateKey, digest: bytes) -> bytes:
    """Sign a SHA-256 file digest as `evmctl ima_sign` does: signature_v2_hdr, then the signature."""
    value = key.sign(digest, ec.ECDSA(Prehashed(hashes.SHA256())))
    return struct.pack(">BBBIH", 3, 2, 4, key_id_of(key.public_key()), len(value)) + value


class SoftKernel:
    """Measures into `lines`, and answers as an agent does that reads them."""

    def __init__(self, node: SoftNode) -> None:
        self.node = node
        self.lines: list[str] = []
        self.boottime = 1_700_000_000
        self.asked: list[int] = []

    def measure(self, name: str, digest: str | None = None, sig: bytes | None = None) -> None:
        """Measure a file: template ima-sig with a signature, ima-ng otherwise."""
        digest = digest or digest_of(name)
        data = field(b"sha256:\0" + bytes.fromhex(digest)) + field(name.encode() + b"\0")
        tail = ""
        if sig is not None:
            data, tail = data + field(sig), f" {sig.hex()}"
        self.append("ima-ng" if sig is None else "ima-sig", data, f"sha256:{digest} {name}{tail}")

    def load_key(self, keyring: str, key: bytes) -> str:
        """Load a key onto a keyring: template ima-buf. Return the digest that a policy has to list."""
        digest = hashlib.sha256(key).hexdigest()
        data = field(b"sha256:\0" + bytes.fromhex(digest)) + field(keyring.encode() + b"\0") + field(key)
        self.append("ima-buf", data, f"sha256:{digest} {keyring} {key.hex()}")
        return digest

    def append(self, template: str, data: bytes, text: str, column: str | None = None) -> None:
        """Add an entry and extend PCR 10; `column` overrides the template digest that the list shows."""
        self.node.extend(IMA_PCR, self.node.ak.hash_alg.digest(data))
        self.lines.append(f"10 {column or hashlib.sha1(data).hexdigest()} {template} {text}")  # noqa: S324

    def reboot(self) -> None:
        """Start the machine again: an empty list, PCR 10 at zero."""
        self.node.reboot()
        self.lines = []
        self.boottime += 100

    def alter(self, request: web.Request, results: dict[str, Any]) -> dict[str, Any]:
        """Put the list into a quote's answer, from the entry that was asked for, as agents do."""
        entry = int(request.query["ima_ml_entry"])
        self.asked.append(entry)
        entry = entry if entry <= len(self.lines) else 0
        text = "".join(f"{line}\n" for line in self.lines[entry:])
        sent = {"ima_measurement_list": text, "ima_measurement_list_entry": entry, "boottime": self.boottime}
        return {**results, **sent}


def policy_for(*names: str, **changes: Any) -> dict[str, Any]:
    """Return a policy that lists these files; `changes` replace members, with `_` for `-`."""
    document = empty_policy_document()
    document["digests"] = {name: [digest_of(name)] for name in names}
    return {**document, **{name.replace("_", "-"): value for name, value in changes.items()}}
