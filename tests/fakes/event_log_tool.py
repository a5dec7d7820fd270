"""`tpm2_eventlog` of the distribution: what it prints of a log, and where it is known to differ from us and why.

Versions before 5.6 are older than the decoded form that policies are written for. Each difference is a rule: which
fields, the reason, and a test that the two values still mean the same.
"""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from limeguard.crypto.hashes import hash_by_name
from limeguard.evidence.bootlog.decode import decode
from limeguard.evidence.bootlog.device_path import device_path_text
from limeguard.evidence.bootlog.event_types import EV_EFI_HCRTM_EVENT, EV_NO_ACTION, IMAGE_TYPES
from limeguard.evidence.bootlog.layouts import IMAGE, split_variable
from limeguard.evidence.bootlog.log import BootEvent, BootLog
from limeguard.evidence.bootlog.text import guid_text

PROGRAM = "tpm2_eventlog"
ESCAPES = {
    "\0": r"\0",
    "\a": r"\a",
    "\b": r"\b",
    "\t": r"\t",
    "\v": r"\v",
    "\f": r"\f",
    "\r": r"\r",
    "\x1b": r"\e",
    "'": r"\'",
    "\\": r"\\",
}


@dataclass(frozen=True, slots=True)
class NotReadable:
    """The tool refused the log (its exit status is not 0), or printed what is not YAML."""

    status: int


def tool_prints(log: Path) -> dict[str, Any] | NotReadable:
    """Return what the tool prints, every scalar as text. Skips the test where there is no tool."""
    if shutil.which(PROGRAM) is None:
        pytest.skip(f"needs {PROGRAM}")
    result = subprocess.run([PROGRAM, "--eventlog-version=2", log], capture_output=True, check=False, timeout=60)
    if result.returncode:
        return NotReadable(result.returncode)
    text = result.stdout.decode("utf-8", "replace")
    if "EventNum" not in text:  # of TCG 1.2 logs it prints the members of a list without saying that it is one
        text = re.sub(r"(?m)^  PCRIndex:", "- PCRIndex:", text)
    try:
        printed: dict[str, Any] = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - makes text only
    except yaml.YAMLError:
        return NotReadable(0)
    return printed


