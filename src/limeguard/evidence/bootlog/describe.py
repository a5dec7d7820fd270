"""An event in a few words for people. Says what the data says, proven or not; escaping is left to who prints it."""

import struct
from collections.abc import Callable
from typing import Any, Final

from limeguard.evidence.bootlog.decode import decode, startup_locality
from limeguard.evidence.bootlog.event_types import (
    EV_EFI_GPT_EVENT,
    EV_EFI_PLATFORM_FIRMWARE_BLOB,
    EV_EFI_PLATFORM_FIRMWARE_BLOB2,
    EV_EVENT_TAG,
    EV_IPL,
    EV_NO_ACTION,
    EV_POST_CODE,
    EV_S_CRTM_CONTENTS,
    EV_S_CRTM_VERSION,
    EV_SEPARATOR,
    IMAGE_TYPES,
    LATER_NAMES,
    NAMES,
    UNKNOWN,
    VARIABLE_TYPES,
)
from limeguard.evidence.bootlog.layouts import BLOB
from limeguard.evidence.bootlog.log import SPEC_ID_SIGNATURE, BootEvent
from limeguard.evidence.bootlog.text import utf8_text, utf16_text

_TAG: Final = struct.Struct("<II")
_SHOWN_HEX: Final = 32
_PRINTABLE: Final = range(0x20, 0x7F)


def type_name_for_people(event_type: int) -> str:
    """Return the name of a type; younger ones are named too, and unknown ones are given as a number."""
    return NAMES.get(event_type) or LATER_NAMES.get(event_type) or f"{UNKNOWN} {event_type:#x}"


def describe(event: BootEvent) -> str:
    """Return what the event says."""
    if not event.data:
        return ""
    return _DESCRIBERS.get(event.type, _plain)(event)


def text_of(data: bytes) -> str:
    """Return text that is UTF-16, as firmware and systemd-boot write it, or UTF-8, as GRUB and shim do."""
    wide = len(data) > 3 and not any(data[1:-1:2]) and any(data[::2])
    return utf16_text(data).rstrip("\0") if wide else utf8_text(data)


def _plain(event: BootEvent) -> str:
    data = event.data
    body = data.rstrip(b"\0")
    readable = len(body) > 3 and all(byte in _PRINTABLE for byte in body.replace(b"\0", b""))
    return text_of(data) if readable else _hex(data)


def _hex(data: bytes) -> str:
    more = f"... ({len(data)} bytes)" if len(data) > _SHOWN_HEX else ""
    return data[:_SHOWN_HEX].hex() + more


def _text(event: BootEvent) -> str:
    return text_of(event.data)


def _no_action(event: BootEvent) -> str:
    locality = startup_locality(event)
    if locality is not None:
        return f"the TPM was started from locality {locality}"
    if event.data.startswith(SPEC_ID_SIGNATURE):
        return "Spec ID: a crypto-agile log"
    name = event.data[:16].rstrip(b"\0")
    readable = name and all(byte in _PRINTABLE for byte in name)
    return f"{name.decode()} ({len(event.data)} bytes)" if readable else _hex(event.data)


def _separator(event: BootEvent) -> str:
    return {bytes(4): "the firmware hands over", b"\xff" * 4: "the firmware met an error"}.get(
        event.data, _hex(event.data)
    )


def _blob(event: BootEvent) -> str:
    if len(event.data) != BLOB.size:
        return _plain(event)
    base, length = BLOB.unpack(event.data)
    return f"{length} bytes at {base:#x}"


def _described_blob(event: BootEvent) -> str:
    said = decode(event)
    if not isinstance(said, dict):
        return _hex(event.data)
    name = text_of(event.data[1 : 1 + said["BlobDescriptionSize"]])
    return f"{name}: {said['BlobLength']} bytes at {said['BlobBase']:#x}"


def _image(event: BootEvent) -> str:
    said = decode(event)
    return str(said["DevicePath"]) if isinstance(said, dict) else ""


def _partitions(event: BootEvent) -> str:
    said = decode(event)
    if not isinstance(said, dict):
        return ""
    names = ", ".join(part["PartitionName"] or "(no name)" for part in said["Partitions"])
    return f"disk {said['Header']['DiskGUID']}: {names or 'no partitions'}"


def _tag(event: BootEvent) -> str:
    if len(event.data) < _TAG.size:
        return _hex(event.data)
    number, size = _TAG.unpack_from(event.data)
    return f"tag {number:#010x}: {text_of(event.data[_TAG.size : _TAG.size + size])}"


def _variable(event: BootEvent) -> str:
    said = decode(event)
    if not isinstance(said, dict):
        return _hex(event.data)
    return f"{said['UnicodeName']}: {_value(said.get('VariableData'), said['VariableDataLength'])}"


def _value(value: Any, size: int) -> str:
    if value is None:
        return f"{size} bytes that cannot be read" if size else "empty"
    if isinstance(value, str):
        return _hex(bytes.fromhex(value))
    if isinstance(value, dict):
        return _object(value)
    if value and isinstance(value[0], dict):
        if "Keys" in value[0]:
            keys = sum(len(one["Keys"]) for one in value)
            return (
                f"{keys} {'entry' if keys == 1 else 'entries'} in {len(value)} {'list' if len(value) == 1 else 'lists'}"
            )
        return f"{value[0]['SignatureOwner']}, {len(value[0]['SignatureData']) // 2} bytes"
    return ", ".join(str(one) for one in value)


def _object(value: dict[str, Any]) -> str:
    if "String" in value:
        return str(value["String"]).strip()
    if "DevicePath" in value:
        off = "" if value["Enabled"] == "Yes" else " (off)"
        return f"{value['Description']}{off}: {value['DevicePath']}"
    return "on" if value["Enabled"] == "Yes" else "off"


_DESCRIBERS: Final[dict[int, Callable[[BootEvent], str]]] = {
    **dict.fromkeys(VARIABLE_TYPES, _variable),
    **dict.fromkeys(IMAGE_TYPES, _image),
    EV_NO_ACTION: _no_action,
    EV_SEPARATOR: _separator,
    EV_POST_CODE: _blob,
    EV_S_CRTM_CONTENTS: _blob,
    EV_EFI_PLATFORM_FIRMWARE_BLOB: _blob,
    EV_EFI_PLATFORM_FIRMWARE_BLOB2: _described_blob,
    EV_EFI_GPT_EVENT: _partitions,
    EV_EVENT_TAG: _tag,
    EV_IPL: _text,
    EV_S_CRTM_VERSION: _plain,
}
