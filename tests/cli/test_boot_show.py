"""`limeguard boot show`: for people, and in the shape of the tool that others use."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from tests.fakes.boot_logs import agile_log, old_record, samples, separator
from tests.fakes.vectors import FOLDER

from limeguard.cli.main import limeguard
from limeguard.crypto.hashes import SHA1, SHA256, SHA384, SM3_256
from limeguard.evidence.bootlog import event_types as ev
from limeguard.evidence.bootlog.enriched import enriched
from limeguard.evidence.bootlog.log import MAX_LOG, parse_boot_log

SHIM_LOG = FOLDER / "bootlog" / "vm" / "grub-shim.bin"


def show(log: Path, *options: str) -> Result:
    return CliRunner().invoke(limeguard, ["boot", "show", str(log), *options])


def written(folder: Path, data: bytes) -> Path:
    path = folder / "log"
    path.write_bytes(data)
    return path


def test_people_see_number_pcr_type_digest_cover_and_words() -> None:
    done = show(SHIM_LOG)
    assert done.exit_code == 0
    rows = {line.split()[0]: line for line in done.output.splitlines() if line[:1].isdigit()}
    event = parse_boot_log(SHIM_LOG.read_bytes()).events[4]
    assert rows["4"].split() == [
        "4",
        "7",
        "EV_EFI_VARIABLE_DRIVER_CONFIG",
        event.digests[SHA256].hex()[:16],
        "covered",
        "SecureBoot:",
        "on",
    ]
    assert "content  grub_cmd: set timeout=0" in rows["36"]
    assert "hint     (hd0,gpt1)/vmlinuz" in rows["41"]
    assert "proven only by a quote" in done.output
    pcrs = json.loads((SHIM_LOG.parent / "grub-shim.pcrs.json").read_text())["sha256"]
    assert f"   7  {pcrs['7']}" in done.output.splitlines()


def test_a_log_whose_data_was_rewritten_says_so(tmp_path: Path) -> None:
    log = agile_log((4, ev.EV_EFI_ACTION, b"Exit Boot Services Invocation", b"something else"), separator(4))
    assert [line.split()[4] for line in show(written(tmp_path, log)).output.splitlines()[2:4]] == ["DIFFERS", "covered"]


# trust: hygiene
def test_nothing_from_a_log_reaches_the_terminal_unescaped(tmp_path: Path) -> None:
    evil = b"grub_cmd: \x1b[2J\x07\r\n\x9b\xff" + "\u202e\u2028".encode() + b"\0"
    path = written(tmp_path, agile_log((8, ev.EV_IPL, evil), (4, ev.EV_POST_CODE, evil), (9, ev.EV_EVENT_TAG, evil)))
    for options in ((), ("--full",), ("--json",), ("--yaml",)):
        done = show(path, *options)
        assert done.exit_code == 0
        assert all(character.isprintable() or character == "\n" for character in done.output), options
        assert "[2J" in done.output


def test_json_is_the_enriched_form_without_aggregates() -> None:
    expected = enriched(parse_boot_log(SHIM_LOG.read_bytes()))
    del expected["boot_aggregates"]
    assert json.loads(show(SHIM_LOG, "--json").output) == expected


@pytest.mark.parametrize("name", [*samples()])
def test_yaml_says_the_same_with_numbers_for_pcrs(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, samples()[name])
    as_json = json.loads(show(path, "--json").output)
    as_yaml = yaml.safe_load(show(path, "--yaml").output)
    assert as_yaml["events"] == as_json["events"]
    assert as_yaml["pcrs"] == {
        bank: {int(pcr): int(value, 16) for pcr, value in pcrs.items()} for bank, pcrs in as_json["pcrs"].items()
    }
    if name == "grub":
        assert f"    4: 0x{as_json['pcrs']['sha256']['4']}\n" in show(path, "--yaml").output


def test_another_bank_can_be_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, agile_log(separator(7), banks=(SHA1, SHA384)))
    assert SHA1.digest(bytes(4)).hex() in show(path, "--full").output
    assert SHA384.digest(bytes(4)).hex() in show(path, "--full", "--bank", "sha384").output
    refused = show(path, "--bank", "sha256")
    assert refused.exit_code == 1
    assert "no digests of bank sha256; it has sha1, sha384" in refused.output
    assert "it has sha1" in show(path, "--bank", "\x1b").output


def test_a_bank_that_cannot_be_computed_is_shown_all_the_same(tmp_path: Path) -> None:
    log = agile_log(banks=(SM3_256,))
    digest = b"\x12\0" + b"\1" * 32
    log += (7).to_bytes(4, "little") + (4).to_bytes(4, "little") + (1).to_bytes(4, "little") + digest + b"\4" + bytes(7)
    done = show(written(tmp_path, log))
    assert done.exit_code == 0
    assert "unknown" in done.output
    assert "cannot be computed here" in done.output


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"nonsense", "event 0.header"),
        (old_record(99, 5, b""), "99 is not a PCR"),
        (bytes(MAX_LOG + 1), "bytes, at most"),
    ],
)
def test_what_is_no_log_is_refused_with_a_reason(data: bytes, reason: str, tmp_path: Path) -> None:
    done = show(written(tmp_path, data))
    assert done.exit_code == 1
    assert "cannot be read as a boot log" in done.output
    assert reason in done.output
    assert "Traceback" not in done.output


def test_a_missing_log_is_said(tmp_path: Path) -> None:
    done = show(tmp_path / "none")
    assert done.exit_code == 1
    assert "No such file" in done.output
