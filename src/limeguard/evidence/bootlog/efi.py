"""What UEFI puts in events: signature lists, boot options, image loads, partition tables."""

import struct
from typing import Any, Final

from limeguard.evidence.bootlog.device_path import device_path_text
from limeguard.evidence.bootlog.layouts import GPT_COUNT, GPT_HEADER, GPT_PARTITION, GPT_START, IMAGE
from limeguard.evidence.bootlog.text import guid_text, utf16_nul, utf16_text

OWNER_SIZE: Final = 16
_LIST: Final = struct.Struct("<16sIII")
_OPTION: Final = struct.Struct("<IH")
_ACTIVE: Final = 1


def signature_lists(data: bytes) -> list[dict[str, Any]]:
    """Return the EFI_SIGNATURE_LISTs in `data`, up to the first whose sizes do not fit."""
    found: list[dict[str, Any]] = []
    start = 0
    while start + _LIST.size <= len(data):
        kind, size, header, entry = _LIST.unpack_from(data, start)
        first, end = start + _LIST.size + header, start + size
        if entry < OWNER_SIZE or first > end or end > len(data) or (end - first) % entry:
            break
        found.append(
            {
                "SignatureType": guid_text(kind),
                "SignatureListSize": size,
                "SignatureHeaderSize": header,
                "SignatureSize": entry,
                "Keys": _signatures(data[first:end], entry),
            }
        )
        start = end
    return found


def _signatures(data: bytes, size: int) -> list[dict[str, str]]:
    keys: list[dict[str, str]] = []
    last, owner = b"", ""
    for at in range(0, len(data), size):
        raw = data[at : at + OWNER_SIZE]
        if raw != last:  # revocation lists have hundreds of entries of one owner
            last, owner = raw, guid_text(raw)
        keys.append({"SignatureOwner": owner, "SignatureData": data[at + OWNER_SIZE : at + size].hex()})
    return keys


def signature(data: bytes) -> dict[str, str]:
    """Return one EFI_SIGNATURE_DATA: its owner, then all the rest. `data` has 16 bytes at least."""
    return {"SignatureOwner": guid_text(data[:OWNER_SIZE]), "SignatureData": data[OWNER_SIZE:].hex()}


def boot_option(data: bytes) -> dict[str, Any] | None:
    """Return an EFI_LOAD_OPTION, or None if it is none."""
    if len(data) < _OPTION.size:
        return None
    attributes, size = _OPTION.unpack_from(data)
    end = utf16_nul(data[_OPTION.size :])
    if end < 0:
        return None
    start = _OPTION.size + end + 2
    return {
        "Enabled": "Yes" if attributes & _ACTIVE else "No",
        "FilePathListLength": size,
        "Description": utf16_text(data[_OPTION.size : start - 2]),
        "DevicePath": device_path_text(data[start : start + size]),
    }


def image_load(data: bytes) -> dict[str, Any]:
    """Return a UEFI_IMAGE_LOAD_EVENT. `data` has its fixed part at least; the path ends at its end node."""
    location, length, link_time, path_length = IMAGE.unpack_from(data)
    return {
        "ImageLocationInMemory": location,
        "ImageLengthInMemory": length,
        "ImageLinkTimeAddress": link_time,
        "LengthOfDevicePath": path_length,
        "DevicePath": device_path_text(data[IMAGE.size : IMAGE.size + path_length]),
    }


def partition_table(data: bytes) -> dict[str, Any]:
    """Return a UEFI_GPT_DATA. `data` has been checked to hold exactly one."""
    fields = GPT_HEADER.unpack_from(data)
    (signature_, revision, size, crc, lba, alternate, first, last, disk, entries, count, entry, array_crc) = fields
    (partitions,) = GPT_COUNT.unpack_from(data, GPT_HEADER.size)
    return {
        "Header": {
            "Signature": signature_.decode("utf-8", "surrogateescape"),
            "Revision": revision,
            "HeaderSize": size,
            "HeaderCRC32": crc,
            "MyLBA": lba,
            "AlternateLBA": alternate,
            "FirstUsableLBA": first,
            "LastUsableLBA": last,
            "DiskGUID": guid_text(disk),
            "PartitionEntryLBA": entries,
            "NumberOfPartitionEntry": count,
            "SizeOfPartitionEntry": entry,
            "PartitionEntryArrayCRC32": array_crc,
        },
        "NumberOfPartitions": partitions,
        "Partitions": [_partition(*fields) for fields in GPT_PARTITION.iter_unpack(data[GPT_START:])],
    }


def _partition(kind: bytes, unique: bytes, first: int, last: int, attributes: int, name: bytes) -> dict[str, Any]:
    return {
        "PartitionTypeGUID": guid_text(kind),
        "UniquePartitionGUID": guid_text(unique),
        "StartingLBA": first,
        "EndingLBA": last,
        "Attributes": attributes,
        "PartitionName": utf16_text(name).partition("\0")[0],
    }
