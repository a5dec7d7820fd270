"""`limeguard explain`: what a finding means and what to do, out of the table that the verifier judges with."""

import json
import re
import sys
from dataclasses import asdict

import click

from limeguard.appraisal.findings import KINDS, FindingKind


def matching(text: str) -> list[FindingKind]:
    """Return the kinds that an id of ours, or an event id as Keylime's logs show it, may mean."""
    ours = [kind for kind in KINDS if kind.id == text]
    return ours or [kind for kind in KINDS if _pattern(kind).fullmatch(text)]


def _pattern(kind: FindingKind) -> re.Pattern[str]:
    """Return what the event id looks like once its gaps are filled, or as the table writes it."""
    parts = re.split(r"(\{[^}]*\})", kind.event_id)
    return re.compile("".join(r"(\{\w+\}|[\w.-]+)" if part.startswith("{") else re.escape(part) for part in parts))


def similar(text: str) -> list[str]:
    """Return ids that hold the text, for somebody who remembers half of it."""
    wanted = text.lower()
    return [kind.id for kind in KINDS if wanted in kind.id or wanted in kind.event_id.lower()]


def _describe(kind: FindingKind) -> str:
    recovery = "with a later good round, if rounds go on" if kind.recoverable else "not before an operator acts"
    return "\n".join(
        [
            kind.id,
            f"  event id     {kind.event_id}",
            f"  severity     {kind.default_severity} unless severity_policy says otherwise",
            f"  recovers     {recovery}",
            f"  what to do   {kind.advice}",
        ]
    )


@click.command("explain")
@click.argument("finding", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(*, finding: str | None, as_json: bool) -> None:
    """Explain FINDING: an id such as pcr.not-allowed, or an event id such as pcr_validation.invalid_pcr_23.

    Without FINDING, list all of them.
    """
    kinds = list(KINDS) if finding is None else matching(finding)
    if not kinds:
        near = similar(finding or "")
        hint = f"; similar: {', '.join(near)}" if near else "; `limeguard explain` alone lists all of them"
        raise click.ClickException(f"no finding is called {finding!r}{hint}")
    if as_json:
        json.dump([asdict(kind) for kind in kinds], sys.stdout, indent=2)
        click.echo()
    elif finding is None:
        width = max(len(kind.id) for kind in kinds)
        click.echo("\n".join(f"{kind.id:<{width}}  {kind.event_id}" for kind in kinds))
    else:
        click.echo("\n\n".join(_describe(kind) for kind in kinds))
