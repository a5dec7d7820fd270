"""What a round came to, and what the world is told of a node at a given time.

An appraisal remembers which checks were required and which ran: silence is not trust, and neither is an empty
requirement. The public condition is computed when it is read, so that a green answer is never older than its expiry.
"""

from dataclasses import dataclass
from enum import StrEnum

from limeguard.appraisal.findings import Finding
from limeguard.appraisal.history import History
from limeguard.evidence.tpm.quote import QuotedPcrs


class Check(StrEnum):
    """One thing that a round can look at."""

    ALGORITHMS = "algorithms"
    QUOTE = "quote"
    CLOCK = "clock"
    TRANSPORT_KEY = "transport-key"
    SELECTION = "selection"
    PCR_POLICY = "pcr-policy"
    IMA_LOG = "ima-log"
    BOOT_LOG = "boot-log"


POLICY_CHECKS = frozenset({Check.PCR_POLICY, Check.IMA_LOG, Check.BOOT_LOG})
"""Checks that compare the node's state with reference values; without any of them only the identity is proven."""


@dataclass(frozen=True, slots=True)
class Appraisal:
    """The outcome of one round. `history` is what the next one builds on; `quoted` is set when the quote held."""

    required: frozenset[Check]
    ran: frozenset[Check]
    findings: tuple[Finding, ...]
    history: History
    quoted: QuotedPcrs | None = None
    rebooted: bool = False

    @property
    def trusted(self) -> bool:
        """Whether everything that was required ran, and nothing was found."""
        return bool(self.required) and self.required <= self.ran and not self.findings

    @property
    def identity_only(self) -> bool:
        """Whether nothing but the TPM's identity was asked for."""
        return not self.required & POLICY_CHECKS


class Integrity(StrEnum):
    """What the last appraisal said."""

    PENDING = "pending"
    TRUSTED = "trusted"
    DISTRUSTED = "distrusted"


class Reachability(StrEnum):
    """Whether the last try to reach the agent had an answer."""

    UNKNOWN = "unknown"
    REACHABLE = "reachable"
    UNREACHABLE = "unreachable"


class Condition(StrEnum):
    """The one word for a node."""

    TRUSTED = "trusted"
    DISTRUSTED = "distrusted"
    STALE = "stale"
    UNREACHABLE = "unreachable"
    PENDING = "pending"
    PAUSED = "paused"


def condition(
    *, integrity: Integrity, reachability: Reachability, trust_expires_at: float | None, paused: bool, now: float
) -> Condition:
    """Return the condition at `now` (seconds since 1970). Trust without an expiry, or past it, is no trust."""
    if paused:
        return Condition.PAUSED
    if integrity is Integrity.DISTRUSTED:
        return Condition.DISTRUSTED
    if integrity is Integrity.TRUSTED and trust_expires_at is not None and now < trust_expires_at:
        return Condition.TRUSTED
    if reachability is Reachability.UNREACHABLE:
        return Condition.UNREACHABLE
    return Condition.STALE if integrity is Integrity.TRUSTED else Condition.PENDING
