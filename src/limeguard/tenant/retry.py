"""How long to wait before trying again: pure arithmetic, the waiting is done by the caller."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Retry:
    """How often to try, and the base of the wait in seconds."""

    tries: int
    interval: float
    exponential: bool

    @property
    def constant_despite_backoff(self) -> bool:
        """Whether back-off was asked for with a base that does not grow; the wait is constant then."""
        return self.exponential and self.interval <= 1

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after a failed attempt, counted from 1."""
        if self.exponential and self.interval > 1:
            return float(self.interval**attempt)
        return abs(self.interval)
