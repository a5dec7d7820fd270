"""Giving up root: for an account that exists, wholly, and for good."""

import os
import subprocess
import sys

import pytest

from limeguard.agent.privileges import NoSuchAccount, find_account

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give up")
GROUP = "nogroup"


@needs_root
def test_an_empty_option_keeps_root_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert find_account("") is None
    assert "goes on running as root" in caplog.text


def test_without_root_the_option_is_ignored_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert find_account("no-such-user:nogroup") is None
    assert "run_as is ignored" in caplog.text


# trust: fail-closed
@needs_root
@pytest.mark.parametrize("run_as", ["nobody", "nobody:", ":nogroup", "no-such-user:nogroup", "nobody:no-such-group"])
def test_an_account_that_does_not_exist_ends_the_start(run_as: str) -> None:
    with pytest.raises(NoSuchAccount, match="run_as"):
        find_account(run_as)


@needs_root
def test_root_is_gone_for_good() -> None:
    code = f"""
import os
from limeguard.agent.privileges import become, find_account
become(find_account("nobody:{GROUP}"))
assert os.getresuid() == (65534,) * 3 and os.getresgid() == (65534,) * 3, os.getresuid()
assert 0 not in os.getgroups()
try:
    os.setuid(0)
except PermissionError:
    print("gone")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "gone\n"
