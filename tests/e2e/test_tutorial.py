"""The tutorial, typed as it is printed: every command of the page in one shell, on other ports."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from limeguard.cli.sandbox import mount_namespace
from limeguard.cli.softtpm import free_ports

PAGE = Path(__file__).parents[2] / "docs" / "tutorial" / "first-attestation.md"
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECONDS = 120

pytestmark = pytest.mark.e2e


def on_free_ports(commands: str) -> str:
    """Put free ports in the place of the usual ones."""
    servers = dict(zip(("8881", "8890", "8891", "9002"), free_ports(4), strict=True))
    tpm = dict(zip(("2321", "2322"), free_ports(2, consecutive=True), strict=True))
    for usual, free in {**servers, **tpm}.items():
        assert usual in commands
        commands = re.sub(rf"\b{usual}\b", str(free), commands)
    return commands


def test_the_tutorial_goes_as_it_says(tmp_path: Path) -> None:
    missing = [name for name in ("swtpm", "swtpm_setup", "tpm2_pcrextend") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)} (Debian and Ubuntu: swtpm, swtpm-tools, tpm2-tools)")
    pytest.importorskip("tpm2_pytss", reason="needs the extra `agent` (tpm2-pytss)")
    blocks = SHELL.findall(PAGE.read_text())
    assert len(blocks) > 10
    # The conditions that the reader is shown are kept before the last step removes everything.
    kept = [block.replace("cat condition.json", f"cat condition.json >> {tmp_path}/seen.json") for block in blocks]
    script = on_free_ports("\n".join(kept))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KEYLIME_")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}:/usr/sbin:/sbin"
    shell = subprocess.Popen(
        # In a mount namespace of its own, where that is allowed, what an agent mounts ends with it in any case.
        [*(mount_namespace() or ()), "bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = shell.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(shell.pid, signal.SIGKILL)
        logs = "\n".join(f"== {log}\n{log.read_text()[-3000:]}" for log in tmp_path.rglob("*.log"))
        pytest.fail(f"not done after {SECONDS} s\n{shell.communicate()[0]}\n{logs}")
    finally:
        with contextlib.suppress(ProcessLookupError):  # a step that fails leaves the programs of earlier ones
            os.killpg(shell.pid, signal.SIGKILL)
        pid = tmp_path / "first-attestation" / "tpm.pid"
        if pid.exists():
            subprocess.run(["kill", pid.read_text().strip()], check=False)
    assert shell.returncode == 0, output
    seen, end = json.JSONDecoder().raw_decode((tmp_path / "seen.json").read_text())
    changed = json.loads((tmp_path / "seen.json").read_text()[end:])
    assert (seen["condition"], changed["condition"]) == ("trusted", "distrusted")
    assert changed["findings"][0]["id"] == "pcr.not-allowed"
    assert "refused" in output
    assert "1 trusted" in output or '"trusted": 1' in output
    assert not (tmp_path / "first-attestation").exists()
