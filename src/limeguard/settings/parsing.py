"""Configuration text to entries: the INI dialect of the servers and the TOML of agents. Reads no files.

Every entry keeps its line. Syntax errors are collected, as far as the text can still be made sense of.
"""

import configparser
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from limeguard.settings.sources import Origin

MAX_REPAIRS = 64
"""Unquoted values that are pointed out in one TOML file."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong: where, with which option (empty for the file as a whole), and what to write instead."""

    origin: Origin
    option: str
    text: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.option}: {self.text}" if self.option else f"{self.origin}: {self.text}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One value as written. `text` is None for a TOML value that no option can have, such as a table."""

    section: str
    option: str
    text: str | None = field(repr=False)  # may be a secret
    origin: Origin


@dataclass(frozen=True, slots=True)
class Document:
    """What a file said, and what could not be understood of it."""

    entries: tuple[Entry, ...]
    problems: tuple[Problem, ...] = ()


def parse_ini(text: str, place: str) -> Document:
    """Read the INI dialect: no interpolation, no inline comments, nothing twice."""
    try:
        return Document(_ini_entries(text, place, strict=True))
    except configparser.Error as error:
        problems = tuple(_ini_problems(error, place))
    try:
        return Document(_ini_entries(text, place, strict=False), problems)
    except configparser.Error:
        return Document((), problems)


def _ini_entries(text: str, place: str, *, strict: bool) -> tuple[Entry, ...]:
    parser = configparser.RawConfigParser(strict=strict)
    parser.read_string(text, place)
    lines = _lines(text)
    return tuple(
        Entry(section, name, value, Origin(place, lines.get((section, name))))
        for section in parser.sections()
        for name, value in parser.items(section)
    )


def _ini_problems(error: configparser.Error, place: str) -> Iterator[Problem]:
    match error:
        case configparser.DuplicateOptionError():
            label = f"[{error.section}] {error.option}"
            yield Problem(Origin(place, error.lineno), label, "set a second time in this file; keep one of the two")
        case configparser.DuplicateSectionError():
            text = f"section [{error.section}] begins a second time; put its options under one heading"
            yield Problem(Origin(place, error.lineno), "", text)
        case configparser.MissingSectionHeaderError():
            yield Problem(Origin(place, error.lineno), "", "text before the first section; begin with a [section]")
        case configparser.ParsingError():
            for line, _ in error.errors:
                yield Problem(Origin(place, line), "", "neither a section nor an option; write option = value")
        case _:
            yield Problem(Origin(place), "", "not a configuration file")


def _lines(text: str) -> dict[tuple[str, str], int]:
    """Map section and option (lower case) to the line of its last setting."""
    section, found = "", {}
    for number, line in enumerate(text.splitlines(), start=1):
        if heading := re.match(r"\[(.+)\]", line):
            section = heading[1]
        elif setting := re.match(r"([^\s#;=:][^=:]*?)\s*[=:]", line):
            found[section, setting[1].lower()] = number
    return found


def parse_toml(text: str, place: str) -> Document:
    """Read TOML. A value that lacks its quotes is reported by line, and the rest is read nevertheless."""
    lines, problems = text.splitlines(), []
    for _ in range(MAX_REPAIRS):
        try:
            tables = tomllib.loads("\n".join(lines))
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            number, problem, repaired = _toml_problem(error, lines, place)
            problems.append(problem)
            if repaired is None:
                break
            lines[number - 1] = repaired
        else:
            return Document(tuple(_toml_entries(tables, _lines(text), place)), tuple(problems))
    return Document((), tuple(problems))


def _toml_problem(error: Exception, lines: list[str], place: str) -> tuple[int, Problem, str | None]:
    """Return the line at fault, what to say about it, and the line as it should be when that is clear."""
    message = str(error)
    at = re.search(r"at line (\d+)", message)
    number = int(at[1]) if at else max(len(lines), 1)
    line = lines[number - 1] if number <= len(lines) else ""
    bare = re.fullmatch(r"\s*([A-Za-z0-9_-]+)\s*=\s*([^\s\"'\[{#][^\"#]*?)\s*(#.*)?", line)
    if bare is None and (unset := re.fullmatch(r"\s*([A-Za-z0-9_-]+)\s*=\s*", line)):
        text = f'no value; write {unset[1]} = "" for the default'
        return number, Problem(Origin(place, number), f"[agent] {unset[1]}", text), f'{unset[1]} = ""'
    if bare is None:
        reason = re.sub(r"\s*\(at .*\)$", "", message)
        return number, Problem(Origin(place, number), "", f"not TOML: {reason}"), None
    repaired = f'{bare[1]} = "{_corrected(bare[2])}"'
    if _corrected(bare[2]) in {"true", "false"}:
        repaired = f"{bare[1]} = {_corrected(bare[2])}"
    # A password is not repeated.
    advice = f'{bare[1]} = "…" with the value in quotes' if "password" in bare[1] else repaired
    text = f"the value is not TOML; write {advice}"
    return number, Problem(Origin(place, number), f"[agent] {bare[1]}", text), repaired


def _corrected(bare: str) -> str:
    if bare.lower() in {"true", "false"}:
        return bare.lower()
    return bare.replace("\\", "\\\\")


def _toml_entries(tables: Mapping[str, Any], lines: Mapping[tuple[str, str], int], place: str) -> Iterator[Entry]:
    for section, table in tables.items():
        if not isinstance(table, dict):
            yield Entry("", section, _toml_text(table), Origin(place, lines.get(("", section.lower()))))
            continue
        for name, value in table.items():
            origin = Origin(place, lines.get((section, name.lower())))
            yield Entry(section, name, _toml_text(value), origin)


def _toml_text(value: object) -> str | None:
    """Return a value as text; an array becomes text separated by commas."""
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case list() if all(isinstance(element, str) for element in value):
            return "[" + ", ".join(value) + "]"
        case _:
            return None
