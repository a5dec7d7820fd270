"""The tests of Keylime's policy language: small objects that say whether a decoded event is as it should be.

A test is frozen and is made once for each policy. What it remembers while it looks at one log (what was seen before,
what was collected) lives in a `Run`, of which each evaluation has its own. A test answers with the empty text when it
passes and with a reason otherwise. Subjects come from the node: nothing is assumed of their types.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from limeguard.policy.excludes import compile_whole

PASSED: Final = ""
MAX_REASON: Final = 2_000
"""Characters of a reason that are kept: enough for a person, and a hostile log cannot fill a database with it."""


class Run:
    """What one evaluation remembers."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.collected: dict[int, dict[str, list[object]]] = {}


class Rule(Protocol):
    """A test: the empty text, or why the subject does not pass."""

    def __call__(self, _run: Run, subject: object, /) -> str:
        """Look at the subject."""


def evaluate(test: Rule, subject: object) -> str:
    """Return the empty text when the subject passes, or the reason, of bounded length."""
    reason = test(Run(), subject)
    return reason if len(reason) <= MAX_REASON else f"{reason[: MAX_REASON - 3]}..."


def shown(value: object) -> str:
    """Return a value as a reason shows it, short."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


@dataclass(frozen=True, slots=True)
class AcceptAll:
    """Passes."""

    def __call__(self, _run: Run, _subject: object, /) -> str:
        """Pass."""
        return PASSED


@dataclass(frozen=True, slots=True)
class RejectAll:
    """Never passes."""

    why: str

    def __call__(self, _run: Run, _subject: object, /) -> str:
        """Refuse."""
        return self.why


@dataclass(frozen=True, slots=True)
class And:
    """Passes when every member does; the first that does not ends it."""

    members: tuple[Rule, ...]

    def __call__(self, run: Run, subject: object, /) -> str:
        """Ask the members in their order."""
        for member in self.members:
            if reason := member(run, subject):
                return reason
        return PASSED


@dataclass(frozen=True, slots=True)
class Or:
    """Passes when a member does, tried in order. Without members it refuses: an empty choice allows nothing."""

    members: tuple[Rule, ...]

    def __call__(self, run: Run, subject: object, /) -> str:
        """Ask the members until one passes."""
        reasons = []
        for member in self.members:
            reason = member(run, subject)
            if not reason:
                return PASSED
            reasons.append(reason)
        if not reasons:
            return "does not pass empty disjunction"
        return reasons[0] if len(reasons) == 1 else f"[{', '.join(reasons)}]"


@dataclass(frozen=True, slots=True)
class Once:
    """Passes when its test does and nothing passed through it before in this run."""

    test: Rule

    def __call__(self, run: Run, subject: object, /) -> str:
        """Ask the test, once."""
        if id(self) in run.seen:
            return "test was already run once"
        run.seen.add(id(self))
        return self.test(run, subject)


@dataclass(frozen=True, slots=True)
class AtMost:
    """Passes `limit` times in a run."""

    limit: int

    def __call__(self, run: Run, _subject: object, /) -> str:
        """Count."""
        counts = run.collected.setdefault(id(self), {"seen": []})["seen"]
        counts.append(None)
        return PASSED if len(counts) <= self.limit else f"there are more than {self.limit}"


@dataclass(frozen=True, slots=True)
class Field:
    """The subject has the member, and the test passes on it."""

    name: str
    test: Rule

    def __call__(self, run: Run, subject: object, /) -> str:
        """Look at the member."""
        if not isinstance(subject, dict) or self.name not in subject:
            return f"{shown(subject)} lacks the member {self.name}"
        reason = self.test(run, subject[self.name])
        return f"{self.name} {reason}" if reason else PASSED


def fields(**tests: Rule) -> And:
    """Return the test that the subject has all these members and each passes."""
    return And(tuple(Field(name, test) for name, test in tests.items()))


@dataclass(frozen=True, slots=True)
class Each:
    """The subject is a list, and the test passes on every member."""

    test: Rule

    def __call__(self, run: Run, subject: object, /) -> str:
        """Look at every member; the first that does not pass ends it."""
        if not isinstance(subject, list):
            return f"{shown(subject)} is not a list"
        for index, member in enumerate(subject):
            if reason := self.test(run, member):
                return f"[{index}] {reason}"
        return PASSED


@dataclass(frozen=True, slots=True)
class Members:
    """The subject is a list of exactly as many members as there are tests, and each passes on its own."""

    tests: tuple[Rule, ...]

    def __call__(self, run: Run, subject: object, /) -> str:
        """Pair members and tests."""
        if not isinstance(subject, list):
            return f"{shown(subject)} is not a list"
        for index, (test, member) in enumerate(zip(self.tests, subject, strict=False)):
            if reason := test(run, member):
                return f"[{index}] {reason}"
        if len(subject) != len(self.tests):
            return f"has {len(subject)} members, {len(self.tests)} are expected"
        return PASSED


@dataclass(frozen=True, slots=True)
class Dispatch:
    """The values of some members choose the test; a choice that nobody made refuses."""

    keys: tuple[str, ...]
    tests: Mapping[tuple[object, ...], Rule]

    def __call__(self, run: Run, subject: object, /) -> str:
        """Choose and ask."""
        if not isinstance(subject, dict):
            return f"{shown(subject)} is not an object"
        try:
            chosen = tuple([subject[key] for key in self.keys])
            test = self.tests.get(chosen)
        except KeyError:
            return f"lacks one of the members {', '.join(self.keys)}"
        except TypeError:  # a list or an object where a text or a number belongs
            test = None
        reason = "is allowed by nothing" if test is None else test(run, subject)
        if not reason:
            return PASSED
        named = ", ".join(f"{key} {shown(subject[key])}" for key in self.keys)
        said = f", Event {shown(subject['Event'])}" if "Event" in subject else ""
        return f"({named}{said}) {reason}"


def dispatch(keys: Sequence[str], *rows: tuple[tuple[object, ...], Rule]) -> Dispatch:
    """Make a Dispatch. Raises ValueError when a choice is made twice."""
    tests: dict[tuple[object, ...], Rule] = {}
    for chosen, test in rows:
        if chosen in tests:
            raise ValueError(f"{chosen} is chosen twice")
        tests[chosen] = test
    return Dispatch(tuple(keys), tests)


@dataclass(frozen=True, slots=True, eq=False)
class Collector:
    """Gathers subjects under names, for one test of all of them at the end."""

    names: tuple[str, ...]
    final: Rule

    def start(self, run: Run, _subject: object, /) -> str:
        """Empty the lists."""
        run.collected[id(self)] = {name: [] for name in self.names}
        return PASSED

    def into(self, name: str) -> Rule:
        """Return the test that keeps its subject under that name, and passes."""

        def keep(run: Run, subject: object, /) -> str:
            run.collected[id(self)][name].append(subject)
            return PASSED

        return keep

    def finish(self, run: Run, _subject: object, /) -> str:
        """Ask the final test about all lists."""
        return self.final(run, run.collected[id(self)])


@dataclass(frozen=True, slots=True)
class Equal:
    """The subject is this text or number, and of its type."""

    value: str | int

    def __call__(self, _run: Run, subject: object, /) -> str:
        """Compare."""
        same = type(subject) is type(self.value) and subject == self.value
        return PASSED if same else f"is {shown(subject)}, not {shown(self.value)}"


@dataclass(frozen=True, slots=True)
class Pattern:
    """The subject is a text and the whole of it matches the pattern, in time linear in the text."""

    pattern: str
    matcher: Callable[[str], object] = field(compare=False)

    def matches(self, text: str) -> bool:
        """Say whether the whole text matches."""
        return bool(self.matcher(text))

    def __call__(self, _run: Run, subject: object, /) -> str:
        """Match."""
        if isinstance(subject, str) and self.matches(subject):
            return PASSED
        return f"{shown(subject)} does not match {shown(self.pattern)}"


def pattern(text: str) -> Pattern:
    """Compile a pattern in Python's syntax. Raises PolicyError that says why it cannot be used."""
    return Pattern(text, compile_whole(text))


