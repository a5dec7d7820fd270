"""Digests of files from Debian packages in a directory, unpacked in memory, a file at a time.

(Layout: deb(5), an `ar` archive with `data.tar` in one of several packings.) Signatures are those of the repository
that the packages came from, so only packages that you trust belong into the directory.
"""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from limeguard.authoring.policy.collected import Digests, SourceError, add, logged
from limeguard.authoring.policy.initrd import UNPACKING, unpacked

_ARCHIVE: Final = b"!<arch>\n"
_HEADER: Final = 60
_CHUNK: Final = 1 << 20
_MERGED: Final = frozenset({"bin", "sbin", "lib", "lib32", "lib64", "libo32", "libx32"})
UNREADABLE: Final = (*UNPACKING, tarfile.TarError)
"""What `package_digests` raises for a package that is none."""


def packages(folder: str, algorithm: str) -> Digests:
    """Return the digests of the regular files of every `.deb` below a directory. Raises SourceError."""
    root = Path(folder)
    if not root.is_dir():
        raise SourceError(f"{folder} is not a directory")
    digests: Digests = {}
    for path in sorted(root.rglob("*.deb")):
        try:
            for name, digest in package_digests(path.read_bytes(), algorithm):
                add(digests, name, digest)
        except UNREADABLE as problem:
            raise SourceError(f"The package {path} cannot be read: {problem}") from None
    return digests


def package_digests(package: bytes, algorithm: str) -> Iterator[tuple[str, str]]:
    """Yield path and digest of each regular file. Raises one of `UNREADABLE`."""
    data = _member(package, b"data.tar")
    plain: IO[bytes] = io.BytesIO(data)
    if data[257:262] != b"ustar":
        plain = unpacked(plain)
    with tarfile.open(fileobj=plain, mode="r|") as archive:
        for entry in archive:
            file = archive.extractfile(entry) if entry.isreg() else None
            if file is None:
                continue
            digest = hashlib.new(algorithm, usedforsecurity=False)
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
            for path in _paths(entry.name.removeprefix("./").lstrip("/")):
                yield logged(path), digest.hexdigest()


def _paths(name: str) -> Iterator[str]:
    """Yield where a file may be once it is installed: Debian's top-level folders are links into /usr by now."""
    yield f"/{name}"
    if name.partition("/")[0] in _MERGED:
        yield f"/usr/{name}"


def _member(package: bytes, prefix: bytes) -> bytes:
    if not package.startswith(_ARCHIVE):
        raise ValueError("it does not begin as a Debian package does")
    place = len(_ARCHIVE)
    while place + _HEADER <= len(package):
        head = package[place : place + _HEADER]
        size = int(head[48:58])
        if size < 0 or place + _HEADER + size > len(package):
            raise ValueError("it ends within a member")
        if head[:16].startswith(prefix):
            return package[place + _HEADER : place + _HEADER + size]
        place += _HEADER + size + size % 2
    raise ValueError("there is no data.tar in it")
