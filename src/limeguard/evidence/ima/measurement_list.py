"""The measurement list in its two forms: `ascii_runtime_measurements` and `binary_runtime_measurements`.

Gives entries; believes nothing that they say. Whether a list is the one that the TPM vouches for is decided by replay.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Final

from limeguard.crypto.hashes import SHA1, HashAlgorithm
from limeguard.evidence.ima.templates import (
    IMA,
    MAX_LEGACY_NAME,
    Entry,
    entry_from_data,
    entry_from_text,
    hex_bytes,
    template_of,
)
from limeguard.evidence.reader import MalformedEvidence

MAX_CONTINUATIONS: Final = 8
"""Line ends in one file name. The kernel writes them raw, so an entry may span lines; more are not looked for."""
MAX_TEMPLATE_DATA: Final = 16 << 20
"""Bytes of one entry in the binary list; a measured buffer may be a kernel command line or a small policy."""
_MAX_TEMPLATE_NAME: Final = 256
_FIELDS: Final = 4
_HEAD: Final = struct.Struct("<I")


def parse_line(line: bytes) -> Entry:
    """Return the entry in one line of the ASCII list, without its line end. Raises MalformedEvidence.

    The fields are split at single spaces from the left; a space at the end is the empty last field and has meaning.
    """
    parts = line.split(b" ", _FIELDS - 1)
    if len(parts) != _FIELDS:
        raise MalformedEvidence("line", f"has {len(parts)} of {_FIELDS} fields")
    pcr, digest, name, text = parts
    return entry_from_text(pcr, hex_bytes(digest, "template digest"), template_of(name), text)


def entry_at(lines: Sequence[bytes], index: int, log_hash: HashAlgorithm, *, joined: bool = True) -> tuple[Entry, int]:
    """Return the entry that begins in line `index`, and how many lines it spans. Raises MalformedEvidence.

    A file name may hold line ends. So where a line alone does not fit its own template digest, the lines after it are
    taken to be more of it if, and only if, the digest then fits; without such a fit the line stands alone.
    With `joined` False they are not looked at.
    """
    problem: MalformedEvidence | None = None
    alone: Entry | None = None
    try:
        alone = parse_line(lines[index])
    except MalformedEvidence as malformed:
        problem = malformed
    else:
        if alone.violates(log_hash.size) or fits(alone, log_hash):
            return alone, 1
    most = MAX_CONTINUATIONS if joined else 0
    for count in range(2, min(most + 2, len(lines) - index + 1)):
        try:
            whole = parse_line(b"\n".join(lines[index : index + count]))
        except MalformedEvidence:
            continue
        if whole.pcr.isdigit() and fits(whole, log_hash):
            return whole, count
    if alone is not None:
        return alone, 1
    raise problem or MalformedEvidence("line", "cannot be read")


def fits(entry: Entry, log_hash: HashAlgorithm) -> bool:
    """Say whether an entry's template digest is the hash of its template data."""
    return log_hash.digest(entry.data) == entry.template_digest


def parse_binary(data: bytes, digest_algorithm: HashAlgorithm = SHA1) -> Iterator[Entry]:
    """Yield the entries of a binary list (little-endian), whose digests are of one algorithm. Raises MalformedEvidence.

    Layout of an entry: u32 PCR, template digest, u32 length and name of the template, u32 length and template data. The
    template `ima` has no length of its data: a 20-byte digest, u32 length and name follow.
    """
    start = 0
    while start < len(data):
        entry, start = _binary_entry(data, start, digest_algorithm.size)
        yield entry


def _binary_entry(data: bytes, start: int, size: int) -> tuple[Entry, int]:
    pcr, start = _u32(data, start, "pcr")
    digest, start = _take(data, start, size, "template digest")
    length, start = _u32(data, start, "template name length")
    if length > _MAX_TEMPLATE_NAME:
        raise MalformedEvidence("template name length", f"{length} bytes are too many")
    name, start = _take(data, start, length, "template name")
    template = template_of(name)
    if template is IMA:
        return _legacy_entry(data, start, pcr, digest)
    length, start = _u32(data, start, "template data length")
    if length > MAX_TEMPLATE_DATA:
        raise MalformedEvidence("template data length", f"{length} bytes are too many")
    fields, start = _take(data, start, length, "template data")
    return entry_from_data(pcr, digest, template, fields), start


def _legacy_entry(data: bytes, start: int, pcr: int, digest: bytes) -> tuple[Entry, int]:
    measured, start = _take(data, start, SHA1.size, "digest")
    length, start = _u32(data, start, "name length")
    if length > MAX_LEGACY_NAME + 1:
        raise MalformedEvidence("name length", f"{length} bytes are too many")
    name, start = _take(data, start, length, "name")
    hashed = measured + name.ljust(MAX_LEGACY_NAME + 1, b"\0")
    return Entry(str(pcr).encode(), digest, IMA.name, hashed, SHA1.name, measured, name.rstrip(b"\0")), start


def _u32(data: bytes, start: int, place: str) -> tuple[int, int]:
    raw, end = _take(data, start, _HEAD.size, place)
    return int(_HEAD.unpack(raw)[0]), end


def _take(data: bytes, start: int, count: int, place: str) -> tuple[bytes, int]:
    if start + count > len(data):
        raise MalformedEvidence(place, f"needs {count} bytes, {len(data) - start} are left")
    return data[start : start + count], start + count
