"""The layouts of event data, and which data makes a whole log unreadable.

`problem_of` refuses exactly what other readers of the same log refuse, so that a log is never judged here by
another reading than the one its operator sees elsewhere. Everything softer is decoded as far as it goes.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from limeguard.evidence.bootlog.event_types import (
    BOOT_VARIABLE_TYPES,
    EV_EFI_GPT_EVENT,
    EV_EFI_HCRTM_EVENT,
    EV_EFI_PLATFORM_FIRMWARE_BLOB,
    EV_EFI_VARIABLE_AUTHORITY,
    EV_EFI_VARIABLE_DRIVER_CONFIG,
    EV_S_CRTM_CONTENTS,
    IMAGE_TYPES,
    VARIABLE_TYPES,
)
from limeguard.evidence.bootlog.text import utf16_nul

HCRTM: Final = b"HCRTM"
VARIABLE: Final = struct.Struct("<16sQQ")
IMAGE: Final = struct.Struct("<QQQQ")
BLOB: Final = struct.Struct("<QQ")
GPT_HEADER: Final = struct.Struct("<8sIII4xQQQQ16sQIII")
GPT_COUNT: Final = struct.Struct("<Q")
GPT_PARTITION: Final = struct.Struct("<16s16sQQQ72s")
GPT_START: Final = GPT_HEADER.size + GPT_COUNT.size

_SECURE_BOOT: Final = "SecureBoot".encode("utf-16-le")
_MOK_LIST_TRUSTED: Final = "MokListTrusted".encode("utf-16-le")
_BOOT_ORDER: Final = "BootOrder".encode("utf-16-le")


@dataclass(frozen=True, slots=True)
class Variable:
    """UEFI_VARIABLE_DATA: vendor GUID, name (UTF-16 as it stands), content."""

    guid: bytes
    name: bytes
    content: bytes

    @property
    def bare_name(self) -> bytes:
        """The name up to its NUL; some firmware counts the NUL in."""
        end = utf16_nul(self.name)
        return self.name if end < 0 else self.name[:end]


def split_variable(data: bytes) -> Variable | None:
    """Return the parts of a variable event's data, or None if the lengths in it do not fit."""
    if len(data) < VARIABLE.size:
        return None
    guid, units, size = VARIABLE.unpack_from(data)
    start = VARIABLE.size + 2 * units
    end = start + size
    if end > len(data):
        return None
    return Variable(guid, data[VARIABLE.size : start], data[start:end])


def problem_of(event_type: int, data: bytes) -> str | None:
    """Say why data does not have the layout of its type, or return None."""
    check = _CHECKS.get(event_type)
    return check(event_type, data) if check is not None else None


def _check_variable(event_type: int, data: bytes) -> str | None:
    variable = split_variable(data)
    if variable is None:
        return f"a variable does not fit in {len(data)} bytes"
    name, size = variable.bare_name, len(variable.content)
    if event_type == EV_EFI_VARIABLE_DRIVER_CONFIG and name == _SECURE_BOOT and size > 1:
        return f"SecureBoot has {size} bytes, one is its size"
    if event_type == EV_EFI_VARIABLE_AUTHORITY and name == _MOK_LIST_TRUSTED and size > 1:
        return f"MokListTrusted has {size} bytes, one is its size"
    if event_type in BOOT_VARIABLE_TYPES and name == _BOOT_ORDER and size % 2:
        return f"BootOrder has {size} bytes, not two for each entry"
    return None


def _check_image(_event_type: int, data: bytes) -> str | None:
    return None if len(data) >= IMAGE.size else f"an image load has {IMAGE.size} bytes at least, not {len(data)}"


def _check_blob(_event_type: int, data: bytes) -> str | None:
    return None if len(data) >= BLOB.size else f"a firmware blob has {BLOB.size} bytes at least, not {len(data)}"


def _check_hcrtm(_event_type: int, data: bytes) -> str | None:
    return None if data == HCRTM else "is not HCRTM"


def _check_gpt(_event_type: int, data: bytes) -> str | None:
    if len(data) < GPT_START:
        return f"a partition table has {GPT_START} bytes at least, not {len(data)}"
    (count,) = GPT_COUNT.unpack_from(data, GPT_HEADER.size)
    if len(data) != GPT_START + count * GPT_PARTITION.size:
        return f"{count} partitions do not make {len(data)} bytes"
    return None


_CHECKS: Final[dict[int, Callable[[int, bytes], str | None]]] = {
    **dict.fromkeys(VARIABLE_TYPES, _check_variable),
    **dict.fromkeys(IMAGE_TYPES, _check_image),
    EV_S_CRTM_CONTENTS: _check_blob,
    EV_EFI_PLATFORM_FIRMWARE_BLOB: _check_blob,
    EV_EFI_HCRTM_EVENT: _check_hcrtm,
    EV_EFI_GPT_EVENT: _check_gpt,
}
