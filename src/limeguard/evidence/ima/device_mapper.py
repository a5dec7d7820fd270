"""Device-mapper events: the text that dm-ima measures as the buffer of an `ima-buf` entry.

Source: Linux, Documentation/admin-guide/device-mapper/dm-ima.rst; order and spelling of the fields as the contract
gives them. Decides what a text says, never whether a policy allows it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from limeguard.evidence.reader import MalformedEvidence

Value = str | int | None
"""A number in decimal is an int; an optional field that is absent is None."""
Fields = Mapping[str, Value]

MAX_TEXT: Final = 1 << 20
"""Bytes of one event; dm-ima measures at most 4 KiB at a time."""
MAX_MIRRORS: Final = 64
_WORD: Final = r"[A-Za-z0-9\-:_.+@#]+"
_KINDS: Final = {"s": _WORD, "n": "[0-9]{1,20}", "f": "[yn]", "v": r"[0-9]+\.[0-9]+\.[0-9]+", "e": rf"(?:{_WORD})?"}
_PADDING: Final = re.compile(rb"(?<=[;,=])\0+")


@dataclass(frozen=True, slots=True)
class Target:
    """One row of a table: `fields` are those of every target, `attributes` those of its kind."""

    fields: Fields
    attributes: Fields

    @property
    def index(self) -> int:
        """The place of the target in its table, from 0."""
        return int(self.fields["target_index"] or 0)


@dataclass(frozen=True, slots=True)
class DeviceEvent:
    """What all events have. `device` is empty for an event that names none; its `uuid` may be empty text."""

    device: Fields


@dataclass(frozen=True, slots=True)
class TableLoad(DeviceEvent):
    """A table was put into the inactive slot of a device."""

    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class DeviceResume(DeviceEvent):
    """The inactive table became active. `table` is `algorithm:digest` of its load event, None without a table."""

    table: str | None


@dataclass(frozen=True, slots=True)
class DeviceRemove(DeviceEvent):
    """A device was removed; `device` is that of its active table."""

    inactive: Fields


@dataclass(frozen=True, slots=True)
class TableClear(DeviceEvent):
    """The inactive table of a device was dropped."""


@dataclass(frozen=True, slots=True)
class DeviceRename(DeviceEvent):
    """A device has a new name, a new UUID, or both."""

    new_name: str
    new_uuid: str


@dataclass(frozen=True, slots=True)
class TargetUpdate(DeviceEvent):
    """The state of a target changed, such as a verity target that found a corrupt block."""

    target: Target


def parse_event(name: str, buffer: bytes) -> DeviceEvent:
    """Read the text of event `name`, one of `EVENTS`. NUL bytes after a separator are padding.

    Raises MalformedEvidence.
    """
    if len(buffer) > MAX_TEXT:
        raise MalformedEvidence(name, f"an event of {len(buffer)} bytes is longer than {MAX_TEXT}")
    try:
        text = _PADDING.sub(b"", buffer).decode("ascii")
    except UnicodeDecodeError as problem:
        raise MalformedEvidence(name, f"byte {problem.start} is not ASCII") from None
    cursor = _Cursor(name, text.rstrip("\0"))
    cursor.take(_VERSION)
    event = _EVENTS[name](cursor)
    cursor.end()
    return event


class _Group:
    """Fields in order, as one pattern. Written `name:kind`; a kind with `?` says that the field may be absent."""

    def __init__(self, fields: str, end: str = ";", start: str = "") -> None:
        self.kinds: dict[str, str] = {}
        pattern = re.escape(start)
        for number, field in enumerate(fields.split()):
            key, kind = field.rstrip("?").split(":")
            self.kinds[key] = kind
            text = rf"{',' if number else ''}{key}=(?P<{key}>{_KINDS[kind]})"
            pattern += f"(?:{text})?" if field.endswith("?") else text
        self.pattern = re.compile(pattern + end)

    def read(self, match: re.Match[str]) -> Fields:
        """Return the values of a match."""
        found = match.groupdict()
        return {
            key: int(text) if kind == "n" and (text := found[key]) is not None else found[key]
            for key, kind in self.kinds.items()
        }


_METADATA: Final = "name:s uuid:e major:n minor:n minor_count:n num_targets:n"
_VERSION: Final = _Group("dm_version:v")
_DEVICE: Final = _Group(_METADATA)
_NAMED: Final = _Group("name:s uuid:e")
_CAPACITY: Final = _Group("current_device_capacity:n")
_ACTIVE_HASH: Final = _Group("active_table_hash:s")
_NO_RESUME: Final = _Group("device_resume:s")
_ACTIVE: Final = _Group(_METADATA, start="device_active_metadata=")
_INACTIVE: Final = _Group(_METADATA, start="device_inactive_metadata=")
_ACTIVE_REMOVED: Final = _Group("active_table_hash:s", end="[,;]")
_INACTIVE_REMOVED: Final = _Group("inactive_table_hash:s", end="[,;]")
_NOTHING_REMOVED: Final = _Group("device_remove:s")
_REMOVE_ALL: Final = _Group("remove_all:s")
_INACTIVE_HASH: Final = _Group("inactive_table_hash:s")
_CLEARED: Final = _Group("table_clear:s")
_RENAMED: Final = _Group("new_name:s new_uuid:e")
_TARGET: Final = _Group(
    "target_index:n target_begin:n target_len:n target_name:s target_version:v",
    end=",",
)
_MIRROR_END: Final = _Group("handle_errors:f keep_log:f log_type_status:s?")
_ATTRIBUTES: Final = {
    "verity": _Group(
        "hash_failed:s verity_version:n data_device_name:s hash_device_name:s verity_algorithm:s root_digest:s salt:s"
        " ignore_zero_blocks:f check_at_most_once:f root_hash_sig_key_desc:s? verity_mode:s?"
    ),
    "cache": _Group(
        "metadata_mode:s cache_metadata_device:s cache_device:s cache_origin_device:s writethrough:f writeback:f"
        " passthrough:f metadata2:f no_discard_passdown:f"
    ),
    "crypt": _Group(
        "allow_discards:f same_cpu_crypt:f submit_from_crypt_cpus:f no_read_workqueue:f no_write_workqueue:f"
        " iv_large_sectors:f integrity_tag_size:n? cipher_auth:s? sector_size:n? cipher_string:s? key_size:n"
        " key_parts:n key_extra_size:n key_mac_size:n"
    ),
    "integrity": _Group(
        "dev_name:s start:n tag_size:n mode:s meta_device:s? block_size:n? recalculate:f allow_discards:f"
        " fix_padding:f fix_hmac:f legacy_recalculate:f journal_sectors:n interleave_sectors:n buffer_sectors:n"
    ),
    "linear": _Group("device_name:s start:s"),
    "snapshot": _Group("snap_origin_name:s snap_cow_name:s snap_valid:f snap_merge_failed:f snapshot_overflowed:f"),
}
"""multipath, raid and striped targets are unknown, as to Keylime: their events do not parse."""


class _Cursor:
    """The text of one event, read from left to right."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.at = 0

    def malformed(self, reason: str) -> MalformedEvidence:
        """Return the error that says what is wrong here."""
        shown = self.text[self.at : self.at + 40]
        return MalformedEvidence(f"{self.name}, character {self.at} ({shown!r})", reason)

    def take(self, group: _Group) -> Fields:
        """Read a group. Raises MalformedEvidence where the text has something else."""
        fields = self.try_take(group)
        if fields is None:
            raise self.malformed(f"expected {', '.join(group.kinds)}")
        return fields

    def try_take(self, group: _Group) -> Fields | None:
        """Read a group if it comes next."""
        match = group.pattern.match(self.text, self.at)
        if match is None:
            return None
        self.at = match.end()
        return group.read(match)

    def no_data(self, group: _Group) -> bool:
        """Read the field that says that there was no table, if it comes next."""
        fields = self.try_take(group)
        if fields is None:
            return False
        if list(fields.values()) != ["no_data"]:
            raise self.malformed("expected no_data before this")
        return True

    def end(self) -> None:
        """Say that nothing may follow."""
        if self.at != len(self.text):
            raise self.malformed("expected the end")


