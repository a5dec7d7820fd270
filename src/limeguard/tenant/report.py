"""Where a command says what it does and finds: one narrow port, and the layout that scripts for Keylime's tenant read.

Commands speak in four voices: log lines, documents (an answer that the operator asked for), raw answers, bare prints.
How each is shown is the report's business, so the same commands serve scripts, people and pipes.
"""

import contextlib
import json
import logging
import sys
from collections.abc import Callable
from typing import Protocol

from limeguard.telemetry import get_logger

LOGGER = "keylime.tenant"


class Report(Protocol):
    """What a command needs to be heard. Texts are clean: what came from outside has been escaped."""

    def say(self, level: int, text: str) -> None:
        """Say one thing, at a `logging` level."""

    def detail(self, text: str) -> None:
        """Repeat an answer in a form that only scripts read."""

    def echo(self, content: object) -> None:
        """Repeat an answer that nobody asked for, as only scripts read it."""

    def document(self, name: str, title: str, content: object) -> None:
        """Show an answer the operator asked for. `name` tells it apart from others of the same run."""

    def answer(self, name: str, content: object, heading: str = "") -> None:
        """Show a server's answer as it came, under a heading that only scripts read."""


class KeylimeReport:
    """Log lines and prints on stdout, laid out as scripts for `keylime_tenant` expect them.

    A document is JSON on the second line of a log record: lines that start with `{` are documents and nothing else.
    """

    def __init__(self, write: Callable[[str], object] | None = None) -> None:
        """Print through `write` (a whole line without its end), to stdout by default."""
        self._log = get_logger(LOGGER)
        self._write = write if write is not None else _print

    def say(self, level: int, text: str) -> None:
        """Write a log line."""
        self._log.log(level, "%s", text)

    def detail(self, text: str) -> None:
        """Write a log line at INFO."""
        self._log.info("%s", text)

    def echo(self, content: object) -> None:
        """Print the answer in Python's notation."""
        self._write(repr(content))

    def document(self, name: str, title: str, content: object) -> None:
        """Write the title as a log line and the document, as JSON, on the line below."""
        del name
        self._log.info("%s\n%s", title, json.dumps(content))

    def answer(self, name: str, content: object, heading: str = "") -> None:
        """Print the answer in Python's notation, which is what such scripts match."""
        del name
        if heading:
            self._write(heading)
        self._write(repr(content))


def _print(line: str) -> None:
    # Nobody reading is no reason to stop half-way through an enrolment.
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def info(report: Report, text: str) -> None:
    """Say something at INFO."""
    report.say(logging.INFO, text)


def warning(report: Report, text: str) -> None:
    """Say something at WARNING."""
    report.say(logging.WARNING, text)


def error(report: Report, text: str) -> None:
    """Say something at ERROR."""
    report.say(logging.ERROR, text)
