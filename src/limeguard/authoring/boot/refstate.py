"""Reference states from a boot log, as Keylime's tools make them for the policy `example`."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from limeguard.authoring.policy.collected import SourceError

log = logging.getLogger("keylime.policy")

FIRMWARE_VOLUME: Final = re.compile(
    r"FvVol\([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\)/FvFile\([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\)", re.ASCII
)
COMMAND_LINE: Final = "kernel_cmdline: "
_BLOBS: Final = {"EV_EFI_PLATFORM_FIRMWARE_BLOB", "EV_EFI_PLATFORM_FIRMWARE_BLOB2"}

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Strictness:
    """How the older script differs from `keylime-policy`: it counts the firmware's own applications, too."""

    keeps_firmware_applications: bool = False
    needs_secure_boot_state: bool = False


def reference_state(
    log_object: Mapping[str, Any], *, without_secure_boot: bool, strictness: Strictness | None = None
) -> dict[str, Any]:
    """Return the reference state of a decoded log. Raises SourceError."""
    strict = strictness or Strictness()
    events: list[Event] = log_object.get("events", [])
    if not events:
        raise SourceError("No events found on binary boot measurements log")
    state = _secure_boot(events)
    if state is None and strict.needs_secure_boot_state:
        raise SourceError("Cannot determine whether Secure Boot is enabled: the log does not say it")
    if state is None:
        log.warning("Could not determine SecureBoot state, assuming it is disabled")
    enabled = state is True
    if not enabled and not without_secure_boot:
        raise SourceError("Provided eventlog has SecureBoot disabled, but -i flag was not set")
    if enabled and without_secure_boot:
        log.warning("-i flag was set, but SecureBoot is enabled in the log: the flag is ignored")
    made: dict[str, Any] = {"has_secureboot": enabled, "scrtm_and_bios": [_firmware(events)]}
    made |= {name: _keys(events, name) for name in ("pk", "kek", "db", "dbx")}
    made |= {"vendor_db": _vendor_keys(events), "mokdig": _mok(events, "MokList"), "mokxdig": _mok(events, "MokListX")}
    kernel = _kernel(events, secure_boot=enabled, strict=strict)
    if kernel is not None:
        made["kernels"] = [kernel]
    return made


def _of_type(events: Sequence[Event], *types: str) -> Iterator[Event]:
    return (event for event in events if event.get("EventType") in types)


def _variables(events: Sequence[Event], kind: str) -> Iterator[tuple[str, Any]]:
    for event in _of_type(events, kind):
        said = event.get("Event")
        if isinstance(said, Mapping) and isinstance(said.get("UnicodeName"), str):
            yield said["UnicodeName"], said.get("VariableData")


def _secure_boot(events: Sequence[Event]) -> bool | None:
    for name, data in _variables(events, "EV_EFI_VARIABLE_DRIVER_CONFIG"):
        if name == "SecureBoot" and isinstance(data, Mapping) and "Enabled" in data:
            return bool(data["Enabled"] == "Yes")
    return None


def _digest(event: Event) -> dict[str, str]:
    found = (one["Digest"] for one in event.get("Digests", ()) if one.get("AlgorithmId") == "sha256")
    digest = next(found, None)
    return {} if digest is None else {"sha256": f"0x{digest}"}


def _firmware(events: Sequence[Event]) -> dict[str, Any]:
    versions = list(_of_type(events, "EV_S_CRTM_VERSION"))
    scrtm = _digest(versions[0]) if versions else {}
    return {"scrtm": scrtm, "platform_firmware": [_digest(event) for event in _of_type(events, *_BLOBS)]}


def _key(entry: Mapping[str, str]) -> dict[str, str]:
    return {"SignatureOwner": entry["SignatureOwner"], "SignatureData": f"0x{entry['SignatureData']}"}


def _keys(events: Sequence[Event], wanted: str) -> list[dict[str, str]]:
    """Return the keys of the last variable of that name."""
    found: list[dict[str, str]] = []
    for name, data in _variables(events, "EV_EFI_VARIABLE_DRIVER_CONFIG"):
        if name.lower() == wanted:
            lists = data if isinstance(data, list) else []
            found = [_key(entry) for one in lists for entry in one["Keys"]]
    return found


def _vendor_keys(events: Sequence[Event]) -> list[dict[str, str]]:
    named = _variables(events, "EV_EFI_VARIABLE_AUTHORITY")
    return [
        _key(entry) for name, data in named if name.lower() == "vendor_db" and isinstance(data, list) for entry in data
    ]


def _texts(events: Sequence[Event], pcr: int | None = None) -> Iterator[tuple[str, Event]]:
    for event in _of_type(events, "EV_IPL"):
        said = event.get("Event")
        if (pcr is None or event.get("PCRIndex") == pcr) and isinstance(said, Mapping) and "String" in said:
            yield str(said["String"]), event


def _mok(events: Sequence[Event], name: str) -> list[dict[str, str]]:
    return [_digest(event) for text, event in _texts(events) if text == name]


def _kernel(events: Sequence[Event], *, secure_boot: bool, strict: Strictness) -> dict[str, str] | None:
    images = [_digest(event).get("sha256") for event in _applications(events, strict)]
    if len(images) not in ({3, 4} if secure_boot else {2}):
        expected = 3 if secure_boot else 2
        log.error("Expected %d different UEFI applications to be booted; got: %d", expected, len(images))
        return None
    names = ("shim_authcode_sha256", "grub_authcode_sha256")
    made = {"kernel_authcode_sha256": images[2]} if secure_boot else {}
    made |= dict(zip(names, images, strict=False))
    made["initrd_plain_sha256"] = _file(events, lambda text: "initrd" in text or "initramfs" in text)
    if not secure_boot:
        made["vmlinuz_plain_sha256"] = _file(events, lambda text: "vmlinuz" in text)
    for text, _ in _texts(events, 8):
        if "kernel_cmdline" in text:
            made["kernel_cmdline"] = re.escape(text[len(COMMAND_LINE) :])
            break
    return {name: value for name, value in made.items() if value is not None}


def _applications(events: Sequence[Event], strict: Strictness) -> Iterator[Event]:
    for event in _of_type(events, "EV_EFI_BOOT_SERVICES_APPLICATION"):
        said = event.get("Event")
        path = said.get("DevicePath") if isinstance(said, Mapping) else None
        if strict.keeps_firmware_applications or not FIRMWARE_VOLUME.match(str(path or "")):
            yield event


def _file(events: Sequence[Event], wanted: Callable[[str], bool]) -> str | None:
    return next((_digest(event).get("sha256") for text, event in _texts(events, 9) if wanted(text)), None)
