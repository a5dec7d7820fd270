"""Files and environment to settings: which value wins, and everything that is wrong, said together.

`examine` never raises and is what `config show` and `config check` look at; `load` is what a program starts with.
"""

import difflib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from limeguard.settings.kinds import BadValue
from limeguard.settings.options import Component, IfSet, Option, Syntax
from limeguard.settings.parsing import Document, Entry, Problem, parse_ini, parse_toml
from limeguard.settings.sources import BUILT_IN, Origin, Sources, UnreadableFile, read_text, readable_by_all, snippets

T = TypeVar("T")

KUBERNETES = re.compile(r"SERVICE_(HOST|PORT(_.*)?)|PORT(_\d+_(TCP|UDP)(_.*)?)?", re.ASCII)
"""Ends of the variables that Kubernetes makes up for a service of our name."""


class SettingsError(Exception):
    """The settings cannot be used; `problems` holds everything that is wrong with them."""

    def __init__(self, component: str, problems: Sequence[Problem]) -> None:
        self.component = component
        self.problems = tuple(problems)
        lines = "".join(f"\n  {problem}" for problem in self.problems)
        super().__init__(f"The settings of {component} cannot be used:{lines}")


@dataclass(frozen=True, slots=True)
class Notice:
    """Something for the log of the program that reads its settings; `level` is one of `logging`."""

    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Found:
    """An option, its value, and where that came from. `text` is as written, secrets hidden."""

    option: Option
    value: Any = field(repr=False)  # may be a secret
    text: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class Examined(Generic[T]):
    """All there is to say about a component's settings. `settings` has defaults where a value was bad."""

    component: str
    settings: T
    found: tuple[Found, ...]
    notices: tuple[Notice, ...] = ()
    warnings: tuple[Problem, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """Settings that can be used, and what to log about them."""

    settings: T
    found: tuple[Found, ...]
    notices: tuple[Notice, ...]
    warnings: tuple[Problem, ...]

    def announce(self, log: logging.Logger) -> None:
        """Log the notices and warnings."""
        for notice in self.notices:
            log.log(notice.level, "%s", notice.text)
        self.announce_warnings(log)

    def announce_warnings(self, log: logging.Logger) -> None:
        """Log the warnings alone: where the files come from is nobody's question."""
        for warning in self.warnings:
            log.warning("%s", warning)


@dataclass(slots=True)
class _Report:
    """What is collected on the way."""

    notices: list[Notice] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def note(self, level: int, text: str) -> None:
        self.notices.append(Notice(level, text))

    def warn(self, origin: Origin, option: str, text: str) -> None:
        self.warnings.append(Problem(origin, option, text))

    def refuse(self, origin: Origin, option: str, text: str) -> None:
        self.problems.append(Problem(origin, option, text))


def load(component: Component[T], sources: Sources) -> Loaded[T]:
    """Read a component's settings. Raises SettingsError with every problem."""
    seen = examine(component, sources)
    if seen.problems:
        raise SettingsError(component.name, seen.problems)
    return Loaded(seen.settings, seen.found, seen.notices, seen.warnings)


def examine(component: Component[T], sources: Sources) -> Examined[T]:
    """Read a component's settings and say all that is wrong. Never raises."""
    report = _Report()
    if sources.testing:
        report.note(logging.WARNING, f"KEYLIME_TEST is on: the working directory is {sources.work_dir}")
    entries = (*_file_entries(component, sources, report), *_variables(component, sources, report))
    options = {(each.section or component.name, each.name): each for each in component.options}
    winning = _winning(component, options, entries, report)
    found = tuple(_value(component, each, winning.get(key), report) for key, each in options.items())
    values = {each.option.name: each.value for each in found}
    settings = component.build(values, _work_dir(component, sources, values))
    _check_together(component, settings, found, report)
    return Examined(
        component.name, settings, found, tuple(report.notices), tuple(report.warnings), tuple(report.problems)
    )


def _work_dir(component: Component[T], sources: Sources, values: Mapping[str, Any]) -> Path:
    own = str(values.get(component.work_dir_option) or "")
    return Path(own) if own and not sources.env.get("KEYLIME_DIR") else sources.work_dir


# Files


def _file_entries(component: Component[T], sources: Sources, report: _Report) -> Iterator[Entry]:
    for path in _files(component, sources, report):
        document = _document(component, path, report)
        report.problems.extend(document.problems)
        if _holds_secret(component, document) and readable_by_all(path):
            report.warn(Origin(str(path)), "", "holds a password and everybody may read it; take that away: chmod o-r")
        yield from document.entries


def _holds_secret(component: Component[T], document: Document) -> bool:
    options = {each.name: each for each in component.options if each.secret}
    for entry in document.entries:
        option = options.get(entry.option)
        if option and entry.text and entry.text != option.default and option.mask(entry.text) != entry.text:
            return True
    return False


def _document(component: Component[T], path: Path, report: _Report) -> Document:
    try:
        text = read_text(path)
    except UnreadableFile as problem:
        report.refuse(Origin(str(path)), "", str(problem))
        return Document(())
    return parse_ini(text, str(path)) if component.syntax is Syntax.INI else parse_toml(text, str(path))


def _files(component: Component[T], sources: Sources, report: _Report) -> list[Path]:
    """Return the files that count, each overriding those before it."""
    named = sources.named_file(component.name)
    if named is not None and named.is_file():
        return _base(component, named, report)
    variable = f"KEYLIME_{component.name.upper()}_CONFIG"
    if named is not None and component.syntax is Syntax.TOML:
        report.refuse(Origin(variable), "", f"names {named}, which is not a file")
        return []
    if named is not None:
        report.note(logging.WARNING, f"{variable} names {named}, which is not a file; looking elsewhere")
    if component.syntax is Syntax.TOML:
        return _merged_files(component, sources, report)
    for candidate in sources.candidates(component.name):
        if candidate.is_file():
            parts = (_snippets(directory, report) for directory in sources.snippet_dirs(component.name))
            return [*_base(component, candidate, report), *(path for part in parts for path in part)]
    _no_file(component, sources, report)
    return []


def _merged_files(component: Component[T], sources: Sources, report: _Report) -> list[Path]:
    files: list[Path] = []
    bases = reversed(sources.candidates(component.name))
    for base, directory in zip(bases, sources.snippet_dirs(component.name), strict=True):
        if base.is_file():
            files += _base(component, base, report)
        files += _snippets(directory, report)
    if not files:
        _no_file(component, sources, report)
    return files


def _base(component: Component[T], path: Path, report: _Report) -> list[Path]:
    # An agent says nothing of its files unless asked.
    level = logging.INFO if component.syntax is Syntax.INI else logging.DEBUG
    report.note(level, f"Reading configuration from {[str(path)]}")
    return [path]


def _snippets(directory: Path, report: _Report) -> tuple[Path, ...]:
    try:
        paths = snippets(directory)
    except UnreadableFile as problem:
        report.refuse(Origin(str(directory)), "", str(problem))
        return ()
    if paths:
        report.note(logging.INFO, f"Applied configuration snippets from {directory}")
    return paths


def _no_file(component: Component[T], sources: Sources, report: _Report) -> None:
    places = [str(path) for path in sources.candidates(component.name)]
    text = f"Config file not found in {places}; {component.name} uses its built-in defaults"
    report.note(logging.WARNING, text)


# Environment


def _variables(component: Component[T], sources: Sources, report: _Report) -> Iterator[Entry]:
    prefix = f"KEYLIME_{component.name.upper()}_"
    names = {variable_of(component.name, each): each for each in component.options}
    for variable, text in sorted(sources.env.items()):
        if not variable.startswith(prefix) or variable == f"{prefix}CONFIG":
            continue
        end = variable.removeprefix(prefix)
        option = names.get(variable)
        if KUBERNETES.fullmatch(end) and (option is None or "://" in text):
            report.note(logging.DEBUG, f"{variable} was made by Kubernetes and is no setting")
        elif option is None:
            known = [each.removeprefix(prefix) for each in names]
            report.warn(Origin(variable), "", "no option has this variable" + _guess(end, known, prefix))
        else:
            report.note(*_override(component, option, variable, text))
            yield Entry(option.section or component.name, option.name, text, Origin(variable))


def variable_of(component: str, option: Option) -> str:
    """Return the name of the environment variable that overrides an option."""
    parts = ("KEYLIME", component, *((option.section,) if option.section else ()), option.name)
    return "_".join(parts).upper()


def _override(component: Component[T], option: Option, variable: str, text: str) -> tuple[int, str]:
    if component.syntax is Syntax.TOML:
        return logging.DEBUG, f"Environment configuration {option.name}={option.mask(text)}"
    section = option.section or component.name
    return logging.INFO, f"Option {option.name} in section [{section}] is overridden by the variable {variable}"


# Values


def _winning(
    component: Component[T], options: Mapping[tuple[str, str], Option], entries: Iterable[Entry], report: _Report
) -> dict[tuple[str, str], Entry]:
    sections = {section for section, _ in options}
    winning: dict[tuple[str, str], Entry] = {}
    strange: set[str] = set()
    for entry in entries:
        key = (entry.section, entry.option)
        if key in options:
            winning[key] = entry
        elif entry.section in sections:
            known = [name for section, name in options if section == entry.section]
            label = f"[{entry.section}] {entry.option}"
            report.warn(entry.origin, label, "unknown option, ignored" + _guess(entry.option, known))
        elif not entry.section:
            report.warn(entry.origin, entry.option, f"stands outside of [{component.name}], ignored")
        elif entry.section not in strange:
            strange.add(entry.section)
            text = f"unknown section, ignored{_guess(entry.section, sorted(sections))}"
            report.warn(entry.origin, f"[{entry.section}]", text)
    return winning


def _guess(word: str, known: Sequence[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def _value(component: Component[T], option: Option, entry: Entry | None, report: _Report) -> Found:
    built_in = Found(option, option.default_value, option.mask(option.default), BUILT_IN)
    if entry is None:
        return built_in
    label = _label(component, option)
    if entry.text is None:
        report.refuse(entry.origin, label, f"not a value that an option can have; write a {option.kind.name}")
        return built_in
    text = entry.text
    if component.syntax is Syntax.INI and option.kind.quotable:
        text = _unquoted(text)
    if option.empty_is_default and not text.strip():
        return Found(option, option.default_value, option.mask(option.default), entry.origin)
    try:
        value = option.kind.parse(text)
    except BadValue as problem:
        report.refuse(entry.origin, label, str(problem))
        return built_in
    _check_used(option, value, entry.origin, label, report)
    return Found(option, value, option.mask(text), entry.origin)


def _unquoted(text: str) -> str:
    """Take surrounding spaces and double quotes away, as Keylime's servers do."""
    return text.strip(' "')


def _label(component: Component[T], option: Option) -> str:
    return f"[{option.section or component.name}] {option.name}"


def _check_used(option: Option, value: object, origin: Origin, label: str, report: _Report) -> None:
    if not option.unused or option.if_set is IfSet.SILENT or option.harmless(value):
        return
    safe = (option.inert or (option.default,))[0]
    if option.if_set is IfSet.REFUSE:
        advice = f"write {option.name} = {safe}".rstrip()
        report.refuse(origin, label, f"not supported by this version: {option.unused}; {advice}")
    else:
        report.warn(origin, label, f"has no effect in this version: {option.unused}")


def _check_together(component: Component[T], settings: T, found: Sequence[Found], report: _Report) -> None:
    """Say which good values do not go together, unless one of them was not good to begin with."""
    bad = {problem.option for problem in report.problems}
    by_name = {each.option.name: each for each in found}
    for name, text in component.clashes(settings):
        each = by_name[name]
        label = _label(component, each.option)
        if label not in bad:
            report.refuse(each.origin, label, text)
    for name, text in component.cautions(settings):
        report.warn(by_name[name].origin, _label(component, by_name[name].option), text)
