"""Files of the agent: written whole or not at all, readable by nobody else, never through a link laid by another user.

Decides how a path is opened. Knows nothing of what the files mean.
"""

import os
import secrets
import stat
from pathlib import Path

from limeguard.telemetry import clean, get_logger

log = get_logger("keylime_agent.files")

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700
OTHERS = 0o077


class UnsafeFile(Exception):  # noqa: N818 - a fact about the file system
    """A file or folder is not what it must be (a link, not a regular file, too large); the text is a sentence."""


def write_private(path: Path, data: bytes) -> None:
    """Put `data` under `path` with mode 0600, atomically; a link there is replaced, not followed. Raises OSError."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    temporary = f".{path.name}.{secrets.token_hex(8)}"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, PRIVATE_FILE, dir_fd=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            os.unlink(temporary, dir_fd=folder)
            raise
        os.fsync(folder)
    finally:
        os.close(folder)


def read_file(path: Path, *, limit: int, secret: bool = False) -> bytes | None:
    """Return the content of a regular file of at most `limit` bytes, or None when there is none.

    A link is followed only where nobody but root and ourselves could have laid it. A `secret` file that others may read
    is closed to them. Raises UnsafeFile, OSError.
    """
    try:
        descriptor = _open_to_read(path)
    except FileNotFoundError:
        return None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise UnsafeFile(f"{path} is not a regular file.")
        if secret and found.st_mode & OTHERS:
            _close_to_others(path, descriptor, found)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise UnsafeFile(f"{path} is larger than {limit} bytes.")
    return data


def _open_to_read(path: Path) -> int:
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        if not _only_ours(os.fstat(folder)):
            flags |= os.O_NOFOLLOW
        return os.open(path.name, flags, dir_fd=folder)
    except OSError as problem:
        if flags & os.O_NOFOLLOW and path.is_symlink():
            text = f"{path} is a link in a folder that another user can change; it is not followed."
            raise UnsafeFile(text) from problem
        raise
    finally:
        os.close(folder)


def _only_ours(folder: os.stat_result) -> bool:
    """Say whether root or this user alone decides what stands in the folder."""
    return folder.st_uid in {0, os.geteuid()} and not folder.st_mode & stat.S_IWOTH


def _close_to_others(path: Path, descriptor: int, found: os.stat_result) -> None:
    if found.st_uid == os.geteuid():
        os.fchmod(descriptor, PRIVATE_FILE)
        log.warning("%s was readable by others; its mode is now 0600", clean(path))
    else:
        log.warning("%s holds a secret and is readable by others (mode %o)", clean(path), stat.S_IMODE(found.st_mode))


def open_own_folder(path: Path) -> int:
    """Open a folder itself, never through a link in its last name. Raises UnsafeFile, FileNotFoundError."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as problem:
        raise UnsafeFile(f"{path} is a link or not a folder.") from problem
