"""Options as data: name, kind, default, help, what is secret about it, and whether this version acts on it.

A component's settings are one frozen dataclass whose fields are its options (`option`); options of Keylime that this
version knows and does not act on stand beside it as plain `Option` values.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast

from limeguard.settings.kinds import Kind

T = TypeVar("T")

MASK = "********"


class IfSet(Enum):
    """What to do when an option that this version does not act on is set to something that matters."""

    SILENT = "nothing is lost"
    WARN = "say so"
    REFUSE = "refuse to start"


class Syntax(Enum):
    """How the files of a component are written."""

    INI = "ini"
    TOML = "toml"


def mask_all(text: str) -> str:
    """Hide a secret; show only whether there is one."""
    return MASK if text else ""


def mask_url(text: str) -> str:
    """Hide the passwords in a URL, in its authority and in its query."""
    hidden = re.sub(r"(?<=://)([^/@\s:]*):([^/\s]*)@", rf"\1:{MASK}@", text)
    return re.sub(r"(?i)\b(password|passwd|pwd|token|secret|key)=[^&\s]*", rf"\1={MASK}", hidden)


def _as_is(text: str) -> str:
    return text


@dataclass(frozen=True, slots=True)
class Option:
    """One option. `default` is written as in a file; `section` is empty for the component's own section.

    `unused` is the reason why this version does not act on it, `inert` the values (as parsed) that lose nothing by
    that. `own` marks options that Keylime does not have. `empty_is_default`: empty text counts as not set.
    """

    name: str
    kind: Kind[Any]
    default: str
    help: str
    section: str = ""
    mask: Callable[[str], str] = _as_is
    own: bool = False
    empty_is_default: bool = False
    unused: str = ""
    if_set: IfSet = IfSet.SILENT
    inert: tuple[str, ...] = ()

    @property
    def secret(self) -> bool:
        """Whether the value is hidden, in part or whole, wherever settings are shown."""
        return self.mask is not _as_is

    @property
    def default_value(self) -> Any:
        """The default, parsed."""
        return self.kind.parse(self.default)

    def harmless(self, value: object) -> bool:
        """Whether nothing is lost by not acting on this value."""
        return value in {self.kind.parse(text) for text in self.inert or (self.default,)}


def option(
    kind: Kind[T],
    default: str,
    help: str,  # noqa: A002 - the word that readers expect
    *,
    section: str = "",
    mask: Callable[[str], str] = _as_is,
    own: bool = False,
    empty_is_default: bool = False,
) -> T:
    """Declare a field of a settings dataclass as an option; the field's default is the parsed one."""
    declared = Option("", kind, default, help, section, mask, own, empty_is_default)
    # What is secret stays out of the printed form of the settings too.
    return field(default=kind.parse(default), repr=not declared.secret, metadata={"option": declared})


class SettingsClass(Protocol):
    """A dataclass of options; `work_dir` is filled in beside them."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def options_of(settings: type[SettingsClass]) -> tuple[Option, ...]:
    """Return the options that a settings dataclass declares, in order, each named as its field."""
    declared = ((each.name, each.metadata.get("option")) for each in dataclasses.fields(settings))
    return tuple(dataclasses.replace(found, name=name) for name, found in declared if found is not None)


def not_yet(
    names: Sequence[tuple[str, Kind[Any], str]],
    reason: str,
    if_set: IfSet = IfSet.SILENT,
    *,
    section: str = "",
    inert: tuple[str, ...] = (),
    mask: Callable[[str], str] = _as_is,
) -> tuple[Option, ...]:
    """Return options (name, kind, default) that share one reason for not being acted on."""
    return tuple(
        Option(name, kind, default, "", section, mask, unused=reason, if_set=if_set, inert=inert)
        for name, kind, default in names
    )


Clash = tuple[str, str]
"""The name of an option, and what is wrong with it given the others."""


def no_clashes(_settings: object) -> Iterable[Clash]:
    """Find nothing: for components whose options do not depend on each other."""
    return ()


@dataclass(frozen=True, slots=True)
class Component(Generic[T]):
    """A program's settings: its name in file names and variables, its dataclass, and the options not acted on yet.

    `clashes` and `cautions` look at the finished value: what cannot be used, and what is allowed and unsafe.
    `work_dir_option` names the option that may move the working directory.
    """

    name: str
    settings: type[T]
    unused: tuple[Option, ...] = ()
    syntax: Syntax = Syntax.INI
    clashes: Callable[[T], Iterable[Clash]] = no_clashes
    cautions: Callable[[T], Iterable[Clash]] = no_clashes
    work_dir_option: str = ""

    @property
    def options(self) -> tuple[Option, ...]:
        """All options, those acted on first."""
        return options_of(cast("type[SettingsClass]", self.settings)) + self.unused

    def build(self, values: dict[str, Any], work_dir: Path) -> T:
        """Make the frozen value out of parsed options by name."""
        names = {each.name for each in dataclasses.fields(cast("type[SettingsClass]", self.settings))}
        known = {name: value for name, value in values.items() if name in names}
        return self.settings(**(known | {"work_dir": work_dir}))
