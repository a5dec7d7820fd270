"""Where settings come from: Keylime's directories, file names and environment variables, as data handed in.

Decides which files count and in which order. Knows nothing of options.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

VENDOR = Path("/usr/etc/keylime")
LOCAL = Path("/etc/keylime")
WORK_DIR = Path("/var/lib/keylime")

MAX_FILE = 1024 * 1024
"""Bytes of a configuration file; Keylime's largest has under 30 kB."""


@dataclass(frozen=True, slots=True)
class Sources:
    """The environment, the directories with configuration (the vendor's first), and the current directory."""

    env: Mapping[str, str]
    roots: tuple[Path, ...] = (VENDOR, LOCAL)
    cwd: Path = Path()

    @classmethod
    def of_process(cls) -> Self:
        """Return what this process was started with."""
        return cls(dict(os.environ), cwd=Path.cwd())

    @property
    def testing(self) -> bool:
        """Whether `KEYLIME_TEST` is on."""
        return self.env.get("KEYLIME_TEST", "").strip().lower() in {"1", "on", "true"}

    @property
    def work_dir(self) -> Path:
        """The working directory: `KEYLIME_DIR`, else the current one under `KEYLIME_TEST`, else Keylime's."""
        named = self.env.get("KEYLIME_DIR", "")
        if named:
            return Path(named)
        return self.cwd if self.testing else WORK_DIR

    def named_file(self, component: str) -> Path | None:
        """Return the file that `KEYLIME_<COMPONENT>_CONFIG` names, whether it exists or not."""
        named = self.env.get(f"KEYLIME_{component.upper()}_CONFIG", "")
        return Path(named) if named else None

    def candidates(self, component: str) -> tuple[Path, ...]:
        """Return the places of the component's base file, the most local first."""
        return tuple(root / f"{component}.conf" for root in reversed(self.roots))

    def snippet_dirs(self, component: str) -> tuple[Path, ...]:
        """Return the directories of snippets, the vendor's first."""
        return tuple(root / f"{component}.conf.d" for root in self.roots)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from: a file with its line, a variable, or the built-in default."""

    place: str
    line: int | None = None

    def __str__(self) -> str:
        return self.place if self.line is None else f"{self.place}:{self.line}"


BUILT_IN = Origin("built-in default")


class UnreadableFile(Exception):  # noqa: N818 - a fact about a file
    """A configuration file cannot be used; the text says why and what to do."""


def snippets(directory: Path) -> tuple[Path, ...]:
    """Return the regular files of a snippet directory in the order of their names; none when it is not there."""
    try:
        names = sorted(os.listdir(directory))  # noqa: PTH208 - sorted by name, not by path
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as problem:
        raise UnreadableFile(f"cannot be listed: {problem.strerror}") from problem
    return tuple(path for path in (directory / name for name in names) if path.is_file())


def read_text(path: Path) -> str:
    """Read a configuration file. Raises UnreadableFile; a file that anybody may write is refused."""
    try:
        with path.open("rb") as handle:
            status = os.fstat(handle.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IWOTH:
                raise UnreadableFile("everybody may write this file; take that away with chmod o-w")
            data = handle.read(MAX_FILE + 1)
    except OSError as problem:
        raise UnreadableFile(_critical(path, problem)) from problem
    if len(data) > MAX_FILE:
        raise UnreadableFile(f"larger than {MAX_FILE} bytes, which no configuration is")
    try:
        return data.decode()
    except UnicodeDecodeError as problem:
        raise UnreadableFile(f"not UTF-8 text at byte {problem.start}") from problem


def readable_by_all(path: Path) -> bool:
    """Whether everybody may read the file."""
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


def _critical(path: Path, problem: OSError) -> str:
    try:
        status = path.stat()
    except OSError:
        return f"CRITICAL CONFIG ERROR: cannot be read: {problem.strerror}"
    return (
        f"CRITICAL CONFIG ERROR: cannot be read: {problem.strerror} (mode {stat.S_IMODE(status.st_mode):04o}, "
        f"owner {status.st_uid}, group {status.st_gid}, while running as user {os.geteuid()})"
    )
