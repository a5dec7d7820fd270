"""Logs: the logger names and the line layout that Keylime's users match on, and the cleaning of text from outside.

Knows nothing of the domain. Nothing happens on import: a program calls `setup_logging` once.
"""

import logging
import logging.config
import sys
from pathlib import Path

LINE = "%(asctime)s.%(msecs)03d - %(name)s - %(levelname)s - %(message)s"
DATE = "%Y-%m-%d %H:%M:%S"

MAX_LOGGED = 512
"""Characters of one value from outside that a log line shows; the rest is cut."""


def get_logger(name: str) -> logging.Logger:
    """Return the logger of that name, such as `keylime.verifier`."""
    return logging.getLogger(name)


def clean(text: object, limit: int = MAX_LOGGED) -> str:
    """Make text from outside safe to stand in one log line: escape what is not printable, bound its length."""
    shown = str(text)[: limit + 1]
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in shown)
    return escaped[:limit] + "…" if len(escaped) > limit else escaped


class LoggingConfigError(ValueError):
    """The logging configuration cannot be used; the text says why."""


def setup_logging(config: Path | None = None, level: str = "INFO", *, to_stderr: bool = False) -> None:
    """Send log records to stdout (or stderr) in Keylime's layout, or as a `logging.config` file says.

    Raises LoggingConfigError when the file is there and cannot be used.
    """
    if config is not None:
        try:
            logging.config.fileConfig(config, disable_existing_loggers=False)
        except (KeyError, ValueError, RuntimeError, OSError) as problem:
            raise LoggingConfigError(f"{config} cannot be used as logging configuration: {problem}") from problem
        return
    handler = logging.StreamHandler(sys.stderr if to_stderr else sys.stdout)
    handler.setFormatter(logging.Formatter(LINE, DATE))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
