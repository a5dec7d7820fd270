"""Proven events against rules of our own; to be filled."""

from collections.abc import Iterator
from dataclasses import dataclass

from limeguard.appraisal.findings import ContextValue
from limeguard.evidence.bootlog.replay import ReplayedBootLog
from limeguard.policy.boot.rules import BootRules


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the rules refuse, in a sentence that names the event."""

    message: str
    event_num: int | None = None
    pcr: int | None = None
    event_type: str = ""

    def context(self) -> dict[str, ContextValue]:
        """Return what a finding keeps of it."""
        named: dict[str, ContextValue] = {"message": self.message}
        if self.event_num is not None and self.pcr is not None:
            named |= {"event": self.event_num, "pcr": self.pcr, "type": self.event_type}
        return named


def refusals(rules: BootRules, replayed: ReplayedBootLog) -> Iterator[Refusal]:
    """Yield what the rules do not allow."""
    raise NotImplementedError
