"""What an appraisal says, and what a node's condition is at a given moment.

Decides how checks combine to trust, and how integrity, reachability and time combine to the one word that readers see.
Must not know how any check works or how a node is supervised.
"""

from enum import StrEnum
from typing import Final

import msgspec

from limeguard.appraisal.clock import Since
from limeguard.appraisal.findings import Finding
from limeguard.appraisal.history import History
from limeguard.evidence.tpm.quote import QuotedPcrs


class Check(StrEnum):
    """One thing that an appraisal can look at. The values are stored and shown; they keep their meaning."""

    ALGORITHMS = "algorithms"
    QUOTE_SIGNATURE = "quote-signature"
    FRESHNESS = "freshness"
    CLOCK = "clock"
    TRANSPORT_KEY = "transport-key"
    PCR_SELECTION = "pcr-selection"
    PCR_POLICY = "pcr-policy"
    IMA_LOG = "ima-log"
    BOOT_LOG = "boot-log"


Checks = frozenset[Check]

IDENTITY_CHECKS: Final[Checks] = frozenset(
    {
        Check.ALGORITHMS,
        Check.QUOTE_SIGNATURE,
        Check.FRESHNESS,
        Check.CLOCK,
        Check.TRANSPORT_KEY,
        Check.PCR_SELECTION,
    }
)
"""What is asked of every node: that its own TPM answers now, and which transport key it vouches for."""
STATE_CHECKS: Final[Checks] = frozenset({Check.PCR_POLICY, Check.IMA_LOG, Check.BOOT_LOG})
"""What says something about the software on the node. A node of which none is asked is attested for identity only."""


class Outcome(StrEnum):
    """What a round comes to."""

    TRUSTED = "trusted"
    DISTRUSTED = "distrusted"
    INCOMPLETE = "incomplete"
    """Nothing wrong was found, but not everything that is required was looked at: our own fault, and never trust."""


class Appraisal(msgspec.Struct, frozen=True):
    """The result of one round: which checks were required, which ran, what they found, what the next round builds on.

    `history` is the one to keep. `quoted` are the proven PCR values, None when the quote proved none. `since` says
    whether the TPM was reset or resumed since the last proven reading. `new_key`: the transport key differs from the
    one known before, and is proven.
    """

    required: Checks
    ran: Checks
    findings: tuple[Finding, ...]
    history: History
    quoted: QuotedPcrs | None = None
    since: Since | None = None
    new_key: bool = False

    @property
    def trusted(self) -> bool:
        """Whether something was required, all of it ran, and nothing was found."""
        return bool(self.required) and self.required <= self.ran and not self.findings

    @property
    def outcome(self) -> Outcome:
        """What the round comes to."""
        if self.findings:
            return Outcome.DISTRUSTED
        return Outcome.TRUSTED if self.trusted else Outcome.INCOMPLETE

    @property
    def not_run(self) -> Checks:
        """The required checks that did not run."""
        return self.required - self.ran

    @property
    def identity_only(self) -> bool:
        """Whether nothing was asked about the software on the node."""
        return not self.required & STATE_CHECKS


class Integrity(StrEnum):
    """What the last proof said. It is kept while a node cannot be reached, and time takes trust away from it."""

    UNKNOWN = "unknown"
    TRUSTED = "trusted"
    DISTRUSTED = "distrusted"


class Reachability(StrEnum):
    """Whether the agent gave a usable answer to the last request."""

    UNKNOWN = "unknown"
    REACHABLE = "reachable"
    UNREACHABLE = "unreachable"


class Condition(StrEnum):
    """The one word for a node at a moment. Only `trusted` is good."""

    TRUSTED = "trusted"
    DISTRUSTED = "distrusted"
    STALE = "stale"
    UNREACHABLE = "unreachable"
    PENDING = "pending"
    PAUSED = "paused"


CLOCK_TOLERANCE: Final = 10.0
"""Seconds by which the clocks of the hosts that write and read a record may differ."""


def condition(
    *,
    integrity: str,
    reachability: str,
    paused: bool,
    trust_expires_at: float | None,
    proven_at: float | None,
    now: float,
) -> Condition:
    """Return the condition at `now` of a node with these stored fields. Times are seconds since 1970.

    Nothing is trusted but an unexpired proof of a node that answers. A proof from the future (the clock was set back)
    would expire too late, so it counts for nothing. Texts that are none of the known values never read as trusted.
    """
    if paused:
        return Condition.PAUSED
    if integrity == Integrity.DISTRUSTED:
        return Condition.DISTRUSTED
    if reachability == Reachability.UNREACHABLE:
        return Condition.UNREACHABLE
    if integrity != Integrity.TRUSTED:
        return Condition.PENDING
    if trust_expires_at is None or proven_at is None:
        return Condition.STALE
    fresh = proven_at - CLOCK_TOLERANCE <= now < trust_expires_at
    return Condition.TRUSTED if fresh and reachability == Reachability.REACHABLE else Condition.STALE
