"""What one evaluation of a measurement list hands to the next. Holds proven facts only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from limeguard.appraisal.ima.devices import NO_DEVICES, DeviceStates
from limeguard.policy.keyring import Keyring

Keyrings = Mapping[bytes, Keyring]
"""Keyrings by their names in the list."""
NO_KEYRINGS: Final[Keyrings] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ImaHistory:
    """What earlier rounds proved of a node's list.

    `next_entry` is the number of the first line that is not proven yet (0-based), `pcr` the value of PCR 10 before it,
    None before the first. `keyrings` are keys that proven lines loaded. `progress` is (lines matched, lines sent) of
    the last round. `devices` are those that proven events of the device mapper made.
    """

    next_entry: int = 0
    pcr: bytes | None = None
    keyrings: Keyrings = field(default_factory=lambda: NO_KEYRINGS)
    progress: tuple[int, int] | None = None
    devices: DeviceStates = NO_DEVICES


NO_IMA: Final = ImaHistory()
