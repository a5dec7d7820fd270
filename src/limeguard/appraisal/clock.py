"""Whether a TPM's clock and counters moved as only a TPM can move them. TPM 2.0 Part 1 §36, Part 2 §10.11.

Compares two proven readings; must not know what time it is here.
"""

from dataclasses import dataclass
from enum import Enum, auto

from limeguard.appraisal.findings import (
    CLOCK_BACKWARDS,
    CLOCK_RESETS,
    CLOCK_RESTARTS,
    CLOCK_UNSAFE,
    Finding,
    FindingKind,
)
from limeguard.evidence.tpm.structures import ClockInfo


class Since(Enum):
    """What happened to the TPM between two readings."""

    FIRST = auto()
    SAME_BOOT = auto()
    RESUMED = auto()
    REBOOTED = auto()


@dataclass(frozen=True, slots=True)
class ClockStep:
    """The way from one reading to the next, and what is wrong with it."""

    since: Since
    finding: Finding | None = None


_FIRST = ClockStep(Since.FIRST)
_SAME_BOOT = ClockStep(Since.SAME_BOOT)
_RESUMED = ClockStep(Since.RESUMED)
_REBOOTED = ClockStep(Since.REBOOTED)


def check_clock(before: ClockInfo | None, now: ClockInfo) -> ClockStep:
    """Compare a reading with the one before it.

    A first reading, and one after a TPM reset, is the new baseline whatever its clock says: a reset sets restartCount
    to 0, and after a loss of power the clock falls back to what was last saved, with `safe` unset until it has caught
    up. Between resets the clock only rises, restartCount does not fall, and `safe` does not go away.
    """
    if before is None:
        return _FIRST
    if now.reset_count > before.reset_count:
        return _REBOOTED
    if now.reset_count < before.reset_count:
        return _wrong(CLOCK_RESETS, before, now)
    if now.restart_count < before.restart_count:
        return _wrong(CLOCK_RESTARTS, before, now)
    if now.clock <= before.clock:
        return _wrong(CLOCK_BACKWARDS, before, now)
    if before.safe and not now.safe:
        return _wrong(CLOCK_UNSAFE, before, now)
    return _RESUMED if now.restart_count > before.restart_count else _SAME_BOOT


def _wrong(kind: FindingKind, before: ClockInfo, now: ClockInfo) -> ClockStep:
    return ClockStep(Since.SAME_BOOT, Finding(kind, {"before": _text(before), "now": _text(now)}))


def _text(clock: ClockInfo) -> str:
    return f"clock {clock.clock}, resets {clock.reset_count}, restarts {clock.restart_count}, safe {int(clock.safe)}"
