"""Acts on a revocation notice: another node lost trust, and the operator's actions are to run here.

Decides whether a notice is signed by the delivered certificate and which programs run in which order. A notice that
comes before any payload was processed is dropped, because only the payload brings the certificate.
"""

import asyncio
import base64
import binascii
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from limeguard.agent.files import UnsafeFile, read_file, write_private
from limeguard.agent.programs import end_program
from limeguard.telemetry import clean, get_logger

log = get_logger("keylime_agent.revocation")

MAX_CERTIFICATE = 64 * 1024
MAX_ACTION_LIST = 64 * 1024
MAX_ACTIONS = 64
MAX_OUTPUT = 64 * 1024
"""Bytes of an action's output that are logged; the rest is read and dropped."""
SHA256_SIZE = 32
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_SEPARATORS = re.compile(r"[,\s]+")


class NoticeRefused(Exception):  # noqa: N818 - a fact about the notice
    """A notice is not acted on; the text says why."""


@dataclass(frozen=True, slots=True)
class NoticeOptions:
    """What the configuration says about notices. Paths are absolute."""

    work_folder: Path
    unzipped: Path
    certificate: Path
    actions: tuple[str, ...]
    actions_folder: Path
    allow_payload_actions: bool


def parse_action_list(text: str) -> tuple[str, ...]:
    """Split a list of actions at commas, blanks, newlines. Raises NoticeRefused for a name that leaves its folder."""
    names = tuple(name for name in _SEPARATORS.split(text) if name)
    if len(names) > MAX_ACTIONS:
        raise NoticeRefused(f"there are more than {MAX_ACTIONS} actions")
    for name in names:
        if not _NAME.fullmatch(name):
            raise NoticeRefused(f"{clean(name, 128)} cannot be the name of an action")
    return names


def load_notice_key(data: bytes) -> rsa.RSAPublicKey:
    """Return the key of the PEM certificate that notices are signed with. Raises NoticeRefused."""
    try:
        key = x509.load_pem_x509_certificate(data).public_key()
    except ValueError as problem:
        raise NoticeRefused("the revocation certificate cannot be read") from problem
    if not isinstance(key, rsa.RSAPublicKey):
        raise NoticeRefused("the revocation certificate does not hold an RSA key")
    return key


def check_notice(key: rsa.RSAPublicKey, message: str, signature: str) -> None:
    """Raise NoticeRefused unless the message is signed: RSASSA-PSS, SHA-256, salt of maximal length (RFC 8017 §8.1)."""
    try:
        raw = base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError) as problem:
        raise NoticeRefused("the signature is not base64") from problem
    if not raw:
        raise NoticeRefused("the notice carries no signature")
    # Spelled as a number: the library takes its own constant for "any length" when it verifies.
    salt = (key.key_size + 6) // 8 - SHA256_SIZE - 2
    scheme = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=salt)
    try:
        key.verify(raw, message.encode(), scheme, hashes.SHA256())
    except InvalidSignature as problem:
        raise NoticeRefused("the signature is not valid") from problem


class NoticeHandler:
    """Runs the actions of one notice after another."""

    def __init__(self, options: NoticeOptions) -> None:
        """Start without a certificate: notices are dropped until a payload was processed."""
        self._options = options
        self._key: rsa.RSAPublicKey | None = None

    def learn_certificate(self) -> None:
        """Read the certificate that a payload brought; call after each payload."""
        try:
            data = read_file(self._options.certificate, limit=MAX_CERTIFICATE)
            self._key = None if data is None else load_notice_key(data)
        except (OSError, UnsafeFile, NoticeRefused) as problem:
            self._key = None
            log.error("Revocation notices will be dropped: %s: %s", clean(self._options.certificate), clean(problem))  # noqa: TRY400 - a sentence, no traceback
            return
        if self._key is None:
            log.warning("The payload brought no revocation certificate; revocation notices will be dropped")

    async def handle(self, message: str, signature: str) -> None:
        """Check a notice and run the actions; never raises but on cancellation."""
        if self._key is None:
            log.warning("A revocation notice was dropped: no revocation certificate was delivered yet")
            return
        try:
            check_notice(self._key, message, signature)
            document = msgspec.json.decode(message)
            actions = self._actions()
            await self._run_all(actions, msgspec.json.encode(document, order="sorted"))
        except NoticeRefused as refused:
            log.error("A revocation notice was refused: %s", refused)  # noqa: TRY400 - a sentence, no traceback
        except (msgspec.MsgspecError, OSError, UnsafeFile) as problem:
            log.error("A revocation notice could not be acted on: %s", clean(problem))  # noqa: TRY400 - a sentence, no traceback

    def _actions(self) -> tuple[str, ...]:
        configured = parse_action_list(" ".join(self._options.actions))
        listed = read_file(self._options.unzipped / "action_list", limit=MAX_ACTION_LIST)
        return configured + parse_action_list((listed or b"").decode("utf-8", "replace"))

    async def _run_all(self, actions: Sequence[str], document: bytes) -> None:
        for name in actions:
            program = self._find(name)
            if program is None:
                log.error("Revocation action %s was not found; the actions after it are not run", name)
                return
            log.info("Executing revocation action %s", name)
            status = await self._run(program, document)
            if status != 0:
                log.error("Revocation action %s failed (%s); the actions after it are not run", name, status)
                return

    def _find(self, name: str) -> Path | None:
        folders = [self._options.actions_folder]
        if self._options.allow_payload_actions:
            folders.append(self._options.unzipped)
        return next((folder / name for folder in folders if (folder / name).is_file()), None)

    async def _run(self, program: Path, document: bytes) -> int | str:
        """Run a program with the notice in a file as its argument; return its exit status or why it did not start."""
        argument = self._options.work_folder / f".notice-{secrets.token_hex(8)}.json"
        write_private(argument, document)
        try:
            process = await asyncio.create_subprocess_exec(
                program,
                argument,
                cwd=self._options.work_folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
            try:
                await asyncio.gather(_log_output("stdout", process.stdout), _log_output("stderr", process.stderr))
                return await process.wait()
            except asyncio.CancelledError:
                await end_program(process)
                raise
        except OSError as problem:
            return problem.strerror or "it cannot be started"
        finally:
            _remove(argument)


def _remove(path: Path) -> None:
    try:
        os.unlink(path)  # noqa: PTH108 - the link itself, whatever it has become
    except FileNotFoundError:
        return


async def _log_output(name: str, stream: asyncio.StreamReader | None) -> None:
    shown = b""
    while stream is not None and (chunk := await stream.read(4096)):
        shown += chunk[: MAX_OUTPUT - len(shown)]
    for line in shown.decode("utf-8", "replace").splitlines():
        log.info("Action %s: %s", name, clean(line))
