"""IMA templates: which fields an entry has, their text in the ASCII list, and the bytes that the kernel hashed.

Names are the kernel's (`security/integrity/ima/ima_template.c`). Template data is the concatenation of the fields, each
a little-endian u32 length and that many bytes; only the two fields of the template `ima` have a fixed layout.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from limeguard.evidence.reader import MalformedEvidence

MAX_LEGACY_NAME: Final = 255
"""Bytes of a name in the template `ima`; the kernel logs the last component of a longer one."""
_LEGACY_NAME_FIELD: Final = 256
_U32: Final = struct.Struct("<I")
_UNNAMED_DIGESTS: Final = {20: b"sha1", 16: b"md5"}
_SIGNATURE_HEADER: Final = 9
"""Bytes of signature_v2_hdr: type, version, hash, key id, size."""


@dataclass(frozen=True, slots=True)
class Template:
    """A template: its name in the list and its fields in order."""

    name: str
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a measurement list, as the node tells it; nothing here is proven before PCR 10 was reached.

    `pcr` is the PCR column as written. `template_digest` is the list's own digest of the entry. `data` is the template
    data that the kernel hashed. `algorithm` and `digest` are those of the measured file or buffer, `verity` says that
    the digest is of fs-verity. `signature` (signature_v2_hdr and signature) and `buffer` are None where the template
    has none or the field is empty or malformed.
    """

    pcr: bytes
    template_digest: bytes
    template: str
    data: bytes
    algorithm: str
    digest: bytes
    name: bytes
    signature: bytes | None = None
    buffer: bytes | None = None
    verity: bool = False

    def violates(self, size: int) -> bool:
        """Say whether the kernel recorded a violation (ToMToU or open writers): a digest of `size` zero bytes.

        Nothing else may be taken for one: a node writes what it likes into this column.
        """
        return self.template_digest == bytes(size)


IMA: Final = Template("ima", ("d", "n"))
_KNOWN: Final = (
    IMA,
    Template("ima-ng", ("d-ng", "n-ng")),
    Template("ima-ngv2", ("d-ngv2", "n-ng")),
    Template("ima-sig", ("d-ng", "n-ng", "sig")),
    Template("ima-sigv2", ("d-ngv2", "n-ng", "sig")),
    Template("ima-buf", ("d-ng", "n-ng", "buf")),
    Template("ima-modsig", ("d-ng", "n-ng", "sig", "d-modsig", "modsig")),
    Template(
        "evm-sig", ("d-ng", "n-ng", "evmsig", "xattrnames", "xattrlengths", "xattrvalues", "iuid", "igid", "imode")
    ),
)
TEMPLATES: Final[Mapping[bytes, Template]] = {template.name.encode(): template for template in _KNOWN}


def template_of(name: bytes) -> Template:
    """Return the template that a list names: a known one, or the field list of `ima_template_fmt`.

    Raises MalformedEvidence for any other.
    """
    known = TEMPLATES.get(name)
    if known is not None:
        return known
    fields = tuple(name.decode("ascii", "replace").split("|"))
    if len(fields) > 1 and len(set(fields)) == len(fields) and _ENCODERS.keys() >= set(fields) and _has_digest(fields):
        return Template("|".join(fields), fields)
    raise MalformedEvidence("template", f"{name[:40]!r} is not a template that is known")


def _has_digest(fields: tuple[str, ...]) -> bool:
    return fields[0] in {"d-ng", "d-ngv2"} and fields[1] == "n-ng"


def entry_from_text(pcr: bytes, digest: bytes, template: Template, text: bytes) -> Entry:
    """Return the entry whose template data has this text in the ASCII list. Raises MalformedEvidence."""
    count = len(template.fields)
    values = text.split(b" ", count - 1)
    if len(values) != count:
        raise MalformedEvidence("template data", f"{template.name} needs {count} fields, {len(values)} are there")
    encoded = [_ENCODERS[field](value) for field, value in zip(template.fields, values, strict=True)]
    data = b"".join(encoded)
    if template is IMA:
        algorithm, measured = _unnamed_digest(values[0])
        return Entry(pcr, digest, template.name, data, algorithm, measured, values[1])
    return _entry(pcr, digest, template, data, encoded, values[1])


def entry_from_data(pcr: int, digest: bytes, template: Template, data: bytes) -> Entry:
    """Return the entry with this template data, as the binary list carries it. Raises MalformedEvidence."""
    number = str(pcr).encode()
    if template is IMA:
        size = len(digest)
        name = data[size:].rstrip(b"\0")
        return Entry(number, digest, template.name, data, "sha1", data[:size], name)
    fields = split_fields(data)
    if len(fields) != len(template.fields):
        raise MalformedEvidence("template data", f"{template.name} needs {len(template.fields)} fields")
    name = fields[1][_U32.size :]
    return _entry(number, digest, template, data, fields, name.removesuffix(b"\0"))


def split_fields(data: bytes) -> list[bytes]:
    """Split template data into its fields, each with its length in front. Raises MalformedEvidence."""
    fields: list[bytes] = []
    start = 0
    while start < len(data):
        if start + _U32.size > len(data):
            raise MalformedEvidence("template data", "ends within the length of a field")
        end = start + _U32.size + _U32.unpack_from(data, start)[0]
        if end > len(data):
            raise MalformedEvidence("template data", "ends within a field")
        fields.append(data[start:end])
        start = end
    return fields


