"""Digests of files from RPM packages: the package's header has them, so nothing has to be unpacked.

(Layout: RPM V3/V4 package format. A lead, a signature header, a header of tagged values.) Reads what it is given and
never believes a length; whether a repository is signed is checked by `gpgv`, which distributions bring.
"""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from limeguard.authoring.policy.collected import Digests, SourceError, add, logged
from limeguard.authoring.policy.openpgp import check_detached
from limeguard.telemetry import get_logger

log = get_logger("keylime.policy")

UNSIGNED: Final = "Warning. Unsigned repository. Continuing the RPM scanning"

_LEAD: Final = 96
_LEAD_MAGIC: Final = b"\xed\xab\xee\xdb"
_MAGIC: Final = b"\x8e\xad\xe8\x01"
_INTRO: Final = struct.Struct(">4s4xII")
_INDEX: Final = struct.Struct(">IIII")
_MAX_ENTRIES: Final = 65_536
_MAX_DATA: Final = 256 << 20
_INT32: Final = 4
_STRING_ARRAY: Final = 8
_DIGESTS, _DIR_INDEXES, _BASE_NAMES, _DIR_NAMES = 1035, 1116, 1117, 1118
_WANTED: Final = frozenset({_DIGESTS, _DIR_INDEXES, _BASE_NAMES, _DIR_NAMES})


class TruncatedError(ValueError):
    """The package ends within its headers."""


def local_repository(folder: str) -> Digests:
    """Return the digests of the files of every package below a repository's directory. Raises SourceError."""
    root = Path(folder)
    repomd = root / "repodata" / "repomd.xml"
    if not repomd.is_file():
        raise SourceError(f"{folder} is no RPM repository: there is no repodata/repomd.xml in it")
    _check_signature(repomd)
    digests: Digests = {}
    for path in sorted(root.rglob("*.rpm")):
        try:
            with path.open("rb") as file:
                found = list(package_digests(file.read(_MAX_DATA)))
        except (OSError, ValueError) as problem:
            raise SourceError(f"The package {path} cannot be read: {problem}") from None
        for name, digest in found:
            add(digests, name, digest)
    return digests


def package_digests(package: bytes) -> Iterator[tuple[str, str]]:
    """Yield path and digest of each regular file of a package. Raises ValueError."""
    if len(package) < _LEAD:
        raise TruncatedError("it ends within its lead")
    if package[:4] != _LEAD_MAGIC:
        raise ValueError("it does not begin as an RPM package does")
    _, end = _header(package, _LEAD)
    values, _ = _header(package, end + -end % 8)
    names, folders = values.get(_BASE_NAMES, []), values.get(_DIR_NAMES, [])
    indexes, digests = values.get(_DIR_INDEXES, []), values.get(_DIGESTS, [])
    if not len(names) == len(indexes) == len(digests) or any(index >= len(folders) for index in indexes):
        raise ValueError("its lists of files do not fit each other")
    for name, index, digest in zip(names, indexes, digests, strict=True):
        if digest and digest.strip("0"):  # folders and links have none, ghost files zeros
            yield logged(f"{folders[index]}{name}"), digest.lower()


def _header(package: bytes, start: int) -> tuple[Mapping[int, list[Any]], int]:
    """Return the wanted values of the header at `start`, and where it ends."""
    if start + _INTRO.size > len(package):
        raise TruncatedError("it ends before a header")
    magic, count, size = _INTRO.unpack_from(package, start)
    if magic != _MAGIC or count > _MAX_ENTRIES or size > _MAX_DATA:
        raise ValueError("there is no header where one should be")
    data = start + _INTRO.size + count * _INDEX.size
    if data + size > len(package):
        raise TruncatedError("it ends within a header")
    store = package[data : data + size]
    values: dict[int, list[Any]] = {}
    for number in range(count):
        tag, kind, offset, length = _INDEX.unpack_from(package, start + _INTRO.size + number * _INDEX.size)
        if tag in _WANTED:
            values[tag] = _values(store, kind, offset, length)
    return values, data + size


def _values(store: bytes, kind: int, offset: int, length: int) -> list[Any]:
    if offset > len(store) or length > len(store):
        raise ValueError("a value lies outside of its header")
    if kind == _INT32:
        if offset + 4 * length > len(store):
            raise ValueError("a value lies outside of its header")
        return list(struct.unpack_from(f">{length}I", store, offset))
    if kind == _STRING_ARRAY:
        texts = store[offset:].split(b"\0", length)
        if len(texts) <= length:
            raise ValueError("a list of texts ends too early")
        return [text.decode("utf-8", "surrogateescape") for text in texts[:length]]
    raise ValueError(f"a value of the unexpected kind {kind}")


def _check_signature(repomd: Path) -> None:
    signature, key = repomd.with_name("repomd.xml.asc"), repomd.with_name("repomd.xml.key")
    if not signature.exists():
        log.warning(UNSIGNED)
        return
    if not key.exists():
        raise SourceError(f"Error. Key file {key} missing")
    check_detached(repomd.read_bytes(), signature.read_bytes(), key.read_bytes())
