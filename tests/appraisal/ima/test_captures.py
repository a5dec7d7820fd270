"""Measurement lists of real kernels, captured with the PCRs of their TPM: every template, several banks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.fakes.shared import shared_path

from limeguard.appraisal.ima.entries import Rules
from limeguard.appraisal.ima.measurements import appraise_entries, appraise_list, split_lines
from limeguard.appraisal.ima.signatures import verifies
from limeguard.crypto.hashes import SHA1, hash_by_name
from limeguard.evidence.ima.measurement_list import entry_at, parse_binary
from limeguard.policy.keyring import Keyring, load_public_key
from limeguard.policy.runtime import compile_document, empty_policy_document

CAPTURES = Path(__file__).parents[4] / "shared/fixtures/vm"
PADDED = {("grub-ms-systemd", "sha384"), ("bank-sha384", "sha384"), ("bank-sha512", "sha512")}


def captures() -> list[str]:
    found = sorted(str(path.parent.relative_to(CAPTURES)) for path in CAPTURES.rglob("ima.ascii"))
    return found or ["shared data is absent"]


@pytest.mark.parametrize("name", captures())
def test_both_forms_say_the_same(name: str) -> None:
    folder = shared_path("fixtures/vm") / name
    lines = split_lines((folder / "ima.ascii").read_bytes())
    binary = list(parse_binary((folder / "ima.bin").read_bytes()))
    index, entries = 0, []
    while index < len(lines):
        entry, span = entry_at(lines, index, SHA1)
        entries.append(entry)
        index += span
    assert entries == binary


@pytest.mark.parametrize("name", captures())
def test_the_list_leads_to_pcr_10_of_every_bank(name: str) -> None:
    folder = shared_path("fixtures/vm") / name
    lines = split_lines((folder / "ima.ascii").read_bytes())
    for bank_name, values in json.loads((folder / "pcrs.json").read_text()).items():
        bank = hash_by_name(bank_name)
        assert bank is not None
        quoted = bytes.fromhex(values["10"])
        result = appraise_list(lines, bank=bank, rules=Rules(None, violations_found=False), quoted=quoted)
        assert result.findings == ()
        assert result.matched == len(lines)
        padded = (name.split("/", maxsplit=1)[0], bank_name) in PADDED
        assert result.padded is padded
        entries = parse_binary((folder / "ima.bin").read_bytes())
        rules = Rules(None, violations_found=False)
        assert appraise_entries(entries, bank=bank, rules=rules, quoted=quoted, keyrings=None).padded is padded
        flipped = bytes([quoted[0] ^ 1]) + quoted[1:]
        assert appraise_list(lines, bank=bank, rules=Rules(None), quoted=flipped).matched is None


def test_a_policy_of_the_files_on_disk_accepts_the_boot() -> None:
    import gzip

    root = shared_path("fixtures/vm")
    document = empty_policy_document()
    for text in (
        gzip.decompress((root / "guest-files.sha256.gz").read_bytes()),
        (root / "initrd-files.sha256").read_bytes(),
    ):
        for line in text.decode("utf-8", "surrogateescape").splitlines():
            digest, _, path = line.partition("  ")
            document["digests"].setdefault(path, []).append(digest)
    folder = root / "direct-imang/1-boot"
    quoted = bytes.fromhex(json.loads((folder / "pcrs.json").read_text())["sha256"]["10"])
    bank = hash_by_name("sha256")
    assert bank is not None
    lines = split_lines((folder / "ima.ascii").read_bytes())
    result = appraise_list(lines, bank=bank, rules=Rules(compile_document(document)), quoted=quoted, keyrings={})
    assert [finding.context["path"] for finding in result.findings] == ["boot_aggregate"]


@pytest.mark.parametrize(
    "name", ["uki-snakeoil-imasig/2-signed", "verity", "template-ima-sigv2", "template-ima-modsig"]
)
def test_signatures_of_real_files_verify_with_the_keys_that_made_them(name: str) -> None:
    folder = shared_path("fixtures/vm") / name
    keys = [load_public_key((folder / file).read_bytes()) for file in ("ima-rsa2048.der", "ima-ec256.der")]
    ring = Keyring({key_id: key for key, key_id in keys})
    signed = [entry for entry in parse_binary((folder / "ima.bin").read_bytes()) if entry.signature is not None]
    assert len(signed) >= 2
    for entry in signed:
        assert verifies(entry, [ring]), entry.name
        assert not verifies(replace(entry, digest=bytes([entry.digest[0] ^ 1]) + entry.digest[1:]), [ring])
        assert not verifies(entry, [])
