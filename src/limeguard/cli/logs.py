"""Sets up the log of a program that carries one of Keylime's names, as `logging.conf` says or in Keylime's layout."""

import sys
from pathlib import Path

from limeguard.settings import Sources
from limeguard.telemetry import LoggingConfigError, get_logger, setup_logging


def logging_file(sources: Sources) -> Path | None:
    """Return the logging configuration to use, the named or the most local one that exists."""
    named = sources.named_file("logging")
    places = ([named] if named is not None else []) + list(sources.candidates("logging"))
    return next((path for path in places if path.is_file()), None)


def set_up_logging(sources: Sources) -> None:
    """Log to stdout, or as the configuration says; a configuration that cannot be used is warned of."""
    config = logging_file(sources)
    try:
        setup_logging(config)
    except LoggingConfigError as problem:
        setup_logging(None)
        get_logger("keylime.config").warning("%s", problem)
        return
    if config is not None:
        # Said before logging could be set up by it, hence on stderr and in the layout that Python starts with.
        sys.stderr.write(f"INFO:keylime.config:Reading configuration from {[str(config)]}\n")
