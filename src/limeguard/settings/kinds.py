"""What the text of an option can mean: one `Kind` per sort of value, from text to a typed value.

Knows nothing of files, of the environment, or of the options that use it. A refusal says what to write instead.
"""

import ast
import ipaddress
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_SHOWN = 60
"""Characters of a refused value that a message repeats."""

TRUE = frozenset({"1", "yes", "true", "on"})
FALSE = frozenset({"0", "no", "false", "off"})
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\.?", re.ASCII)


class BadValue(ValueError):  # noqa: N818 - said of a value, reported with others
    """The text is no value of this kind; the message says what to write instead."""


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """One sort of value. `quotable` kinds are text: an INI file may wrap them in double quotes."""

    name: str
    parse: Callable[[str], T]
    quotable: bool = False


def shown(text: str) -> str:
    """Return a value as a message may repeat it: quoted, escaped and bounded."""
    return repr(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…")


def _refuse_quotes(text: str) -> None:
    if text[:1] in {'"', "'"} and text[-1:] == text[:1]:
        raise BadValue(f"{shown(text)} stands in quotes; write {text[1:-1].strip() or 'the value'} without them")


def _boolean(text: str) -> bool:
    _refuse_quotes(text)
    word = text.strip().lower()
    if word in TRUE:
        return True
    if word in FALSE:
        return False
    raise BadValue(f"{shown(text)} is neither true nor false; write True or False")


def integer(low: int, high: int | None = None) -> Kind[int]:
    """Return the kind of whole numbers from `low` to `high`, both included."""
    bounds = f"from {low} to {high}" if high is not None else f"of {low} or more"

    def parse(text: str) -> int:
        _refuse_quotes(text)
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text.strip(), re.ASCII):
            raise BadValue(f"{shown(text)} is not a whole number; write one {bounds}")
        value = int(text)
        if value < low or (high is not None and value > high):
            raise BadValue(f"{value} is out of range; write a whole number {bounds}")
        return value

    return Kind(f"whole number {bounds}", parse)


def number(low: float) -> Kind[float]:
    """Return the kind of finite numbers of `low` or more, with or without a fraction."""

    def parse(text: str) -> float:
        _refuse_quotes(text)
        try:
            value = float(text)
        except ValueError:
            raise BadValue(f"{shown(text)} is not a number; write one of {low:g} or more, such as 2.5") from None
        if not math.isfinite(value) or value < low:
            raise BadValue(f"{shown(text)} is out of range; write a number of {low:g} or more")
        return value

    return Kind(f"number of {low:g} or more", parse)


def optional_number(low: float) -> Kind[float | None]:
    """Return the kind of numbers that may be left empty (None)."""
    inner = number(low)
    return Kind(f"{inner.name}, or empty", lambda text: inner.parse(text) if text.strip() else None, quotable=True)


def choice(*words: str, empty: str | None = None, other: str = "") -> Kind[str]:
    """Return the kind of one word out of `words`, in any case; empty text counts as `empty` when given.

    `other` is added to the refusal of any other word.
    """

    def parse(text: str) -> str:
        word = text.strip().lower()
        if not word and empty is not None:
            return empty
        if word not in words:
            raise BadValue(f"{shown(text)} is not known here; write one of {', '.join(words)}{other}")
        return word

    return Kind(f"one of {', '.join(words)}", parse, quotable=True)


def _literal(text: str, example: str) -> list[object]:
    if not text.strip():
        raise BadValue("the value is empty; write [] for an empty list")
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, list):
        raise BadValue(f"{shown(text)} is not a list; write it in brackets with quoted elements, such as {example}")
    return value


def _literal_list(text: str) -> tuple[str, ...]:
    example = "['first', 'second']"
    elements = _literal(text, example)
    if not all(isinstance(element, str) for element in elements):
        raise BadValue(f"the list has elements that are not text; quote each of them, such as {example}")
    return tuple(str(element).strip() for element in elements)


def literal_list_of(*words: str) -> Kind[tuple[str, ...]]:
    """Return the kind of bracketed lists whose elements are among `words`."""

    def parse(text: str) -> tuple[str, ...]:
        elements = _literal_list(text)
        strange = [element for element in elements if element not in words]
        if strange:
            raise BadValue(f"{shown(strange[0])} is not known here; use only {', '.join(words)}")
        return elements

    return Kind(f"list of {', '.join(words)}", parse)