@dataclass(frozen=True, slots=True)
class Text:
    """The subject is a text that begins with one part and has another in it; on one line unless `lines`."""

    start: str = ""
    part: str = ""
    lines: bool = False

    def __call__(self, _run: Run, subject: object, /) -> str:
        """Look."""
        if (
            isinstance(subject, str)
            and subject.startswith(self.start)
            and self.part in subject
            and (self.lines or "\n" not in subject)
        ):
            return PASSED
        return f"is not {self.start}...{self.part}"


@dataclass(frozen=True, slots=True)
class AnyDigest:
    """The subject has a digest that is listed for its algorithm. An empty list allows nothing."""

    allowed: Mapping[str, frozenset[str]]

    def __call__(self, _run: Run, subject: object, /) -> str:
        """Look for one listed digest."""
        if any(digest in self.allowed.get(name, ()) for name, digest in digests_of(subject)):
            return PASSED
        listed = {name: sorted(values) for name, values in self.allowed.items()}
        return f"has no digest of {shown(listed)}: {shown(digests_of(subject))}"


def any_digest(listed: Iterable[Mapping[str, str]]) -> AnyDigest:
    """Return the test for a list of objects from algorithm to digest."""
    allowed: dict[str, set[str]] = {}
    for one in listed:
        for name, digest in one.items():
            allowed.setdefault(name, set()).add(digest)
    return AnyDigest({name: frozenset(values) for name, values in allowed.items()})


