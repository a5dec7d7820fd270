"""`limeguard boot learn`: a boot policy from the logs of machines that are believed."""

from pathlib import Path

import click

from limeguard.authoring.boot.images import names_of
from limeguard.authoring.boot.learn import Named, check_learned, extended, learn
from limeguard.authoring.policy.collected import SourceError
from limeguard.cli.boot_diff import read_document
from limeguard.cli.boot_show import read_log
from limeguard.cli.policy import write_whole
from limeguard.policy.boot.rules import encode_boot_document
from limeguard.policy.errors import PolicyError
from limeguard.telemetry import clean


@click.command("learn")
@click.argument("logs", nargs=-1, required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("-o", "--output", default="", help="File to write, standard output if there is none.")
@click.option("--image", "images", multiple=True, type=click.Path(path_type=Path), help="Booted file, to name it.")
@click.option("--base", type=click.Path(dir_okay=False, path_type=Path), help="Policy in use, to which the logs add.")
@click.option("--allow-pcr", "allow", multiple=True, type=click.IntRange(0, 15), help="PCR of which any event may be.")
@click.option("--description", default="", help="What the policy is for.")
def learn_command(
    *,
    logs: tuple[Path, ...],
    output: str,
    images: tuple[Path, ...],
    base: Path | None,
    allow: tuple[int, ...],
    description: str,
) -> None:
    """Make a policy that accepts the boot logs LOG..., which must come from machines that are believed.

    It lists all that these machines ran. Settings (PCRs 1, 3, 5, 6) that differ among them are not judged.
    With --base POLICY what the logs add is put into that policy, and all that was decided there stays.
    With --image FILE (a shim, a boot loader, a kernel, an initrd) the policy says which version a digest is.
    """
    try:
        names = {digest: name for path in images for digest, name in names_of(path).items()}
        named = [Named(clean(path), read_log(path)) for path in logs]
        document = learn(named, allow=allow, description=description, names=names)
        if base is not None:
            document = extended(read_document(base), document)
        problems = list(check_learned(document, named))
        write_whole(output, encode_boot_document(document))
    except (SourceError, PolicyError) as problem:
        raise click.ClickException(str(problem)) from None
    for pcr in document.unknown_events if base is None else ():
        click.echo(f"PCR {pcr} is not judged event by event: any event may be on it.", err=True)
    if document.secure_boot == "any" and base is None:
        click.echo("Secure Boot differs among the logs, or none says it: it is not judged.", err=True)
    for text in problems:
        click.echo(f"Still refused: {clean(text, 4_096)}", err=True)
