"""Digests of files from an RPM repository on a server: from its extended file lists, or from its packages' headers.

(Layout: repomd.xml, primary.xml, filelists-ext.xml of createrepo_c.) What repomd.xml announces is held to its digest.
"""

import asyncio
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Final
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import iterparse

from limeguard.authoring.policy import rpm
from limeguard.authoring.policy.collected import Digests, SourceError, add, logged
from limeguard.authoring.policy.fetching import AbsentError, Fetcher, Progress, check_digest, gathered
from limeguard.authoring.policy.initrd import UNPACKING, unpacked
from limeguard.authoring.policy.openpgp import check_detached
from limeguard.telemetry import get_logger

log = get_logger("keylime.policy")

_REPO: Final = "{http://linux.duke.edu/metadata/repo}"
_COMMON: Final = "{http://linux.duke.edu/metadata/common}"
_RPM: Final = "{http://linux.duke.edu/metadata/rpm}"
_FILES: Final = "{http://linux.duke.edu/metadata/filelists-ext}"
_MAX_INDEX: Final = 16 << 20
_MAX_LIST: Final = 2 << 30
_MAX_UNPACKED: Final = 32 << 30
_MAX_HEADER: Final = 256 << 20
_FIRST: Final = 24 << 10
_XML_ERRORS: Final = (ParseError, DefusedXmlException, *UNPACKING)


@dataclass(frozen=True, slots=True)
class _Announced:
    """A file that repomd.xml names; `digest` is empty when it announces none."""

    path: str
    algorithm: str
    digest: str


@dataclass(frozen=True, slots=True)
class _Package:
    """A package that primary.xml names; `size` are the bytes from its start to the end of its header, 0 unknown."""

    path: str
    size: int


async def remote_repository(url: str, workers: int, progress: Progress | None = None) -> Digests:
    """Return the digests of the files of every package of a repository. Raises SourceError."""
    async with Fetcher(url) as fetcher:
        try:
            repomd = await fetcher.get("repodata/repomd.xml", _MAX_INDEX)
        except AbsentError as problem:
            raise SourceError(f"{url} is no RPM repository: {problem}") from None
        await _check_signature(fetcher, repomd)
        files = _announced(url, repomd)
        if "filelists-ext" in files:
            data = await _metadata(fetcher, files["filelists-ext"])
            return await asyncio.to_thread(_listed, fetcher.address(files["filelists-ext"].path), data)
        log.warning("Warning. filelist-ext.xml not present in the repo: the header of each package is fetched")
        if "primary" not in files:
            raise SourceError("Error. Primary location tag not found")
        data = await _metadata(fetcher, files["primary"])
        packages = await asyncio.to_thread(_packages, fetcher.address(files["primary"].path), data)

        async def read(package: _Package) -> list[tuple[str, str]]:
            return await _header(fetcher, package)

        return await gathered(packages, read, workers, progress)


async def _check_signature(fetcher: Fetcher, repomd: bytes) -> None:
    try:
        signature = await fetcher.get("repodata/repomd.xml.asc", _MAX_INDEX)
    except AbsentError:
        log.warning(rpm.UNSIGNED)
        return
    try:
        key = await fetcher.get("repodata/repomd.xml.key", _MAX_INDEX)
    except AbsentError:
        raise SourceError(f"Error. Key file {fetcher.address('repodata/repomd.xml.key')} missing") from None
    await asyncio.to_thread(check_detached, repomd, signature, key)


async def _metadata(fetcher: Fetcher, file: _Announced) -> bytes:
    data = await fetcher.get(file.path, _MAX_LIST)
    if file.digest:
        await asyncio.to_thread(check_digest, fetcher.address(file.path), data, file.algorithm, file.digest)
    return data


def _announced(url: str, repomd: bytes) -> dict[str, _Announced]:
    files: dict[str, _Announced] = {}
    for data in _elements(f"{url}: repomd.xml", repomd, f"{_REPO}data"):
        place, checksum = data.find(f"{_REPO}location"), data.find(f"{_REPO}checksum")
        path, kind = place.get("href") if place is not None else None, data.get("type")
        if path and kind:
            has = checksum is not None and checksum.text
            algorithm = (checksum.get("type") or "sha256") if checksum is not None else "sha256"
            files[kind] = _Announced(path, algorithm, str(has).strip() if has else "")
    return files


def _listed(url: str, data: bytes) -> Digests:
    digests: Digests = {}
    for package in _elements(url, data, f"{_FILES}package"):
        for file in package.iter(f"{_FILES}file"):
            digest = file.get("hash")
            if digest and file.text:
                add(digests, logged(file.text), digest.lower())
    return digests


def _packages(url: str, data: bytes) -> list[_Package]:
    packages: list[_Package] = []
    for package in _elements(url, data, f"{_COMMON}package"):
        place = package.find(f"{_COMMON}location")
        path = place.get("href") if place is not None else None
        if package.get("type") != "rpm" or not path:
            continue
        base = place.get("{http://www.w3.org/XML/1998/namespace}base") if place is not None else None
        header = package.find(f"{_COMMON}format/{_RPM}header-range")
        end = header.get("end", "") if header is not None else ""
        size = int(end) if end.isdecimal() and int(end) <= _MAX_HEADER else 0
        packages.append(_Package(f"{base.rstrip('/')}/{path}" if base else path, size))
    return packages


def _elements(what: str, data: bytes, tag: str) -> Iterator[Element]:
    """Yield the elements of a tag, each complete; what was yielded is forgotten with the next."""
    try:
        plain: IO[bytes] = io.BytesIO(data)
        if data.lstrip()[:1] != b"<":
            plain = unpacked(plain)
        root: Element | None = None
        for event, element in iterparse(_Bounded(plain), events=("start", "end")):
            if root is None:
                root = element
            if event == "end" and element.tag == tag:
                yield element
                root.clear()
    except _XML_ERRORS as problem:
        raise SourceError(f"{what} cannot be read: {problem}") from None


class _Bounded:
    """A file that ends with an error once it gives more than it may."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._left = _MAX_UNPACKED

    def read(self, size: int = -1) -> Any:
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"it unpacks to more than {_MAX_UNPACKED} bytes")
        return data


async def _header(fetcher: Fetcher, package: _Package) -> list[tuple[str, str]]:
    """Return what the header of a package says; a package that the server does not give is passed over."""
    size = package.size or _FIRST
    while True:
        try:
            data = await fetcher.begin(package.path, size)
        except AbsentError as problem:
            log.warning("Error trying to open %s: %s", fetcher.address(package.path), problem)
            return []
        try:
            return list(rpm.package_digests(data))
        except rpm.TruncatedError as problem:
            if len(data) < size or size >= _MAX_HEADER:
                raise SourceError(f"{fetcher.address(package.path)} cannot be read: {problem}") from None
            size *= 2
        except ValueError as problem:
            raise SourceError(f"{fetcher.address(package.path)} cannot be read: {problem}") from None
