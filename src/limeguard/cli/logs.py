"""Sets up the log of a program that carries one of Keylime's names, as `logging.conf` says or in Keylime's layout.

`LIMEGUARD_LOG_FORMAT=json` asks for JSON lines instead, `LIMEGUARD_LOG_LINES` bounds lines of one kind in ten seconds.
"""

import sys
from pathlib import Path
from typing import Final

from limeguard.settings import Sources
from limeguard.telemetry import LoggingConfigError, clean, get_logger, setup_logging
from limeguard.telemetry.logs import LINES

FORMAT: Final = "LIMEGUARD_LOG_FORMAT"
BOUND: Final = "LIMEGUARD_LOG_LINES"


def logging_file(sources: Sources) -> Path | None:
    """Return the logging configuration to use, the named or the most local one that exists."""
    named = sources.named_file("logging")
    places = ([named] if named is not None else []) + list(sources.candidates("logging"))
    return next((path for path in places if path.is_file()), None)


def set_up_logging(sources: Sources) -> None:
    """Log to stdout, or as the configuration says; a configuration that cannot be used is warned of."""
    config, problems = logging_file(sources), []
    layout, bound = sources.env.get(FORMAT, "").strip().lower(), sources.env.get(BOUND, "").strip()
    if layout not in {"", "text", "json"}:
        problems.append(f"{FORMAT} is text or json, not {layout!r}: text is used")
    if bound and not bound.isdecimal():
        problems.append(f"{BOUND} is a number of lines, 0 for no bound, not {bound!r}: {LINES} is used")
    lines = int(bound) if bound.isdecimal() else LINES
    try:
        setup_logging(config, as_json=layout == "json", lines=lines)
    except LoggingConfigError as problem:
        setup_logging(None, as_json=layout == "json", lines=lines)
        problems.append(str(problem))
        config = None
    for text in problems:
        get_logger("keylime.config").warning("%s", clean(text))
    if config is not None:
        # Said before logging could be set up by it, hence on stderr and in the layout that Python starts with.
        sys.stderr.write(f"INFO:keylime.config:Reading configuration from {[str(config)]}\n")
