"""Sources that are text: flat allowlists, exclude lists, and measurement lists."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from limeguard.authoring.policy.collected import Digests, SourceError, add, logged
from limeguard.policy.keyring import is_certificate

LENGTHS: Final = {40: "sha1", 64: "sha256", 96: "sha384", 128: "sha512"}
AMBIGUOUS: Final = frozenset({"sha256", "sm3_256"})
_SIZES: Final = {"sha1": 40, "sha256": 64, "sha384": 96, "sha512": 128, "sm3_256": 64}
_ENTRY: Final = 5
_BUFFER_ENTRY: Final = 6


@dataclass(frozen=True, slots=True)
class Measured:
    """What a measurement list says: files, keys on keyrings, other buffers, and the algorithm of its first entry.

    `algorithm` is None for a list that does not begin with a `boot_aggregate` of a known algorithm.
    """

    digests: Digests = field(default_factory=dict)
    keyrings: Digests = field(default_factory=dict)
    buffers: Digests = field(default_factory=dict)
    algorithm: str | None = None


def read_text(path: str) -> str:
    """Return the text of a file; bytes that are not UTF-8 become lone surrogates. Raises OSError."""
    return Path(path).read_text(encoding="utf-8", errors="surrogateescape")


def flat_allowlist(text: str) -> Digests:
    """Read lines of digest and path, as `sha256sum` prints them; a blank in a path is written as the kernel logs it.

    `sha256sum` begins a line with a backslash when it had to escape something in the name, and marks binary mode with
    an asterisk before it.
    """
    digests: Digests = {}
    for line in text.split("\n"):
        digest, _, path = re.sub(r"\s+", " ", line.strip(), count=1).partition(" ")
        if digest.startswith("\\"):
            digest, path = digest[1:], _ESCAPED.sub(lambda found: _ESCAPES[found[1]], path)
        if digest and path:
            add(digests, logged(path.removeprefix("*") if path.startswith("*/") else path), digest)
    return digests


_ESCAPES: Final = {"\\": "\\", "n": "\n", "r": "\r"}
_ESCAPED: Final = re.compile(r"\\([\\nr])")


def exclude_list(text: str) -> list[str]:
    """Read patterns, one a line."""
    return [line for raw in text.splitlines() if (line := raw.strip())]


def measurement_list(text: str) -> Measured:
    """Read an ASCII measurement list: entries of ima-ng, ima-sig and ima-buf."""
    lines = [line for line in text.split("\n") if line]
    found = Measured(algorithm=_algorithm(lines[0]) if lines else None)
    for line in lines:
        parts = line.split(" ")
        if len(parts) >= _ENTRY and parts[2] in {"ima-ng", "ima-sig"}:
            _, separator, digest = parts[3].rpartition(":")
            if separator:
                add(found.digests, parts[4], digest)
        elif len(parts) == _BUFFER_ENTRY and parts[2] == "ima-buf":
            _buffer(found, parts)
    return found


def _buffer(found: Measured, parts: list[str]) -> None:
    try:
        data = bytes.fromhex(parts[5])
    except ValueError:
        return
    digest = parts[3].rpartition(":")[2]
    add(found.keyrings if is_certificate(data) else found.buffers, parts[4], digest)


def _algorithm(line: str) -> str | None:
    parts = line.split(" ")
    if len(parts) < _ENTRY or parts[4] != "boot_aggregate" or parts[2] not in {"ima", "ima-ng", "ima-sig"}:
        return None
    name, separator, digest = parts[3].rpartition(":")
    if not separator:
        return LENGTHS.get(len(digest))
    return name if _SIZES.get(name) == len(digest) else None


def algorithm_of(digests: Digests) -> str | None:
    """Return the algorithm that the length of the first digest tells; "sha256" stands for both of its length.

    Raises SourceError for a length that no algorithm has; None when there is no digest.
    """
    first = next((values[0] for values in digests.values() if values), None)
    if first is None:
        return None
    algorithm = LENGTHS.get(len(first))
    if algorithm is None:
        raise SourceError("invalid")
    return algorithm
