"""Digests of files from a Debian repository: signed Release, Packages held to it, packages held to Packages.

(Layout: https://wiki.debian.org/DebianRepository/Format.) Nothing is read that the keyring's signature does not cover.
"""

import asyncio
import io
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

from limeguard.authoring.policy import deb
from limeguard.authoring.policy.collected import Digests, SourceError
from limeguard.authoring.policy.fetching import AbsentError, Fetcher, Progress, check_digest, gathered
from limeguard.authoring.policy.initrd import unpacked
from limeguard.authoring.policy.openpgp import check_detached, clear_signed
from limeguard.telemetry import get_logger

log = get_logger("keylime.policy")

KEYRINGS: Final = (
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
)
"""Tried when no keyring is named: those that the distributions bring."""
_MAX_RELEASE: Final = 64 << 20
_MAX_PACKAGES: Final = 1 << 30
_MAX_PACKAGE: Final = 4 << 30
_PACKINGS: Final = (".xz", ".gz", "")
_COLUMNS: Final = 3
_NAMED: Final = 10
"""Packages that a message names at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DebSource:
    """A repository, and what to take of it.

    `only` and `status` narrow the packages: to names, and to what a dpkg status file says is installed, in its
    versions. Both empty takes all.
    """

    url: str
    suite: str
    components: tuple[str, ...] = ("main",)
    architecture: str = "amd64"
    keyring: str = ""
    only: tuple[str, ...] = ()
    status: str = ""


@dataclass(frozen=True, slots=True)
class _Package:
    """A package of the repository."""

    name: str
    version: str
    path: str
    size: int
    sha256: str


async def remote_packages(
    source: DebSource, algorithm: str, now: datetime, workers: int, progress: Progress | None = None
) -> Digests:
    """Return the digests of the files of a repository's packages; each is unpacked in memory. Raises SourceError."""
    keys = _keys(source.keyring)
    wanted = _installed(source.status) if source.status else None
    async with Fetcher(source.url) as fetcher:
        release = _fields(await _release(fetcher, source.suite, keys), f"the Release file of {source.suite}")
        _check_date(source.suite, release, now)
        packages: list[_Package] = []
        for component in source.components:
            packages += await _packages(fetcher, source, component, release)
        chosen = _chosen(packages, source.only, wanted)

        async def read(package: _Package) -> list[tuple[str, str]]:
            data = await fetcher.get(package.path, min(package.size, _MAX_PACKAGE))
            return await asyncio.to_thread(_read, fetcher.address(package.path), data, package.sha256, algorithm)

        return await gathered(chosen, read, workers, progress)


def _keys(path: str) -> bytes:
    paths = (path,) if path else KEYRINGS
    found = next((Path(name) for name in paths if Path(name).is_file()), None)
    if found is None:
        raise SourceError(
            f"There is no keyring {path}"
            if path
            else "Name the keyring of the repository with --deb-keyring: none of the distributions' is here"
        )
    return found.read_bytes()


async def _release(fetcher: Fetcher, suite: str, keys: bytes) -> str:
    """Return what the signed Release file says."""
    folder = f"dists/{suite}"
    try:
        signed = await fetcher.get(f"{folder}/InRelease", _MAX_RELEASE)
        text = await asyncio.to_thread(clear_signed, signed, keys)
    except AbsentError:
        try:
            text = await fetcher.get(f"{folder}/Release", _MAX_RELEASE)
            signature = await fetcher.get(f"{folder}/Release.gpg", _MAX_RELEASE)
        except AbsentError as problem:
            raise SourceError(f"There is no signed suite {suite} in {fetcher.base}: {problem}") from None
        await asyncio.to_thread(check_detached, text, signature, keys)
    return text.decode("utf-8", "replace")


def _check_date(suite: str, release: Mapping[str, str], now: datetime) -> None:
    """Refuse a list that is no longer valid: whoever replays an old one wants old packages to be trusted."""
    until = release.get("valid-until")
    if until is None:
        return
    try:
        end = parsedate_to_datetime(until)
    except ValueError:
        raise SourceError(f"The Release file of {suite} is valid until {until!r}, which is no date") from None
    if end.astimezone(UTC) < now.astimezone(UTC):
        raise SourceError(f"The Release file of {suite} was valid until {until} only: use an up-to-date mirror")


