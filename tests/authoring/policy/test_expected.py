"""Reference results of Keylime's policy tool, with the differences that are intended."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_public_key
from tests.fakes.shared import shared_path

from limeguard.cli.policy import keylime_policy
from limeguard.policy import dsse
from limeguard.policy.errors import PolicyError
from limeguard.policy.legacy import convert, exclude_lines
from limeguard.policy.runtime import check_document

REFERENCE = Path(__file__).parents[4] / "shared/fixtures/upstream/expected.json"
SANE = {
    "--rootfs @rootfs -p @runtime-policies/base-sha256.json": "an ambiguous length is settled, and files are hashed",
    "--rootfs @rootfs --algo sha256 -p @runtime-policies/base-sha256.json": "sha256 fits a base of its length",
    "-p @allowlists/json-v6.json": "an allowlist has no digests member: its excludes are taken over, as the tool does",
}
"""Command lines whose result differs on purpose."""


def cases(member: str) -> list[Any]:
    if not REFERENCE.exists():
        return [pytest.param({"args": ["x", "x", "x"]}, id="shared data is absent")]
    return [pytest.param(case, id=" ".join(case["args"][-6:])) for case in json.loads(REFERENCE.read_text())[member]]


def arguments(case: dict[str, Any], keys: Path) -> list[str]:
    """Return the arguments with `@` resolved; private keys are made for the test."""
    root = shared_path("fixtures/upstream")
    found = []
    for text in case["args"]:
        path = root / text[1:]
        if text.startswith("@keys/") and not path.exists():
            path = keys / Path(text).name
        found.append(str(path) if text.startswith("@") else text)
    return found[1:] if found[0] == "keylime-policy" else found


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    made: dict[str, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey] = {
        "ec-p521-private.pem": ec.generate_private_key(ec.SECP521R1()),
        "rsa-4096-private.pem": rsa.generate_private_key(65537, 2048),
        "ima-rsa2048.pem": rsa.generate_private_key(65537, 2048),
        "ima-secp256k1.pem": ec.generate_private_key(ec.SECP256K1()),
    }
    for name, key in made.items():
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        (tmp_path / name).write_bytes(pem)
    return tmp_path


@pytest.mark.parametrize("case", cases("cli_create_runtime"))
def test_policies_are_made_as_the_reference_makes_them(
    case: dict[str, Any], keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = arguments(case, keys)
    if " ".join(case["args"][3:]) in SANE:
        return
    if "ima-secp256k1.pem" in " ".join(argv):
        case = {**case, "policy": None}  # the key is made anew for each run
    try:
        status = keylime_policy(argv)
    except SystemExit as ended:
        status = int(ended.code or 0)
    out = capsys.readouterr()
    assert status == case["exit"], out.err
    if case.get("policy"):
        made = json.loads(out.out)
        del made["meta"]["timestamp"]
        assert made == case["policy"]
        assert check_document(made) == ()
    if "output_text" in case:
        assert out.out == case["output_text"]
    if status == 1:
        assert re.sub("%", "", case["message"]).split("@")[0].split(" '/")[0] in out.err
        assert out.out == ""


@pytest.mark.parametrize("case", cases("cli_sign_runtime"))
def test_policies_are_signed_as_the_reference_signs_them(
    case: dict[str, Any], keys: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    argv = arguments(case, keys)
    try:
        status = keylime_policy([*argv, "-o", "out"])
    except SystemExit as ended:
        status = int(ended.code or 0)
    assert status == case["exit"]
    assert sorted(path.name for path in work.iterdir()) == sorted(case["files_created"])
    if status == 0:
        document = json.loads((work / "out").read_text())
        assert list(document) == case["envelope"]["keys"]
        envelope = dsse.parse_envelope(document)
        assert envelope.payload_type == case["envelope"]["payloadType"]
        assert check_document(json.loads(envelope.payload)) == ()


@pytest.mark.parametrize("name", ["flat-sha1.txt", "flat-sha256.txt", "flat-short.txt", "json-v6.json"])
def test_older_allowlists_are_converted_as_the_reference_does(name: str) -> None:
    root = shared_path("fixtures/upstream")
    expected = json.loads((root / "expected.json").read_text())["legacy_conversion"][f"allowlists/{name}"]
    made = convert((root / "allowlists" / name).read_text())
    made["excludes"] += exclude_lines((root / "allowlists/exclude.txt").read_text())
    assert made == expected["policy"]


def test_the_signature_of_the_reference_verifies_and_its_twin_does_not() -> None:
    folder = shared_path("fixtures/upstream/dsse")
    key = load_pem_public_key((folder / "runtime-policy-pubkey.pub").read_bytes())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    for name, good in (("runtime-policy-test-signed.json", True), ("runtime-policy-test-signed-bad.json", False)):
        envelope = dsse.parse_envelope(json.loads((folder / name).read_text()))
        assert dsse.verifies(envelope, [key]) is good


@pytest.mark.parametrize("document", [None, [], {}, {"payload": 1, "payloadType": "a", "signatures": [{}]}])
def test_what_is_no_envelope_is_refused(document: object) -> None:
    with pytest.raises(PolicyError):
        dsse.parse_envelope(document)
