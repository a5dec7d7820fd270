"""Digests of the files in initial RAM disks: cpio archives, one behind another, packed in the ways that kernels know.

Everything happens in memory and nothing is unpacked to disk. Archives are bounded, as a damaged one announces anything.
"""

import bz2
import gzip
import hashlib
import io
import lzma
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

import lz4.frame
import zstandard

from limeguard.authoring.policy.collected import Digests, SourceError, add, logged

MAX_UNPACKED: Final = 4 << 30
"""Bytes of one unpacked archive; a large one with firmware has some hundred MiB."""
_MAGICS: Final = (b"070701", b"070702")
_HEADER: Final = 110
_TRAILER: Final = b"TRAILER!!!"
_CHUNK: Final = 1 << 20
_LZ4_LEGACY: Final = b"\x02\x21\x4c\x18"
_LZ4_BLOCK: Final = 8 << 20
_MAX_NAME: Final = 4_096

UNPACKING: Final = (OSError, EOFError, ValueError, RuntimeError, lzma.LZMAError, zstandard.ZstdError)
"""What reading `unpacked` may raise."""

Opener = Callable[[IO[bytes]], IO[bytes]]


def collect(folder: str, algorithm: str) -> Digests:
    """Return the digests of the files in every `initr…` of a directory. Raises SourceError."""
    try:
        images = sorted(path for path in Path(folder).iterdir() if path.name.startswith("initr") and path.is_file())
    except OSError as problem:
        raise SourceError(f"The initrds cannot be listed: {problem}") from None
    digests: Digests = {}
    for image in images:
        try:
            for name, digest in image_digests(image.read_bytes(), algorithm):
                add(digests, name, digest)
        except UNPACKING as problem:
            raise SourceError(f"The initrd {image} cannot be read: {problem}") from None
    return digests


def image_digests(image: bytes, algorithm: str) -> Iterator[tuple[str, str]]:
    """Yield path and digest of each regular file of the main archive. Raises what decompressors raise."""
    yield from archive_digests(unpacked(io.BytesIO(image[main_archive(image) :])), algorithm)


def main_archive(image: bytes) -> int:
    """Return where the main archive begins: behind an early one, if there is one, which holds no programs."""
    if image[:6] not in _MAGICS:
        return 0
    place = 0
    while place + _HEADER <= len(image) and image[place : place + 6] in _MAGICS:
        size, name_size = int(image[place + 54 : place + 62], 16), int(image[place + 94 : place + 102], 16)
        name = image[place + _HEADER : place + _HEADER + name_size].rstrip(b"\0")
        place = _padded(_padded(place + _HEADER + name_size) + size)
        if name == _TRAILER:
            break
    while place < len(image) and image[place] == 0:
        place += 1
    return place if place < len(image) else 0


def unpacked(packed: IO[bytes]) -> IO[bytes]:
    """Return the archive in `packed`, decompressed while it is read."""
    start = packed.read(8)
    packed.seek(0)
    for magic, opened in _FORMATS.items():
        if start.startswith(magic):
            return opened(packed)
    if start.startswith(b"\x89LZO"):
        raise ValueError("it is packed with lzop: unpack it with `lzop -d` and name the result")
    return _lzma(packed)


def archive_digests(archive: IO[bytes], algorithm: str) -> Iterator[tuple[str, str]]:
    """Yield path and digest of each regular file of a newc archive (cpio(5)). Raises ValueError, EOFError."""
    total = 0
    while header := archive.read(_HEADER):
        if header[:6] not in _MAGICS:
            if not header.strip(b"\0"):
                return  # what pads the end of an archive
            raise ValueError("there is something else than an entry of a cpio archive")
        mode, size, name_size = (int(header[at : at + 8], 16) for at in (14, 54, 94))
        if name_size > _MAX_NAME:
            raise ValueError(f"a name of {name_size} bytes")
        name = _exactly(archive, _padded(_HEADER + name_size) - _HEADER)[:name_size].rstrip(b"\0")
        total += size
        if total > MAX_UNPACKED:
            raise ValueError(f"it unpacks to more than {MAX_UNPACKED} bytes")
        digest = _hashed(archive, size, algorithm)
        if name == _TRAILER:
            return
        if stat.S_ISREG(mode):
            path = name.decode("utf-8", "surrogateescape").removeprefix("./")
            yield logged(f"/{path.lstrip('/')}"), digest


def _hashed(archive: IO[bytes], size: int, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    left = size
    while left:
        chunk = _exactly(archive, min(left, _CHUNK))
        digest.update(chunk)
        left -= len(chunk)
    _exactly(archive, _padded(size) - size)
    return digest.hexdigest()


def _exactly(archive: IO[bytes], count: int) -> bytes:
    data = archive.read(count)
    while len(data) < count:
        more = archive.read(count - len(data))
        if not more:
            raise EOFError("it ends in the middle of an entry")
        data += more
    return data


def _padded(place: int) -> int:
    return (place + 3) & ~3


def _plain(packed: IO[bytes]) -> IO[bytes]:
    return packed


def _zstd(packed: IO[bytes]) -> IO[bytes]:
    reader: IO[bytes] = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True)
    return reader


def _gzip(packed: IO[bytes]) -> IO[bytes]:
    return gzip.GzipFile(fileobj=packed)  # type: ignore[return-value]  # reads as a file does


def _bzip2(packed: IO[bytes]) -> IO[bytes]:
    return bz2.BZ2File(packed)


def _lzma(packed: IO[bytes]) -> IO[bytes]:
    return lzma.LZMAFile(packed)


def _lz4(packed: IO[bytes]) -> IO[bytes]:
    reader: IO[bytes] = lz4.frame.open(packed)
    return reader


def _lz4_legacy(packed: IO[bytes]) -> IO[bytes]:
    """Unpack the format of `lz4 -l`, which kernels read: blocks of up to 8 MiB with their packed lengths."""
    import lz4.block

    packed.read(len(_LZ4_LEGACY))
    out = io.BytesIO()
    while len(head := packed.read(4)) == 4:
        if head == _LZ4_LEGACY:
            continue
        size = int.from_bytes(head, "little")
        if size > _LZ4_BLOCK * 2:
            raise ValueError(f"a packed block of {size} bytes")
        out.write(lz4.block.decompress(packed.read(size), uncompressed_size=_LZ4_BLOCK))
        if out.tell() > MAX_UNPACKED:
            raise ValueError(f"it unpacks to more than {MAX_UNPACKED} bytes")
    out.seek(0)
    return out


_FORMATS: Final[dict[bytes, Opener]] = {
    b"\x1f\x8b": _gzip,
    b"BZh": _bzip2,
    b"\xfd7zXZ\0": _lzma,
    b"\x28\xb5\x2f\xfd": _zstd,
    b"\x04\x22\x4d\x18": _lz4,
    _LZ4_LEGACY: _lz4_legacy,
    b"070701": _plain,
    b"070702": _plain,
}
