"""The command that runs the registrar in the foreground: log and settings first, then the server until a signal."""

import argparse
import asyncio
import os
import signal
from collections.abc import Sequence

import uvloop

from limeguard.authoring.ca import CaError
from limeguard.authoring.files import FilesError
from limeguard.authoring.keystore import KeyStoreError
from limeguard.cli.logs import set_up_logging
from limeguard.cli.tls_files import prepare_tls, server_tls
from limeguard.registrar.server import RegistrarServer
from limeguard.registrar.settings import RegistrarSettings, load_registrar_settings
from limeguard.settings import SettingsError, Sources
from limeguard.store.database import Conflict, Database, StoreUnavailable, UnknownDatabaseError
from limeguard.telemetry import clean, get_logger
from limeguard.web.tls import TlsError
from limeguard.wire import versions

log = get_logger("keylime.registrar")

PRIVATE_FILES = 0o077
UNUSABLE = (
    CaError,
    FilesError,
    KeyStoreError,
    SettingsError,
    TlsError,
    UnknownDatabaseError,
    StoreUnavailable,
    Conflict,
)
"""What can be wrong with a set-up; each says in one sentence what it is."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the registrar; return its exit status: 0 after a signal, 1 when it cannot run."""
    parser = argparse.ArgumentParser(
        prog="keylime_registrar",
        description="Keep the register of nodes and their TPM keys.",
        epilog="Configured by registrar.conf and the environment (KEYLIME_REGISTRAR_*).",
    )
    _, ignored = parser.parse_known_args(argv)
    sources = Sources.of_process()
    set_up_logging(sources)
    log.info("Starting Keylime registrar...")
    if ignored:
        log.warning("There are no arguments; ignored: %s", clean(" ".join(ignored)))
    _log_versions()
    os.umask(PRIVATE_FILES)
    try:
        loaded = load_registrar_settings(sources)
        loaded.announce(log)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(loaded.settings, sources))
    except UNUSABLE as problem:
        log.error("%s", problem)  # noqa: TRY400 - a sentence, not a traceback
    except OSError as problem:
        log.error("The registrar cannot listen or use its files: %s", problem)  # noqa: TRY400 - as above
    except ModuleNotFoundError as problem:
        log.error("The database needs a library that is not installed: %s", problem.name)  # noqa: TRY400 - as above
    else:
        return 0
    return 1


def _log_versions() -> None:
    log.info("Current API version: %s", versions.CURRENT)
    log.info("Supported API versions: %s", ", ".join(version for version in versions.SUPPORTED if version != "1.0"))
    log.info("Deprecated API versions: 1.0")


async def _serve(settings: RegistrarSettings, sources: Sources) -> None:
    """Serve until SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    context = server_tls(prepare_tls(settings, sources))
    pool, overflow = settings.database_pool_sz_ovfl
    server = RegistrarServer(settings, context, Database(settings.database, pool_size=pool, overflow=overflow))
    await server.start()
    await stopping.wait()
    log.info("Stopping the registrar")
    await server.stop()
