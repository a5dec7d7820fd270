"""What event data says, in the shape that reference states know."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.boot_logs import (
    END,
    OWNER,
    SECURITY,
    SHA256_LIST,
    SHIM,
    X509,
    agile_log,
    boot_option,
    device_path,
    file_node,
    image,
    node,
    old_record,
    partition_table,
    record,
    samples,
    signature_list,
    spec_id,
    utf16,
    variable,
)
from tests.fakes.shared import SHARED, shared_path

from limeguard.crypto.hashes import SHA1, SHA256
from limeguard.evidence.bootlog import event_types as ev
from limeguard.evidence.bootlog.decode import Decoded, decode
from limeguard.evidence.bootlog.describe import describe, type_name_for_people
from limeguard.evidence.bootlog.device_path import device_path_text
from limeguard.evidence.bootlog.enriched import enriched
from limeguard.evidence.bootlog.log import parse_boot_log
from limeguard.evidence.bootlog.text import utf16_nul

CONFIG, BOOT, AUTHORITY = ev.EV_EFI_VARIABLE_DRIVER_CONFIG, ev.EV_EFI_VARIABLE_BOOT, ev.EV_EFI_VARIABLE_AUTHORITY
OWNER_TEXT = "77fa9abd-0359-4d32-bd60-28f4e78f784b"
PARSED = sorted((SHARED / "fixtures/upstream/event-logs/parsed").glob("*.json"))


def decoded(event_type: int, data: bytes, pcr: int = 7) -> Decoded:
    return decode(parse_boot_log(agile_log((pcr, event_type, data))).events[1])


def content(event_type: int, name: str, data: bytes) -> Any:
    found = decoded(event_type, variable(name, data))
    assert isinstance(found, dict)
    return found.get("VariableData", "absent")


@pytest.mark.parametrize("expected", PARSED, ids=lambda path: path.stem)
def test_the_decoded_form_is_the_recorded_one(expected: Path) -> None:
    data = (expected.parents[1] / f"{expected.stem}.bin").read_bytes()
    ours = enriched(parse_boot_log(data))
    del ours["boot_aggregates"]
    theirs = json.loads(expected.read_text())
    assert json.dumps(ours["events"], indent=1) == json.dumps(theirs["events"], indent=1)  # order of members too
    assert ours == theirs


def test_recorded_forms_are_there() -> None:
    shared_path("fixtures/upstream/event-logs/parsed")
    assert len(PARSED) == 15


def test_the_first_event_shows_the_spec_id() -> None:
    shown = enriched(parse_boot_log(spec_id((SHA1, SHA256), b"\xde\xad")))
    assert shown["events"] == [
        {
            "EventNum": 0,
            "PCRIndex": 0,
            "EventType": "EV_NO_ACTION",
            "Digest": "00" * 20,
            "EventSize": 39,
            "SpecID": [
                {
                    "Signature": "Spec ID Event03",
                    "platformClass": 0,
                    "specVersionMinor": 0,
                    "specVersionMajor": 2,
                    "specErrata": 0,
                    "uintnSize": 2,
                    "numberOfAlgorithms": 2,
                    "Algorithms": [
                        {"Algorithm[0]": None, "algorithmId": "sha1", "digestSize": 20},
                        {"Algorithm[1]": None, "algorithmId": "sha256", "digestSize": 32},
                    ],
                    "vendorInfoSize": 2,
                    "vendorInfo": "dead",
                }
            ],
        }
    ]
    assert shown["pcrs"] == {"sha1": {"0": "00" * 20}, "sha256": {"0": "00" * 32}}
    assert shown["boot_aggregates"] == {"sha1": [], "sha256": []}


def test_a_log_of_tcg_1_2_has_the_same_shape() -> None:
    data = b"".join(old_record(pcr, ev.EV_SEPARATOR, bytes(4)) for pcr in range(8))
    shown = enriched(parse_boot_log(data))
    assert shown["events"][1] == {
        "EventNum": 1,
        "PCRIndex": 1,
        "EventType": "EV_SEPARATOR",
        "DigestCount": 1,
        "Digests": [{"AlgorithmId": "sha1", "Digest": SHA1.digest(bytes(4)).hex()}],
        "EventSize": 4,
        "Event": "00000000",
    }
    assert len(shown["boot_aggregates"]["sha1"]) == 1


def test_an_event_without_data_has_no_event_member() -> None:
    shown = enriched(parse_boot_log(agile_log((8, ev.EV_IPL, b""))))["events"][1]
    assert shown["EventSize"] == 0
    assert "Event" not in shown


def test_a_digest_of_an_unknown_algorithm_is_shown_by_its_number() -> None:
    first = bytearray(spec_id((SHA256,)))
    struct.pack_into("<HH", first, 60, 0x27, 32)
    data = bytes(first) + record(1, 5, b"a", {SHA256: bytes(32)}).replace(b"\x0b\0", b"\x27\0")
    shown = enriched(parse_boot_log(data))
    assert shown["events"][1]["Digests"] == [{"AlgorithmId": "0x0027", "Digest": "00" * 32}]
    assert shown["events"][0]["SpecID"][0]["Algorithms"][0]["algorithmId"] == "0x0027"
    assert shown["pcrs"] == {}


@pytest.mark.parametrize("name", ["PK", "KEK", "db", "dbx"])
def test_key_databases_are_lists_of_signatures(name: str) -> None:
    data = signature_list(X509, b"cert") + signature_list(SHA256_LIST, bytes(32), b"\1" * 32)
    assert content(CONFIG, name, data) == [
        {
            "SignatureType": "a5c059a1-94e4-4aa7-87b5-ab155c2bf072",
            "SignatureListSize": 48,
            "SignatureHeaderSize": 0,
            "SignatureSize": 20,
            "Keys": [{"SignatureOwner": OWNER_TEXT, "SignatureData": "63657274"}],
        },
        {
            "SignatureType": "c1c41626-504c-4092-aca9-41f936934328",
            "SignatureListSize": 124,
            "SignatureHeaderSize": 0,
            "SignatureSize": 48,
            "Keys": [
                {"SignatureOwner": OWNER_TEXT, "SignatureData": "00" * 32},
                {"SignatureOwner": OWNER_TEXT, "SignatureData": "01" * 32},
            ],
        },
    ]
    assert content(CONFIG, name, b"") is None
    assert content(CONFIG, name + "r", b"") == "absent"
    assert content(CONFIG, name + "r", b"ab") == "6162"


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\0" * 27,
        X509 + struct.pack("<III", 9999, 0, 20) + bytes(20),
        X509 + struct.pack("<III", 48, 0, 0) + bytes(20),
        X509 + struct.pack("<III", 48, 0, 15) + bytes(20),
        X509 + struct.pack("<III", 48, 0, 19) + bytes(20),
        X509 + struct.pack("<III", 48, 0xFFFFFFFF, 20) + bytes(20),
        X509 + struct.pack("<III", 0, 0, 20) + bytes(20),
    ],
)
def test_a_malformed_signature_list_ends_the_lists(bad: bytes) -> None:
    found = content(CONFIG, "dbx", signature_list(X509, b"cert") + bad + signature_list(X509, b"late"))
    keys = [key["SignatureData"] for one in found for key in one["Keys"]]
    assert keys[0] == "63657274"
    assert keys[1:] == (["6c617465"] if not bad else [])


def test_owners_of_signatures_are_told_apart() -> None:
    data = X509 + struct.pack("<III", 28 + 36, 0, 18) + OWNER + b"ab" + SHIM + b"cd"
    (found,) = content(CONFIG, "db", data)
    assert [key["SignatureOwner"] for key in found["Keys"]] == [OWNER_TEXT, "605dab50-e046-4300-abb6-3dd810dd8b23"]


def test_switches_and_sbat_are_read() -> None:
    assert content(CONFIG, "SecureBoot", b"\1") == {"Enabled": "Yes"}
    assert content(CONFIG, "SecureBoot", b"\0") == {"Enabled": "No"}
    assert content(CONFIG, "SecureBoot", b"") == {"Enabled": "No"}
    assert content(CONFIG, "SecureBoot\0", b"\1") == {"Enabled": "Yes"}
    assert content(AUTHORITY, "SecureBoot", b"\1") == "01"
    assert content(AUTHORITY, "MokListTrusted", b"\1") == {"Enabled": "Yes"}
    assert content(AUTHORITY, "SbatLevel", b"sbat,1\nshim,2\n") == {"String": "sbat,1\nshim,2\n"}
    assert content(AUTHORITY, "MokListRT", b"ab") == "6162"


@pytest.mark.parametrize("name", ["db", "Shim", "vendor_db"])
def test_an_authority_is_an_owner_and_all_the_rest(name: str) -> None:
    assert content(AUTHORITY, name, OWNER + b"cert") == [{"SignatureOwner": OWNER_TEXT, "SignatureData": "63657274"}]
    assert content(AUTHORITY, name, b"short") == "73686f7274"
    assert content(AUTHORITY, name, b"") == "absent"


def test_boot_variables_are_read() -> None:
    path = device_path(file_node("\\EFI\\x.efi"))
    assert content(BOOT, "BootOrder", b"\x1f\0\1\0") == ["Boot001f", "Boot0001"]
    assert content(BOOT, "BootOrder", b"") is None
    assert content(ev.EV_EFI_VARIABLE_BOOT2, "Boot001F", boot_option("Disk", path)) == {
        "Enabled": "Yes",
        "FilePathListLength": len(path),
        "Description": "Disk",
        "DevicePath": "File(\\EFI\\x.efi)",
    }
    off = content(BOOT, "Boot0001", boot_option("Disk", path, attributes=8) + b"optional data")
    assert (off["Enabled"], off["DevicePath"]) == ("No", "File(\\EFI\\x.efi)")
    for broken in (b"abc", struct.pack("<IH", 1, 4) + utf16("no end")):
        assert content(BOOT, "Boot0001", broken) == broken.hex()
    for other in ("Boot000G", "Boot001", "boot0001", "Boot00001"):
        assert content(BOOT, other, b"ab") == "6162"


def test_images_blobs_and_actions_are_read() -> None:
    path = device_path(node(4, 7, OWNER), node(4, 6, SHIM))
    assert decoded(ev.EV_EFI_BOOT_SERVICES_APPLICATION, image(path) + b"junk") == {
        "ImageLocationInMemory": 0x1000,
        "ImageLengthInMemory": 4096,
        "ImageLinkTimeAddress": 0,
        "LengthOfDevicePath": len(path),
        "DevicePath": f"FvVol({OWNER_TEXT})/FvFile(605dab50-e046-4300-abb6-3dd810dd8b23)",
    }
    blob = struct.pack("<QQ", 5, 6)
    assert decoded(ev.EV_S_CRTM_CONTENTS, blob + b"more") == {"BlobBase": 5, "BlobLength": 6}
    assert decoded(ev.EV_POST_CODE, blob) == {"BlobBase": 5, "BlobLength": 6}
    assert decoded(ev.EV_POST_CODE, b"ACPI DATA\0") == "ACPI DATA"
    assert decoded(ev.EV_EFI_PLATFORM_FIRMWARE_BLOB2, b"\2ab" + blob) == {
        "BlobDescriptionSize": 2,
        "BlobDescription": "6162",
        "BlobBase": 5,
        "BlobLength": 6,
    }
    assert decoded(ev.EV_EFI_PLATFORM_FIRMWARE_BLOB2, b"\xffab") == "ff6162"
    assert decoded(ev.EV_EFI_ACTION, b"Exit\0") == "Exit"
    assert decoded(ev.EV_EFI_HCRTM_EVENT, b"HCRTM", 0) == "HCRTM"
    assert decoded(ev.EV_NO_ACTION, b"StartupLocality\0\3", 0) == {"StartupLocality": 3}
    assert decoded(ev.EV_NO_ACTION, b"SP800-155 Event\0\3", 0) == "5350383030" + b"-155 Event\0\3".hex()
    assert decoded(ev.EV_CPU_MICROCODE, bytes(2000)) == "00" * 1024


def test_a_partition_table_is_read() -> None:
    found = decoded(ev.EV_EFI_GPT_EVENT, partition_table("EFI System", "root"), 5)
    assert isinstance(found, dict)
    assert found["Header"]["Signature"] == "EFI PART"
    assert found["Header"]["DiskGUID"] == OWNER_TEXT
    assert found["NumberOfPartitions"] == 2
    assert [part["PartitionName"] for part in found["Partitions"]] == ["EFI System", "root"]


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_text_keeps_every_byte(data: bytes) -> None:
    found = decoded(ev.EV_IPL, data) if data else {"String": ""}
    assert isinstance(found, dict)
    again = found["String"].encode("utf-8", "surrogateescape")
    assert data in (again, again + b"\0")
    json.dumps(found)


@settings(deadline=None)
@given(st.lists(st.sampled_from((0, 1, 0x100, 0x61)), max_size=12))
def test_the_end_of_a_name_is_its_first_nul_unit(units: list[int]) -> None:
    assert utf16_nul(struct.pack(f"<{len(units)}H", *units)) == (2 * units.index(0) if 0 in units else -1)


PATHS = {
    "Pci(0x1f,0x3)": node(1, 1, b"\x03\x1f"),
    "VenHw(77fa9abd-0359-4d32-bd60-28f4e78f784b,0102)": node(1, 4, OWNER + b"\1\2"),
    "PciRoot(0x3)": node(2, 1, struct.pack("<II", 0x0A0341D0, 3)),
    "PcieRoot(0x3)": node(2, 1, struct.pack("<II", 0x0A0841D0, 3)),
    "Ata(1,0,5)": node(3, 1, struct.pack("<BBH", 1, 0, 5)),
    "SCSI(1,2)": node(3, 2, struct.pack("<HH", 1, 2)),
    "USB(1,2)": node(3, 5, b"\1\2"),
    "VenMsg(77fa9abd-0359-4d32-bd60-28f4e78f784b)": node(3, 10, OWNER),
    "MAC(000102030405,1)": node(3, 11, bytes(range(32)) + b"\1"),
    "IPv4(1.2.3.45.6.7.8,6,1)": node(3, 12, bytes(range(1, 9)) + struct.pack("<HHHB", 0, 0, 6, 1)),
    "IPv4(1.2.3.4:805.6.7.8:443,6,1)": node(3, 12, bytes(range(1, 9)) + struct.pack("<HHHB", 80, 443, 6, 1)),
    "IPv6([::1]:<->[fe80::]:69,17,0)": node(
        3, 13, bytes(15) + b"\1\xfe\x80" + bytes(14) + struct.pack("<HHHB", 0, 69, 17, 0)
    ),
    "Sata(1,65535,2)": node(3, 18, struct.pack("<HHH", 1, 0xFFFF, 2)),
    "NVMe(0x1,00-01-02-03-04-05-06-0A)": node(3, 23, struct.pack("<I", 1) + bytes((0, 1, 2, 3, 4, 5, 6, 10))),
    "Uri(http://a/b)": node(3, 24, b"http://a/b"),
    "HD(1,GPT,77fa9abd-0359-4d32-bd60-28f4e78f784b,0x800,0x64000)": node(
        4, 1, struct.pack("<IQQ", 1, 0x800, 0x64000) + OWNER + b"\2\2"
    ),
    "HD(1,MBR,0x779abd,0x800,0x64000)": node(
        4, 1, struct.pack("<IQQ", 1, 0x800, 0x64000) + struct.pack("<I12x", 0x779ABD) + b"\1\1"
    ),
    "VenMedia(d719b2cb-3d3a-4596-a3bc-dad00e67656f)": node(4, 3, SECURITY),
    "File(\\EFI\\a b.efi)": file_node("\\EFI\\a b.efi"),
    "File(no end)": node(4, 4, utf16("no end")),
    "FvFile(77fa9abd-0359-4d32-bd60-28f4e78f784b)": node(4, 6, OWNER),
    "FvVol(77fa9abd-0359-4d32-bd60-28f4e78f784b)": node(4, 7, OWNER),
    "Offset(0xf050,0x1f9ff)": node(4, 8, struct.pack("<IQQ", 0, 0xF050, 0x1F9FF)),
    "BBS(HD,disk 0,0x1)": node(5, 1, struct.pack("<HH", 2, 1) + b"disk 0\0"),
    "BBS(128,x,0x0)": node(5, 1, struct.pack("<HH", 128, 0) + b"x\0"),
    "Path(1,1,00)": node(1, 1, b"\0"),
    "Path(9,9,0102)": node(9, 9, b"\1\2"),
    "Path(4,6,00)": node(4, 6, b"\0"),
}


@pytest.mark.parametrize("text", PATHS)
def test_nodes_of_device_paths_have_their_text(text: str) -> None:
    assert device_path_text(PATHS[text] + END) == text
    assert device_path_text(device_path(PATHS[text], PATHS[text])) == f"{text}/{text}"


def test_a_path_ends_at_its_end_node_and_an_unreadable_one_is_hex() -> None:
    first = node(1, 1, b"\x03\x1f")
    assert device_path_text(first + END + first) == "Pci(0x1f,0x3)"
    assert device_path_text(first) == "Pci(0x1f,0x3)"
    for broken in (b"\1\1\3\0", b"\1\1\xff\0", first + b"\1", first + b"\1\1\0\0", b"", END):
        assert device_path_text(broken) == broken.hex()


def test_events_are_said_in_words() -> None:
    said = {name: [describe(event) for event in parse_boot_log(data).events] for name, data in samples().items()}
    assert said["firmware"][1:6] == [
        "the TPM was started from locality 3",
        "0 bytes at 0x0",
        "1.2",
        "917504 bytes at 0x820000",
        "abc: 2 bytes at 0x1",
    ]
    assert said["secure-boot"][1:9] == [
        "SecureBoot: on",
        "PK: 1 entry in 1 list",
        "KEK: 1 entry in 1 list",
        "db: 1 entry in 1 list",
        "dbx: 2 entries in 1 list",
        "the firmware hands over",
        f"db: {OWNER_TEXT}, 6 bytes",
        "SbatLevel: sbat,1,2024010900\nshim,4",
    ]
    assert said["boot-order"][1] == "BootOrder: Boot0001, Boot0000"
    assert said["stub"][1:4] == [".linux", "quiet", "tag 0x8f3b22ec: Linux initrd"]
    assert said["hcrtm"][4] == "the firmware met an error"
    assert said["old"][1] == "SecureBoot: off"
    assert type_name_for_people(0x13) == "EV_POST_CODE2"
    assert type_name_for_people(0x12345) == "Unknown event type 0x12345"
