"""Boot logs made by hand: records, what UEFI puts in them, and a set of small logs with every kind of event.

`python -m tests.fakes.boot_logs` writes the set to `tests/vectors/bootlog/corpus`, where fuzzing starts from.
"""

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path

from limeguard.crypto.hashes import SHA1, SHA256, SHA384, HashAlgorithm
from limeguard.evidence.bootlog import event_types as ev
from limeguard.evidence.bootlog.log import parse_boot_log
from limeguard.evidence.bootlog.replay import BOOT_PCRS, replay
from limeguard.evidence.tpm.quote import QuotedPcrs
from limeguard.evidence.tpm.structures import ClockInfo

CORPUS = Path(__file__).resolve().parents[1] / "vectors" / "bootlog" / "corpus"
GLOBAL = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
SECURITY = bytes.fromhex("cbb219d73a3d9645a3bcdad00e67656f")
SHIM = bytes.fromhex("50ab5d6046e00043abb63dd810dd8b23")
X509 = bytes.fromhex("a159c0a5e494a74a87b5ab155c2bf072")
SHA256_LIST = bytes.fromhex("2616c4c14c509240aca941f936934328")
OWNER = bytes.fromhex("bd9afa775903324dbd6028f4e78f784b")


def utf16(text: str) -> bytes:
    return text.encode("utf-16-le")


def old_record(pcr: int, event_type: int, data: bytes, digest: bytes | None = None) -> bytes:
    digest = hashlib.sha1(data, usedforsecurity=False).digest() if digest is None else digest
    return struct.pack("<II20sI", pcr, event_type, digest, len(data)) + data


def spec_id(banks: tuple[HashAlgorithm, ...], vendor: bytes = b"", *, counted: bool = True) -> bytes:
    body = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(banks))
    body += b"".join(struct.pack("<HH", bank.tpm_id, bank.size) for bank in banks) + bytes((len(vendor),))
    if counted:
        return old_record(0, ev.EV_NO_ACTION, body + vendor, bytes(20))
    return old_record(0, ev.EV_NO_ACTION, body, bytes(20)) + vendor


def record(pcr: int, event_type: int, data: bytes, digests: Mapping[HashAlgorithm, bytes]) -> bytes:
    head = struct.pack("<III", pcr, event_type, len(digests))
    parts = [struct.pack("<H", bank.tpm_id) + digest for bank, digest in digests.items()]
    return head + b"".join(parts) + struct.pack("<I", len(data)) + data


Event = tuple[int, int, bytes] | tuple[int, int, bytes, bytes]
"""PCR, type, data, and the bytes that the digest is of if they are not the data."""


def agile_log(*events: Event, banks: tuple[HashAlgorithm, ...] = (SHA256,)) -> bytes:
    parts = [spec_id(banks)]
    for pcr, event_type, data, *hashed in events:
        digests = {bank: bank.digest(hashed[0] if hashed else data) for bank in banks}
        if event_type == ev.EV_NO_ACTION:
            digests = {bank: bytes(bank.size) for bank in banks}
        parts.append(record(pcr, event_type, data, digests))
    return b"".join(parts)


