"""What one round with a node hands to the next. Holds proven facts only; how they are used is decided by the checks."""

import msgspec

from limeguard.appraisal.ima.history import NO_IMA, ImaHistory
from limeguard.evidence.tpm.structures import ClockInfo


class History(msgspec.Struct, frozen=True):
    """What earlier rounds proved. None: nothing yet.

    `public_key` is the agent's transport key as PEM text, exactly as it was sent and bound. `ima` is what was proven of
    the IMA log, `boottime` the start of the machine in seconds since 1970, 0 when the agent did not say.
    """

    clock: ClockInfo | None = None
    public_key: str | None = None
    ima: ImaHistory = NO_IMA
    boottime: int = 0


NO_HISTORY = History()
