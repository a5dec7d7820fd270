"""What an event of a boot log says, in a few words for people. Nothing here is proven, and nothing decides by it."""

import re
import warnings
from typing import Final

from cryptography import x509

from limeguard.evidence.bootlog.decode import decode
from limeguard.evidence.bootlog.describe import describe, type_name_for_people
from limeguard.evidence.bootlog.event_types import IMAGE_TYPES
from limeguard.evidence.bootlog.log import BootEvent

MAX_WORDS: Final = 160
_FILE: Final = re.compile(r"(?:^|/)File\((.*?)\)")

ROLES: Final = (
    ("shim", "shim"),
    ("mmx64", "MokManager"),
    ("mokmanager", "MokManager"),
    ("fbx64", "fallback"),
    ("fallback", "fallback"),
    ("grub", "GRUB"),
    ("systemd-boot", "systemd-boot"),
    ("vmlinuz", "kernel"),
    ("linux", "kernel"),
)
"""Parts of file names, and what a file of that name is, for those who keep to the custom."""


def words(text: str, limit: int = MAX_WORDS) -> str:
    """Return text on one line, without what a terminal would act on, and short."""
    plain = "".join(c if c.isprintable() else " " for c in text[: limit + 1]).strip()
    return plain if len(plain) <= limit else f"{plain[: limit - 3]}..."


def named(event: BootEvent) -> str:
    """Return number, PCR, type and what it says: how every sentence names an event."""
    says = says_what(event)
    return f"event {event.event_num} (PCR {event.pcr}, {type_name_for_people(event.type)}{f', {says}' if says else ''})"


def says_what(event: BootEvent) -> str:
    """Return what the event says it is; empty when it says nothing that people can read."""
    said = decode(event)
    if event.type in IMAGE_TYPES and isinstance(said, dict):
        return words(image_words(str(said["DevicePath"])))
    return words(describe(event))


def image_words(path: str) -> str:
    """Return what a loaded image is by its path: a role where the name tells one, and the file."""
    files = _FILE.findall(path)
    if not files:
        return path or "from memory"
    name = files[-1].rpartition("\\")[2].lower()
    role = next((what for part, what in ROLES if part in name), "")
    return f"{role} {files[-1]}".strip()


def certificate_words(der: bytes) -> str:
    """Return the subject of a certificate, empty for what is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # firmware holds certificates that break rules nobody asks about here
            return words(x509.load_der_x509_certificate(der).subject.rfc4514_string())
    except Exception:  # noqa: BLE001 - the library raises what it likes on odd input, and these are words for people
        return ""
