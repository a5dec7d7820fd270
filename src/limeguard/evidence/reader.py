"""A bounded cursor over bytes from outside; every binary parser reads through it."""

import struct
from typing import Any

_U8 = struct.Struct(">B")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_U16_LE = struct.Struct("<H")
_U32_LE = struct.Struct("<I")


class MalformedEvidence(ValueError):  # noqa: N818 - named for what it says of the evidence
    """Bytes that are not what they should be. `place` names the field, `reason` says what is wrong with it."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.place = place
        self.reason = reason


class Reader:
    """Reads fields off `data` in order, big-endian as TPMs marshal them; refuses to run past the end."""

    __slots__ = ("_data", "_position", "_what")

    def __init__(self, data: bytes, what: str) -> None:
        """Read `data`, which is called `what` in errors."""
        self._data = data
        self._what = what
        self._position = 0

    @property
    def remaining(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self._position

    def take(self, count: int, field: str) -> bytes:
        """Return the next `count` bytes. Raises MalformedEvidence."""
        start = self._position
        end = start + count
        if count < 0 or end > len(self._data):
            raise MalformedEvidence(f"{self._what}.{field}", f"needs {count} bytes, {self.remaining} are left")
        self._position = end
        return self._data[start:end]

    def unpack(self, layout: struct.Struct, field: str) -> tuple[Any, ...]:
        """Return the next fields, all of one fixed layout. Raises MalformedEvidence."""
        start = self._position
        try:
            values = layout.unpack_from(self._data, start)
        except struct.error:
            raise MalformedEvidence(
                f"{self._what}.{field}", f"needs {layout.size} bytes, {self.remaining} are left"
            ) from None
        self._position = start + layout.size
        return values

    def u8(self, field: str) -> int:
        """Return the next byte."""
        return int(self.unpack(_U8, field)[0])

    def u16(self, field: str) -> int:
        """Return the next 16 bits."""
        return int(self.unpack(_U16, field)[0])

    def u32(self, field: str) -> int:
        """Return the next 32 bits."""
        return int(self.unpack(_U32, field)[0])

    def u64(self, field: str) -> int:
        """Return the next 64 bits."""
        return int(self.unpack(_U64, field)[0])

    def u16_le(self, field: str) -> int:
        """Return the next 16 bits, little-endian."""
        return int(self.unpack(_U16_LE, field)[0])

    def u32_le(self, field: str) -> int:
        """Return the next 32 bits, little-endian."""
        return int(self.unpack(_U32_LE, field)[0])

    def sized(self, field: str, limit: int) -> bytes:
        """Return the content of a TPM2B of at most `limit` bytes. Raises MalformedEvidence."""
        size = self.unpack(_U16, field)[0]
        if size > limit:
            raise MalformedEvidence(f"{self._what}.{field}", f"has {size} bytes, at most {limit} are allowed")
        return self.take(size, field)

    def refuse(self, field: str, reason: str) -> MalformedEvidence:
        """Return the error for a field that was read and is wrong."""
        return MalformedEvidence(f"{self._what}.{field}", reason)

    def finish(self) -> None:
        """Refuse bytes that nobody asked for. Raises MalformedEvidence."""
        if self.remaining:
            raise MalformedEvidence(self._what, f"{self.remaining} bytes too many at the end")