def _severity_rules(text: str) -> tuple[tuple[str, str], ...]:
    example = '[{"event_id": ".*", "severity_label": "emergency"}]'
    rules: list[tuple[str, str]] = []
    for place, rule in enumerate(_literal(text, example), start=1):
        pattern = rule.get("event_id") if isinstance(rule, dict) else None
        label = rule.get("severity_label") if isinstance(rule, dict) else None
        if not isinstance(pattern, str) or not isinstance(label, str):
            raise BadValue(f"rule {place} lacks event_id or severity_label; write rules such as {example}")
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as problem:
            raise BadValue(f"event_id {shown(pattern)} of rule {place} is no regular expression: {problem}") from None
        rules.append((pattern, label.strip()))
    return tuple(rules)


def _comma_list(text: str) -> tuple[str, ...]:
    return tuple(part for part in (piece.strip() for piece in text.split(",")) if part)


def _loose_list(text: str) -> tuple[str, ...]:
    """Split as an agent does: commas or white space between, quotes and surrounding brackets as one likes."""
    bare = text.strip()
    if bare.startswith("[") and bare.endswith("]"):
        bare = bare[1:-1]
    return tuple(part for part in (piece.strip("\"'") for piece in re.split(r"[,\s]+", bare)) if part)


def _pool(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"\s*(\d{1,5})\s*,\s*(\d{1,5})\s*", text, re.ASCII)
    if not found or not int(found[1]):
        raise BadValue(f"{shown(text)} is not pool size and overflow; write two numbers such as 5,10")
    return int(found[1]), int(found[2])


def _trusted(text: str) -> str | tuple[str, ...]:
    bare = text.strip().strip('"').strip()
    if bare in {"default", "all"}:
        return bare
    if not bare:
        return ()
    try:
        return _literal_list(text)
    except BadValue:
        raise BadValue(f"{shown(text)} is not understood; write default, all, or a list such as ['ca.crt']") from None


def _trusted_loose(text: str) -> str | tuple[str, ...]:
    files = _loose_list(text)
    return "default" if files in {(), ("default",)} else files


def _address(text: str) -> str:
    bare = text.strip()
    inner = bare[1:-1] if bare.startswith("[") and bare.endswith("]") else bare
    try:
        ipaddress.ip_address(inner.partition("%")[0])
    except ValueError:
        if len(bare) > 253 or not HOST.fullmatch(bare) or re.fullmatch(r"[0-9.]+", bare, re.ASCII):
            raise BadValue(f"{shown(text)} is no address; write an IPv4 or IPv6 address or a host name") from None
        return bare
    return inner


def _url(text: str) -> str:
    bare = text.strip()
    if bare and not re.match(r"https?://[^/\s]+", bare, re.IGNORECASE):
        # The value itself may hold a password: it is not repeated.
        raise BadValue("not a web address; write one that begins with http:// or https://, or leave it empty")
    return bare


def matching(name: str, pattern: str, example: str) -> Kind[str]:
    """Return the kind of text that the whole pattern matches."""
    compiled = re.compile(pattern, re.ASCII)

    def parse(text: str) -> str:
        bare = text.strip()
        if not compiled.fullmatch(bare):
            raise BadValue(f"{shown(text)} is not {name}; write for example {example}")
        return bare

    return Kind(name, parse, quotable=True)


TEXT: Kind[str] = Kind("text", str.strip, quotable=True)
EXACT_TEXT: Kind[str] = Kind("text", str, quotable=True)
"""Text whose outer spaces count, as those of a password may."""
BOOLEAN: Kind[bool] = Kind("True or False", _boolean)
PORT = integer(1, 65535)
ADDRESS: Kind[str] = Kind("address or host name", _address, quotable=True)
URL: Kind[str] = Kind("http or https address, or empty", _url, quotable=True)
LIST: Kind[tuple[str, ...]] = Kind("list such as ['a', 'b']", _literal_list)
SEVERITY_RULES: Kind[tuple[tuple[str, str], ...]] = Kind("list of rules", _severity_rules)
COMMA_LIST: Kind[tuple[str, ...]] = Kind("names separated by commas", _comma_list, quotable=True)
LOOSE_LIST: Kind[tuple[str, ...]] = Kind("names separated by commas or spaces", _loose_list, quotable=True)
POOL: Kind[tuple[int, int]] = Kind("two whole numbers such as 5,10", _pool, quotable=True)
TRUSTED: Kind[str | tuple[str, ...]] = Kind("default, all, or list of files", _trusted)
TRUSTED_LOOSE: Kind[str | tuple[str, ...]] = Kind(
    "default, or files separated by commas", _trusted_loose, quotable=True
)
