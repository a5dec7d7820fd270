"""Files that are booted: their digests as firmware measures them, and the versions that they say they have.

A log names digests and paths, never versions. Who has the files can let policies and differences say `shim 15.8`.
"""

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from limeguard.authoring.policy.collected import SourceError

BANKS: Final = ("sha1", "sha256", "sha384", "sha512")
MAX_FILE: Final = 1 << 30
_PE_OFFSET: Final = 0x3C
_CHECKSUM: Final = 64
"""Place of the checksum in the optional header, which no digest covers."""
_CERTIFICATES: Final = {0x10B: 128, 0x20B: 144}
"""Place of the entry for the certificate table in the optional header, by its magic: PE32 and PE32+."""
_SECTION: Final = struct.Struct("<8sIIII12xI")
_KERNEL_MAGIC: Final = slice(0x202, 0x206)


def names_of(path: Path) -> dict[str, str]:
    """Return what the digests of a file are: of the file itself, and of the image as firmware measures it.

    Raises SourceError.
    """
    try:
        if path.stat().st_size > MAX_FILE:
            raise SourceError(f"{path} is larger than {MAX_FILE >> 20} MiB")
        data = path.read_bytes()
    except OSError as problem:
        raise SourceError(f"An error occurred: {problem}") from None
    pieces = authenticode_pieces(data)
    label = _label(path.name, data, pieces is not None)
    found = {hashlib.new(bank, data).hexdigest(): label for bank in BANKS}
    if pieces is not None:
        for bank in BANKS:
            digest = hashlib.new(bank)
            for piece in pieces:
                digest.update(piece)
            found[digest.hexdigest()] = label
    return found


def authenticode_pieces(data: bytes) -> list[memoryview] | None:
    """Return the parts of a PE image that its Authenticode digest covers, None for what is no PE image.

    All but the checksum, the place of the certificate table and that table itself; sections in the order of the file.
    """
    try:
        (start,) = struct.unpack_from("<I", data, _PE_OFFSET)
        if data[:2] != b"MZ" or data[start : start + 4] != b"PE\0\0":
            return None
        count, size = struct.unpack_from("<2xH12xH", data, start + 4)
        optional = start + 24
        (magic,) = struct.unpack_from("<H", data, optional)
        place = optional + _CERTIFICATES[magic]
        (headers,) = struct.unpack_from("<I", data, optional + 60)
        _, certificates = struct.unpack_from("<II", data, place)
        sections = sorted(_sections(data, optional + size, count))
    except (struct.error, KeyError):
        return None
    view = memoryview(data)
    pieces = [view[: optional + _CHECKSUM], view[optional + _CHECKSUM + 4 : place], view[place + 8 : headers]]
    done = headers
    for first, length, _ in sections:
        pieces.append(view[first : first + length])
        done += length
    pieces.append(view[done : len(data) - certificates])
    return pieces


def _sections(data: bytes, start: int, count: int) -> Iterator[tuple[int, int, bytes]]:
    for index in range(count):
        name, _, _, length, first, _ = _SECTION.unpack_from(data, start + 40 * index)
        if length:
            yield first, length, name.rstrip(b"\0")


def _label(name: str, data: bytes, is_image: bool) -> str:
    version = (_sbat_version(data) or _kernel_version(data)) if is_image else ""
    return f"{version} ({name})" if version else name


def _sbat_version(data: bytes) -> str:
    """Return component and version of the last line of the `.sbat` section: that of who built it."""
    (start,) = struct.unpack_from("<I", data, _PE_OFFSET)
    count, size = struct.unpack_from("<2xH12xH", data, start + 4)
    for first, length, name in _sections(data, start + 24 + size, count):
        if name == b".sbat":
            text = data[first : first + length].rstrip(b"\0").decode("ascii", "replace")
            rows = [line.split(",") for line in text.splitlines() if not line.startswith("sbat,")]
            full = [row for row in rows if len(row) > 4]
            return f"{full[-1][0].partition('.')[0]} {full[-1][4]}" if full else ""
    return ""


def _kernel_version(data: bytes) -> str:
    """Return the version in the header of a Linux kernel for x86."""
    if data[_KERNEL_MAGIC] != b"HdrS" or len(data) < 0x210:
        return ""
    (pointer,) = struct.unpack_from("<H", data, 0x20E)
    text = data[0x200 + pointer : 0x200 + pointer + 128].split(b"\0")[0].decode("ascii", "replace")
    return f"kernel {text.partition(' ')[0]}"
