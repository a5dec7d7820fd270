"""`limeguard policy`: the commands that Keylime's tool does not have."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.fakes.soft_ima import SoftKernel, field, policy_for

from limeguard.cli.older_policy import convert_runtime_policy, sign_runtime_policy
from limeguard.cli.policy import keylime_policy, policy
from limeguard.evidence.ima.measurement_list import parse_line
from limeguard.policy import dsse
from limeguard.simulator.machine import digest_of
from limeguard.simulator.softtpm import SoftNode


@pytest.fixture
def files(tmp_path: Path) -> Path:
    kernel = SoftKernel(SoftNode.create("ecc256"))
    kernel.measure("/usr/bin/a")
    kernel.measure("/usr/bin/b", "ab" * 32)
    kernel.measure("/tmp/evil")
    (tmp_path / "log").write_text("".join(f"{line}\n" for line in kernel.lines))
    (tmp_path / "policy").write_text(json.dumps(policy_for("/usr/bin/a", "/usr/bin/b")))
    (tmp_path / "pcr").write_text(kernel.node.pcrs[10].hex())
    return tmp_path


def test_check_names_file_digest_and_remedy(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["check", "--policy", str(files / "policy"), "--log", str(files / "log"), "--json"]
    assert policy(argv) == 1
    report = json.loads(capsys.readouterr().out)
    changed, unlisted = (finding["context"] for finding in report["findings"])
    assert (changed["path"], changed["got"], changed["expected"]) == (
        "/usr/bin/b",
        "ab" * 32,
        [digest_of("/usr/bin/b")],
    )
    assert (unlisted["path"], unlisted["entry"]) == ("/tmp/evil", 2)
    assert digest_of("/tmp/evil") in unlisted["remedy"]
    assert policy(argv[:-1]) == 1
    said = capsys.readouterr().out
    assert "/tmp/evil" in said
    assert "- " in said


def test_check_reads_the_binary_list_as_well(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    binary = b""
    for line in (files / "log").read_text().splitlines():
        entry = parse_line(line.encode())
        binary += (10).to_bytes(4, "little") + entry.template_digest + b"\x06\0\0\0ima-ng" + field(entry.data)
    (files / "binary").write_bytes(binary)
    results = []
    for log in ("log", "binary"):
        pcr = (files / "pcr").read_text()
        assert policy(["check", "--policy", str(files / "policy"), "--log", str(files / log), "--pcr", pcr, "--json"])
        results.append(json.loads(capsys.readouterr().out))
    assert results[0] == results[1]
    (files / "binary").write_bytes(binary[:-3])
    assert policy(["check", "--policy", str(files / "policy"), "--log", str(files / "binary")]) == 1
    assert "is not a binary measurement list: template data: needs" in capsys.readouterr().err


def test_check_believes_a_list_only_with_its_pcr(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # trust: fail-closed
    names = ("/usr/bin/a", "/usr/bin/b", "/tmp/evil")
    good = policy_for(*names)
    good["digests"]["/usr/bin/b"].append("ab" * 32)
    (files / "policy").write_text(json.dumps(good))
    argv = ["check", "--policy", str(files / "policy"), "--log", str(files / "log")]
    assert policy(argv) == 0
    assert "nobody vouches" in capsys.readouterr().out
    assert policy([*argv, "--pcr", (files / "pcr").read_text()]) == 0
    assert "leads to the PCR" in capsys.readouterr().out
    assert policy([*argv, "--pcr", "00" * 31 + "01", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["event_id"] == "ima.pcr_mismatch"
    assert policy([*argv, "--pcr", "zz"]) == 1
    assert "32 bytes" in capsys.readouterr().err


def test_diff_says_what_changed(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after = policy_for("/usr/bin/a", "/usr/bin/new", excludes=["/x"])
    after["digests"]["/usr/bin/a"] = ["cd" * 32]
    (files / "after").write_text(json.dumps(after))
    assert policy(["diff", str(files / "policy"), str(files / "after")]) == 1
    said = capsys.readouterr().out.splitlines()
    assert {"- digests /usr/bin/b", "+ digests /usr/bin/new", "~ digests /usr/bin/a", "+ excludes /x"} <= set(said)
    assert policy(["diff", str(files / "policy"), str(files / "policy"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_verify_prints_what_a_good_key_signed(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    text = (files / "policy").read_text()
    (files / "signed").write_text(dsse.sign(text.encode(), key))
    for name, one in (("good", key), ("other", other)):
        (files / name).write_bytes(one.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert policy(["verify", "-r", str(files / "signed"), "-k", str(files / "good")]) == 0
    assert capsys.readouterr().out == text
    assert policy(["verify", "-r", str(files / "signed"), "-k", str(files / "other")]) == 1
    assert capsys.readouterr().out == ""
    assert policy(["verify", "-r", str(files / "policy"), "-k", str(files / "good")]) == 1


def test_convert_brings_a_flat_list_to_a_policy(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "flat").write_text(f"{'a' * 64}  /bin/x\n\nnonsense\n{'b' * 64} %keyring:.ima\n")
    (files / "excludes").write_text("# remark\n/tmp/.*\n")
    assert policy(["convert", "-a", str(files / "flat"), "-e", str(files / "excludes")]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["digests"] == {"/bin/x": ["a" * 64]}
    assert made["keyrings"] == {".ima": ["b" * 64]}
    assert made["excludes"] == ["/tmp/.*"]
    assert policy(["convert", "-a", str(files / "policy")]) == 1
    assert "already" in capsys.readouterr().err


def test_help_is_printed_without_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert keylime_policy([]) == 0
    assert "create" in capsys.readouterr().out


def test_a_failed_run_leaves_the_old_file_alone(files: Path) -> None:
    (files / "out").write_text("old")
    assert keylime_policy(["create", "runtime", "-m", "/nonexistent", "-o", str(files / "out")]) == 1
    assert (files / "out").read_text() == "old"
    assert keylime_policy(["create", "runtime", "-m", str(files / "log"), "-o", str(files / "out")]) == 1
    assert keylime_policy(["create", "runtime", "-o", str(files / "out")]) == 0
    assert json.loads((files / "out").read_text())["digests"] == {}


def test_the_older_tools_convert_and_sign(files: Path) -> None:
    (files / "flat").write_text(f"{'a' * 64}  /bin/x\n")
    out = files / "new"
    assert convert_runtime_policy(["-a", str(files / "flat"), "-o", str(out)]) == 0
    assert json.loads(out.read_text())["digests"] == {"/bin/x": ["a" * 64]}
    old = {**policy_for("/bin/y"), "meta": {"version": 0}}
    (files / "old").write_text(json.dumps(old))
    assert convert_runtime_policy(["-r", str(files / "old"), "-o", str(out)]) == 0
    assert json.loads(out.read_text())["meta"] == {"version": 1, "generator": 2}
    assert convert_runtime_policy(["-o", str(out)]) == 1
    assert convert_runtime_policy([]) == 0
    key = str(files / "key")
    assert sign_runtime_policy(["-r", str(out), "-o", str(files / "signed"), "-p", key]) == 0
    envelope = dsse.parse_envelope(json.loads((files / "signed").read_text()))
    assert envelope.payload == out.read_bytes()
    assert sign_runtime_policy(["-r", "/nonexistent", "-o", str(files / "signed"), "-k", key]) == 1