def differences(theirs: Any, ours: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the path of each field that differs, with both values. `theirs` has text where `ours` has numbers."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        theirs = {str(key): value for key, value in theirs.items()}
        for key in dict.fromkeys([*theirs, *map(str, ours)]):
            mine = next((value for name, value in ours.items() if str(name) == key), _ABSENT)
            yield from differences(theirs.get(key, _ABSENT), mine, f"{path}/{key}")
    elif isinstance(theirs, list) and isinstance(ours, list):
        if len(theirs) != len(ours):
            yield f"{path}/length", len(theirs), len(ours)
        for index, (one, other) in enumerate(zip(theirs, ours, strict=False)):
            yield from differences(one, other, f"{path}/{index}")
    elif not _same(theirs, ours):
        yield path, theirs, ours


_ABSENT = "(absent)"


def _same(theirs: Any, ours: Any) -> bool:
    if isinstance(ours, int) and isinstance(theirs, str):
        try:
            return int(theirs, 0) == ours
        except ValueError:
            return False
    return bool(theirs == ("" if ours is None else ours))


@dataclass(frozen=True, slots=True)
class Difference:
    """A kind of difference: the paths it is on, why it is, and whether two values differ in this way alone."""

    path: str
    why: str
    agrees: Callable[[Any, Any, BootLog, str], bool]
    everywhere: bool = False
    """Whether it is seen on the logs that are in this repository."""


def explained(path: str, theirs: Any, ours: Any, log: BootLog) -> Difference | None:
    """Return the rule that explains a difference."""
    return next(
        (rule for rule in RULES if re.fullmatch(rule.path, path) and rule.agrees(theirs, ours, log, path)), None
    )


def _event(log: BootLog, path: str) -> BootEvent:
    return log.events[int(path.split("/")[2])]


def _path_in_hex(theirs: Any, ours: Any, log: BootLog, path: str) -> bool:
    event, raw = _event(log, path), bytes.fromhex(theirs)
    if event.type in IMAGE_TYPES:  # it shows all that is left of the event, also past the length that the event gives
        raw = raw[: IMAGE.unpack_from(event.data)[3]]
    return bool(device_path_text(raw) == ours)


def _quoted(theirs: Any, _ours: Any, log: BootLog, path: str) -> bool:
    event = _event(log, path)
    variable = split_variable(event.data) if "VariableData" in path else None
    raw = variable.content if variable else event.data
    lines = raw.decode("utf-8", "replace").split("\n")
    if not lines[-1]:
        lines.pop()
    return bool(theirs == "\n".join(f'"{"".join(ESCAPES.get(c, c) for c in line)}"' for line in lines))


def _vendor_db_in_hex(theirs: Any, ours: Any, _log: BootLog, _path: str) -> bool:
    raw = bytes.fromhex(theirs)
    return bool(ours == [{"SignatureOwner": guid_text(raw[:16]), "SignatureData": raw[16:].hex()}])


def _one_byte_short(theirs: Any, ours: Any, _log: BootLog, _path: str) -> bool:
    return bool(ours[:-2] == theirs)


def _only_named(theirs: Any, ours: Any, log: BootLog, path: str) -> bool:
    pcr = int(path.rsplit("/", 1)[1])
    extended = {event.pcr for event in log.events if event.type != EV_NO_ACTION}
    return theirs == _ABSENT and ours == 0 and pcr not in extended


def _nothing_extended(theirs: Any, ours: Any, log: BootLog, _path: str) -> bool:
    nothing = all(value == 0 for pcrs in ours.values() for value in pcrs.values())
    return theirs == "" and nothing and len(log.events) == 1


def _folded_plainly(theirs: Any, _ours: Any, log: BootLog, path: str) -> bool:
    bank = hash_by_name(path.split("/")[2])
    assert bank is not None
    value = bytes(bank.size)
    for event in log.events[1:]:
        if event.pcr == 0:
            value = bank.digest(value + event.digests[bank])
    return int(theirs, 0) == int.from_bytes(value, "big")


def _numbered(theirs: Any, ours: Any, log: BootLog, path: str) -> bool:
    return log.spec_id is None and theirs == _ABSENT and _event(log, path).event_num == ours


def _hcrtm_in_hex(theirs: Any, ours: Any, log: BootLog, path: str) -> bool:
    event = _event(log, path)
    return bool(event.type == EV_EFI_HCRTM_EVENT and ours == decode(event) and theirs == event.data.hex())


def _unnamed(theirs: Any, ours: Any, _log: BootLog, _path: str) -> bool:
    return bool(theirs == "Unknown event type" and ours == "EV_EFI_HCRTM_EVENT")


RULES = (
    Difference(
        r"/events/\d+/Event(/VariableData)?/DevicePath",
        "Debian builds it without libefivar, so paths stay hex",
        _path_in_hex,
        everywhere=True,
    ),
    Difference(
        r"/events/\d+/Event(/VariableData)?/String",
        "it quotes each line and escapes characters; Keylime undoes that",
        _quoted,
        everywhere=True,
    ),
    Difference(r"/events/\d+/Event/VariableData", "vendor_db is decoded since 5.8", _vendor_db_in_hex),
    Difference(
        r"/events/\d+/Event/BlobDescription",
        "it leaves the last byte of a description out",
        _one_byte_short,
        everywhere=True,
    ),
    Difference(
        r"/pcrs/\w+/\d+",
        "a PCR that only EV_NO_ACTION names is listed, as zero, since 5.6",
        _only_named,
        everywhere=True,
    ),
    Difference(r"/pcrs", "as above, for a log with nothing else", _nothing_extended, everywhere=True),
    Difference(
        r"/pcrs/\w+/0",
        "up to 5.5 it extends EV_NO_ACTION and knows no startup locality",
        _folded_plainly,
        everywhere=True,
    ),
    Difference(r"/events/\d+/EventType", "up to 5.5 it has no name for EV_EFI_HCRTM_EVENT", _unnamed, everywhere=True),
    Difference(r"/events/\d+/Event", "and shows its data in hex", _hcrtm_in_hex, everywhere=True),
    Difference(r"/events/\d+/EventNum", "it does not number the events of TCG 1.2 logs", _numbered, everywhere=True),
)
