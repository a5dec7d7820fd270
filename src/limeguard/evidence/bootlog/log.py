"""The boot log as said: TCG PC Client event logs, of TCG 1.2 (SHA-1 only) and crypto-agile, from bytes to frozen facts.

Gives events; believes nothing that they say. Whether a log is the one that the TPM vouches for, and how much of each
event's data its digest covers, is decided by `limeguard.evidence.bootlog.replay`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from limeguard.crypto.hashes import HashAlgorithm
from limeguard.evidence.bootlog.event_types import NAMES, UNKNOWN

WHAT: Final = "boot log"
MAX_LOG: Final = 4 << 20
"""Bytes of a log. Firmware reserves 64 KiB to 1 MiB for it; logs of real machines stay below 200 KB."""
MAX_EVENTS: Final = 8192
"""Events of a log. Real ones have about a hundred; GRUB adds one for each command of its configuration."""
MAX_EVENT_DATA: Final = 1 << 20
"""Bytes of one event's data. The longest that occur are revocation lists (dbx), some 20 KB."""
MAX_ALGORITHMS: Final = 16
"""Banks that the log has digests of: as many as a TPM's digest list can have (TPM 2.0 Part 2, HASH_COUNT)."""
MAX_PCR: Final = 31


@dataclass(frozen=True, slots=True)
class BootEvent:
    """One record. `digests` has those of known algorithms, in the order of the log; `other_digests` the rest by id."""

    event_num: int
    pcr: int
    type: int
    digests: Mapping[HashAlgorithm, bytes]
    data: bytes
    other_digests: tuple[tuple[int, bytes], ...] = ()

    @property
    def type_name(self) -> str:
        """The name of the type, or `Unknown event type`."""
        return NAMES.get(self.type, UNKNOWN)


@dataclass(frozen=True, slots=True)
class SpecId:
    """What the first record of a crypto-agile log says of the log. `algorithms` are (TPM_ALG_ID, digest size)."""

    platform_class: int
    version_minor: int
    version_major: int
    errata: int
    uintn_size: int
    algorithms: tuple[tuple[int, int], ...]
    vendor_info: bytes


@dataclass(frozen=True, slots=True)
class BootLog:
    """A log as said. `spec_id` is None for a TCG 1.2 log, which has a SHA-1 bank alone.

    `banks` are the known algorithms of which the log has digests. Event 0 of a crypto-agile log is the Spec ID event.
    """

    spec_id: SpecId | None
    banks: tuple[HashAlgorithm, ...]
    events: tuple[BootEvent, ...]


def parse_boot_log(data: bytes) -> BootLog:
    """Parse a log as the kernel gives it in `binary_bios_measurements`. Raises MalformedEvidence."""
    raise NotImplementedError
