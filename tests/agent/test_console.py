"""The layout of a line and what RUST_LOG lets through."""

import logging

import pytest

from limeguard.agent import console
from limeguard.agent.console import Directive, level_for, parse_filter, set_up_console


@pytest.fixture
def root_logger() -> object:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(rust_log: str | None, capsys: pytest.CaptureFixture[str]) -> list[str]:
    set_up_console(rust_log)
    for name in ("keylime_agent", "keylime_agent.payloads", "keylime.http", "aiohttp.server"):
        log = logging.getLogger(name)
        log.debug("fine detail")
        log.info("news")
        log.warning("care")
        log.error("trouble")
    return capsys.readouterr().err.splitlines()


@pytest.mark.usefixtures("root_logger")
def test_lines_look_as_users_of_the_rust_agent_know_them(capsys: pytest.CaptureFixture[str]) -> None:
    shown = lines("keylime_agent=info,keylime=info", capsys)
    assert " INFO  keylime_agent > news" in shown
    assert " WARN  keylime_agent::payloads > care" in shown
    assert " ERROR keylime_agent > trouble" in shown
    assert not any("fine detail" in line or "aiohttp" in line for line in shown)


@pytest.mark.usefixtures("root_logger")
def test_unset_means_info_and_quiet_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    shown = lines(None, capsys)
    assert " INFO  keylime::http > news" in shown
    assert " WARN  aiohttp::server > care" in shown
    assert " INFO  aiohttp::server > news" not in shown


@pytest.mark.usefixtures("root_logger")
def test_debug_shows_everything_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert " DEBUG keylime_agent > fine detail" in lines("debug", capsys)


@pytest.mark.usefixtures("root_logger")
def test_a_traceback_follows_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_console("error")
    try:
        int("x")
    except ValueError:
        logging.getLogger("keylime_agent").exception("fault")
    shown = capsys.readouterr().err
    assert shown.startswith(" ERROR keylime_agent > fault\nTraceback")


@pytest.mark.parametrize(
    ("text", "module", "level"),
    [
        ("info", "keylime_agent", logging.INFO),
        ("off", "keylime_agent", console.OFF),
        ("keylime_agent=debug", "keylime_agent::tpm", logging.DEBUG),
        ("keylime_agent=debug", "other", console.OFF),
        ("warn,keylime_agent::tpm=trace", "keylime_agent::tpm", console.TRACE),
        ("warn,keylime_agent::tpm=trace", "keylime_agent", logging.WARNING),
        ("keylime_agent", "keylime_agent", console.TRACE),
        ("info/filter", "keylime_agent", logging.INFO),
        ("keylime_agent=nonsense,error", "keylime_agent", logging.ERROR),
        ("aiohttp=info", "aiohttp::server", logging.INFO),
    ],
)
def test_the_longest_prefix_decides(text: str, module: str, level: int) -> None:
    assert level_for(module, parse_filter(text)) == level


def test_blank_parts_are_left_out() -> None:
    assert parse_filter(" , info ,") == (Directive("", logging.INFO),)