def _entry(pcr: bytes, digest: bytes, template: Template, data: bytes, fields: Sequence[bytes], name: bytes) -> Entry:
    algorithm, measured, verity = _named_digest(fields[0][_U32.size :])
    by_name = dict(zip(template.fields, fields, strict=True))
    signature = by_name.get("sig", b"")[_U32.size :]
    return Entry(
        pcr,
        digest,
        template.name,
        data,
        algorithm,
        measured,
        name,
        signature=signature if well_formed_signature(signature) else None,
        buffer=by_name["buf"][_U32.size :] if "buf" in by_name else None,
        verity=verity,
    )


def well_formed_signature(signature: bytes) -> bool:
    """Say whether these are a header of version 2's form and exactly as many bytes as it announces.

    (`signature_v2_hdr` in the kernel's `security/integrity/integrity.h`: the size is its last, big-endian u16.)
    """
    size = int.from_bytes(signature[7:_SIGNATURE_HEADER], "big")
    return len(signature) >= _SIGNATURE_HEADER and len(signature) == _SIGNATURE_HEADER + size


def _named_digest(field: bytes) -> tuple[str, bytes, bool]:
    """Read the content of `d-ng` or `d-ngv2`: [type ":"] algorithm ":" NUL digest."""
    label, separator, digest = field.partition(b":\0")
    if not separator:
        raise MalformedEvidence("d-ng", "has no algorithm")
    kind, _, algorithm = label.rpartition(b":")
    return algorithm.decode("ascii", "replace"), digest, kind == b"verity"


# --- text to bytes, one function for each kind of field -----------------------------------------------------------


def hex_bytes(text: bytes, field: str) -> bytes:
    """Return the bytes of hexadecimal text. Raises MalformedEvidence; blanks, which Python tolerates, are refused."""
    try:
        value = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        value = b""
    if len(value) * 2 != len(text):
        raise MalformedEvidence(field, f"{text[:40]!r} is not hexadecimal")
    return value


def _sized(value: bytes) -> bytes:
    return _U32.pack(len(value)) + value


def _unnamed_digest(text: bytes) -> tuple[str, bytes]:
    digest = hex_bytes(text, "digest")
    algorithm = _UNNAMED_DIGESTS.get(len(digest))
    if algorithm is None:
        raise MalformedEvidence("digest", f"{len(digest)} bytes without the name of their algorithm")
    return algorithm.decode(), digest


def _encode_d(text: bytes) -> bytes:
    return _unnamed_digest(text)[1]


def _encode_n(text: bytes) -> bytes:
    if len(text) > MAX_LEGACY_NAME:
        raise MalformedEvidence("name", f"{len(text)} bytes, the template ima holds {MAX_LEGACY_NAME}")
    return text.ljust(_LEGACY_NAME_FIELD, b"\0")


def _encode_d_ng(text: bytes) -> bytes:
    algorithm, separator, digest = text.partition(b":")
    if not separator:
        name, value = _unnamed_digest(text)
        return _sized(name.encode() + b":\0" + value)
    return _sized(algorithm + b":\0" + hex_bytes(digest, "digest"))


def _encode_d_ngv2(text: bytes) -> bytes:
    kind, first, rest = text.partition(b":")
    algorithm, second, digest = rest.partition(b":")
    if not (first and second and kind in {b"ima", b"verity"}):
        raise MalformedEvidence("digest", f"{text[:40]!r} is not type:algorithm:digest")
    return _sized(kind + b":" + algorithm + b":\0" + hex_bytes(digest, "digest"))


def _encode_d_modsig(text: bytes) -> bytes:
    return _encode_d_ng(text) if text else _sized(b"")


def _encode_text(text: bytes) -> bytes:
    return _sized(text + b"\0")


def _encode_optional_text(text: bytes) -> bytes:
    return _encode_text(text) if text else _sized(b"")


def _encode_hex(text: bytes) -> bytes:
    return _sized(hex_bytes(text, "hex field"))


def _encode_sig(text: bytes) -> bytes:
    """Encode a signature; one that is malformed counts as none, so that its entry's digest does not fit."""
    try:
        signature = hex_bytes(text, "sig")
    except MalformedEvidence:
        return _sized(b"")
    return _sized(signature if well_formed_signature(signature) else b"")


def _encode_number(size: int) -> Callable[[bytes], bytes]:
    def encode(text: bytes) -> bytes:
        if not text:  # boot_aggregate has no inode
            return _sized(b"")
        if not text.isdigit() or int(text) >> (8 * size):
            raise MalformedEvidence("number", f"{text[:20]!r} is not a number of {size} bytes")
        return _sized(int(text).to_bytes(size, "little"))

    return encode


_ENCODERS: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "d": _encode_d,
    "n": _encode_n,
    "d-ng": _encode_d_ng,
    "d-ngv2": _encode_d_ngv2,
    "n-ng": _encode_text,
    "sig": _encode_sig,
    "buf": _encode_hex,
    "d-modsig": _encode_d_modsig,
    "modsig": _encode_hex,
    "evmsig": _encode_hex,
    "xattrnames": _encode_optional_text,
    "xattrlengths": _encode_hex,
    "xattrvalues": _encode_hex,
    "iuid": _encode_number(4),
    "igid": _encode_number(4),
    "imode": _encode_number(2),
}
