"""Files of the certificate authority: whole or not at all, closed to strangers, never through somebody else's link.

Decides how files are opened and written. Knows nothing of what they hold.
"""

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GROUP_FILE = 0o640
"""Readable by the service's group: the registrar and the tenant use what the verifier made."""
OWN_FILE = 0o600
FOLDER = 0o700

MAX_FILE = 64 * 1024 * 1024


class FilesError(Exception):
    """A directory or file is not what it must be; the text is a sentence that names it."""


class Folder:
    """A directory that is held open, so that every name means a file in it and nowhere else."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        status = os.fstat(descriptor)
        # What root makes in a service's directory is the service's.
        self._owner = (status.st_uid, status.st_gid) if os.geteuid() == 0 and status.st_uid else None

    def write(self, name: str, data: bytes, mode: int = GROUP_FILE) -> None:
        """Put `data` under a name, atomically; a link of that name is replaced, not followed. Raises OSError."""
        temporary = f".{name[:200]}.{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, OWN_FILE, dir_fd=self._descriptor)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                if self._owner:
                    os.fchown(file.fileno(), *self._owner)
                os.fchmod(file.fileno(), mode)  # whatever the umask
                os.fsync(file.fileno())
            os.rename(temporary, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except BaseException:
            os.unlink(temporary, dir_fd=self._descriptor)
            raise
        os.fsync(self._descriptor)

    def read(self, name: str) -> bytes | None:
        """Return the content of a regular file, None when there is none. Raises FilesError, OSError."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags, dir_fd=self._descriptor)
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise FilesError(f"{self.path / name} cannot be read: {problem.strerror}.") from problem
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise FilesError(f"{self.path / name} is not a regular file.")
            data = file.read(MAX_FILE + 1)
        if len(data) > MAX_FILE:
            raise FilesError(f"{self.path / name} is larger than {MAX_FILE} bytes.")
        return data

    def has(self, name: str) -> bool:
        """Whether something of that name is there."""
        try:
            os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def names(self) -> tuple[str, ...]:
        """Return the names of all entries, sorted."""
        return tuple(sorted(os.listdir(self._descriptor)))  # noqa: PTH208 - of the open directory, not of a path

    def remove(self, name: str) -> None:
        """Remove an entry; nothing happens when it is not there."""
        try:
            os.unlink(name, dir_fd=self._descriptor)
        except FileNotFoundError:
            return


@contextmanager
def open_folder(path: Path, *, create: bool, shared: bool = False) -> Iterator[Folder]:
    """Open a directory, for this process alone as long as the block runs. Raises FilesError.

    A new one gets mode 0700. One that is a link, belongs to another user (root apart), or that everybody may write to
    is refused: whoever holds it could swap the CA. A `shared` one may be open to all as /tmp is, and is not locked.
    """
    if create:
        path.parent.mkdir(mode=FOLDER, parents=True, exist_ok=True)
        with _sentence(path, "made"):
            path.mkdir(mode=FOLDER, exist_ok=True)
    with _sentence(path, "opened"):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if os.geteuid() not in {0, status.st_uid} and status.st_uid != 0:
            raise FilesError(f"Directory {path} belongs to another user (id {status.st_uid}).")
        if status.st_mode & stat.S_IWOTH and not (shared and status.st_mode & stat.S_ISVTX):
            raise FilesError(f"Everybody may write to directory {path}; take that away with chmod o-w.")
        if not shared:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield Folder(path, descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _sentence(path: Path, doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        why = "it is a link or not a directory" if path.is_symlink() else problem.strerror
        raise FilesError(f"Directory {path} cannot be {doing}: {why}.") from problem