def digests_of(subject: object) -> list[tuple[str, str]]:
    """Return algorithm and digest of each digest that an event has; none where one of them is no digest."""
    digests = subject.get("Digests") if isinstance(subject, dict) else None
    found: list[tuple[str, str]] = []
    for one in digests if isinstance(digests, list) else ():
        name, digest = (one.get("AlgorithmId"), one.get("Digest")) if isinstance(one, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(digest, str):
            return []
        found.append((name, digest))
    return found


_HASHES: Final = {name: getattr(hashlib, name) for name in ("sha1", "sha256", "sha384", "sha512")}


def hashes_to_digest(subject: object, data: bytes) -> bool:
    """Say whether a digest of the event is the one of these bytes."""
    return any(name in _HASHES and digest == _HASHES[name](data).hexdigest() for name, digest in digests_of(subject))


@dataclass(frozen=True, slots=True)
class Separator:
    """The event separates the firmware's part from what follows, without an error."""

    def __call__(self, _run: Run, subject: object, /) -> str:
        """Look at data and digest."""
        data = subject.get("Event") if isinstance(subject, dict) else None
        if data != "00000000":  # decoded data is lower case, so the other accepted text, FFFFFFFF, never occurs
            return f"is not a separator without error: {shown(data)}"
        return PASSED if hashes_to_digest(subject, bytes(4)) else "has no digest of a separator"


@dataclass(frozen=True, slots=True)
class Action:
    """The event is one of the actions that the firmware reports on this PCR."""

    allowed: Collection[str]

    def __call__(self, _run: Run, subject: object, /) -> str:
        """Look at text and digest."""
        text = subject.get("Event") if isinstance(subject, dict) else None
        if not isinstance(text, str) or text not in self.allowed:
            return f"is not a known action: {shown(text)}"
        return PASSED if hashes_to_digest(subject, text.encode()) else f"has no digest of {shown(text)}"


# --- EFI variables and signatures -----------------------------------------------------------------------------------

Key = tuple[str, str]
"""SignatureOwner and SignatureData of an entry of a signature list."""


@dataclass(frozen=True, slots=True)
class VariableNamed:
    """The event is of a variable of that GUID whose name passes, and so does its data."""

    guid: str
    name: Rule
    data: Rule

    def __call__(self, run: Run, subject: object, /) -> str:
        """Look at `Event`."""
        test = fields(VariableName=Equal(self.guid), UnicodeName=self.name, VariableData=self.data)
        return Field("Event", test)(run, subject)


def variable_dispatch(*rows: tuple[tuple[object, ...], Rule]) -> Field:
    """Return the test that chooses by GUID and name of the variable, for its data."""
    chosen = [(key, Field("VariableData", test)) for key, test in rows]
    return Field("Event", dispatch(("VariableName", "UnicodeName"), *chosen))


def _key(subject: object) -> Key | None:
    if not isinstance(subject, dict):
        return None
    owner, data = subject.get("SignatureOwner"), subject.get("SignatureData")
    return (owner, data) if isinstance(owner, str) and isinstance(data, str) else None


@dataclass(frozen=True, slots=True)
class KeyIn:
    """The subject is one of these keys. No keys allow nothing."""

    keys: frozenset[Key]

    def __call__(self, _run: Run, subject: object, /) -> str:
        """Look it up."""
        if not self.keys:
            return "does not pass empty disjunction"
        return PASSED if _key(subject) in self.keys else f"{shown(subject)} is not one of {len(self.keys)} listed keys"


def key_lists(types: Iterable[str], keys: frozenset[Key]) -> Each:
    """Return the test that every signature list has one of these types, and every key of it is listed."""
    kind = Or(tuple(Equal(one) for one in types))
    return Each(fields(SignatureType=kind, Keys=Each(KeyIn(keys))))


@dataclass(frozen=True, slots=True)
class KeysPresent:
    """The subject is exactly one signature list of the type, and all these keys are in it."""

    types: frozenset[str]
    keys: frozenset[Key]

    def __call__(self, _run: Run, subject: object, /) -> str:
        """Look for each key."""
        if not isinstance(subject, list) or len(subject) != 1 or not isinstance(subject[0], dict):
            return f"{shown(subject)} is not one signature list"
        if subject[0].get("SignatureType") not in self.types:
            return f"SignatureType is {shown(subject[0].get('SignatureType'))}"
        entries = subject[0].get("Keys")
        if not isinstance(entries, list):
            return f"Keys {shown(entries)} is not a list"
        present: set[Key] = set()
        for entry in entries:
            key = _key(entry)
            if key is None or len(entry) != 2:
                return f"{shown(entry)} is not a key"
            present.add(key)
        missing = self.keys - present
        return f"{len(missing)} keys are missing, such as {shown(min(missing))}" if missing else PASSED
