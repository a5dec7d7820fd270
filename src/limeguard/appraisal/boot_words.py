"""What an event of a boot log says, in a few words for people. Nothing here is proven, and nothing decides by it."""

import re
import warnings
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from limeguard.evidence.bootlog.decode import decode
from limeguard.evidence.bootlog.log import BootEvent

MAX_WORDS: Final = 160
_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e\xa1-\ufffd]")
_FILE: Final = re.compile(r"File\((.*?)\)")
_TAG: Final = 8
"""Bytes before the text of a tagged event: its id and its length."""

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
    plain = _UNPRINTABLE.sub(" ", text).strip()
    return plain if len(plain) <= limit else f"{plain[: limit - 3]}..."


def named(event: BootEvent) -> str:
    """Return number, PCR, type and what it says: how every sentence names an event."""
    says = says_what(event)
    return f"event {event.event_num} (PCR {event.pcr}, {event.type_name}{f', {says}' if says else ''})"


def says_what(event: BootEvent) -> str:
    """Return what the event says it is; empty when it says nothing that people can read."""
    return words(_says(event, decode(event)))


def _says(event: BootEvent, decoded: Any) -> str:
    if event.type_name == "EV_S_CRTM_VERSION":
        return utf16_words(event.data)
    if event.type_name == "EV_EVENT_TAG":
        return event.data[_TAG:].decode("utf-8", "replace")
    if isinstance(decoded, dict):
        return _object_says(decoded)
    # Hexadecimal data means nothing to people.
    is_text = isinstance(decoded, str) and decoded != event.data[: len(decoded) // 2].hex()
    return str(decoded) if is_text else ""


def _object_says(decoded: dict[str, Any]) -> str:
    if "String" in decoded:
        return stub_words(str(decoded["String"]))
    if "DevicePath" in decoded:
        return image_words(str(decoded["DevicePath"]))
    if "UnicodeName" in decoded:
        data = decoded.get("VariableData")
        said = data if isinstance(data, dict) else {}
        value = said.get("Description") or said.get("Enabled") or said.get("String")
        return f"{decoded['UnicodeName']}{f' {value}' if value else ''}"
    if "BlobLength" in decoded:
        return f"{decoded['BlobLength']} bytes at {decoded['BlobBase']:#x}"
    if "NumberOfPartitions" in decoded:
        return f"partition table of {decoded['NumberOfPartitions']}"
    return ""


def stub_words(text: str) -> str:
    """Return text that may be UTF-16 in which every second character is NUL, as systemd measures it."""
    return text.replace("\0", "") if "\0" in text else text


def image_words(path: str) -> str:
    """Return what a loaded image is by its path: a role where the name tells one, and the file."""
    files = _FILE.findall(path)
    if not files:
        return path or "from memory"
    name = files[-1].rpartition("\\")[2].lower()
    role = next((what for part, what in ROLES if part in name), "")
    return f"{role} {files[-1]}".strip()


def utf16_words(data: bytes) -> str:
    """Return text that firmware writes as UTF-16 or, now and then, as ASCII."""
    if data.isascii() and b"\0" not in data.rstrip(b"\0"):
        return data.rstrip(b"\0").decode("ascii")
    return data.decode("utf-16-le", "replace").rstrip("\0")


def certificate_words(der: bytes) -> str:
    """Return the subject of a certificate, empty for what is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # firmware holds certificates that break rules nobody asks about here
            return words(x509.load_der_x509_certificate(der).subject.rfc4514_string())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return ""
