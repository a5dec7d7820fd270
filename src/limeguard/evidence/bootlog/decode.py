"""What the data of an event says, in the shape that reference states are written for.

Decoding believes nothing: what of it a digest covers is decided by `limeguard.evidence.bootlog.replay`.
"""

import struct
from collections.abc import Callable
from typing import Any, Final

from limeguard.evidence.bootlog.efi import (
    OWNER_SIZE,
    boot_option,
    image_load,
    partition_table,
    signature,
    signature_lists,
)
from limeguard.evidence.bootlog.event_types import (
    BOOT_VARIABLE_TYPES,
    EV_EFI_ACTION,
    EV_EFI_GPT_EVENT,
    EV_EFI_HCRTM_EVENT,
    EV_EFI_PLATFORM_FIRMWARE_BLOB,
    EV_EFI_PLATFORM_FIRMWARE_BLOB2,
    EV_EFI_VARIABLE_AUTHORITY,
    EV_EFI_VARIABLE_DRIVER_CONFIG,
    EV_IPL,
    EV_NO_ACTION,
    EV_POST_CODE,
    EV_S_CRTM_CONTENTS,
    IMAGE_TYPES,
    VARIABLE_TYPES,
)
from limeguard.evidence.bootlog.layouts import BLOB, split_variable
from limeguard.evidence.bootlog.log import BootEvent
from limeguard.evidence.bootlog.text import guid_text, utf8_text, utf16_text

Decoded = dict[str, Any] | list[Any] | str | None

MAX_HEX: Final = 1024
"""Bytes that are shown as hex of data whose layout is not known; more is cut off, as readers of the log do."""
STARTUP_LOCALITY: Final = b"StartupLocality\0"
SIGNATURE_DATABASES: Final = frozenset({"PK", "KEK", "db", "dbx"})
SIGNATURES: Final = frozenset({"db", "Shim", "vendor_db"})
_BOOT_DIGITS: Final = frozenset("0123456789abcdefABCDEF")


def decode(event: BootEvent) -> Decoded:
    """Return the `Event` member of the enriched form: an object, a list, text, or None where there is no data."""
    if not event.data:
        return None
    return _DECODERS.get(event.type, _hex)(event)


def startup_locality(event: BootEvent) -> int | None:
    """Return the locality from which the TPM was started, if that is what the event says."""
    data = event.data
    if event.type == EV_NO_ACTION and len(data) == len(STARTUP_LOCALITY) + 1 and data.startswith(STARTUP_LOCALITY):
        return data[-1]
    return None


def _hex(event: BootEvent) -> str:
    return event.data[:MAX_HEX].hex()


def _text(event: BootEvent) -> str:
    return utf8_text(event.data)


def _string(event: BootEvent) -> dict[str, str]:
    return {"String": utf8_text(event.data)}


def _no_action(event: BootEvent) -> Decoded:
    locality = startup_locality(event)
    return _hex(event) if locality is None else {"StartupLocality": locality}


def _blob(event: BootEvent) -> dict[str, int]:
    base, length = BLOB.unpack_from(event.data)
    return {"BlobBase": base, "BlobLength": length}


def _post_code(event: BootEvent) -> Decoded:
    return _blob(event) if len(event.data) == BLOB.size else _text(event)


def _described_blob(event: BootEvent) -> Decoded:
    data = event.data
    size = data[0]
    if len(data) < 1 + size + BLOB.size:
        return _hex(event)
    base, length = BLOB.unpack_from(data, 1 + size)
    description = data[1 : 1 + size].hex()
    return {"BlobDescriptionSize": size, "BlobDescription": description, "BlobBase": base, "BlobLength": length}


def _image(event: BootEvent) -> Decoded:
    return image_load(event.data)


def _partitions(event: BootEvent) -> Decoded:
    return partition_table(event.data)


def _variable(event: BootEvent) -> Decoded:
    variable = split_variable(event.data)
    if variable is None:
        return _hex(event)
    name = utf16_text(variable.bare_name)
    shown: dict[str, Any] = {
        "VariableName": guid_text(variable.guid),
        "UnicodeNameLength": len(variable.name) // 2,
        "VariableDataLength": len(variable.content),
        "UnicodeName": name,
    }
    content = _content(event.type, name, variable.content)
    if content is not _ABSENT:
        shown["VariableData"] = content
    return shown


_ABSENT: Final = object()


def _content(event_type: int, name: str, data: bytes) -> Any:
    special: Any = _ABSENT
    if event_type == EV_EFI_VARIABLE_DRIVER_CONFIG:
        special = _configured(name, data)
    elif event_type == EV_EFI_VARIABLE_AUTHORITY:
        special = _authority(name, data)
    elif event_type in BOOT_VARIABLE_TYPES:
        special = _boot_variable(name, data)
    if special is _ABSENT and data:
        return data.hex()
    return special


def _configured(name: str, data: bytes) -> Any:
    if name in SIGNATURE_DATABASES:
        return signature_lists(data) or None
    return _switch(data) if name == "SecureBoot" else _ABSENT


def _authority(name: str, data: bytes) -> Any:
    if name == "MokListTrusted":
        return _switch(data)
    if name == "SbatLevel":
        return {"String": utf8_text(data)}
    if name in SIGNATURES and len(data) >= OWNER_SIZE:
        return [signature(data)]
    return _ABSENT


def _switch(data: bytes) -> dict[str, str]:
    return {"Enabled": "Yes" if any(data) else "No"}


def _boot_variable(name: str, data: bytes) -> Any:
    if name == "BootOrder":
        return [f"Boot{number:04x}" for (number,) in struct.iter_unpack("<H", data)] or None
    if len(name) == len("Boot0000") and name.startswith("Boot") and _BOOT_DIGITS.issuperset(name[4:]):
        option = boot_option(data)
        return _ABSENT if option is None else option
    return _ABSENT


_DECODERS: Final[dict[int, Callable[[BootEvent], Decoded]]] = {
    **dict.fromkeys(VARIABLE_TYPES, _variable),
    **dict.fromkeys(IMAGE_TYPES, _image),
    EV_NO_ACTION: _no_action,
    EV_POST_CODE: _post_code,
    EV_S_CRTM_CONTENTS: _blob,
    EV_EFI_PLATFORM_FIRMWARE_BLOB: _blob,
    EV_EFI_PLATFORM_FIRMWARE_BLOB2: _described_blob,
    EV_EFI_GPT_EVENT: _partitions,
    EV_EFI_ACTION: _text,
    EV_EFI_HCRTM_EVENT: _text,
    EV_IPL: _string,
}