async def _packages(fetcher: Fetcher, source: DebSource, component: str, release: Mapping[str, str]) -> list[_Package]:
    announced = _announced(release.get("sha256", ""))
    base = f"{component}/binary-{source.architecture}/Packages"
    for packing in _PACKINGS:
        entry = announced.get(base + packing)
        if entry is None:
            continue
        digest, size = entry
        path = f"dists/{source.suite}/{base}{packing}"
        try:
            data = await fetcher.get(path, min(size, _MAX_PACKAGES))
        except AbsentError:
            continue
        return await asyncio.to_thread(_parsed, fetcher.address(path), data, digest)
    has = sorted({name.partition("/binary-")[0] for name in announced if "/binary-" in name})
    raise SourceError(
        f"{source.suite} has no packages for component {component} and architecture {source.architecture}"
        f" (components: {', '.join(has[:_NAMED])})"
    )


def _announced(text: str) -> dict[str, tuple[str, int]]:
    """Return digest and size of the files that a Release file lists."""
    rows = (line.split() for line in text.splitlines())
    return {row[2]: (row[0], int(row[1])) for row in rows if len(row) == _COLUMNS and row[1].isdecimal()}


def _parsed(url: str, data: bytes, digest: str) -> list[_Package]:
    check_digest(url, data, "sha256", digest)
    try:
        plain = io.BytesIO(data) if not url.endswith((".xz", ".gz")) else unpacked(io.BytesIO(data))
        return [_package(stanza) for stanza in _stanzas(io.TextIOWrapper(plain, encoding="utf-8", errors="replace"))]
    except deb.UNREADABLE as problem:
        raise SourceError(f"{url} cannot be read: {problem}") from None
    except KeyError as problem:
        raise SourceError(f"{url} has a package without {problem}") from None


def _package(stanza: Mapping[str, str]) -> _Package:
    return _Package(
        name=stanza["package"],
        version=stanza["version"],
        path=stanza["filename"],
        size=int(stanza["size"]),
        sha256=stanza["sha256"],
    )


def _chosen(
    packages: list[_Package], only: Collection[str], wanted: Collection[tuple[str, str]] | None
) -> list[_Package]:
    """Return the packages to read; what was asked for and is not there is named."""
    if only:
        missing = set(only) - {package.name for package in packages}
        if missing:
            raise SourceError(f"The repository has no package {', '.join(sorted(missing)[:_NAMED])}")
        packages = [package for package in packages if package.name in only]
    if wanted is None:
        return packages
    installed = frozenset(wanted)
    chosen = [package for package in packages if (package.name, package.version) in installed]
    found = {(package.name, package.version) for package in chosen}
    absent = [f"{name} {version}" for name, version in wanted if (name, version) not in found]
    if absent:
        log.warning(
            "%d of %d installed packages are not in this repository in their version, such as %s",
            len(absent),
            len(wanted),
            ", ".join(absent[:_NAMED]),
        )
    return chosen


def _installed(path: str) -> list[tuple[str, str]]:
    """Return name and version of what a dpkg status file says is installed."""
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            found = [
                (stanza["package"], stanza["version"])
                for stanza in _stanzas(file)
                if stanza.get("status", "").endswith(" installed") and {"package", "version"} <= stanza.keys()
            ]
    except OSError as problem:
        raise SourceError(f"The status file cannot be read: {problem}") from None
    if not found:
        raise SourceError(f"{path} names no installed package: it should be a copy of /var/lib/dpkg/status")
    return found


def _read(url: str, data: bytes, sha256: str, algorithm: str) -> list[tuple[str, str]]:
    check_digest(url, data, "sha256", sha256)
    try:
        return list(deb.package_digests(data, algorithm))
    except deb.UNREADABLE as problem:
        raise SourceError(f"The package {url} cannot be read: {problem}") from None


def _fields(text: str, what: str) -> dict[str, str]:
    fields = next(_stanzas(iter(text.splitlines(keepends=True))), None)
    if not fields:
        raise SourceError(f"There is nothing in {what}")
    return fields


def _stanzas(lines: Iterator[str] | io.TextIOWrapper) -> Iterator[dict[str, str]]:
    """Yield the paragraphs of a control file (deb822(5)), names of fields in small letters."""
    fields: dict[str, str] = {}
    name = ""
    for line in lines:
        if not line.strip():
            if fields:
                yield fields
            fields, name = {}, ""
        elif line[0] in " \t":
            if name:
                fields[name] += f"\n{line.strip()}"
        elif not line.startswith("#"):
            name, _, value = line.partition(":")
            name = name.lower()
            fields[name] = value.strip()
    if fields:
        yield fields
