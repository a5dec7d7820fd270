"""What is done with a payload once its key is known: decrypt, unpack within bounds, run the operator's script.

Decides what may be written where. Everything happens in the secure folder, which is memory; without it nothing is done.
"""

import asyncio
import io
import re
import shlex
import shutil
import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from limeguard.agent.files import PRIVATE_FOLDER, UnsafeFile, read_file, write_private
from limeguard.agent.notices import MAX_ACTION_LIST, NoticeRefused, parse_action_list
from limeguard.agent.programs import end_program
from limeguard.agent.secure_store import SecureStore
from limeguard.agent.shares import Combined
from limeguard.crypto.keysplit import decrypt_payload
from limeguard.telemetry import clean, get_logger

log = get_logger("keylime_agent.payloads")

MAX_ENTRIES = 1024
MAX_UNPACKED = 64 * 1024 * 1024
FREE_UNPACKED = 4 * 1024 * 1024
MAX_RATIO = 200
"""Unpacked to packed size of an archive that unpacks to more than FREE_UNPACKED; bombs lie far above."""
MAX_NAME = 1024
_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
_FILE_NAME = re.compile(r"(?!\.{1,2}$)[^/\x00]{1,255}")


class PayloadRefused(Exception):  # noqa: N818 - a fact about the payload
    """A payload is not processed (further); the text says why and never quotes the payload."""


@dataclass(frozen=True, slots=True)
class PayloadOptions:
    """What the configuration says about payloads. File names are plain names in the unpacking folder."""

    key_name: str
    payload_name: str
    unpack: bool
    script: str

    @property
    def bad_name(self) -> str | None:
        """Return the first configured name that is not a plain file name, or None."""
        names = (self.key_name, self.payload_name, *([self.script] if self.script else []))
        return next((name for name in names if not _FILE_NAME.fullmatch(name)), None)


class PayloadProcessor:
    """Processes payloads in the secure folder."""

    def __init__(self, store: SecureStore, options: PayloadOptions) -> None:
        """Work in `unzipped` below the secure folder."""
        self._store = store
        self._options = options
        self.folder = store.path / "unzipped"

    async def process(self, combined: Combined) -> None:
        """Do all steps for one payload. Raises PayloadRefused, OSError; what was written so far stays."""
        if combined.payload is None:
            return
        if not self._store.usable:
            raise PayloadRefused(f"{self._store.path} is not a tmpfs, and secrets are not written to disk")
        await asyncio.to_thread(self._unpack, combined.key, combined.payload)
        await self._run_script()
        await asyncio.to_thread(self._allow_actions)

    def _unpack(self, key: bytes, payload: bytes) -> None:
        try:
            plain = decrypt_payload(key, payload)
        except ValueError:
            raise PayloadRefused("it cannot be decrypted with its key") from None
        self._start_folder()
        write_private(self.folder / self._options.key_name, key)
        write_private(self.folder / self._options.payload_name, plain)
        if self._options.unpack:
            unpack_zip(plain, self.folder)

    def _start_folder(self) -> None:
        if self.folder.is_symlink():
            self.folder.unlink()
        elif self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir(mode=PRIVATE_FOLDER)

    async def _run_script(self) -> None:
        script = self.folder / self._options.script
        if not self._options.script or not _is_own_file(script):
            return
        script.chmod(PRIVATE_FOLDER)
        log.info("Running script: %s", script)
        process = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            shlex.quote(str(script)),
            cwd=self.folder,
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            status = await process.wait()
        except asyncio.CancelledError:
            await end_program(process)
            raise
        log.log(20 if status == 0 else 30, "Script %s ended with status %d", script, status)

    def _allow_actions(self) -> None:
        """Make every file that `action_list` names executable, split just as it is when actions run."""
        try:
            listed = read_file(self.folder / "action_list", limit=MAX_ACTION_LIST)
            names = parse_action_list((listed or b"").decode("utf-8", "replace"))
        except (UnsafeFile, NoticeRefused) as problem:
            raise PayloadRefused(f"action_list cannot be used: {problem}") from problem
        for name in names:
            if _is_own_file(self.folder / name):
                (self.folder / name).chmod(PRIVATE_FOLDER)
            else:
                log.warning("action_list names %s, which the payload does not hold", clean(name))


def _is_own_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def unpack_zip(data: bytes, folder: Path) -> None:
    """Unpack an archive into an existing folder: files and folders only, none outside it, all within bounds.

    Raises PayloadRefused before anything is written when the archive's own list breaks a rule, OSError when there is no
    room.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            _check_entries(entries, len(data))
            for entry in entries:
                _unpack_entry(archive, entry, folder)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError) as problem:
        raise PayloadRefused(f"it is not a ZIP archive that can be unpacked ({type(problem).__name__})") from problem


def _check_entries(entries: list[zipfile.ZipInfo], packed: int) -> None:
    if len(entries) > MAX_ENTRIES:
        raise PayloadRefused(f"the archive has more than {MAX_ENTRIES} entries")
    total = sum(entry.file_size for entry in entries)
    if total > MAX_UNPACKED or (total > FREE_UNPACKED and total > MAX_RATIO * packed):
        raise PayloadRefused("the archive unpacks to more than is allowed")
    seen: set[PurePosixPath] = set()
    for entry in entries:
        path = PurePosixPath(entry.filename)
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in {0, stat.S_IFREG, stat.S_IFDIR} or entry.flag_bits & 1 or entry.compress_type not in _METHODS:
            raise PayloadRefused("the archive holds something other than plain files and folders")
        if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in entry.filename:
            raise PayloadRefused("the archive has an entry that leads out of its folder")
        if path in seen or len(entry.filename) > MAX_NAME:
            raise PayloadRefused("the archive has an entry twice, or a name that is too long")
        seen.add(path)


def _unpack_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> None:
    target = folder / entry.filename
    if entry.is_dir():
        target.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        return
    target.parent.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    with archive.open(entry) as source:
        content = source.read(entry.file_size + 1)
    if len(content) > entry.file_size:
        raise PayloadRefused("the archive holds more than it says")
    write_private(target, content)
    if entry.external_attr >> 16 & stat.S_IXUSR:
        target.chmod(PRIVATE_FOLDER)
