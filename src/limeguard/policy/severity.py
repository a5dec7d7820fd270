"""How bad a finding is: event ids to severity levels, by the operator's rules.

Decides levels and labels only; what a level leads to is decided by supervision.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from limeguard.policy.errors import PolicyError

MAX_EVENT_ID: Final = 200
"""Characters of an event id that a pattern is tried on; ids come from our own table and are far shorter."""
DEFAULT_LABELS: Final = ("info", "notice", "warning", "error", "critical", "alert", "emergency")
"""Severities as Keylime names them, the mildest first."""
DEFAULT_POLICY: Final = ((".*", "emergency"),)


@dataclass(frozen=True, slots=True)
class SeverityRules:
    """Labels, the mildest first, and patterns with their labels: the first that matches a whole event id counts."""

    labels: tuple[str, ...]
    rules: tuple[tuple[re.Pattern[str], str], ...]

    @property
    def highest(self) -> int:
        """The worst level."""
        return len(self.labels) - 1

    def level(self, event_id: str, irrecoverable: bool) -> tuple[int, str]:
        """Return level and label of an event. What no rule names, and what cannot be undone, is of the worst."""
        if not irrecoverable and len(event_id) <= MAX_EVENT_ID:
            for pattern, label in self.rules:
                if pattern.fullmatch(event_id):
                    return self._named(label)
        return self.highest, self.labels[-1]

    def _named(self, label: str) -> tuple[int, str]:
        # An unknown label must not make an event milder than the operator meant it.
        return (self.labels.index(label), label) if label in self.labels else (self.highest, self.labels[-1])


def parse_severity(
    labels: Sequence[str] = DEFAULT_LABELS, policy: Sequence[tuple[str, str]] = DEFAULT_POLICY
) -> SeverityRules:
    """Make rules of labels, the mildest first, and pairs of pattern and label. Raises PolicyError.

    The patterns are the operator's own configuration, not input from outside.
    """
    problems: list[str] = []
    if not labels:
        problems.append("there are no severity labels")
    problems += [f"severity label {label!r} is named more than once" for label in _repeated(labels)]
    problems += ["a severity label is empty"] if "" in labels else []
    if not policy:
        problems.append("the severity policy has no rules")
    rules: list[tuple[re.Pattern[str], str]] = []
    for pattern, label in policy:
        try:
            rules.append((re.compile(pattern), label))
        except re.error as problem:
            problems.append(f"severity pattern {pattern!r} is no regular expression: {problem}")
    if problems:
        raise PolicyError(*problems)
    return SeverityRules(tuple(labels), tuple(rules))


def _repeated(labels: Sequence[str]) -> list[str]:
    return [label for label in dict.fromkeys(labels) if list(labels).count(label) > 1]
