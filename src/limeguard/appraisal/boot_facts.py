"""What proven events say beyond their digests: variables of the firmware, certificates that vouched, command lines."""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from limeguard.evidence.bootlog.efi import signature_lists
from limeguard.evidence.bootlog.event_types import EV_EFI_VARIABLE_AUTHORITY, EV_EFI_VARIABLE_DRIVER_CONFIG, EV_IPL
from limeguard.evidence.bootlog.layouts import Variable, split_variable
from limeguard.evidence.bootlog.replay import DataProof, ProvenEvent
from limeguard.evidence.bootlog.text import guid_text

COMMAND_PCR: Final = 8
STUB_PCR: Final = 12
FILES_PCR: Final = 9
KEYS_PCR: Final = 7
X509: Final = "a5c059a1-94e4-4aa7-87b5-ab155c2bf072"
SHA256_HASH: Final = "c1c41626-504c-4092-aca9-41f936934328"
_GLOBAL: Final = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
_DATABASE: Final = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
_SHIM: Final = "605dab50-e046-4300-abb6-3dd810dd8b23"
GUIDS: Final = {"SecureBoot": _GLOBAL, "PK": _GLOBAL, "KEK": _GLOBAL, "db": _DATABASE, "dbx": _DATABASE}
_OWNER: Final = 16
_MAX_LINES: Final = 64


def configured(event: ProvenEvent) -> tuple[str, Variable] | None:
    """Return a variable that the firmware measured on PCR 7 and its name, if the digest covers all of it.

    None for one that came after the separator: there, the firmware is no longer alone.
    """
    said = event.event
    if said.type != EV_EFI_VARIABLE_DRIVER_CONFIG or said.pcr != KEYS_PCR or event.after_separator:
        return None
    return _variable(event)


def authority(event: ProvenEvent) -> tuple[str, Variable] | None:
    """Return what vouched for an image (or another variable of shim) and its name, if the digest covers all of it."""
    said = event.event
    return _variable(event) if said.type == EV_EFI_VARIABLE_AUTHORITY and said.pcr == KEYS_PCR else None


def _variable(event: ProvenEvent) -> tuple[str, Variable] | None:
    if event.proof is not DataProof.WHOLE or event.content is None:
        return None
    variable = split_variable(event.content)
    if variable is None:
        return None
    return variable.bare_name.decode("utf-16-le", "replace"), variable


def secure_boot_event(*, on: bool) -> bytes:
    """Return the data of the event by which firmware says whether Secure Boot is on."""
    name = "SecureBoot"
    head = UUID(_GLOBAL).bytes_le + struct.pack("<QQ", len(name), 1)
    return head + name.encode("utf-16-le") + bytes([on])


def has_guid(name: str, variable: Variable) -> bool:
    """Say whether the variable is the well-known one of this name."""
    return GUIDS.get(name) == guid_text(variable.guid)


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a signature database. `digest` identifies it; `certificate` is DER where it is one."""

    digest: bytes
    certificate: bytes | None
    is_image: bool


def entries(content: bytes) -> tuple[Entry, ...] | None:
    """Return what a signature database holds, None when it cannot be read to its end."""
    lists = signature_lists(content)
    if sum(one["SignatureListSize"] for one in lists) != len(content):
        return None
    return tuple(
        _entry(one["SignatureType"], bytes.fromhex(key["SignatureData"])) for one in lists for key in one["Keys"]
    )


def _entry(kind: str, data: bytes) -> Entry:
    if kind == SHA256_HASH:
        return Entry(data, None, is_image=True)
    return Entry(hashlib.sha256(data).digest(), data if kind == X509 else None, is_image=False)


def vouching(variable: Variable) -> Iterator[bytes]:
    """Yield what may be the certificate in an authority's data: with an owner before it, or bare as shim writes it."""
    yield variable.content[_OWNER:]
    yield variable.content


def sbat_level(name: str, variable: Variable) -> dict[str, int] | None:
    """Return the generations of shim's revocation level (`sbat` itself has a date), None for another variable."""
    if name != "SbatLevel" or guid_text(variable.guid) != _SHIM:
        return None
    level: dict[str, int] = {}
    for line in variable.content.rstrip(b"\0").split(b"\n")[:_MAX_LINES]:
        component, *generations = line.split(b",")
        # The first line is `sbat,1,2021030218`: its generation never changed, the date is the level.
        number = generations[-1] if generations else b""
        if number.isdigit() and len(number) <= 12:
            level[component.decode("ascii", "replace")] = int(number)
    return level


def command_line(event: ProvenEvent) -> str | None:
    """Return a command that GRUB or systemd's stub measured as text, if the digest covers it."""
    content = event.content
    if content is None or event.event.type != EV_IPL:
        return None
    if event.event.pcr == COMMAND_PCR:
        # GRUB's text is UTF-8; older systemd-boot measured UTF-16 here.
        return _utf16(content) if content[1:2] == b"\0" else content.decode("utf-8", "surrogateescape")
    return _utf16(content) if event.event.pcr == STUB_PCR else None


def _utf16(content: bytes) -> str:
    return content.decode("utf-16-le", "replace").rstrip("\0")


def load_options(line: str) -> Iterator[bytes]:
    """Yield what the kernel's stub measures on PCR 9 for this command line: its load options, as UTF-16 with a NUL."""
    for text in (line, f"BOOT_IMAGE={line}"):
        yield f"{text}\0".encode("utf-16-le", "replace")
