"""The folder `secure` below the agent's own: memory, not disk, so that keys and payloads vanish with the power.

Decides whether what is mounted there will do, and mounts a tmpfs where nothing is. Runs before privileges are dropped.
"""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from limeguard.agent.files import PRIVATE_FOLDER, UnsafeFile, open_own_folder
from limeguard.telemetry import clean, get_logger

log = get_logger("keylime_agent.secure_mount")

MOUNT_PROGRAM_SECONDS = 30
_SIZE = re.compile(r"[0-9]+[kKmMgG%]?")
_OCTAL = re.compile(r"\\([0-7]{3})")


class SecureMountError(Exception):
    """The secure folder cannot be used at all; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class SecureStore:
    """The secure folder. `usable` False: it is not memory, so nothing secret is written and payloads are refused."""

    path: Path
    usable: bool


def mounted_type(mountinfo: str, path: Path) -> str | None:
    """Return the type of the file system mounted exactly at `path`, or None. Reads /proc/self/mountinfo (proc(5))."""
    found: str | None = None
    for line in mountinfo.splitlines():
        head, separator, tail = line.partition(" - ")
        fields, types = head.split(" "), tail.split(" ")
        if separator and len(fields) > 4 and _unescape(fields[4]) == str(path):
            found = types[0]  # a later line is mounted over an earlier one
    return found


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def prepare_secure_store(folder: Path, size: str, owner: tuple[int, int] | None) -> SecureStore:
    """Return the secure folder below `folder`, mounting a tmpfs there if need be; `owner` (uid, gid) is to own it.

    Raises SecureMountError for another file system, a link, or a senseless size.
    """
    path = folder.resolve() / "secure"
    if not _SIZE.fullmatch(size):
        raise SecureMountError(f"Secure mount error: secure_size = {clean(size)} is not a size such as 1m.")
    _make_folder(path)
    usable = _is_memory(path) or _mount(path, size)
    if usable and owner is not None and os.geteuid() == 0:
        _hand_over(path, owner)
    return SecureStore(path, usable)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(mode=PRIVATE_FOLDER)
    except FileExistsError:
        return
    except OSError as problem:
        raise SecureMountError(f"Secure mount error: {path} cannot be created: {problem.strerror}.") from problem
    log.info('Directory "%s" created.', path)


def _is_memory(path: Path) -> bool:
    kind = mounted_type(Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape"), path)
    if kind not in {None, "tmpfs"}:
        raise SecureMountError(
            f"Secure mount error: Secure storage location {path} already mounted on wrong file system type: {kind}. "
            f"Unmount it, and a tmpfs is mounted at the next start."
        )
    return kind == "tmpfs"


def _mount(path: Path, size: str) -> bool:
    if os.geteuid() != 0:
        log.error(
            "%s is not a tmpfs and only root can mount one: payloads will be refused. "
            "Start the agent as root, or mount it first: mount -t tmpfs -o size=%s,mode=0700,uid=%d tmpfs %s",
            path,
            size,
            os.geteuid(),
            path,
        )
        return False
    try:
        descriptor = open_own_folder(path)
    except UnsafeFile as problem:
        raise SecureMountError(f"Secure mount error: {problem}") from problem
    try:
        # The folder is named by its descriptor: whoever owns the folder above it cannot put a link in its place.
        command = ["mount", "--no-canonicalize", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs"]
        done = subprocess.run(  # noqa: S603 - fixed program, checked arguments
            [*command, f"/proc/self/fd/{descriptor}"],
            pass_fds=[descriptor],
            capture_output=True,
            text=True,
            timeout=MOUNT_PROGRAM_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        log.error("%s could not be mounted: payloads will be refused (%s)", path, clean(problem))  # noqa: TRY400 - a sentence, no traceback
        return False
    finally:
        os.close(descriptor)
    if done.returncode != 0:
        log.error("%s could not be mounted: payloads will be refused (%s)", path, clean(done.stderr.strip()))
        return False
    return _is_memory(path)


def _hand_over(path: Path, owner: tuple[int, int]) -> None:
    descriptor = open_own_folder(path)
    try:
        os.fchown(descriptor, *owner)
        os.fchmod(descriptor, PRIVATE_FOLDER)
    finally:
        os.close(descriptor)
