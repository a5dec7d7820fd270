"""How bad a finding is: labels in rising order, and rules that give each event id a label."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from limeguard.policy.errors import PolicyError

DEFAULT_LABELS: Final = ("info", "notice", "warning", "error", "critical", "alert", "emergency")
DEFAULT_RULES: Final = ((".*", "emergency"),)


@dataclass(frozen=True, slots=True)
class SeverityRules:
    """Labels, lowest first, and rules: the first whose pattern matches the whole event id gives the label."""

    labels: tuple[str, ...]
    rules: tuple[tuple[re.Pattern[str], str], ...]

    @property
    def highest(self) -> int:
        """The index of the worst label."""
        return len(self.labels) - 1

    def level(self, event_id: str, *, irrecoverable: bool) -> tuple[int, str]:
        """Return index and label of an event. Irrecoverable events and those without a rule are the worst."""
        if not irrecoverable:
            for pattern, label in self.rules:
                if pattern.fullmatch(event_id):
                    return (self.labels.index(label) if label in self.labels else self.highest), self._known(label)
        return self.highest, self.labels[-1]

    def _known(self, label: str) -> str:
        return label if label in self.labels else self.labels[-1]


def make_severity_rules(
    labels: Sequence[str] = DEFAULT_LABELS, rules: Sequence[tuple[str, str]] = DEFAULT_RULES
) -> SeverityRules:
    """Compile rules of (pattern, label). Raises PolicyError with every problem."""
    problems: list[str] = []
    if not labels or len(set(labels)) != len(labels):
        problems.append("severity_labels must be a list of different labels, lowest first")
    compiled: list[tuple[re.Pattern[str], str]] = []
    for pattern, label in rules:
        try:
            compiled.append((re.compile(pattern), label))
        except re.error as problem:
            problems.append(f"severity_policy: {pattern!r} is not a regular expression: {problem}")
        if label not in labels:
            problems.append(f"severity_policy: {label!r} is not one of severity_labels")
    if not rules:
        problems.append("severity_policy must have one rule at least")
    if problems:
        raise PolicyError(*problems)
    return SeverityRules(tuple(labels), tuple(compiled))
