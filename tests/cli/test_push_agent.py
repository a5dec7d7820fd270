"""The push agent's command: what ends it before it begins, and options that are taken and change nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fakes.pki import Authority

pytest.importorskip("tpm2_pytss", reason="needs the extra `agent` (tpm2-pytss)")


def ended(folder: Path, *arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
    """Run the agent where there is no TPM, so that it always ends."""
    configuration = folder / "agent.conf"
    configuration.write_text("[agent]\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KEYLIME")}
    environment = {
        **kept,
        "KEYLIME_AGENT_CONFIG": str(configuration),
        "KEYLIME_DIR": str(folder),
        "KEYLIME_AGENT_RUN_AS": "",
        "TCTI": f"device:{folder}/no-tpm",
        **{f"KEYLIME_AGENT_{name.upper()}": value for name, value in options.items()},
    }
    return subprocess.run(
        [sys.executable, "-m", "limeguard", "agent", "push", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        ((), {"verifier_url": "verifier:8881"}, "no address of a verifier; write https://HOST:PORT"),
        ((), {"verifier_url": "https://a, http://b"}, "session token in the clear; write https://"),
        ((), {}, "cv_ca/cacert.crt of verifier_tls_ca_cert cannot be read as a CA certificate"),
        (("--insecure", "-v", "http://b"), {}, "Opening the TPM"),
    ],
)
def test_what_cannot_begin_ends_with_one_sentence(
    tmp_path: Path, arguments: tuple[str, ...], options: dict[str, str], said: str
) -> None:
    # trust: downgrade
    done = ended(tmp_path, *arguments, **options)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_options_without_effect_and_unknown_ones_are_told(tmp_path: Path) -> None:
    ca = Authority(tmp_path / "ca").identity.certificate
    done = ended(tmp_path, "--ca-certificate", str(ca), "--attestation-interval-seconds", "5", "--avoid-tpm", "--new")
    assert done.returncode == 1
    for line in (
        "--attestation-interval-seconds has no effect",
        "--avoid-tpm has no effect",
        "Unknown arguments are ignored: --new",
        "Opening the TPM",
    ):
        assert line in done.stderr


def test_a_time_that_is_none_is_a_wrong_argument(tmp_path: Path) -> None:
    assert ended(tmp_path, "--timeout", "soon").returncode == 2
