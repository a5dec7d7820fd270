"""UEFI device paths as text, in the form that reference states and people know."""

import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from limeguard.evidence.bootlog.text import guid_text, utf16_text

_NODE: Final = struct.Struct("<BBH")
_END: Final = 0x7F
_GUID: Final = 16
_PCI_ROOT: Final = 0x0A0341D0
_PCIE_ROOT: Final = 0x0A0841D0
_HARD_DRIVE: Final = struct.Struct("<IQQ16sBB")
_MBR: Final = 1
_GPT: Final = 2
_BIOS_DEVICES: Final = {1: "Floppy", 2: "HD", 3: "CDROM", 4: "PCMCIA", 5: "USB", 6: "Network"}
_IPV4: Final = struct.Struct("<4s4sHHHB")
_IPV6: Final = struct.Struct("<16s16sHHHB")


def device_path_text(data: bytes) -> str:
    """Return the text of a device path, its nodes joined with `/`; a path that cannot be read is given as hex."""
    nodes = _nodes(data)
    if not nodes:
        return data.hex()
    return "/".join(_node_text(*node) for node in nodes)


def _nodes(data: bytes) -> list[tuple[int, int, bytes]] | None:
    nodes: list[tuple[int, int, bytes]] = []
    start = 0
    while start + _NODE.size <= len(data):
        kind, subtype, size = _NODE.unpack_from(data, start)
        if kind == _END:
            return nodes
        end = start + size
        if size < _NODE.size or end > len(data):
            return None
        nodes.append((kind, subtype, data[start + _NODE.size : end]))
        start = end
    return None if start < len(data) else nodes


def _node_text(kind: int, subtype: int, body: bytes) -> str:
    form = _FORMS.get((kind, subtype))
    try:
        text = form(body) if form else None
    except struct.error:  # shorter than its kind
        text = None
    return f"Path({kind},{subtype},{body.hex()})" if text is None else text


def _pci(body: bytes) -> str:
    function, device = struct.unpack_from("<BB", body)
    return f"Pci(0x{device:x},0x{function:x})"


def _vendor(name: str) -> Callable[[bytes], str | None]:
    def form(body: bytes) -> str | None:
        if len(body) < _GUID:
            return None
        rest = "," + body[_GUID:].hex() if len(body) > _GUID else ""
        return f"{name}({guid_text(body[:_GUID])}{rest})"

    return form


def _guid_only(name: str) -> Callable[[bytes], str | None]:
    return lambda body: f"{name}({guid_text(body[:_GUID])})" if len(body) >= _GUID else None


def _acpi(body: bytes) -> str | None:
    hid, uid = struct.unpack_from("<II", body)
    name = {_PCI_ROOT: "PciRoot", _PCIE_ROOT: "PcieRoot"}.get(hid)
    return f"{name}(0x{uid:x})" if name else f"Acpi(0x{hid:08x},0x{uid:x})"


def _ata(body: bytes) -> str:
    return "Ata({},{},{})".format(*struct.unpack_from("<BBH", body))


def _scsi(body: bytes) -> str:
    return "SCSI({},{})".format(*struct.unpack_from("<HH", body))


def _usb(body: bytes) -> str:
    return "USB({},{})".format(*struct.unpack_from("<BB", body))


def _mac(body: bytes) -> str:
    address, kind = struct.unpack_from("<32sB", body)
    used = address[:6] if kind in (0, 1) else address  # Ethernet has six bytes, the rest is padding
    return f"MAC({used.hex()},{kind})"


def _ipv4(body: bytes) -> str:
    # The ends stand beside each other, and a port of zero is left out, in this form; reference states have it so.
    local, remote, local_port, remote_port, protocol, static = _IPV4.unpack_from(body)
    ends = "".join(
        f"{IPv4Address(address)}{f':{port}' if port else ''}"
        for address, port in ((local, local_port), (remote, remote_port))
    )
    return f"IPv4({ends},{protocol},{static})"


def _ipv6(body: bytes) -> str:
    local, remote, local_port, remote_port, protocol, origin = _IPV6.unpack_from(body)
    ends = f"[{IPv6Address(local)}]:{local_port or ''}<->[{IPv6Address(remote)}]:{remote_port or ''}"
    return f"IPv6({ends},{protocol},{origin})"


def _sata(body: bytes) -> str:
    return "Sata({},{},{})".format(*struct.unpack_from("<HHH", body))


def _nvme(body: bytes) -> str:
    namespace, eui = struct.unpack_from("<I8s", body)
    return f"NVMe(0x{namespace:x},{'-'.join(f'{byte:02X}' for byte in eui)})"


def _uri(body: bytes) -> str:
    return f"Uri({body.decode('utf-8', 'surrogateescape')})"


def _hard_drive(body: bytes) -> str | None:
    number, start, size, signature, _form, kind = _HARD_DRIVE.unpack_from(body)
    if kind == _GPT:
        return f"HD({number},GPT,{guid_text(signature)},0x{start:x},0x{size:x})"
    if kind == _MBR:
        (mark,) = struct.unpack_from("<I", signature)
        return f"HD({number},MBR,0x{mark:x},0x{start:x},0x{size:x})"
    return None


def _file(body: bytes) -> str:
    return f"File({utf16_text(body).partition(chr(0))[0]})"


def _offset(body: bytes) -> str:
    first, last = struct.unpack_from("<4xQQ", body)
    return f"Offset(0x{first:x},0x{last:x})"


def _bios_boot(body: bytes) -> str:
    kind, status = struct.unpack_from("<HH", body)
    description = body[4:].partition(b"\0")[0].decode("utf-8", "surrogateescape")
    return f"BBS({_BIOS_DEVICES.get(kind, kind)},{description},0x{status:x})"


_FORMS: Final[dict[tuple[int, int], Callable[[bytes], str | None]]] = {
    (1, 1): _pci,
    (1, 4): _vendor("VenHw"),
    (2, 1): _acpi,
    (3, 1): _ata,
    (3, 2): _scsi,
    (3, 5): _usb,
    (3, 10): _vendor("VenMsg"),
    (3, 11): _mac,
    (3, 12): _ipv4,
    (3, 13): _ipv6,
    (3, 18): _sata,
    (3, 23): _nvme,
    (3, 24): _uri,
    (4, 1): _hard_drive,
    (4, 3): _vendor("VenMedia"),
    (4, 4): _file,
    (4, 6): _guid_only("FvFile"),
    (4, 7): _guid_only("FvVol"),
    (4, 8): _offset,
    (5, 1): _bios_boot,
}
