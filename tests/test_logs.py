"""Logs: the layout that scripts match on stays; JSON for programs; many lines of one kind are bounded and counted."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limeguard.telemetry.logs import JsonFormatter, RepeatLimit

PROGRAM = """
import sys
from limeguard.cli.logs import set_up_logging
from limeguard.settings import Sources
from limeguard.telemetry import get_logger
import os
set_up_logging(Sources(dict(os.environ), roots=()))
log = get_logger("keylime.verifier")
log.warning("Agent %s failed, stopping polling", "one", extra={"agent_id": "one"})
for number in range(int(sys.argv[1])):
    log.warning("Agent %s: %s", number, "pcr")
"""


def run(lines: int, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(lines)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_the_usual_layout_is_keylimes() -> None:
    (line, _) = run(1)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} - keylime\.verifier - WARNING - Agent one failed, stopping polling",
        line,
    )


def test_json_has_the_same_text_and_what_the_call_added() -> None:
    (line, _) = run(1, LIMEGUARD_LOG_FORMAT="json")
    found = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert found == {
        "level": "WARNING",
        "logger": "keylime.verifier",
        "message": "Agent one failed, stopping polling",
        "agent_id": "one",
    }


# trust: bounded
def test_a_mass_failure_writes_a_bounded_number_of_lines_and_says_how_many_are_missing() -> None:
    lines = run(50_000)
    assert len(lines) == 1 + 1_000 + 1
    assert lines[-1].endswith(
        " - keylime.verifier - WARNING - 49000 more lines like this one were left out: Agent 49999: pcr"
    )
    assert len(run(60, LIMEGUARD_LOG_LINES="50")) == 1 + 50 + 1
    assert len(run(2_000, LIMEGUARD_LOG_LINES="0")) == 1 + 2_000


def test_settings_that_cannot_be_used_are_warned_of() -> None:
    lines = run(0, LIMEGUARD_LOG_FORMAT="xml", LIMEGUARD_LOG_LINES="few")
    assert "LIMEGUARD_LOG_FORMAT is text or json, not 'xml'" in lines[0]
    assert "LIMEGUARD_LOG_LINES is a number of lines" in lines[1]


def test_a_configuration_file_decides_the_layout_and_is_bounded_too(tmp_path: Path) -> None:
    config = tmp_path / "logging.conf"
    config.write_text(
        "[loggers]\nkeys=root\n[handlers]\nkeys=out\n[formatters]\nkeys=json\n"
        "[formatter_json]\nclass=limeguard.telemetry.logs.JsonFormatter\n"
        "[logger_root]\nlevel=INFO\nhandlers=out\n"
        "[handler_out]\nclass=StreamHandler\nformatter=json\nargs=(sys.stdout,)\n"
    )
    command = [sys.executable, "-c", PROGRAM, "1200"]
    done = subprocess.run(
        command, env={"KEYLIME_LOGGING_CONFIG": str(config)}, capture_output=True, text=True, check=True, cwd="/"
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 1 + 1_000 + 1
    assert lines[-1]["message"].startswith("200 more lines like this one were left out")


class Kept(logging.Handler):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def bounded() -> Iterator[tuple[logging.Logger, Kept, Clock]]:
    handler, clock, log = Kept(), Clock(), logging.getLogger("keylime.bounded")
    log.propagate, log.level = False, logging.DEBUG
    limit = RepeatLimit(handler, lines=3, window=10.0, clock=clock)
    handler.addFilter(limit)
    log.addHandler(handler)
    yield log, handler, clock
    log.removeHandler(handler)
    limit.flush()


def test_kinds_are_bounded_one_by_one_and_windows_end(bounded: Any) -> None:
    log, handler, clock = bounded
    for number in range(5):
        log.info("first %d", number)
        log.info("second %d", number)
    assert handler.texts == [f"{kind} {number}" for number in range(3) for kind in ("first", "second")]
    handler.texts.clear()
    clock.now = 10.0
    log.info("first %d", 5)
    assert sorted(handler.texts) == ["2 more lines like this one were left out: first 4", "first 5"]


def test_lines_for_debugging_are_not_bounded(bounded: Any) -> None:
    log, handler, _ = bounded
    for number in range(9):
        log.debug("%d", number)
    assert len(handler.texts) == 9


def test_a_trace_stays_in_its_line() -> None:
    problem = ValueError("two\nlines")
    trace = (ValueError, problem, None)
    record = logging.LogRecord("n", logging.ERROR, "", 1, "went %s", ("wrong",), trace)
    text = JsonFormatter().format(record)
    assert "\n" not in text
    assert json.loads(text)["message"] == "went wrong"
    assert "ValueError: two\nlines" in json.loads(text)["exception"]
