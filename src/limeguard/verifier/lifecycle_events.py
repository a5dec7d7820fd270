"""What may happen to a supervised node, and what may follow from it: the events and effects of `lifecycle`.

Data only. Events carry the time; effects are done by the caller, in order.
"""

from dataclasses import dataclass
from enum import StrEnum

import msgspec

from limeguard.appraisal.findings import Finding
from limeguard.verifier.supervision import Job, Supervision

# --- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The node's row is stored; begin."""


@dataclass(frozen=True, slots=True)
class Restarted:
    """The verifier started and found the node stored in this state."""


class RoundTrusted(msgspec.Struct, frozen=True):
    """A round ended with a trusted appraisal at `at`. `new_key`: the transport key is not the one known before."""

    at: float
    new_key: bool = False


@dataclass(frozen=True, slots=True)
class RoundDistrusted:
    """A round ended with findings, at least one."""

    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Unreachable:
    """The request of the running job got no answer, or one of the statuses that count as none (408, 500, 599)."""

    reason: str


@dataclass(frozen=True, slots=True)
class UnexpectedStatus:
    """The request of the running job was refused with this HTTP status."""

    status: int


@dataclass(frozen=True, slots=True)
class VersionAnswered:
    """The agent did not know the API version and was asked for its own: the newest common one, None where none is."""

    version: str | None


@dataclass(frozen=True, slots=True)
class OurFault:
    """The running job failed inside this verifier or its database."""

    reason: str


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """It is `at`, and the time has come at which a node that attests by itself should have done so again."""

    at: float


@dataclass(frozen=True, slots=True)
class KeyDelivered:
    """The agent took the V share."""


@dataclass(frozen=True, slots=True)
class KeyDeliveryFailed:
    """The V share cannot be delivered at all, as when the transport key takes no encryption."""

    reason: str


@dataclass(frozen=True, slots=True)
class Reactivated:
    """An operator wants the node supervised afresh."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """An operator wants the node left alone."""


@dataclass(frozen=True, slots=True)
class DeleteRequested:
    """An operator wants the node forgotten. `busy`: a request to it is running."""

    busy: bool


Result = (
    RoundTrusted
    | RoundDistrusted
    | Unreachable
    | UnexpectedStatus
    | VersionAnswered
    | OurFault
    | KeyDelivered
    | KeyDeliveryFailed
)
"""What a job came to."""
Event = Result | Enrolled | Restarted | Reactivated | StopRequested | DeleteRequested | DeadlinePassed

# --- effects --------------------------------------------------------------------------------------------------------


class Schedule(msgspec.Struct, frozen=True):
    """Start the job in `after` seconds. Takes the place of any timer of the node."""

    after: float
    job: Job


@dataclass(frozen=True, slots=True)
class Watch:
    """Look at `until` (seconds since 1970) whether the node has attested. Takes the place of any timer of the node."""

    until: float


@dataclass(frozen=True, slots=True)
class Unschedule:
    """Take the node's timer away, if there is one."""


@dataclass(frozen=True, slots=True)
class Persist:
    """Store the state: at once, before anyone is told, when something changed that readers see; else with others."""

    now: bool


class NoticeKind(StrEnum):
    """The type of a notice on the wire."""

    REVOCATION = "revocation"
    COMM_ERROR = "comm_error"


@dataclass(frozen=True, slots=True)
class Notify:
    """Send a notice about this finding."""

    kind: NoticeKind
    finding: Finding
    level: int
    label: str


@dataclass(frozen=True, slots=True)
class SupervisionEnded:
    """Say in the log that the node is not asked any more, for this finding."""

    finding: Finding


@dataclass(frozen=True, slots=True)
class Alarm:
    """Tell the operators of this verifier that it failed, `faults` times in a row with this node."""

    reason: str
    faults: int


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete the node's row and forget it."""


Effect = Schedule | Watch | Unschedule | Persist | Notify | SupervisionEnded | Alarm | Remove


class Step(msgspec.Struct, frozen=True):
    """Where the node is now, and what to do about it, in order."""

    state: Supervision
    effects: tuple[Effect, ...] = ()
