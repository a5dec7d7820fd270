"""The command that runs the verifier in the foreground: settings, log and TLS first, then the service."""

import argparse
import os
import resource
from collections.abc import Sequence
from typing import Final

import uvloop

from limeguard.authoring.ca import CaError
from limeguard.authoring.files import FilesError
from limeguard.authoring.keystore import KeyStoreError
from limeguard.cli.logs import set_up_logging
from limeguard.cli.tls_files import agents_tls, prepare_tls, server_tls, servers_tls
from limeguard.settings import SettingsError, Sources
from limeguard.store.database import StoreUnavailable, UnknownDatabaseError
from limeguard.telemetry import clean, get_logger
from limeguard.verifier.build import run_verifier
from limeguard.verifier.settings import VerifierSettings, load_verifier_settings
from limeguard.web.tls import TlsError
from limeguard.wire import versions

log = get_logger("keylime.verifier")

EXPECTED: Final = (
    SettingsError,
    CaError,
    FilesError,
    KeyStoreError,
    TlsError,
    UnknownDatabaseError,
    StoreUnavailable,
    OSError,
)
"""What stops a start for a reason that an operator can mend: a sentence says it, no trace."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verifier; return its exit status: 0 after a signal, 1 when it cannot run, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="keylime_verifier",
        description="Attest nodes: ask their agents for quotes, judge the answers, say what is trusted.",
        epilog="Configured by verifier.conf and the environment (KEYLIME_VERIFIER_*); arguments are ignored.",
    )
    parser.parse_known_args(argv)
    sources = Sources.of_process()
    set_up_logging(sources)
    os.umask(0o077)
    try:
        return _run(sources)
    except EXPECTED as problem:
        log.critical("The verifier cannot run: %s", clean(problem, 4096))
        return 1


def _run(sources: Sources) -> int:
    loaded = load_verifier_settings(sources)
    loaded.announce(get_logger("keylime.config"))
    settings: VerifierSettings = loaded.settings
    log.info("Starting Keylime verifier in PULL mode...")
    log.info("Current API version: %s", versions.CURRENT)
    log.info("Other supported API versions: %s", ", ".join(v for v in versions.SUPPORTED if v != versions.CURRENT))
    log.info("Deprecated API versions: 1.0")
    _raise_file_limit()
    files = prepare_tls(settings, sources)
    return uvloop.run(run_verifier(settings, server_tls(files), agents_tls(files), servers_tls(files)))


def _raise_file_limit() -> None:
    """Every agent is a connection: take as many files as the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
