"""Digests of a root file system: every regular file of root, hashed on all cores.

The walk stays ahead of the hashing by a bounded number of files, so memory does not grow with the tree.
"""

import hashlib
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Final

from limeguard.authoring.policy.collected import Digests, SourceError, add, logged

SKIPPED: Final = ("/sys", "/run", "/proc", "/lost+found", "/dev", "/media", "/snap", "/mnt", "/var", "/tmp")  # noqa: S108
"""Directories below the root that hold no programs of the system, or other file systems."""
BATCH: Final = 200
"""Files that one job hashes: a job for each small file would cost more than its hash."""
AHEAD: Final = 64
"""Batches that may wait: what bounds memory."""
_CHUNK: Final = 1 << 20

Progress = Callable[[int], None]


def scan(
    root: str,
    algorithm: str,
    *,
    skip: Sequence[str] = (),
    workers: int | None = None,
    owner: int | None = 0,
    progress: Progress | None = None,
) -> Digests:
    """Hash the regular files below `root` that `owner` (a user id, None for any) owns.

    `skip` are directories of this machine that are left out, as absolute or relative paths. `progress` hears how many
    files are done. Unreadable files are left out. Raises SourceError.
    """
    top = os.path.realpath(root)
    if not Path(top).is_dir():
        raise SourceError(f"{root} is not a directory")
    if algorithm not in hashlib.algorithms_available:
        raise SourceError(f"This machine cannot compute {algorithm}")
    paths = files(top, skipped(top, skip), owner)
    digests: Digests = {}
    for path, digest in _hashed(paths, algorithm, workers or os.cpu_count() or 1, progress):
        add(digests, logged(path[len(top.rstrip("/")) :]), digest)
    return digests


def skipped(top: str, skip: Sequence[str]) -> frozenset[str]:
    """Return the directories that are left out, as absolute paths."""
    usual = {os.path.join(top, name.lstrip("/")) for name in SKIPPED}  # noqa: PTH118 - plain text is much quicker here
    given = {os.path.realpath(name) for name in skip if name}
    return frozenset(usual | given | _foreign_mounts(top))


def _foreign_mounts(top: str) -> set[str]:
    """Return mount points of other kinds of file systems than that of `/`: network shares, images, containers."""
    try:
        rows = [line.split(" ") for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return set()
    kinds = {row[1]: row[2] for row in rows if len(row) > 2}
    home = kinds.get("/")
    return {
        place for place, kind in kinds.items() if kind != home and place not in {"/", top} and place.startswith(top)
    }


def files(top: str, left_out: frozenset[str], owner: int | None) -> Iterator[str]:
    """Yield regular files, in the order of their names; links are not followed."""
    waiting = [top]
    if top in left_out:
        return
    while waiting:
        try:
            entries = sorted(os.scandir(waiting.pop()), key=lambda entry: entry.name)
        except OSError:
            continue
        below = []
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.path not in left_out:
                    below.append(entry.path)
            elif _wanted(entry, owner):
                yield entry.path
        waiting += reversed(below)


def _wanted(entry: "os.DirEntry[str]", owner: int | None) -> bool:
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and owner in {None, status.st_uid}


def _hashed(paths: Iterator[str], algorithm: str, workers: int, progress: Progress | None) -> Iterator[tuple[str, str]]:
    done = 0
    running: deque[Future[list[tuple[str, str]]]] = deque()
    with ProcessPoolExecutor(workers) as pool:
        for batch in _batches(paths):
            running.append(pool.submit(hash_files, batch, algorithm))
            while len(running) >= AHEAD:
                found = running.popleft().result()
                done += len(found)
                yield from found
                if progress is not None:
                    progress(done)
        while running:
            found = running.popleft().result()
            done += len(found)
            yield from found
            if progress is not None:
                progress(done)


def _batches(paths: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for path in paths:
        batch.append(path)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def hash_files(paths: Sequence[str], algorithm: str) -> list[tuple[str, str]]:
    """Return (path, digest) of each file that can be read; runs in a process of the pool."""
    found = []
    for path in paths:
        try:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - the quick way
                digest = hashlib.new(algorithm, usedforsecurity=False)
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        except OSError:
            continue
        found.append((path, digest.hexdigest()))
    return found
