"""`limeguard demo` where swtpm is not installed: the same story with the TPM of the simulator."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-tools")]


def demo(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "limeguard", "demo", "--rounds", "1", *arguments]
    return subprocess.run(
        command, env=environment or None, capture_output=True, text=True, check=False, timeout=120, cwd="/"
    )


# trust: a node that changed is not trusted any more, whatever its TPM is made of
def test_without_swtpm_the_story_is_told_with_the_simulated_tpm(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    (tmp_path / "home").mkdir()
    done = demo(PATH=str(tmp_path), HOME=str(tmp_path / "home"), TMPDIR=str(temporary))
    assert done.returncode == 0, done.stdout + done.stderr
    said = " ".join(done.stdout.split())
    assert "limeguard's own, in software" in said
    assert "not installed here: swtpm" in said
    assert "EK certificate traced to the maker's CA" in said
    for finding in ("ima.not-allowed", "pcr.not-allowed"):
        assert f"finding {finding}" in said
    assert said.count("As it must be: distrusted") == 2
    assert list(temporary.iterdir()) == []


def test_swtpm_is_not_replaced_where_it_was_asked_for(tmp_path: Path) -> None:
    done = demo("--tpm", "swtpm", PATH=str(tmp_path))
    assert done.returncode == 1
    assert "--tpm swtpm: not installed: swtpm, swtpm_setup, swtpm_localca" in done.stderr
