"""Allowlists as `sha256sum` itself prints them, names that it escapes included."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from limeguard.authoring.policy.texts import flat_allowlist

NAMES = ("plain", "with blank", r"system-systemd\x2dcryptsetup.slice", "two\nlines", "carriage\rreturn", r"end\n")


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum (coreutils)")
@pytest.mark.parametrize("mode", ["--text", "--binary"])
def test_every_name_is_read_back_as_the_kernel_logs_it(tmp_path: Path, mode: str) -> None:
    for name in NAMES:
        (tmp_path / name).write_text(name)
    done = subprocess.run(
        ["sha256sum", mode, *(str(tmp_path / name) for name in NAMES)], capture_output=True, text=True, check=True
    )
    expected = {str(tmp_path / name).replace(" ", "_"): [hashlib.sha256(name.encode()).hexdigest()] for name in NAMES}
    assert flat_allowlist(done.stdout) == expected


def test_a_name_with_a_backslash_that_nobody_escaped_stays_as_it_is() -> None:
    digest = "ab" * 32
    assert flat_allowlist(f"{digest}  /etc/a\\nb\r\n\n") == {"/etc/a\\nb": [digest]}
