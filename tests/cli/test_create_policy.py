"""`keylime_create_policy` and `create_runtime_policy.sh`: one source of digests, the rest as with the newer tool."""

import hashlib
import json
from pathlib import Path

import pytest
from tests.fakes.shared import shared_path

from limeguard.cli.create_policy import create_policy, create_runtime_policy

LOG = "ima-logs"
AGGREGATE = f"10 {'1' * 40} ima-ng sha256:{'a' * 64} boot_aggregate\n"
TOOL = f"10 {'1' * 40} ima-ng sha256:{'b' * 64} /usr/bin/tool\n"
KEY = f"10 {'1' * 40} ima-buf sha256:{'c' * 64} kernel_version 352e31\n"


@pytest.fixture
def log(tmp_path: Path) -> str:
    path = tmp_path / "log"
    path.write_text(AGGREGATE + TOOL + KEY)
    return str(path)


def test_the_list_gives_digests_unless_told_otherwise(log: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert create_policy(["-m", log, "-b"]) == 0
    text = capsys.readouterr().out
    policy = json.loads(text)
    assert text.endswith("\n")
    assert policy["digests"] == {"boot_aggregate": ["a" * 64], "/usr/bin/tool": ["b" * 64]}
    assert policy["ima-buf"] == {"kernel_version": ["c" * 64]}
    assert create_policy(["-m", log, "-b", "--no-hashes"]) == 0
    policy = json.loads(capsys.readouterr().out)
    assert (policy["digests"], policy["ima-buf"]) == ({}, {"kernel_version": ["c" * 64]})


def test_only_the_first_source_gives_digests(log: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "allow").write_text(f"{'d' * 40}  /only/this\n")
    repository = str(shared_path("fixtures/upstream/rpm-repos/unsigned"))
    assert create_policy(["-m", log, "-a", str(tmp_path / "allow"), "-l", repository]) == 0
    assert set(json.loads(capsys.readouterr().out)["digests"]) == {"/only/this"}
    assert create_policy(["-m", log, "-l", repository]) == 0
    local = json.loads(capsys.readouterr().out)["digests"]
    assert create_policy(["-m", "/dev/null", "-r", f"file://{repository}"]) == 0
    assert json.loads(capsys.readouterr().out)["digests"] == local
    assert set(local) == {"/etc/dummy-foobar.conf", "/usr/bin/dummy-foobar"}


def test_the_rest_of_the_options_fill_the_policy(log: str, tmp_path: Path) -> None:
    (tmp_path / "excludes").write_text("/tmp/.*\n")
    out = tmp_path / "policy"
    assert create_policy(["-m", log, "-e", str(tmp_path / "excludes"), "-i", ".ima", "-o", str(out)]) == 0
    policy = json.loads(out.read_text())
    assert (policy["excludes"], policy["ima"]["ignored_keyrings"]) == (["/tmp/.*"], [".ima"])
    assert create_policy(["-m", "/dev/null", "-B", str(out), "-o", str(tmp_path / "merged")]) == 0
    assert json.loads((tmp_path / "merged").read_text())["digests"] == policy["digests"]


@pytest.mark.parametrize("arguments", [["-m", "/absent"], ["-m", "/dev/null", "-B", "/absent"], ["-a", "/absent"]])
def test_a_source_that_is_not_there_ends_with_1(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert create_policy(arguments) == 1
    assert "/absent" in capsys.readouterr().err


def test_the_script_reads_aggregate_and_files(log: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "root"
    (root / "usr").mkdir(parents=True)
    (root / "usr/tool").write_bytes(b"tool")
    out = str(tmp_path / "policy")
    options = ["-o", out, "-x", "none", "-z", str(root), "-y", log]
    assert create_runtime_policy([*options, "-a", "sha256sum"]) == 0
    digests = json.loads(Path(out).read_text())["digests"]
    assert digests["boot_aggregate"] == ["a" * 64]
    if (root / "usr/tool").stat().st_uid == 0:
        assert digests["/usr/tool"] == [hashlib.sha256(b"tool").hexdigest()]
    assert create_runtime_policy(options) == 1
    assert "is sha256, not sha1: choose the algorithm with --algo" in capsys.readouterr().err
    assert create_runtime_policy(["-o", out, "-x", "none", "-z", "none", "-y", "none"]) == 0
    assert json.loads(Path(out).read_text())["digests"] == {}
