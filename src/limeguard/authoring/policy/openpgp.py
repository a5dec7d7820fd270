"""Signatures of repositories, checked by `gpgv`, which distributions bring. Format: RFC 9580."""

import subprocess
import tempfile
from base64 import b64decode
from pathlib import Path
from shutil import which

from limeguard.authoring.policy.collected import SourceError

UNTRUSTED = "Error. Invalid signature. Untrusted repository"


def check_detached(signed: bytes, signature: bytes, keys: bytes) -> None:
    """Say nothing when one of `keys` (armoured or not) made the signature over `signed`. Raises SourceError."""
    _gpgv({"signed": signed, "signature": signature}, keys, ["signature", "signed"])


def clear_signed(text: bytes, keys: bytes) -> bytes:
    """Return what a clear-signed text says, and only that. Raises SourceError for a signature that is not good."""
    return _gpgv({"text": text}, keys, ["--output", "out", "text"], result="out")


def _gpgv(files: dict[str, bytes], keys: bytes, arguments: list[str], result: str = "") -> bytes:
    program = which("gpgv")
    if program is None:
        raise SourceError("Checking the repository's signature needs gpgv (Debian and Ubuntu: gpgv)")
    with tempfile.TemporaryDirectory() as folder:
        for name, data in {**files, "key.gpg": unarmoured(keys)}.items():
            (Path(folder) / name).write_bytes(data)
        command = [program, "--homedir", folder, "--keyring", "./key.gpg", *arguments]
        done = subprocess.run(command, capture_output=True, check=False, cwd=folder)  # noqa: S603 - a system program
        if done.returncode != 0:
            raise SourceError(UNTRUSTED)
        return (Path(folder) / result).read_bytes() if result else b""


def unarmoured(key: bytes) -> bytes:
    """Return the bytes inside OpenPGP's ASCII armour (RFC 9580 §6); what has none is returned as it is."""
    if not key.lstrip().startswith(b"-----BEGIN PGP"):
        return key
    lines = key.decode("ascii", "replace").splitlines()
    start = next((number for number, line in enumerate(lines) if not line.strip()), 0) + 1
    body = []
    for line in lines[start:]:
        if line.startswith(("=", "-----END")):
            break
        body.append(line.strip())
    try:
        return b64decode("".join(body), validate=True)
    except ValueError:
        raise SourceError("The repository's key is not readable") from None
