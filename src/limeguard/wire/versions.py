"""API versions: what is advertised, what paths are served, and how two sides agree."""

import re
from collections.abc import Iterable
from typing import Final

SUPPORTED: Final = ("1.0", "2.0", "2.1", "2.2", "2.3", "2.4", "2.5", "2.6", "3.0")
"""What the servers advertise. 1.0 stands there for peers that look for it; no path serves it."""
CURRENT: Final = "2.6"
AGENT_VERSIONS: Final = ("2.1", "2.2", "2.3", "2.4", "2.5", "2.6")
"""What a pull agent speaks, oldest first."""
UNSUPPORTED: Final = "API version not supported"
"""What an agent's refusal of a version begins with; servers look for exactly this."""

PREFIXES: Final = {f"v{version}": "v2" for version in ("2", "2.0", *AGENT_VERSIONS)} | {"v3": "v3", "v3.0": "v3"}
"""First path segment as sent -> the one that route patterns name."""

_VERSION = re.compile(r"([0-9]{1,3})\.([0-9]{1,3})")


def parse_version(text: str) -> tuple[int, int] | None:
    """Return major and minor of `2.6`, or None for anything else."""
    match = _VERSION.fullmatch(text)
    return (int(match[1]), int(match[2])) if match else None


def negotiate(mine: Iterable[str], theirs: Iterable[str]) -> str | None:
    """Return the newest version that both sides have, or None. Texts that are no versions count for nothing."""
    common = {parsed: text for text in set(mine) & set(theirs) if (parsed := parse_version(text)) is not None}
    return common[max(common)] if common else None


def is_older(version: str, than: str) -> bool:
    """Say whether a version is older than another; what is no version is older than all."""
    return (parse_version(version) or (0, 0)) < (parse_version(than) or (0, 0))