def variable(name: str, content: bytes, guid: bytes = GLOBAL) -> bytes:
    return guid + struct.pack("<QQ", len(utf16(name)) // 2, len(content)) + utf16(name) + content


def signature_list(kind: bytes, *entries: bytes, owner: bytes = OWNER) -> bytes:
    size = 16 + len(entries[0])
    return kind + struct.pack("<III", 28 + size * len(entries), 0, size) + b"".join(owner + one for one in entries)


def node(kind: int, subtype: int, body: bytes) -> bytes:
    return struct.pack("<BBH", kind, subtype, 4 + len(body)) + body


END = node(0x7F, 0xFF, b"")


def device_path(*nodes: bytes) -> bytes:
    return b"".join(nodes) + END


def file_node(path: str) -> bytes:
    return node(4, 4, utf16(path + "\0"))


def boot_option(description: str, path: bytes, attributes: int = 1) -> bytes:
    return struct.pack("<IH", attributes, len(path)) + utf16(description + "\0") + path


def image(path: bytes) -> bytes:
    return struct.pack("<QQQQ", 0x1000, 4096, 0, len(path)) + path


def partition_table(*names: str) -> bytes:
    header = struct.pack(
        "<8sIII4xQQQQ16sQIII", b"EFI PART", 0x10000, 92, 7, 1, 99, 34, 90, OWNER, 2, 128, 128, 0xABCDEF
    )
    entries = [struct.pack("<16s16sQQQ72s", SECURITY, SHIM, 34, 90, 0, utf16(name)) for name in names]
    return header + struct.pack("<Q", len(entries)) + b"".join(entries)


def separator(pcr: int, value: bytes = bytes(4)) -> Event:
    return pcr, ev.EV_SEPARATOR, value


def quoted(data: bytes, bank: HashAlgorithm = SHA256, **changed: bytes) -> QuotedPcrs:
    """Return what a TPM that measured just this log would quote; `pcr7=...` puts another value in."""
    pcrs = replay(parse_boot_log(data), bank)
    values = {pcr: pcrs.get(pcr, bytes(bank.size)) for pcr in BOOT_PCRS}
    values |= {int(name.removeprefix("pcr")): value for name, value in changed.items()}
    return QuotedPcrs(bank, values, {bank: values}, ClockInfo(1, 0, 0, safe=True), 0)


SEPARATORS = tuple(separator(pcr) for pcr in range(8))
PATHS = (
    device_path(node(2, 1, struct.pack("<II", 0x0A0341D0, 0)), node(1, 1, b"\x03\x1f"), file_node("\\EFI\\BOOT.EFI")),
    device_path(node(4, 7, OWNER), node(4, 6, SHIM)),
    device_path(node(2, 1, struct.pack("<II", 0x0A0841D0, 1)), node(2, 1, struct.pack("<II", 0x060441D0, 1))),
    device_path(node(3, 11, bytes(range(32)) + b"\1"), node(3, 12, bytes(19)), node(3, 24, b"http://boot/")),
    device_path(node(3, 13, bytes(40)), node(3, 18, bytes(6)), node(3, 23, bytes(range(12))), node(3, 5, b"\1\2")),
    device_path(node(4, 1, struct.pack("<IQQ", 1, 2048, 4096) + OWNER + b"\2\2"), node(4, 3, OWNER + b"\1")),
    device_path(node(4, 1, struct.pack("<IQQ", 1, 2048, 4096) + OWNER + b"\1\1"), node(1, 4, OWNER)),
    device_path(node(5, 1, struct.pack("<HH", 2, 0) + b"disk\0"), node(4, 8, bytes(20)), node(3, 10, OWNER + b"x")),
    device_path(node(3, 1, bytes(4)), node(3, 2, bytes(4)), node(9, 9, b"??")),
)


def samples() -> dict[str, bytes]:
    """Return small logs that have every kind of event between them, by name."""
    config, authority, boot = ev.EV_EFI_VARIABLE_DRIVER_CONFIG, ev.EV_EFI_VARIABLE_AUTHORITY, ev.EV_EFI_VARIABLE_BOOT
    load, ipl = ev.EV_EFI_BOOT_SERVICES_APPLICATION, ev.EV_IPL
    return {
        "firmware": agile_log(
            (0, ev.EV_NO_ACTION, b"StartupLocality\0\x03"),
            (0, ev.EV_S_CRTM_CONTENTS, bytes(16), b"contents"),
            (0, ev.EV_S_CRTM_VERSION, utf16("1.2\0")),
            (0, ev.EV_EFI_PLATFORM_FIRMWARE_BLOB, struct.pack("<QQ", 0x820000, 0xE0000), b"blob"),
            (0, ev.EV_EFI_PLATFORM_FIRMWARE_BLOB2, b"\3abc" + struct.pack("<QQ", 1, 2), b"blob"),
            (0, ev.EV_POST_CODE, b"ACPI DATA", b"tables"),
            (1, ev.EV_CPU_MICROCODE, b"\1\2\3"),
            (1, ev.EV_EFI_HANDOFF_TABLES, bytes(8), b"tables"),
            (2, ev.EV_EFI_BOOT_SERVICES_DRIVER, image(PATHS[1]), b"driver"),
            (0, ev.EV_NONHOST_INFO, b"GCE"),
        ),
        "hcrtm": agile_log(
            (0, ev.EV_EFI_HCRTM_EVENT, b"HCRTM", b"measured by the processor"),
            (0, 0x13, b"\0\1"),
            (2, 0x800000E1, b"SPDM"),
            separator(0, b"\xff" * 4),
        ),
        "secure-boot": agile_log(
            (7, config, variable("SecureBoot", b"\1")),
            (7, config, variable("PK", signature_list(X509, b"\x30\x82\0\2ab"))),
            (7, config, variable("KEK", signature_list(X509, b"\x30\x82\0\2cd"))),
            (7, config, variable("db", signature_list(X509, b"\x30\x82\0\2ef"), SECURITY)),
            (7, config, variable("dbx", signature_list(SHA256_LIST, bytes(32), b"\1" * 32), SECURITY)),
            separator(7),
            (7, authority, variable("db", OWNER + b"\x30\x82\0\2ef", SECURITY)),
            (7, authority, variable("SbatLevel", b"sbat,1,2024010900\nshim,4\n", SHIM)),
            (7, authority, variable("MokListTrusted", b"\1", SHIM)),
            (7, authority, variable("Shim", bytes(24), SHIM)),
            (14, ipl, b"MokList\0", b"owner keys"),
        ),
        "boot-order": agile_log(
            (1, boot, variable("BootOrder", b"\1\0\0\0"), b"\1\0\0\0"),
            *((1, boot, variable(f"Boot{n:04X}", boot_option(f"Disk {n}", path))) for n, path in enumerate(PATHS[3:8])),
            (1, ev.EV_EFI_VARIABLE_BOOT2, variable("BootNext", b"\1\0")),
        ),
        "grub": agile_log(
            (4, ev.EV_EFI_ACTION, b"Calling EFI Application from Boot Option"),
            (5, ev.EV_EFI_GPT_EVENT, partition_table("EFI System", "root")),
            *((4, load, image(path), b"image") for path in PATHS[:3]),
            (9, ipl, b"(hd0,gpt1)/vmlinuz\0", b"kernel"),
            (8, ipl, b"grub_cmd: linux /vmlinuz quiet\0", b"linux /vmlinuz quiet"),
            (8, ipl, b"kernel_cmdline: /vmlinuz quiet\0", b"/vmlinuz quiet"),
            (5, ev.EV_EFI_ACTION, b"Exit Boot Services Invocation"),
            banks=(SHA1, SHA256),
        ),
        "stub": agile_log(
            (11, ipl, utf16(".linux\0"), b"kernel"),
            (12, ipl, utf16("quiet\0")),
            (9, ev.EV_EVENT_TAG, struct.pack("<II", 0x8F3B22EC, 13) + b"Linux initrd\0", b"initrd"),
            (8, ipl, b"name: \xff\xfe\x01\x1b[2J", b"\xff\xfe\x01\x1b[2J"),
            banks=(SHA384,),
        ),
        "old": b"".join(
            (
                old_record(0, ev.EV_S_CRTM_VERSION, b"1.2"),
                old_record(7, config, variable("SecureBoot", b"")),
                *(old_record(pcr, ev.EV_SEPARATOR, bytes(4)) for pcr in (0, 7)),
                old_record(4, ev.EV_ACTION, b"Calling INT 19h"),
                old_record(5, ev.EV_IPL_PARTITION_DATA, bytes(64)),
            )
        ),
        "vendor": spec_id((SHA1, SHA256), b"\xde\xad\xbe\xef", counted=False),
        "separators": agile_log(*SEPARATORS, banks=(SHA1, SHA256, SHA384)),
    }


if __name__ == "__main__":
    CORPUS.mkdir(parents=True, exist_ok=True)
    for name, data in samples().items():
        (CORPUS / f"{name}.bin").write_bytes(data)
