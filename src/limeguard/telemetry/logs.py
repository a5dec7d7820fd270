"""Logs: the logger names and the line layout that Keylime's users match on, JSON lines for programs, and a bound.

Knows nothing of the domain. Nothing happens on import: a program calls `setup_logging` once.
"""

import atexit
import json
import logging
import logging.config
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from limeguard.telemetry.text import clean

LINE = "%(asctime)s.%(msecs)03d - %(name)s - %(levelname)s - %(message)s"
DATE = "%Y-%m-%d %H:%M:%S"
LINES = 1_000
WINDOW = 10.0
"""So many lines of one kind are written in so many seconds. A fleet in which all nodes fail at once, or a network that
is away, would else write millions that all say the same."""
MAX_KINDS = 10_000
FIELDS = ("agent_id", "event_id", "finding", "severity", "condition")
"""What log calls may add (`extra`) for those who read JSON."""


def get_logger(name: str) -> logging.Logger:
    """Return the logger of that name, such as `keylime.verifier`."""
    return logging.getLogger(name)


class LoggingConfigError(ValueError):
    """The logging configuration cannot be used; the text says why."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, what the call added, and the trace of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line: dict[str, Any] = {
            "time": at,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update((name, getattr(record, name)) for name in FIELDS if hasattr(record, name))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


@dataclass(slots=True)
class _Kind:
    """Lines of one kind: since when they are counted, how many were written and left out, and the last of those."""

    since: float
    written: int = 0
    left_out: int = 0
    last: logging.LogRecord | None = None


class RepeatLimit(logging.Filter):
    """Lets so many lines of one kind through in a window of time, and then says how many it has left out.

    A kind is a logger and a text before its values are filled in. Lines for debugging are not counted.
    """

    def __init__(
        self,
        handler: logging.Handler,
        lines: int = LINES,
        window: float = WINDOW,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch over `handler`, which also writes what is said of lines that were left out."""
        super().__init__()
        self._handler, self._lines, self._window, self._clock = handler, lines, window, clock
        self._kinds: dict[tuple[str, str], _Kind] = {}
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a line is written."""
        if record.levelno < logging.INFO or getattr(record, "limeguard_summary", False):
            return True
        key, now = (record.name, str(record.msg)), self._clock()
        with self._lock:
            kind = self._kinds.get(key)
            if kind is None or now >= kind.since + self._window:
                ended = [] if kind is None else [kind]
                kind = self._kinds[key] = _Kind(now)
            else:
                ended = []
            fits = kind.written < self._lines
            kind.written += fits
            if not fits:
                kind.left_out, kind.last = kind.left_out + 1, record
                self._arm()
            elif len(self._kinds) > MAX_KINDS:
                self._kinds = {name: one for name, one in self._kinds.items() if one.left_out}
        self._say(ended)
        return fits

    def _arm(self) -> None:
        """Have it said soon what is left out now, whether another line comes or not."""
        if self._timer is None:
            self._timer = threading.Timer(self._window, self.flush)
            self._timer.daemon = True
            self._timer.start()

    def flush(self) -> None:
        """Say what was left out."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            ended = [kind for kind in self._kinds.values() if kind.left_out]
            self._kinds = {key: kind for key, kind in self._kinds.items() if not kind.left_out}
        self._say(ended)

    def _say(self, ended: Iterable[_Kind]) -> None:
        for kind in ended:
            record = kind.last
            if record is None:
                continue
            text = f"{kind.left_out} more lines like this one were left out: {clean(record.getMessage())}"
            summary = logging.LogRecord(record.name, record.levelno, record.pathname, record.lineno, text, None, None)
            summary.limeguard_summary = True
            self._handler.handle(summary)


def setup_logging(
    config: Path | None = None,
    level: str = "INFO",
    *,
    to_stderr: bool = False,
    as_json: bool = False,
    lines: int = LINES,
) -> None:
    """Send log records to stdout (or stderr) in Keylime's layout, or as a `logging.config` file says.

    Without a file, `as_json` makes each line a JSON object. Of one kind at most `lines` are written in ten seconds, or
    all if it is 0. Raises LoggingConfigError when the file is there and cannot be used.
    """
    if config is not None:
        try:
            logging.config.fileConfig(config, disable_existing_loggers=False)
        except (KeyError, ValueError, RuntimeError, OSError) as problem:
            raise LoggingConfigError(f"{config} cannot be used as logging configuration: {problem}") from problem
        _limit(lines)
        return
    handler = logging.StreamHandler(sys.stderr if to_stderr else sys.stdout)
    handler.setFormatter(JsonFormatter() if as_json else logging.Formatter(LINE, DATE))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    _limit(lines)


def _limit(lines: int) -> None:
    """Bound what every handler that there is writes."""
    found = {id(handler): handler for logger in _loggers() for handler in logger.handlers}
    for handler in found.values():
        for old in [one for one in handler.filters if isinstance(one, RepeatLimit)]:
            handler.removeFilter(old)
        if lines > 0:
            limit = RepeatLimit(handler, lines)
            handler.addFilter(limit)
            atexit.register(limit.flush)


def _loggers() -> list[logging.Logger]:
    named = logging.getLogger().manager.loggerDict.values()
    return [logging.getLogger(), *(one for one in named if isinstance(one, logging.Logger))]
