"""What is delivered to a node besides supervision: the payload, its key K, and the halves U and V that make K.

U goes to the agent and V to the verifier; either alone says nothing about K. Nothing here sends anything, and no value
of this module shows its secrets when printed.
"""

import base64
import binascii
import io
import stat
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from limeguard.crypto import keysplit
from limeguard.tenant.errors import TenantError
from limeguard.wire.operator_view import certificate_metadata

KEY_SIZE = 32
KEY_SIZES = (16, 32)
IV_SIZE = 16
MAX_KEY_FILE = 4096

NOTIFIER_CERTIFICATE = "RevocationNotifier-cert.crt"
"""Under this name an agent finds the certificate that proves revocation messages."""

Randomness = Callable[[int], bytes]
"""Returns so many bytes from the system's random source."""


@dataclass(frozen=True, slots=True, repr=False)
class Delivery:
    """What a node gets. Without a payload `key` and `u` are empty and `v` is None: nothing is delivered.

    `payload` is encrypted, `metadata` JSON text, `revocation_key` PEM or empty.
    """

    key: bytes = b""
    u: bytes = b""
    v: bytes | None = None
    payload: bytes | None = None
    metadata: str = "{}"
    revocation_key: str = ""

    @property
    def has_key(self) -> bool:
        """Whether there is a key to deliver."""
        return bool(self.u)


NOTHING = Delivery()


@dataclass(frozen=True, slots=True, repr=False)
class CertificatePackage:
    """Certificates made for one node: the files of its package by name, and what the verifier is told.

    `subject` is RFC 4514 text, `revocation_key` and `notifier_certificate` PEM.
    """

    files: Mapping[str, bytes]
    serial: int
    subject: str
    revocation_key: str
    notifier_certificate: bytes


class CertificateAuthority(Protocol):
    """Whoever makes certificates for `--cert`; the command line brings one."""

    def package_for(self, agent_id: str) -> CertificatePackage:
        """Make (or find) the certificates of a node. Raises TenantError."""


def wrap(plaintext: bytes, randomness: Randomness, *, metadata: str = "{}", revocation_key: str = "") -> Delivery:
    """Encrypt a payload under a fresh key and split the key."""
    key, v = randomness(KEY_SIZE), randomness(KEY_SIZE)
    blob = keysplit.encrypt_payload(key, randomness(IV_SIZE), plaintext)
    return Delivery(
        key=key,
        u=keysplit.split(key, v),
        v=v,
        payload=blob,
        metadata=metadata,
        revocation_key=revocation_key,
    )


def from_file(path: Path, randomness: Randomness, limit: int) -> Delivery:
    """Encrypt a file; `limit` counts characters of base64. Raises TenantError: unreadable, or too large."""
    delivery = wrap(read_bounded(path, limit, "Payload"), randomness)
    check_size(delivery, limit)
    return delivery


def from_keys(key_path: Path, payload_path: Path | None, limit: int) -> Delivery:
    """Take key, halves and payload that were made beforehand.

    The key file has three base64 lines, K and the two halves in either order. Raises TenantError, also when the payload
    was not encrypted under that key.
    """
    key, first, second = _key_lines(key_path)
    if keysplit.combine(first, second) != key:
        raise TenantError(f"{key_path}: the second and third line are not the halves of the key in the first")
    payload = None
    if payload_path is not None:
        payload = _opened_payload(payload_path, key, limit)
    return Delivery(key=key, u=first, v=second, payload=payload)


def _key_lines(path: Path) -> tuple[bytes, bytes, bytes]:
    lines = read_bounded(path, MAX_KEY_FILE).split()
    if len(lines) != 3:
        raise TenantError(f"{path} is no key file: it has {len(lines)} lines, not 3")
    try:
        key, first, second = (base64.b64decode(line, validate=True) for line in lines)
    except (binascii.Error, ValueError):
        raise TenantError(f"{path} is no key file: a line is not base64") from None
    if len(key) not in KEY_SIZES or not len(key) == len(first) == len(second):
        raise TenantError(f"{path} is no key file: keys have {len(key)}, {len(first)} and {len(second)} bytes")
    return key, first, second


def _opened_payload(path: Path, key: bytes, limit: int) -> bytes:
    """Return an encrypted payload, after opening it once: what the node could not read is not delivered."""
    try:
        blob = base64.b64decode(b"".join(read_bounded(path, limit, "Payload").split()), validate=True)
        keysplit.decrypt_payload(key, blob)
    except ValueError as problem:
        raise TenantError(f"{path} was not encrypted with the given key") from problem
    return blob


def from_package(package: CertificatePackage, extra: Mapping[str, bytes], randomness: Randomness) -> Delivery:
    """Encrypt the ZIP of a certificate package with further files.

    Raises TenantError when a file would stand in the place of another.
    """
    files = {**package.files, NOTIFIER_CERTIFICATE: package.notifier_certificate}
    for name in extra:
        if name in files:
            raise TenantError(f"--include: {name} has the name of a file of the certificate package")
    return wrap(
        make_zip({**files, **extra}),
        randomness,
        metadata=certificate_metadata(package.serial, package.subject),
        revocation_key=package.revocation_key,
    )


def make_zip(files: Mapping[str, bytes]) -> bytes:
    """Pack files, stored and not deflated, as agents of every version unpack them."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = (stat.S_IFREG | 0o600) << 16
            archive.writestr(member, content)
    return packed.getvalue()


def included_files(folder: Path, limit: int) -> dict[str, bytes]:
    """Read the files that lie directly in a folder, by name. Raises TenantError; `limit` bounds their sum in bytes."""
    if not folder.is_dir():
        raise TenantError(f"--include: {folder} is no directory")
    found: dict[str, bytes] = {}
    left = limit
    for path in sorted(folder.iterdir()):
        if path.is_file():
            found[path.name] = read_bounded(path, left)
            left -= len(found[path.name])
    return found


def check_size(delivery: Delivery, limit: int) -> None:
    """Refuse a payload that no agent would take. `limit` counts characters of base64. Raises TenantError."""
    size = 0 if delivery.payload is None else 4 * ((len(delivery.payload) + 2) // 3)
    if size > limit:
        raise TenantError(f"Payload size {size} exceeds max size {limit}")


def read_bounded(path: Path, limit: int, what: str = "File") -> bytes:
    """Read a file of at most `limit` bytes. Raises TenantError."""
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as problem:
        raise TenantError(f"{path} cannot be read: {problem.strerror}") from problem
    if len(content) > limit:
        raise TenantError(f"{what} size exceeds max size {limit}: {path}")
    return content
