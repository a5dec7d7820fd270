"""The agent's log on standard error: the layout and the level filter that users of the Rust agent know.

` INFO  keylime_agent > text`; levels per module come from `RUST_LOG`, such as `keylime_agent=info,keylime=debug`.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass

TRACE = 5
OFF = logging.CRITICAL + 10
LEVELS = {
    "off": OFF,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": TRACE,
}
DEFAULT_FILTER = "info"
QUIET_UNLESS_NAMED = ("asyncio", "aiohttp", "concurrent", "tpm2_pytss")
"""Loggers of libraries: their chatter is shown only when the filter names them."""


@dataclass(frozen=True, slots=True)
class Directive:
    """Records of modules whose name starts with `prefix` are shown from `level` up."""

    prefix: str
    level: int


def parse_filter(text: str) -> tuple[Directive, ...]:
    """Read `level`, `module` or `module=level`, separated by commas; what is not understood is left out."""
    directives: list[Directive] = []
    for item in (part.strip() for part in text.split("/", maxsplit=1)[0].split(",")):
        name, equals, level = item.partition("=")
        if equals:
            if level.strip().lower() in LEVELS:
                directives.append(Directive(name.strip(), LEVELS[level.strip().lower()]))
        elif name.lower() in LEVELS:
            directives.append(Directive("", LEVELS[name.lower()]))
        elif name:
            directives.append(Directive(name, TRACE))
    return tuple(directives)


def module_name(logger: str) -> str:
    """Return the logger's name as the module path that stands in a line and in a filter."""
    return logger.replace(".", "::")


def level_for(module: str, directives: Sequence[Directive]) -> int:
    """Return the level from which records of a module are shown: that of the longest prefix, else nothing is shown."""
    best = Directive("", OFF)
    for directive in directives:
        if module.startswith(directive.prefix) and len(directive.prefix) >= len(best.prefix):
            best = directive
    if not best.prefix and module.split("::", maxsplit=1)[0] in QUIET_UNLESS_NAMED:
        return max(best.level, logging.WARNING)
    return best.level


class _Filter(logging.Filter):
    def __init__(self, directives: tuple[Directive, ...]) -> None:
        super().__init__()
        self._directives = directives
        self._levels: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        level = self._levels.get(record.name)
        if level is None:
            level = self._levels[record.name] = level_for(module_name(record.name), self._directives)
        return record.levelno >= level


class _Layout(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        name = "WARN" if record.levelno == logging.WARNING else logging.getLevelName(record.levelno)
        text = f" {name:<5} {module_name(record.name)} > {record.getMessage()}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def set_up_console(rust_log: str | None) -> None:
    """Send all records to standard error, as `RUST_LOG` says; unset, from INFO up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Layout())
    handler.addFilter(_Filter(parse_filter(rust_log or DEFAULT_FILTER)))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(TRACE)
