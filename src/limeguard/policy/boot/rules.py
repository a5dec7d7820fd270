"""Our own policy format; to be filled."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from limeguard.policy.errors import PolicyError

MARK: Final = "limeguard_boot_policy"


@dataclass(frozen=True, slots=True)
class BootRules:
    """What a node may boot."""

    pcrs: frozenset[int]


def parse_boot_rules(document: Mapping[str, Any]) -> BootRules:
    """Read a document. Raises PolicyError."""
    raise PolicyError(f"version {document[MARK]!r} of {MARK} is not known")