def _load(cursor: _Cursor) -> DeviceEvent:
    device = cursor.take(_DEVICE)
    targets = [_target(cursor)]
    while cursor.at < len(cursor.text):
        targets.append(_target(cursor))
    return TableLoad(device, tuple(targets))


def _resume(cursor: _Cursor) -> DeviceEvent:
    device = _device_or_name(cursor)
    table = None
    if not cursor.no_data(_NO_RESUME):
        table = str(cursor.take(_ACTIVE_HASH)["active_table_hash"])
    cursor.take(_CAPACITY)
    return DeviceResume(device, table)


def _remove(cursor: _Cursor) -> DeviceEvent:
    named = cursor.try_take(_NAMED)
    active, inactive = cursor.try_take(_ACTIVE), cursor.try_take(_INACTIVE)
    if active is not None:
        cursor.take(_ACTIVE_REMOVED)
    if inactive is not None:
        cursor.take(_INACTIVE_REMOVED)
    if active is None and inactive is None and not cursor.no_data(_NOTHING_REMOVED):
        raise cursor.malformed("expected a device or no_data")
    cursor.take(_REMOVE_ALL)
    cursor.take(_CAPACITY)
    return DeviceRemove(active or named or {}, inactive or {})


def _clear(cursor: _Cursor) -> DeviceEvent:
    device = _device_or_name(cursor)
    if not cursor.no_data(_CLEARED):
        cursor.take(_INACTIVE_HASH)
    cursor.take(_CAPACITY)
    return TableClear(device)


