"""Generated measurement lists and policies by the thousand: Keylime's verdict, or a listed difference."""

import hashlib
import json
import os
import random
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.fakes.peer import peer_program
from tests.fakes.soft_ima import field

from limeguard.appraisal.ima.entries import TENANT_KEYRING, Rules
from limeguard.appraisal.ima.measurements import appraise_list
from limeguard.crypto.hashes import hash_by_name
from limeguard.policy.keyring import key_id_of, keyring_text, parse_keyring
from limeguard.policy.runtime import compile_document, empty_policy_document

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

CASES = 3_000
SEED = 20260131
NAMES = ("/bin/a", "/bin/b", "/usr/lib/c.so", "/opt/d", "/tmp/x", "boot_aggregate")
RINGS = (".ima", "_evm")
BANKS = ("sha1", "sha256", "sha384", "sha512")
EXCLUDES = ("/tmp/.*", "/opt", "boot_aggregate", ".*so", "/nothing$", "[/]bin/b")
HASHES = {"sha1": (2, hashes.SHA1()), "sha256": (4, hashes.SHA256()), "sha512": (6, hashes.SHA512())}  # noqa: S303
RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
STRANGER = ec.generate_private_key(ec.SECP256R1())
Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
KEYS: tuple[Key, ...] = (RSA_KEY, EC_KEY, STRANGER)
HIDDEN = "a template hash of ff hides its entry from Keylime"
DIFFERENCES = {HIDDEN}


def signed(key: Key, algorithm: str, digest: bytes) -> bytes:
    number, kind = HASHES[algorithm]
    if isinstance(key, rsa.RSAPrivateKey):
        value = key.sign(digest, padding.PKCS1v15(), Prehashed(kind))
    else:
        value = key.sign(digest, ec.ECDSA(Prehashed(kind)))
    head = bytes([3, 2, number]) + key_id_of(key.public_key()).to_bytes(4, "big")
    return head + len(value).to_bytes(2, "big") + value


