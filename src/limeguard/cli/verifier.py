"""The command that runs the verifier in the foreground: settings, log and TLS first, then the service."""

import argparse
import os
import resource
from collections.abc import Callable, Sequence
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
from limeguard.verifier.build import migrate, run_verifier
from limeguard.verifier.crew import Crew, Member, in_a_process
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


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the program's own arguments."""
    parser = argparse.ArgumentParser(
        prog="keylime_verifier",
        description="Attest nodes: ask their agents for quotes, judge the answers, say what is trusted.",
        epilog="Configured by verifier.conf and the environment (KEYLIME_VERIFIER_*); other arguments are ignored.",
    )
    parser.add_argument("--workers", type=_count, metavar="N", help="worker processes; by default one for each core")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verifier; return its exit status: 0 after a signal, 1 when it cannot run, 2 for wrong arguments."""
    parser = make_parser()
    options, _ = parser.parse_known_args(argv)
    sources = Sources.of_process()
    set_up_logging(sources)
    os.umask(0o077)
    return _explained(lambda: _run(sources, options.workers))


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least one worker")
    return number


def _run(sources: Sources, wanted: int | None) -> int:
    loaded = load_verifier_settings(sources)
    loaded.announce(get_logger("keylime.config"))
    settings: VerifierSettings = loaded.settings
    log.info("Starting Keylime verifier in PULL mode...")
    log.info("Current API version: %s", versions.CURRENT)
    log.info("Other supported API versions: %s", ", ".join(v for v in versions.SUPPORTED if v != versions.CURRENT))
    log.info("Deprecated API versions: 1.0")
    _raise_file_limit()
    files = prepare_tls(settings, sources)
    contexts = server_tls(files), agents_tls(files), servers_tls(files)
    count = wanted or settings.workers(len(os.sched_getaffinity(0)))

    def prepare() -> int:
        return _explained(lambda: uvloop.run(_prepared(settings)))

    if count == 1:
        return in_a_process(prepare) or uvloop.run(run_verifier(settings, *contexts))

    def work(member: Member) -> int:
        return _explained(lambda: uvloop.run(run_verifier(settings, *contexts, member)))

    crew = Crew(count, work, drain_seconds=settings.shutdown_drain_timeout)
    return crew.run(settings.ip, settings.port, prepare)


async def _prepared(settings: VerifierSettings) -> int:
    if settings.auto_migrate_db:
        await migrate(settings)
    return 0


def _explained(run: Callable[[], int]) -> int:
    """Run a process of its own; a sentence says what stops it for a reason that an operator can mend."""
    try:
        return run()
    except EXPECTED as problem:
        log.critical("The verifier cannot run: %s", clean(problem, 4096))
        return 1


def _raise_file_limit() -> None:
    """Every agent is a connection: take as many files as the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