def _rename(cursor: _Cursor) -> DeviceEvent:
    device, new = cursor.take(_DEVICE), cursor.take(_RENAMED)
    cursor.take(_CAPACITY)
    return DeviceRename(device, str(new["new_name"]), str(new["new_uuid"]))


def _update(cursor: _Cursor) -> DeviceEvent:
    return TargetUpdate(cursor.take(_DEVICE), _target(cursor))


def _device_or_name(cursor: _Cursor) -> Fields:
    device = cursor.try_take(_DEVICE)
    return cursor.take(_NAMED) if device is None else device


def _target(cursor: _Cursor) -> Target:
    fields = cursor.take(_TARGET)
    kind = str(fields["target_name"])
    if kind == "mirror":
        return Target(fields, _mirror(cursor))
    if kind not in _ATTRIBUTES:
        raise cursor.malformed(f"a target of the unknown kind {kind!r}")
    return Target(fields, cursor.take(_ATTRIBUTES[kind]))


def _mirror(cursor: _Cursor) -> Fields:
    count = cursor.take(_Group("nr_mirrors:n", end=","))
    mirrors = int(count["nr_mirrors"] or 0)
    if mirrors > MAX_MIRRORS:
        raise cursor.malformed(f"{mirrors} mirrors are more than {MAX_MIRRORS}")
    rows: list[Fields] = []
    for number in range(mirrors):
        row = f"mirror_device_{number}:s mirror_device_{number}_status:s"
        rows.append(cursor.take(_Group(row, end=",")))
    return _merged([count, *rows, cursor.take(_MIRROR_END)])


def _merged(parts: Sequence[Fields]) -> Fields:
    return {key: value for part in parts for key, value in part.items()}


_EVENTS: Final[Mapping[str, Callable[[_Cursor], DeviceEvent]]] = {
    "dm_table_load": _load,
    "dm_device_resume": _resume,
    "dm_device_remove": _remove,
    "dm_table_clear": _clear,
    "dm_device_rename": _rename,
    "dm_target_update": _update,
}
EVENTS: Final = frozenset(_EVENTS)
"""Names of entries that dm-ima makes."""
