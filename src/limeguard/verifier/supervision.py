"""What supervision knows of one node, and the rules it goes by: the data of the machine in `lifecycle`.

Decides what phases there are, what Keylime's number for each is, and how long things last by default. Must not know
events; nothing in here changes a state.
"""

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final

import msgspec

from limeguard.appraisal.verdict import Condition, Integrity, Reachability, condition
from limeguard.policy.severity import SeverityRules
from limeguard.verifier.challenge import retry_delay

# --- state ----------------------------------------------------------------------------------------------------------


class Phase(StrEnum):
    """Where supervision stands. The values are stored."""

    START = "start"
    """Enrolled, reactivated or taken up again; no good round since."""
    ATTESTING = "attesting"
    RETRYING = "retrying"
    PROVIDING_V = "providing-v"
    RETRYING_V = "retrying-v"
    FAILED = "failed"
    """No usable answer; says nothing about integrity."""
    DOUBTED = "doubted"
    """The last evidence was rejected, mildly enough that a good round restores trust."""
    CONDEMNED = "condemned"
    """Evidence was rejected for good: only an operator ends this."""
    STOPPED = "stopped"
    """Stopped by an operator."""
    TERMINATED = "terminated"
    """Being deleted, as soon as the running request is over."""


OPERATIONAL_STATES: Final = {
    Phase.START: 1,
    Phase.ATTESTING: 3,
    Phase.RETRYING: 4,
    Phase.PROVIDING_V: 5,
    Phase.RETRYING_V: 6,
    Phase.FAILED: 7,
    Phase.TERMINATED: 8,
    Phase.DOUBTED: 9,
    Phase.CONDEMNED: 9,
    Phase.STOPPED: 10,
}
"""What Keylime's `operational_state` is for each phase."""

PAUSED: Final = frozenset({Phase.STOPPED, Phase.TERMINATED})
"""Phases in which nobody asks the node anything, because an operator wants it so."""


class Job(Enum):
    """What the node's timer is for, or what runs since it went off."""

    FULL_ROUND = "full-round"
    """Ask for a quote and the transport key."""
    PARTIAL_ROUND = "partial-round"
    """Ask for a quote; the transport key is known."""
    DELIVER_KEY = "deliver-key"
    """Send the V share, encrypted to the transport key."""
    WATCH = "watch"
    """Note that a node which attests by itself has not done so in time. Nothing is asked."""


class Supervision(msgspec.Struct, frozen=True):
    """What supervision knows of a node. Times are seconds since 1970.

    `attempts` counts requests without a usable answer since the last one with, `faults` rounds in a row that failed by
    our own fault. `job` is None where no timer runs. `severity_level` and `last_event_id` name the worst event since
    enrolment or reactivation. `faults`, `key_delivered` and `job` need not be stored: `Restarted` sets them. `push`
    says that the node attests by itself and is never asked.
    """

    phase: Phase = Phase.START
    integrity: Integrity = Integrity.UNKNOWN
    reachability: Reachability = Reachability.UNKNOWN
    trust_expires_at: float | None = None
    proven_at: float | None = None
    attempts: int = 0
    attestation_count: int = 0
    severity_level: int | None = None
    last_event_id: str | None = None
    api_version: str = "2.6"
    has_v: bool = False
    key_delivered: bool = False
    faults: int = 0
    job: Job | None = None
    push: bool = False

    def condition(self, now: float) -> Condition:
        """Return the node's condition at `now`."""
        return condition(
            integrity=self.integrity,
            reachability=self.reachability,
            paused=self.phase in PAUSED,
            trust_expires_at=self.trust_expires_at,
            proven_at=self.proven_at,
            now=now,
        )


# --- rules ----------------------------------------------------------------------------------------------------------

INTERVALS_OF_TRUST: Final = 5
"""Trust outlives this many intervals, as Keylime's `maximum_attestation_interval` says."""
MIN_TRUST: Final = 10.0
"""Seconds that trust lasts at least by default."""
MAX_FAULT_PAUSE: Final = 60.0
"""Seconds at most between tries while the fault is ours: it may be over any moment."""
MIN_PAUSE: Final = 1.0
"""Seconds at least between tries that may go on for ever."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How nodes are supervised; times are seconds. `max_retries` tries follow the first that failed.

    `trust_lifetime` is how long one good round counts. `continue_after_failure` goes on asking failed nodes: one that
    could not be reached may come back by itself, one that was condemned may not, but its findings are collected.
    `auto_recover` lets one good round restore trust in a node that attests by itself, whatever it had failed for.
    """

    quote_interval: float
    retry_interval: float
    exponential_backoff: bool
    max_retries: int
    trust_lifetime: float
    severity: SeverityRules
    continue_after_failure: bool = False
    auto_recover: bool = False

    def pause(self, attempt: int) -> float:
        """Return the seconds to wait after failed attempt number `attempt`."""
        return retry_delay(attempt, self.retry_interval, exponential=self.exponential_backoff)

    def long_pause(self) -> float:
        """Return the seconds between tries to reach a node whose retries are used up."""
        return max(self.pause(max(self.max_retries, 1)), self.quote_interval, MIN_PAUSE)


def default_trust_lifetime(quote_interval: float) -> float:
    """Return how many seconds one good round counts when the operator does not say.

    Five intervals, which is what `maximum_attestation_interval` tells readers on the wire: what is shown as trusted was
    proven within that time. Fleets that ask many times a second get ten seconds, so that one slow answer is not a gap.
    """
    return max(INTERVALS_OF_TRUST * quote_interval, MIN_TRUST)
