"""`keylime_ima_emulator`: what the kernel does with PCR 10, done for a software TPM."""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from limeguard.crypto.hashes import HashAlgorithm, hash_by_name

KERNEL_LIST: Final = "/sys/kernel/security/ima/ascii_runtime_measurements"
PAUSE: Final = 0.1
"""Seconds between two looks at the list; the kernel's files cannot be waited for."""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the emulator's options."""
    parser = argparse.ArgumentParser(
        prog="keylime_ima_emulator", description="Extend PCR 10 of a software TPM with each line of a measurement list."
    )
    option = parser.add_argument
    option("-a", "--hash_algs", action="append", type=_bank, default=[], metavar="ALG", help="PCR bank (sha1)")
    option("-i", "--ima-hash-alg", type=_bank, default="sha1", metavar="ALG", help="of the list's second column (sha1)")
    option("-f", "--ima-log", type=Path, default=Path(KERNEL_LIST), metavar="PATH", help="ASCII measurement list")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Follow the list until SIGINT or SIGTERM; return the exit status."""
    options = make_parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s: %(message)s", level=logging.INFO, force=True)
    try:
        from limeguard.agent.device import TpmError
        from limeguard.agent.ima_emulator import Follower, SoftwarePcr, catch_up, emulate, tcti_of
    except ImportError:
        print("The emulator needs the TPM library: pip install 'limeguard[agent]'", file=sys.stderr)
        return 1
    os.environ.setdefault("TSS2_LOG", "all+none")
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    banks = tuple(dict.fromkeys(options.hash_algs)) or (_bank("sha1"),)
    try:
        follower = Follower(options.ima_log)
        with SoftwarePcr(tcti_of(os.environ), banks) as pcr:
            catch_up(pcr, follower, banks, options.ima_hash_alg)
            print(f"Monitoring {options.ima_log}", flush=True)
            while not ended.is_set():
                emulate(pcr, follower.lines(), banks, options.ima_hash_alg)
                ended.wait(PAUSE)
    except (TpmError, OSError) as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


def _bank(name: str) -> HashAlgorithm:
    found = hash_by_name(name)
    if found is None:
        raise argparse.ArgumentTypeError(f"{name!r} is not a hash algorithm of PCR banks")
    return found
