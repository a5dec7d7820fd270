"""`limeguard boot check`: a boot log judged by a policy, offline, with the verifier's own judge."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import click
import yaml
from rich.console import Console
from rich.table import Table

from limeguard.appraisal.boot import BootVerdict, appraise_boot
from limeguard.authoring.boot.learn import claimed
from limeguard.authoring.policy.collected import SourceError
from limeguard.cli.boot_show import read_log
from limeguard.crypto.hashes import SHA256, HashAlgorithm, hash_by_name
from limeguard.evidence.bootlog.log import BootLog
from limeguard.evidence.bootlog.replay import BOOT_PCRS
from limeguard.evidence.tpm.quote import QuotedPcrs
from limeguard.evidence.tpm.structures import ClockInfo
from limeguard.policy.boot import ACCEPT_ALL, BootPolicy, parse_boot_policy
from limeguard.policy.errors import PolicyError
from limeguard.telemetry import clean

_SHOWN: Final = 32


@click.command("check")
@click.option("--policy", "policy_file", required=True, type=click.Path(path_type=Path), help="Boot policy.")
@click.option("--policy-name", default=ACCEPT_ALL, help="What a reference state is judged by, such as example.")
@click.option("--log", "log_file", required=True, type=click.Path(path_type=Path), help="Boot log.")
@click.option("--pcrs", "pcrs_file", type=click.Path(path_type=Path), help="What tpm2_pcrread printed on the machine.")
@click.option("--bank", help="PCR bank to judge by.  [default: sha256, else the log's first]")
@click.option("--json/--text", "as_json", default=None, help="JSON, or a table.  [default: JSON into a pipe]")
def check(
    *,
    policy_file: Path,
    policy_name: str,
    log_file: Path,
    pcrs_file: Path | None,
    bank: str | None,
    as_json: bool | None,
) -> None:
    """Judge a boot log by a policy, as the verifier would.

    Without --pcrs the log is taken at its word, which says what the policy thinks of it and proves nothing.
    The exit status is 0 when the policy is satisfied, 1 when it is not, 2 when that cannot be said.
    """
    try:
        policy = parse_boot_policy(policy_file.read_text(encoding="utf-8"), policy_name)
        log = read_log(log_file)
        chosen = _bank(log, bank)
        values = dict(claimed(log, chosen).pcrs) if pcrs_file is None else _read_pcrs(pcrs_file, chosen)
    except (OSError, UnicodeDecodeError, SourceError) as problem:
        _unsaid(clean(problem))
    except PolicyError as problem:
        _unsaid("\n".join(clean(text, 4_096) for text in problem.problems))
    if pcrs_file is None:
        values = {pcr: bytes(chosen.size) for pcr in BOOT_PCRS} | values
    quoted = QuotedPcrs(chosen, values, {chosen: values}, ClockInfo(0, 0, 0, safe=False), 0)
    verdict = appraise_boot(log_file.read_bytes(), quoted, policy)
    if as_json if as_json is not None else not sys.stdout.isatty():
        click.echo(json.dumps(_report(verdict, policy, chosen, proven=pcrs_file is not None)))
    else:
        _show(verdict, policy, claimed(log, chosen).pcrs, values, proven=pcrs_file is not None)
    raise SystemExit(int(bool(verdict.findings)))


def _unsaid(message: str) -> NoReturn:
    click.echo(f"Error: {message}", err=True)
    raise SystemExit(2)


def _bank(log: BootLog, name: str | None) -> HashAlgorithm:
    if name is None:
        return SHA256 if SHA256 in log.banks or not log.banks else log.banks[0]
    bank = hash_by_name(name)
    if bank is None or bank not in log.banks:
        raise SourceError(f"the log has no digests of bank {name}; it has {', '.join(one.name for one in log.banks)}")
    return bank


def _read_pcrs(path: Path, bank: HashAlgorithm) -> dict[int, bytes]:
    """Read PCR values: what `tpm2_pcrread` prints, or JSON of bank, PCR and hexadecimal value."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, RecursionError) as problem:
        raise SourceError(f"{path} is not what tpm2_pcrread prints: {problem}") from None
    values = document.get(bank.name) if isinstance(document, dict) else None
    if not isinstance(values, dict):
        raise SourceError(f"{path} has no PCRs of bank {bank.name}")
    return {pcr: value for pcr, value in (_pcr(path, bank, *pair) for pair in values.items()) if pcr in BOOT_PCRS}


def _pcr(path: Path, bank: HashAlgorithm, pcr: object, value: object) -> tuple[int, bytes]:
    try:
        # YAML reads 0x… as a number and loses its leading zeros; JSON keeps text.
        number = value if isinstance(value, int) else int(str(value), 16)
        return int(str(pcr)), number.to_bytes(bank.size)
    except (ValueError, OverflowError):
        raise SourceError(f"{path}: PCR {pcr} has no value of {bank.size} bytes") from None


def _report(verdict: BootVerdict, policy: BootPolicy, bank: HashAlgorithm, *, proven: bool) -> dict[str, Any]:
    return {
        "accepted": not verdict.findings,
        "judged": verdict.judged,
        "proven": proven,
        "policy": policy.name,
        "bank": bank.name,
        "findings": [
            {"id": one.kind.id, "event_id": one.event_id, "context": dict(one.context), "advice": one.kind.advice}
            for one in verdict.findings
        ],
    }


def _show(
    verdict: BootVerdict, policy: BootPolicy, leads: Mapping[int, bytes], values: Mapping[int, bytes], *, proven: bool
) -> None:
    console = Console(highlight=False)
    table = Table("PCR", "the log leads to", *(["the TPM has"] if proven else []), box=None)
    for pcr in sorted(policy.required):
        zeros = bytes(len(next(iter(values.values()), b"")))
        said, value = leads.get(pcr, zeros), values.get(pcr)
        has = "nothing" if value is None else "the same" if value == said else f"{value.hex()[:_SHOWN]}…"
        table.add_row(str(pcr), f"{said.hex()[:_SHOWN]}…", *([has] if proven else []))
    console.print(table)
    for finding in verdict.findings:
        context = finding.context
        console.print(
            f"- {clean(context.get('message', context.get('reason', finding.kind.id)), 4_096)}",
            soft_wrap=True,
            markup=False,
        )
    for advice in dict.fromkeys(one.kind.advice for one in verdict.findings):
        console.print(advice, soft_wrap=True, markup=False)
    if verdict.findings:
        return
    note = "" if proven else " (no --pcrs was given, so nobody vouches for the log)"
    satisfied = f"The log satisfies the policy {policy.name}{note}."
    console.print(satisfied if policy.active else "The policy asks for nothing.", soft_wrap=True)
