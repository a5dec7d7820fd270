"""What a node proved of its measurement list, as a row holds it."""

from base64 import b64decode, b64encode
from types import MappingProxyType

import msgspec

from limeguard.appraisal.ima.devices import NO_DEVICES, Device, DeviceStates
from limeguard.appraisal.ima.history import NO_IMA, NO_KEYRINGS, ImaHistory
from limeguard.policy.keyring import parse_keyring


class _Devices(msgspec.Struct, frozen=True):
    """Devices by key: rule, active, valid, table; under the device-mapper policy with this checksum."""

    checksum: str
    devices: dict[str, tuple[str, bool, bool, str]]


class _Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """`keyrings` are Keylime's texts by name; a name that is not UTF-8 is kept in base64, as all are."""

    pcr: str
    progress: tuple[int, int] | None = None
    keyrings: dict[str, str] = {}
    devices: _Devices | None = None


def history_text(history: ImaHistory) -> str | None:
    """Return what is stored beside the number of the next entry; None while nothing is proven."""
    if history.pcr is None:
        return None
    rings = {b64encode(name).decode(): ring.text for name, ring in history.keyrings.items()}
    states = history.devices
    devices = {key: (it.rule, it.active, it.valid, it.table) for key, it in states.devices.items()}
    row = _Row(
        pcr=b64encode(history.pcr).decode(),
        progress=history.progress,
        keyrings=rings,
        devices=_Devices(states.checksum, devices) if states.checksum else None,
    )
    return msgspec.json.encode(row).decode()


def parse_history(next_entry: int, text: str | None) -> ImaHistory:
    """Return what a row says; a row without proof begins anew, whatever its number is. Raises ValueError."""
    if text is None:
        return NO_IMA
    row = msgspec.json.decode(text, type=_Row)
    rings = {b64decode(name): parse_keyring(ring) for name, ring in row.keyrings.items()}
    return ImaHistory(
        next_entry=next_entry,
        pcr=b64decode(row.pcr),
        keyrings=MappingProxyType(rings) if rings else NO_KEYRINGS,
        progress=row.progress,
        devices=NO_DEVICES if row.devices is None else _states(row.devices),
    )


def _states(row: _Devices) -> DeviceStates:
    devices = {key: Device(rule, active, valid, table) for key, (rule, active, valid, table) in row.devices.items()}
    return DeviceStates(row.checksum, devices)
