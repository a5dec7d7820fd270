"""`limeguard boot show`: a boot log for people, or in the shape that `tpm2_eventlog` prints."""

import json
from pathlib import Path
from typing import Any

import click
import yaml

from limeguard.crypto.hashes import SHA256, HashAlgorithm, UnsupportedAlgorithmError, hash_by_name
from limeguard.evidence.bootlog.describe import describe, type_name_for_people
from limeguard.evidence.bootlog.enriched import enriched
from limeguard.evidence.bootlog.event_types import EV_NO_ACTION
from limeguard.evidence.bootlog.log import MAX_LOG, BootEvent, BootLog, parse_boot_log
from limeguard.evidence.bootlog.replay import DataProof, data_proof, replay
from limeguard.evidence.reader import MalformedEvidence
from limeguard.telemetry import clean

KERNEL_LOG = "/sys/kernel/security/tpm0/binary_bios_measurements"
MAX_WORDS = 160
DIGEST_SHOWN = 16
PROOFS = {
    DataProof.WHOLE: "covered",
    DataProof.CONTENT: "content",
    DataProof.HINT: "hint",
    DataProof.CONTRADICTED: "DIFFERS",
}
LEGEND = (
    "covered: the digest is of the data shown.  content: of the content, not of the name or label before it.\n"
    "hint: the digest is of something that is not in the log; the data may say anything.\n"
    "DIFFERS: the digest should be of the data and is not.  Digests themselves are proven only by a quote of the PCRs."
)


@click.command("show")
@click.argument("log", type=click.Path(dir_okay=False, path_type=Path), default=KERNEL_LOG)
@click.option("--bank", help="Show digests of this PCR bank.  [default: sha256, else the log's first]")
@click.option("--full", is_flag=True, help="Show whole digests and whole texts.")
@click.option("--json", "as_json", is_flag=True, help="JSON for programs: every field, digests of all banks.")
@click.option("--yaml", "as_yaml", is_flag=True, help="The same in YAML, as `tpm2_eventlog` prints it.")
def show(*, log: Path, bank: str | None, full: bool, as_json: bool, as_yaml: bool) -> None:
    """Show what the boot log LOG says, event by event, and which of it its digests cover.

    LOG is a file in the format of binary_bios_measurements; without it the log of this machine is shown.
    """
    parsed = read_log(log)
    if as_json:
        click.echo(json.dumps(tool_shape(parsed), indent=2))
    elif as_yaml:
        click.echo(yaml.dump(numbers(tool_shape(parsed)), Dumper=_Dumper, sort_keys=False, width=2**20), nl=False)
    else:
        click.echo(_table(parsed, _bank(parsed, bank), full=full))


def read_log(path: Path) -> BootLog:
    """Read and parse a log; a refusal is an error of the command line."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_LOG + 1)
        return parse_boot_log(data)
    except OSError as problem:
        raise click.ClickException(f"{clean(path)}: {problem.strerror}") from None
    except MalformedEvidence as problem:
        raise click.ClickException(f"{clean(path)} cannot be read as a boot log: {clean(problem)}") from None


def _bank(log: BootLog, name: str | None) -> HashAlgorithm:
    if name is None:
        return SHA256 if SHA256 in log.banks or not log.banks else log.banks[0]
    bank = hash_by_name(name)
    if bank is None or bank not in log.banks:
        has = ", ".join(bank.name for bank in log.banks) or "no bank that is known"
        raise click.ClickException(f"the log has no digests of bank {clean(name)}; it has {has}")
    return bank


def _table(log: BootLog, bank: HashAlgorithm, *, full: bool) -> str:
    rows: list[tuple[str, ...]] = [("event", "PCR", "type", bank.name, "data", "says")]
    rows += [_row(event, bank, full=full) for event in log.events]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row[:5], widths, strict=True)), row[5]]).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", LEGEND, "", *_pcr_lines(log, bank)])


def _row(event: BootEvent, bank: HashAlgorithm, *, full: bool) -> tuple[str, ...]:
    digest = event.digests.get(bank)
    shown, proof = "-", "-"
    if event.type == EV_NO_ACTION:
        proof = "hint"  # never extended, so no PCR says anything of it
    elif digest is not None:
        shown = digest.hex() if full else digest.hex()[:DIGEST_SHOWN]
        try:
            proof = PROOFS[data_proof(event, digest, bank)[0]]
        except UnsupportedAlgorithmError:
            proof = "unknown"
    words = clean(describe(event), 2**20 if full else MAX_WORDS)
    return str(event.event_num), str(event.pcr), type_name_for_people(event.type), shown, proof, words


def _pcr_lines(log: BootLog, bank: HashAlgorithm) -> list[str]:
    try:
        pcrs = replay(log, bank)
    except UnsupportedAlgorithmError:
        return [f"PCRs of bank {bank.name} cannot be computed here."]
    return [f"{bank.name} PCRs that this log makes:", *(f"  {pcr:>2}  {pcrs[pcr].hex()}" for pcr in sorted(pcrs))]


class _Hex(int):
    """A number that is written in hexadecimal, with this many digits."""

    digits: int


class _Dumper(yaml.SafeDumper):
    """Writes YAML that every reader understands, without references between equal parts."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the name is the base class's
        return True


def _written(dumper: _Dumper, number: _Hex) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:int", f"0x{number:0{number.digits}x}")


_Dumper.add_representer(_Hex, _written)


def tool_shape(log: BootLog) -> dict[str, Any]:
    """Return the log in the shape that `tpm2_eventlog` prints, PCR indices as text and values in hex."""
    shape = enriched(log)
    del shape["boot_aggregates"]  # the tool does not compute them
    return shape


def numbers(shape: dict[str, Any]) -> dict[str, Any]:
    """Return the same with PCR indices and values as numbers, as they are in YAML."""
    pcrs: dict[str, dict[int, _Hex]] = {}
    for bank, values in shape["pcrs"].items():
        pcrs[bank] = {int(pcr): _hex_number(value) for pcr, value in values.items()}
    return {**shape, "pcrs": pcrs}


def _hex_number(value: str) -> _Hex:
    number = _Hex(value, 16)
    number.digits = len(value)
    return number
