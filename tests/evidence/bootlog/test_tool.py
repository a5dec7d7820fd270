"""Agreement with the real `tpm2_eventlog`, field by field, on every log that it can read."""

import shutil
import subprocess
from pathlib import Path

import pytest
from tests.fakes.event_log_tool import PROGRAM, RULES, Difference, NotReadable, differences, explained, tool_prints
from tests.fakes.shared import SHARED, shared_path
from tests.fakes.vectors import FOLDER

from limeguard.cli.boot_show import numbers, tool_shape
from limeguard.evidence.bootlog.log import parse_boot_log
from limeguard.evidence.reader import MalformedEvidence

OWN = sorted((FOLDER / "bootlog").rglob("*.bin"))
CRASHES_THE_TOOL = {
    "keylime-bogus.bin": "a length that it believes",
    "tpm12-option-rom.bin": "a PCR index that it uses to find memory",
}
NOT_YAML = {"stub.bin": "a control character that YAML forbids, from the command line of a boot entry"}


def material() -> list[Path]:
    return sorted((SHARED / "fixtures/upstream/event-logs").glob("*.bin")) + sorted(
        (SHARED / "fixtures/vm").rglob("uefi.bin")
    )


def differing(log: Path) -> list[Difference]:
    """Return the rules that explain the differences on one log; fail for a difference without a rule."""
    data = log.read_bytes()
    printed = tool_prints(log)
    if isinstance(printed, NotReadable):
        if log.name in NOT_YAML and not printed.status:
            parse_boot_log(data)
            return []
        with pytest.raises(MalformedEvidence):
            parse_boot_log(data)
        assert printed.status == 1 or log.name in CRASHES_THE_TOOL
        return []
    parsed = parse_boot_log(data)
    found = []
    for path, theirs, ours in differences(printed, numbers(tool_shape(parsed))):
        rule = explained(path, theirs, ours, parsed)
        assert rule is not None, f"{log.name}{path}: tool {theirs!r}, here {ours!r}"
        found.append(rule)
    return found


@pytest.mark.parametrize("log", OWN, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_tool_agrees_on_our_logs(log: Path) -> None:
    differing(log)


@pytest.mark.parametrize("log", material(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_tool_agrees_on_logs_of_real_machines(log: Path) -> None:
    differing(log)


def test_logs_of_real_machines_are_there() -> None:
    shared_path("fixtures/upstream/event-logs")
    assert len(material()) > 40


def test_every_listed_difference_is_still_seen() -> None:
    if shutil.which(PROGRAM) is None:
        pytest.skip(f"needs {PROGRAM}")
    version = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=False).stdout
    if 'version="5.4"' not in version:
        pytest.skip(f"the list is of version 5.4, not of {version.strip()}")
    seen = {rule for log in OWN for rule in differing(log)}
    assert {rule for rule in RULES if rule.everywhere} == seen
