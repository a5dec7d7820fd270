"""The whole log in the shape that `tpm2_eventlog` prints and that Keylime's policies see."""

from typing import Any

from limeguard.evidence.bootlog.log import BootEvent, BootLog


def enriched_event(event: BootEvent, log: BootLog) -> dict[str, Any]:
    """Return one member of `events`."""
    raise NotImplementedError


def enriched(log: BootLog) -> dict[str, Any]:
    """Return `version`, `events`, `pcrs` and `boot_aggregates`. PCR indices are text, values and digests are hex."""
    raise NotImplementedError