class Maker:
    """Makes cases from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.ders = [
            key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for key in (RSA_KEY, EC_KEY)
        ]

    def digest(self, name: str, algorithm: str) -> bytes:
        content = name if self.random.random() < 0.8 else f"{name} changed"
        return hashlib.new(algorithm, content.encode()).digest()

    def entry(self, log_hash: str) -> tuple[str, bytes | None]:
        """Return a line and what it extends a bank with before hashing: None for lines that are not folded."""
        chance = self.random.random()
        if chance < 0.03:
            return self.random.choice(
                ["garbage", "10 zz ima-ng sha1:00 /a", "10 00 ima-xx sha1:00 /a", "10 00 ima-ng"]
            ), None
        name, algorithm = self.random.choice(NAMES), self.random.choice(["sha1", "sha256", "sha256", "sha512"])
        if chance < 0.1:
            return self.violation(name, log_hash)
        digest = self.digest(name, algorithm)
        template, data, text = self.fields(name, algorithm, digest)
        column = hashlib.new(log_hash, data).hexdigest()
        if self.random.random() < 0.04:
            column = self.random.choice(["f" * len(column), "ab" * (len(column) // 2), column[:-2], column.upper()])
        pcr = "11" if self.random.random() < 0.03 else "10"
        return f"{pcr} {column} {template} {text}", data

    def violation(self, name: str, log_hash: str) -> tuple[str, bytes | None]:
        zeros = "0" * 2 * hashlib.new(log_hash).digest_size
        return f"10 {zeros} ima-ng sha256:{'0' * 64} {name}", b""

    def fields(self, name: str, algorithm: str, digest: bytes) -> tuple[str, bytes, str]:
        kind = self.random.choice(["ima", "ima-ng", "ima-ng", "ima-sig", "ima-sig", "ima-buf"])
        if kind == "ima":
            legacy = hashlib.sha1(name.encode()).digest()  # noqa: S324
            return kind, legacy + name.encode().ljust(256, b"\0"), f"{legacy.hex()} {name}"
        head = field(algorithm.encode() + b":\0" + digest)
        if kind == "ima-buf":
            return self.buffer(head, f"{algorithm}:{digest.hex()}")
        data, text = head + field(name.encode() + b"\0"), f"{algorithm}:{digest.hex()} {name}"
        if kind == "ima-ng":
            return kind, data, text
        signature = self.signature(algorithm, digest)
        kept = signature if signature and len(signature) == 9 + int.from_bytes(signature[7:9], "big") else b""
        return kind, data + field(kept), f"{text} {signature.hex()}"

    def signature(self, algorithm: str, digest: bytes) -> bytes:
        chance = self.random.random()
        if chance < 0.3:
            return b""
        key: Key = self.random.choice(KEYS)
        good = signed(key, algorithm, digest)
        if chance < 0.7:
            return good
        if chance < 0.8:
            return good[:-1] + bytes([good[-1] ^ 1])
        if chance < 0.9:
            return bytes([self.random.choice([1, 4, 5]), 2, *good[2:]])
        return good[:-3]

    def buffer(self, _head: bytes, _text: str) -> tuple[str, bytes, str]:
        content = self.random.choice([*self.ders, b"6.1.0", b""])
        name = self.random.choice(RINGS if content in self.ders else ("kernel_version", "cmdline"))
        digest = hashlib.sha256(content).digest()
        data = field(b"sha256:\0" + digest) + field(name.encode() + b"\0") + field(content)
        return "ima-buf", data, f"sha256:{digest.hex()} {name} {content.hex()}"

    def policy(self, log_hash: str) -> dict[str, Any]:
        document = empty_policy_document()
        for name in NAMES:
            if self.random.random() < 0.85:
                algorithms = self.random.sample(["sha1", "sha256", "sha512"], self.random.randint(1, 3))
                document["digests"][name] = [hashlib.new(one, name.encode()).hexdigest() for one in algorithms]
        document["excludes"] = self.random.sample(EXCLUDES, self.random.randint(0, 3))
        document["ima"]["log_hash_alg"] = log_hash
        document["ima"]["ignored_keyrings"] = self.random.choice([[], [], [".ima"], ["*"]])
        for ring in RINGS:
            if self.random.random() < 0.7:
                document["keyrings"][ring] = [hashlib.sha256(self.random.choice(self.ders)).hexdigest()]
        if self.random.random() < 0.5:
            document["ima-buf"]["kernel_version"] = [hashlib.sha256(b"6.1.0").hexdigest()]
        return document

    def case(self) -> dict[str, Any]:
        log_hash = self.random.choice(["sha1", "sha1", "sha1", "sha256"])
        bank = self.random.choice(BANKS)
        lines, values = [], [bytes(hashlib.new(bank).digest_size)]
        for _ in range(self.random.randint(0, 7)):
            line, data = self.entry(log_hash)
            lines.append(line)
            if data is not None:
                size = hashlib.new(bank).digest_size
                extended = b"\xff" * size if data == b"" else hashlib.new(bank, data).digest()
                values.append(hashlib.new(bank, values[-1] + extended).digest())
            if self.random.random() < 0.05:
                lines.append("")
        quoted = self.random.choice(
            [values[-1], values[-1], self.random.choice(values), b"\x11" * len(values[0]), None]
        )
        known = [
            (key.public_key(), key_id_of(key.public_key())) for key in (RSA_KEY, EC_KEY) if self.random.random() < 0.5
        ]
        return {
            "bank": bank,
            "policy": self.policy(log_hash),
            "lines": lines,
            "quoted": None if quoted is None else quoted.hex(),
            "keyring": keyring_text(known) if self.random.random() < 0.8 else None,
        }


def ours(case: dict[str, Any], number: int) -> list[Any]:
    bank = hash_by_name(case["bank"])
    assert bank is not None
    result = appraise_list(
        [line.encode() for line in case["lines"]],
        bank=bank,
        rules=Rules(compile_document(case["policy"], str(number))),
        quoted=None if case["quoted"] is None else bytes.fromhex(case["quoted"]),
        keyrings=None if case["keyring"] is None else {TENANT_KEYRING: parse_keyring(case["keyring"])},
    )
    return [[one.event_id for one in result.findings], result.running.hex(), result.history.next_entry]


def difference(case: dict[str, Any]) -> str | None:
    """Return the name of the difference that a case falls under."""
    if any(set(line.split(" ")[1]) == {"f"} for line in case["lines"] if line.count(" ") > 2):
        return HIDDEN
    return None


def test_generated_lists_have_the_verdict_of_keylime(tmp_path: Path) -> None:
    python = peer_program("keylime_tenant").parent / "python"
    maker = Maker(SEED)
    cases = [maker.case() for _ in range(CASES)]
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(cases))
    (tmp_path / "verifier.conf").write_text("[verifier]\nignore_tomtou_errors = True\n")
    program = Path(__file__).with_name("keylime_lists.py")
    environment = {**os.environ, "KEYLIME_VERIFIER_CONFIG": str(tmp_path / "verifier.conf")}
    done = subprocess.run(
        [python, program, path], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    seen: Counter[str] = Counter()
    for number, (case, peer) in enumerate(zip(cases, theirs, strict=True)):
        mine = ours(case, number)
        listed = difference(case)
        if listed is not None:
            seen[listed] += mine != peer
            continue
        seen["failed" if mine[0] else "passed"] += 1
        assert mine == peer, (number, case)
    assert {name for name, count in seen.items() if count} >= DIFFERENCES
    assert min(seen["passed"], seen["failed"]) > CASES // 20
