"""Exclude patterns: Python's syntax, matched at the start of a name, in time linear in the name.

Patterns are parsed by Python's own parser and handed to RE2, whose automaton never backtracks, so no pattern and no
name can make a verifier spin. What RE2 cannot express (back-references, look-around that is not at the very start of a
pattern, possessive repeats) is refused where the policy is accepted, with the pattern and the reason.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as sre_parser  # type: ignore[attr-defined]
from typing import Any, Final

import re2

from limeguard.policy.errors import PolicyError

MAX_PATTERN: Final = 4_096
"""Characters of one pattern; a path has at most 4,096 bytes."""
MAX_REPEAT: Final = 1_000
"""The largest count in a repetition that RE2 takes."""
_MEMORY: Final = 64 << 20
_FIRST_SURROGATE: Final = 0xD800
_LAST_SURROGATE: Final = 0xDFFF
_LONE: Final = re.compile("[\ud800-\udfff]")
_SPACE: Final = r"\t-\r\x{1c}-\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"
_CLASSES: Final = {
    sre.CATEGORY_DIGIT: (r"\p{Nd}", "0-9"),
    sre.CATEGORY_SPACE: (_SPACE, r"\t-\r\x{20}"),
    sre.CATEGORY_WORD: (r"\pL\pN_", "0-9A-Za-z_"),
}
_NEGATED: Final = {
    sre.CATEGORY_NOT_DIGIT: sre.CATEGORY_DIGIT,
    sre.CATEGORY_NOT_SPACE: sre.CATEGORY_SPACE,
    sre.CATEGORY_NOT_WORD: sre.CATEGORY_WORD,
}
_POSITIONS: Final = {
    sre.AT_BEGINNING: r"\A",
    sre.AT_BEGINNING_STRING: r"\A",
    sre.AT_BOUNDARY: r"\b",
    sre.AT_NON_BOUNDARY: r"\B",
    sre.AT_END: r"\n?\z",  # Python's $ also stands before a newline that ends the text
    sre.AT_END_STRING: r"\z",
}
_FOREIGN: Final = {
    sre.GROUPREF: "a back-reference",
    sre.GROUPREF_EXISTS: "a conditional group",
    sre.ASSERT: "look-around that is not at the start of the pattern",
    sre.ASSERT_NOT: "look-around that is not at the start of the pattern",
    sre.AT: "the multi-line flag",
    sre.ATOMIC_GROUP: "an atomic group",
    sre.POSSESSIVE_REPEAT: "a possessive repetition",
}

Matcher = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class _Guarded:
    """A pattern behind conditions on the same start: each must match, or must not."""

    conditions: tuple[tuple[bool, Matcher], ...]
    body: Matcher

    def __call__(self, name: str) -> bool:
        """Say whether the pattern matches at the start of `name`."""
        return all(bool(match(name)) is wanted for wanted, match in self.conditions) and bool(self.body(name))


@dataclass(frozen=True, slots=True)
class Excludes:
    """Compiled exclude patterns. `patterns` are as they were written; excluded means that any of them matches."""

    patterns: tuple[str, ...] = ()
    _matchers: tuple[Matcher, ...] = ()

    def match(self, name: bytes) -> bool:
        """Say whether a name of the log is excluded; a byte that is not UTF-8 counts as one character."""
        if not self._matchers:
            return False
        text = name.decode("utf-8", "surrogateescape")
        if not text.isascii():
            text = _LONE.sub("\ufffd", text)
        return any(matcher(text) for matcher in self._matchers)

    def pattern_for(self, name: bytes) -> str | None:
        """Return the first pattern, as written, that excludes the name; None when none does."""
        return next((pattern for pattern in self.patterns if compile_excludes((pattern,)).match(name)), None)


NO_EXCLUDES: Final = Excludes()


def compile_excludes(patterns: Sequence[str]) -> Excludes:
    """Compile a list of patterns. Raises PolicyError that names every pattern that cannot be used and why."""
    problems: list[str] = []
    plain: list[str] = []
    guarded: list[Matcher] = []
    for pattern in patterns:
        try:
            for conditions, body in _translated(pattern):
                if conditions:
                    tests = tuple((wanted, _compiled([part])) for wanted, part in conditions)
                    guarded.append(_Guarded(tests, _compiled([body])))
                else:
                    _compiled([body])
                    plain.append(body)
        except _NotLinearError as problem:
            problems.append(f"'{pattern[:200]}': {problem}")
    if problems:
        raise PolicyError(*problems)
    return Excludes(tuple(patterns), (*_joined(plain), *guarded))


def compile_whole(pattern: str) -> Matcher:
    """Compile one pattern that the whole of a text must match. Raises PolicyError that says why it cannot be used."""
    alternatives: list[Matcher] = []
    try:
        for conditions, body in _translated(pattern):
            tests = tuple((wanted, _compiled([part])) for wanted, part in conditions)
            matcher = _compiled([body], whole=True)
            alternatives.append(_Guarded(tests, matcher) if tests else matcher)
    except _NotLinearError as problem:
        raise PolicyError(f"'{pattern[:200]}': {problem}") from None

    def match(text: str) -> bool:
        plain = text if text.isascii() else _LONE.sub("\ufffd", text)
        return any(one(plain) for one in alternatives)

    return match


class _NotLinearError(ValueError):
    """A pattern that cannot be used."""


def _joined(bodies: list[str]) -> Iterator[Matcher]:
    """Yield matchers that together match where any body does: one automaton when it is not too large."""
    if not bodies:
        return
    try:
        yield _compiled(bodies)
    except _NotLinearError:
        for body in bodies:
            yield _compiled([body])


def _compiled(bodies: Sequence[str], *, whole: bool = False) -> Matcher:
    options = re2.Options()
    options.max_mem = _MEMORY
    options.log_errors = False
    try:
        compiled = re2.compile("|".join(f"(?:{body})" for body in bodies), options)
    except re2.error as problem:
        raise _NotLinearError(f"Invalid regex: {problem.args[0] if problem.args else problem!s}") from None
    matcher: Matcher = compiled.fullmatch if whole else compiled.match
    return matcher


def _translated(pattern: str) -> Iterator[tuple[list[tuple[bool, str]], str]]:
    """Yield the alternatives of a pattern as (conditions on its start, body), in RE2's syntax."""
    if len(pattern) > MAX_PATTERN:
        raise _NotLinearError(f"Invalid regex: longer than {MAX_PATTERN} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a later Python may read otherwise is read as this one does
            re.compile(f"({pattern})")  # the list is one alternation of groups: flags for the whole pattern are errors
            tree = sre_parser.parse(pattern)
    except (re.error, OverflowError, RecursionError) as problem:
        raise _NotLinearError(f"Invalid regex: {problem}.") from None
    flags = tree.state.flags
    items = list(tree)
    branches = [list(branch) for branch in items[0][1][1]] if len(items) == 1 and items[0][0] is sre.BRANCH else [items]
    for branch in branches:
        conditions: list[tuple[bool, str]] = []
        while branch and (branch[0] == (sre.AT, sre.AT_BEGINNING) or _looks_ahead(branch[0])):
            operation, argument = branch.pop(0)
            if operation is not sre.AT:
                conditions.append((operation is sre.ASSERT, _emit(argument[1], flags)))
        yield conditions, _emit(branch, flags)


def _looks_ahead(item: tuple[Any, Any]) -> bool:
    return item[0] in {sre.ASSERT, sre.ASSERT_NOT} and item[1][0] > 0


def _emit(items: Any, flags: int) -> str:
    try:
        return "".join(_emit_one(operation, argument, flags) for operation, argument in items)
    except RecursionError:
        raise _NotLinearError("Invalid regex: nested too deeply.") from None


def _emit_one(operation: Any, argument: Any, flags: int) -> str:
    if operation is sre.LITERAL:
        return _char(argument)
    if operation is sre.NOT_LITERAL:
        return f"[^{_char(argument)}]"
    if operation is sre.ANY:
        return r"(?s:.)" if flags & re.DOTALL else r"[^\n]"
    if operation is sre.IN:
        return _emit_set(argument, flags)
    if operation is sre.AT and not flags & re.MULTILINE:
        return _POSITIONS[argument]
    if operation is sre.BRANCH:
        return f"(?:{'|'.join(_emit(branch, flags) for branch in argument[1])})"
    if operation is sre.SUBPATTERN:
        _, added, removed, inner = argument
        now = (flags | added) & ~removed
        return f"({'?i' if now & re.IGNORECASE else '?-i'}:{_emit(inner, now)})"
    if operation in {sre.MAX_REPEAT, sre.MIN_REPEAT}:
        return _emit_repeat(argument, flags)
    raise _NotLinearError(f"Invalid regex: {_FOREIGN.get(operation, str(operation).lower())} is not supported here.")


def _emit_repeat(argument: tuple[int, int, Any], flags: int) -> str:
    low, high, inner = argument
    unbounded = high is sre.MAXREPEAT or high == sre.MAXREPEAT
    if max(low, 0 if unbounded else high) > MAX_REPEAT:
        raise _NotLinearError(f"Invalid regex: a repetition of more than {MAX_REPEAT} is not supported here.")
    body = f"(?:{_emit(inner, flags)})"
    if (low, unbounded) in {(0, True), (1, True)}:
        return f"{body}{'+' if low else '*'}"
    return f"{body}{{{low},{'' if unbounded else high}}}"


def _emit_set(members: list[tuple[Any, Any]], flags: int) -> str:
    """Emit a character set. RE2 has no set difference, so a negated class stands beside the set, not in it."""
    negated = bool(members) and members[0][0] is sre.NEGATE
    inside: list[str] = []
    beside: list[str] = []
    for operation, argument in members[negated:]:
        if operation is sre.CATEGORY and argument in _NEGATED:
            beside.append(f"[^{_class(_NEGATED[argument], flags)}]")
        else:
            inside.append(_emit_member(operation, argument, flags))
    if negated and beside:
        raise _NotLinearError("Invalid regex: a negated class in a negated set is not supported here.")
    parts = [f"[{'^' if negated else ''}{''.join(inside)}]"] if inside else []
    return f"(?:{'|'.join([*parts, *beside])})"


def _emit_member(operation: Any, argument: Any, flags: int) -> str:
    if operation is sre.LITERAL:
        return _char(argument)
    if operation is sre.RANGE:
        return f"{_char(argument[0])}-{_char(argument[1])}"
    return _class(argument, flags)


def _class(category: Any, flags: int) -> str:
    unicode_members, ascii_members = _CLASSES[category]
    return ascii_members if flags & re.ASCII else unicode_members


def _char(code: int) -> str:
    if _FIRST_SURROGATE <= code <= _LAST_SURROGATE:
        return r"\x{fffd}"
    return rf"\x{{{code:x}}}"
