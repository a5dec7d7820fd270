"""Files of a remote repository: `https://`, `http://` and `file://`, several at a time, none larger than its bound."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final, Self, TypeVar
from urllib.parse import unquote, urljoin, urlsplit

import aiohttp

from limeguard.authoring.policy.collected import Digests, SourceError, add

WORKERS: Final = 8
"""Files that are fetched at a time, unless told otherwise."""
_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
_CHUNK: Final = 1 << 16
_PARTIAL: Final = 206

Item = TypeVar("Item")
Progress = Callable[[int], None]


class AbsentError(SourceError):
    """The server says that there is no such file, or will not give it."""


class Fetcher:
    """Fetches below one base address. `async with`."""

    def __init__(self, base: str) -> None:
        """Take a base URL. Raises SourceError for one that is none."""
        if urlsplit(base).scheme not in {"http", "https", "file"}:
            raise SourceError(f"{base} is no address of a repository: it begins with https://, http:// or file://")
        self.base = base if base.endswith("/") else f"{base}/"
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        # Files are hashed and unpacked here, so nothing may be unpacked on the way.
        headers = {"Accept-Encoding": "identity"}
        self._session = aiohttp.ClientSession(timeout=_TIMEOUT, headers=headers, trust_env=True, auto_decompress=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, limit: int) -> bytes:
        """Return a file of at most `limit` bytes. Raises AbsentError, SourceError."""
        data = await self._read(path, limit + 1, {})
        if len(data) > limit:
            raise SourceError(f"{self.address(path)} is larger than {limit} bytes")
        return data

    async def begin(self, path: str, size: int) -> bytes:
        """Return the first `size` bytes of a file, all of a shorter one. Raises AbsentError, SourceError."""
        return await self._read(path, size, {"Range": f"bytes=0-{size - 1}"})

    def address(self, path: str) -> str:
        """Return the URL of a path."""
        return urljoin(self.base, path)

    async def _read(self, path: str, size: int, headers: dict[str, str]) -> bytes:
        url = self.address(path)
        parts = urlsplit(url)
        if parts.scheme == "file":
            return await asyncio.to_thread(_from_disk, Path(unquote(parts.path)), size)
        assert self._session is not None  # noqa: S101 - `async with` is the only way here
        try:
            async with self._session.get(url, headers=headers) as answer:
                if answer.status not in {200, _PARTIAL}:
                    raise AbsentError(f"{url} answers {answer.status} {answer.reason}")
                data = bytearray()
                while len(data) < size and (chunk := await answer.content.read(_CHUNK)):
                    data += chunk
                return bytes(data[:size])
        except (aiohttp.ClientError, TimeoutError, ValueError) as problem:
            raise SourceError(f"{url} cannot be fetched: {str(problem) or type(problem).__name__}") from None


def _from_disk(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise AbsentError(f"There is no file {path}") from None
    except OSError as problem:
        raise SourceError(f"{path} cannot be read: {problem.strerror}") from None


def check_digest(what: str, data: bytes, algorithm: str, digest: str) -> None:
    """Say nothing when `data` is what was announced. Raises SourceError."""
    try:
        found = hashlib.new("sha1" if algorithm == "sha" else algorithm, data, usedforsecurity=False).hexdigest()
    except (ValueError, TypeError):
        raise SourceError(f"{what} is announced with a digest of the unknown kind {algorithm!r}") from None
    if found != digest.lower():
        text = "it was changed on the way, or while the repository was being updated: try again"
        raise SourceError(f"{what} is not what the repository announces ({algorithm} {found}, not {digest}): {text}")


async def gathered(
    items: Iterable[Item],
    work: Callable[[Item], Awaitable[Iterable[tuple[str, str]]]],
    workers: int,
    progress: Progress | None,
) -> Digests:
    """Run `work` on each item, `workers` at a time; return all digests. The first failure ends it."""
    digests: Digests = {}
    left = iter(items)
    done = 0

    async def worker() -> None:
        nonlocal done
        for item in left:
            for path, digest in await work(item):
                add(digests, path, digest)
            done += 1
            if progress is not None:
                progress(done)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(worker())
    except* SourceError as problems:
        raise problems.exceptions[0] from None
    return digests
