"""`limeguard boot learn`, `diff`, `check`; `keylime-policy create measured-boot`; `create_mb_refstate`."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.fakes.vectors import FOLDER

from limeguard.cli.boot import boot
from limeguard.cli.mb_refstate import create_mb_refstate
from limeguard.cli.policy import keylime_policy

VM = FOLDER / "bootlog" / "vm"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(boot, [str(one) for one in arguments])


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.json"
    done = run("learn", VM / "grub-shim.bin", "-o", path, "--description", "test")
    assert (done.exit_code, done.output) == (0, "")
    return path


def test_learn_writes_a_policy_and_says_what_it_does_not_judge(policy: Path) -> None:
    assert json.loads(policy.read_text())["description"] == "test"
    done = run("learn", VM / "grub-shim.bin", VM / "direct.bin")
    assert done.exit_code == 0
    assert "PCR 5 is not judged event by event" in done.stderr
    assert "Secure Boot differs among the logs" in done.stderr
    assert json.loads(done.stdout)["limeguard_boot_policy"] == 1


def test_learn_adds_to_a_policy(policy: Path) -> None:
    done = run("learn", VM / "grub-off.bin", "--base", policy)
    assert done.exit_code == 0
    assert "Still refused:" in done.stderr
    assert "says that Secure Boot is off" in done.stderr
    assert json.loads(done.stdout)["description"] == "test"
    assert run("learn", VM / "grub-off.bin", "--base", policy.with_name("absent")).exit_code == 1


def test_check_accepts_with_the_real_pcrs(policy: Path) -> None:
    done = run("check", "--policy", policy, "--log", VM / "grub-shim.bin", "--pcrs", VM / "grub-shim.pcrs.json")
    report = json.loads(done.stdout)
    assert done.exit_code == 0
    assert report["accepted"]
    assert report["proven"]
    done = run("check", "--policy", policy, "--log", VM / "grub-shim.bin", "--bank", "sha384", "--text")
    assert done.exit_code == 0
    assert "nobody vouches for" in done.stdout


def test_check_reads_what_tpm2_pcrread_prints(policy: Path, tmp_path: Path) -> None:
    values = json.loads((VM / "grub-shim.pcrs.json").read_text())["sha256"]
    lines = ["  sha1:", "  sha256:", *(f"    {int(pcr):<2}: 0x{value.upper()}" for pcr, value in values.items())]
    (tmp_path / "pcrs").write_text("\n".join(lines))
    done = run("check", "--policy", policy, "--log", VM / "grub-shim.bin", "--pcrs", tmp_path / "pcrs", "--text")
    assert done.exit_code == 0, done.output
    assert "the same" in done.stdout
    (tmp_path / "pcrs").write_text("\n".join(lines).replace("    4 : 0x", "    4 : 0x1"))
    done = run("check", "--policy", policy, "--log", VM / "grub-shim.bin", "--pcrs", tmp_path / "pcrs")
    assert done.exit_code == 2
    assert "PCR 4 has no value of 32 bytes" in done.stderr


def test_check_names_the_event(policy: Path) -> None:
    done = run("check", "--policy", policy, "--log", VM / "grub-off.bin", "--text")
    assert done.exit_code == 1
    assert "event 4 (PCR 7, EV_EFI_VARIABLE_DRIVER_CONFIG, SecureBoot: off) says that Secure Boot is off" in done.stdout


@pytest.mark.parametrize("text", ["{", "[]", '{"limeguard_boot_policy": 7}'])
def test_check_says_why_it_cannot_judge(tmp_path: Path, text: str) -> None:
    (tmp_path / "policy").write_text(text)
    assert run("check", "--policy", tmp_path / "policy", "--log", VM / "direct.bin").exit_code == 2
    assert run("check", "--policy", tmp_path / "absent", "--log", VM / "direct.bin").exit_code == 2


def test_diff_of_logs_and_policies(policy: Path) -> None:
    done = run("diff", policy, VM / "grub-shim.bin", "--text")
    assert (done.exit_code, done.stdout) == (0, "Nothing changed.\n")
    done = run("diff", VM / "grub-off.bin", policy)
    assert done.exit_code == 1
    said = [one["words"] for one in json.loads(done.stdout)]
    assert "Secure Boot: off -> on" in said
    assert "shim's revocation level: 2021030218 -> 2025021800" in said
    assert "command line: lost init=/usr/lib/vm/init" in said
    other = policy.with_name("other.json")
    other.write_text('{"has_secureboot": true}')
    assert "is not a policy with the member" in run("diff", policy, other).output


def test_reference_states_are_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = str(VM / "grub-off.bin")
    assert keylime_policy(["create", "measured-boot", "-e", log]) == 1
    assert "SecureBoot disabled, but -i flag was not set" in capsys.readouterr().err
    assert keylime_policy(["create", "measured-boot", "-e", log, "-i"]) == 0
    state = json.loads(capsys.readouterr().out)
    assert list(state)[:2] == ["has_secureboot", "scrtm_and_bios"]
    assert create_mb_refstate([log, str(tmp_path / "state"), "-i"]) == 0
    assert json.loads((tmp_path / "state").read_text())["has_secureboot"] is False
    (tmp_path / "bad").write_bytes(b"not a log")
    assert keylime_policy(["create", "measured-boot", "-e", str(tmp_path / "bad")]) == 1
    assert "Parsing of binary boot measurements" in capsys.readouterr().err
    assert create_mb_refstate([str(tmp_path / "absent"), str(tmp_path / "x")]) == 1
