"""`limeguard boot diff`: what changed from one boot log or policy to another, in words."""

import sys
from pathlib import Path

import click
import msgspec

from limeguard.authoring.boot.changes import changes
from limeguard.authoring.boot.images import names_of
from limeguard.authoring.boot.learn import Named, learn
from limeguard.authoring.policy.collected import SourceError
from limeguard.cli.boot_show import read_log
from limeguard.policy.boot import parse_boot_policy
from limeguard.policy.boot.rules import MARK, BootDocument, BootRules
from limeguard.policy.errors import PolicyError
from limeguard.telemetry import clean


@click.command("diff")
@click.argument("before", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("after", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--image", "images", multiple=True, type=click.Path(path_type=Path), help="Booted file, to name it.")
@click.option("--json/--text", "as_json", default=None, help="JSON, or sentences.  [default: JSON into a pipe]")
def diff(*, before: Path, after: Path, images: tuple[Path, ...], as_json: bool | None) -> None:
    """Say what changed from BEFORE to AFTER; each is a boot log or a boot policy of limeguard's own format.

    The exit status is 1 when something changed, 0 when nothing did.
    """
    try:
        names = {digest: name for path in images for digest, name in names_of(path).items()}
        found = list(changes(read_either(before, names), read_either(after, names)))
    except (SourceError, PolicyError) as problem:
        raise click.ClickException(str(problem)) from None
    if as_json is None:
        as_json = not sys.stdout.isatty()
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    for change in () if as_json else found:
        click.echo(clean(change.words, 8_192))
    if not found and not as_json:
        click.echo("Nothing changed.")
    raise SystemExit(int(bool(found)))


def read_either(path: Path, names: dict[str, str]) -> BootDocument:
    """Read a policy, or learn one from a log. Raises SourceError, PolicyError, click.ClickException."""
    with path.open("rb") as file:
        is_text = file.read(64).lstrip().startswith(b"{")
    if not is_text:
        return learn([Named(clean(path), read_log(path))], names=names)
    return read_document(path)


def read_document(path: Path) -> BootDocument:
    """Read a policy of our own format. Raises SourceError, PolicyError."""
    try:
        policy = parse_boot_policy(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as problem:
        raise SourceError(f"An error occurred: {problem}") from None
    if not isinstance(policy.judge, BootRules):
        raise SourceError(f"{path} is not a policy with the member {MARK}")
    return policy.judge.document
