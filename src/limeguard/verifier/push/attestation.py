"""The latest attestation of a node that pushes, from its challenge to its verdict: what is kept of it in memory.

Holds data only. A challenge lives in here and nowhere else, so that a restart can never make it count twice.
"""

from dataclasses import dataclass

from limeguard.wire.attestation_v3 import AWAITING, AttestationView, Requested, Shown
from limeguard.wire.offer_v3 import Offer


@dataclass(slots=True, kw_only=True)
class Attestation:
    """One attestation. Times are seconds since 1970, None while unset.

    `generation` is that of the node when the challenge was made: operators' words since then make it void. `offer` is
    what was offered in `offer_body`: agents say the same again and again. `entries_due` is how many entries of the IMA
    log are to be sent from `offset` on. `body_sha256` is that of the evidence that was taken, so that its repetition is
    known. `judging` says that a verdict is being made. `before` is the last one with a verdict, until this one has one.
    """

    number: int
    generation: int
    offer_body: bytes
    offer: Offer
    challenge: bytes
    requested: tuple[Requested, ...]
    offset: int
    entries_due: int
    boot_time: float | None
    created_at: float
    expires_at: float
    stage: str = AWAITING
    evaluation: str | None = None
    failure_reason: str | None = None
    received_at: float | None = None
    completed_at: float | None = None
    body_sha256: bytes | None = None
    shown: tuple[Shown, ...] | None = None
    judging: bool = False
    before: "Attestation | None" = None

    @property
    def done(self) -> bool:
        """Whether there is a verdict."""
        return self.evaluation is not None

    @property
    def view(self) -> AttestationView:
        """What answers say of it."""
        return AttestationView(
            stage=self.stage,
            requested=self.requested,
            boot_time=self.boot_time,
            created_at=self.created_at,
            expires_at=self.expires_at,
            received_at=self.received_at,
            completed_at=self.completed_at,
            evaluation=self.evaluation,
            failure_reason=self.failure_reason,
            shown=self.shown,
        )
