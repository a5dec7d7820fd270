"""Text and identifiers in event data. Nothing is lost: bytes that are not text come back from the text."""

import struct

_GUID = struct.Struct("<IHH8s")


def guid_text(raw: bytes) -> str:
    """Return a GUID of 16 bytes as text, its first three fields little-endian."""
    first, second, third, rest = _GUID.unpack(raw)
    return f"{first:08x}-{second:04x}-{third:04x}-{rest[:2].hex()}-{rest[2:].hex()}"


def utf8_text(raw: bytes) -> str:
    """Return bytes as text. One NUL at the end is its terminator; NULs inside stay."""
    return raw.removesuffix(b"\0").decode("utf-8", "surrogateescape")


def utf16_text(raw: bytes) -> str:
    """Return UTF-16 units as text; halves of pairs stay as they are, and an odd byte at the end is left out."""
    return raw[: len(raw) & ~1].decode("utf-16-le", "surrogatepass")


def utf16_nul(raw: bytes) -> int:
    """Return where the first NUL among UTF-16 units stands, or -1."""
    at = raw.find(b"\0\0")
    while at >= 0 and at % 2:  # the end of one unit and the beginning of the next
        at = raw.find(b"\0\0", at + 1)
    return at
