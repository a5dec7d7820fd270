"""`create_mb_refstate`: what made reference states before `keylime-policy create measured-boot`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from limeguard.authoring.boot.refstate import Strictness
from limeguard.cli.older_policy import said
from limeguard.cli.policy import log_to_stderr, state_of_file


def create_mb_refstate(arguments: Sequence[str]) -> int:
    """Make a reference state of a boot log; return the exit status."""
    parser = argparse.ArgumentParser(prog="create_mb_refstate", description="Make a reference state (deprecated).")
    parser.add_argument("eventlog_file", help="binary boot log")
    parser.add_argument("output", help="file to write")
    parser.add_argument("-i", "--without-secureboot", action="store_true", help="allow a log without Secure Boot")
    options = parser.parse_args(arguments)
    log_to_stderr()
    return said(lambda: _create(options))


def _create(options: argparse.Namespace) -> None:
    strictness = Strictness(keeps_firmware_applications=True, needs_secure_boot_state=True)
    state = state_of_file(options.eventlog_file, options.without_secureboot, strictness)
    Path(options.output).write_text(json.dumps(state), encoding="utf-8")
