"""`keylime-policy` and `limeguard policy`: make, sign, verify, convert, compare and try runtime policies.

The first two commands have the options and messages of Keylime's tool; the others are ours and have no other name.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import time
from typing import Any, Final

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from limeguard.authoring.boot.refstate import Strictness, reference_state
from limeguard.authoring.policy import build, signing
from limeguard.authoring.policy.collected import SourceError
from limeguard.authoring.policy.deb_remote import DebSource
from limeguard.authoring.policy.fetching import WORKERS
from limeguard.evidence.bootlog.enriched import enriched
from limeguard.evidence.bootlog.log import parse_boot_log
from limeguard.evidence.reader import MalformedEvidence
from limeguard.policy.difference import differences
from limeguard.policy.errors import PolicyError
from limeguard.policy.legacy import convert, exclude_lines

ALGORITHMS: Final = ("sha1", "sha256", "sha384", "sha512")
STANDARD_KEY: Final = "keylime-ecdsa-key.pem"

Command = Callable[[argparse.Namespace], int]


def keylime_policy(arguments: Sequence[str]) -> int:
    """Run `keylime-policy`; return the exit status."""
    return _run("keylime-policy", arguments, own=False)


def policy(arguments: Sequence[str]) -> int:
    """Run `limeguard policy`; return the exit status."""
    return _run("limeguard policy", arguments, own=True)


def _run(name: str, arguments: Sequence[str], *, own: bool) -> int:
    parser = make_parser(name, own=own)
    if not arguments:
        parser.print_help()
        return 0
    options = parser.parse_args(arguments)
    log_to_stderr(verbose=getattr(options, "verbose", False))
    command: Command = options.run
    try:
        return command(options)
    except SourceError as problem:
        print(problem, file=sys.stderr)
    except PolicyError as problem:
        print("\n".join(problem.problems), file=sys.stderr)
    except BrokenPipeError:
        sys.stderr.close()
    return 1


def log_to_stderr(*, verbose: bool = False) -> None:
    """Let what the tool says of its work go to standard error."""
    layout = "%(asctime)s %(message)s" if verbose else "%(message)s"
    logging.basicConfig(stream=sys.stderr, format=layout, level=logging.DEBUG if verbose else logging.INFO, force=True)


def make_parser(name: str, *, own: bool) -> argparse.ArgumentParser:
    """Return the parser; `own` adds the commands that Keylime's tool does not have."""
    parser = argparse.ArgumentParser(prog=name, description="Make and sign runtime policies.")
    commands = parser.add_subparsers(title="actions", dest="command", required=True, metavar="COMMAND")
    create = commands.add_parser("create", help="make a policy").add_subparsers(dest="kind", required=True)
    _add_create(create.add_parser("runtime", help="make a runtime policy"))
    _add_boot(create.add_parser("measured-boot", help="make a measured boot policy"))
    sign = commands.add_parser("sign", help="sign a policy").add_subparsers(dest="kind", required=True)
    _add_sign(sign.add_parser("runtime", help="sign a runtime policy"))
    if own:
        _add_verify(commands.add_parser("verify", help="verify a signed policy and print what is inside"))
        _add_convert(commands.add_parser("convert", help="bring an older allowlist to the present format"))
        _add_diff(commands.add_parser("diff", help="say what changed from one policy to another"))
        _add_check(commands.add_parser("check", help="judge a measurement list by a policy, as the verifier would"))
    return parser


def _add_create(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("-o", "--output", default="", help="file to write, standard output if there is none")
    option("-p", "--base-policy", default="", help="policy to merge into")
    option("-k", "--keyrings", action="store_true", help="take keys on keyrings from the measurement list")
    option("-b", "--ima-buf", action="store_true", help="take other buffers from the measurement list")
    option("-a", "--allowlist", default="", help="flat allowlist")
    option("-e", "--excludelist", default="", help="exclude patterns, one a line")
    option(
        "-m",
        "--ima-measurement-list",
        nargs="?",
        default=build.NO_LIST,
        const=build.KERNEL_LIST,
        help="ASCII measurement list; without a value that of this machine's kernel",
    )
    option("--ignored-keyrings", action="append", default=[], help="keyring whose keys are passed over; * for all")
    option("--add-ima-signature-verification-key", action="append", default=[], metavar="IMA_SIGNATURE_KEYS")
    option("--show-legacy-allowlist", action="store_true", help="print a flat list instead of a policy")
    option("-v", "--verbose", action="store_true", help="say more")
    option("--algo", choices=ALGORITHMS, default="", help="digest algorithm for --rootfs and --ramdisk-dir")
    option("--ramdisk-dir", default="", help="directory of initrds whose files are hashed")
    option("--rootfs", default="", help="root of a file system whose files are hashed")
    option("--local-rpm-repo", default="", help="directory of an RPM repository")
    option(
        "--remote-rpm-repo", default="", metavar="URL", help="RPM repository on a server: https://, http://, file://"
    )
    option("--max-workers", type=_positive, default=WORKERS, help="files fetched at a time")
    _add_deb(parser)
    option("-s", "--skip-path", default="", help="directories below it to leave out, separated by commas")
    parser.set_defaults(run=_create)


def _add_deb(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("--deb-packages", default="", help="directory of Debian packages")
    option("--deb-repository", default="", metavar="URL", help="Debian repository; needs --deb-suite")
    option("--deb-suite", default="", help="suite of the Debian repository, such as bookworm")
    option("--deb-component", action="append", default=[], help="component of the suite, main if there is none")
    option("--deb-architecture", default="amd64", help="architecture of the machines")
    option("--deb-keyring", default="", help="keys that sign the suite; without it those of the distribution")
    option("--deb-status", default="", help="copy of /var/lib/dpkg/status: only what is installed there")
    option("--deb-only", action="append", default=[], metavar="NAME", help="only this package")


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _deb_source(options: argparse.Namespace) -> DebSource | None:
    if not options.deb_repository:
        return None
    if not options.deb_suite:
        raise SourceError("--deb-repository needs --deb-suite, such as bookworm")
    return DebSource(
        url=options.deb_repository,
        suite=options.deb_suite,
        components=tuple(options.deb_component) or ("main",),
        architecture=options.deb_architecture,
        keyring=options.deb_keyring,
        only=tuple(options.deb_only),
        status=options.deb_status,
    )


def _create(options: argparse.Namespace) -> int:
    if options.algo and not (options.rootfs or options.ramdisk_dir):
        logging.getLogger("keylime.policy").warning("--algo has an effect only with --rootfs and --ramdisk-dir")
    bar = Progress(
        SpinnerColumn(),
        TextColumn("files or packages read"),
        MofNCompleteColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )
    with bar:
        task = bar.add_task("hashing", total=None)
        request = build.Request(
            base_policy=options.base_policy,
            allowlist=options.allowlist,
            excludelist=options.excludelist,
            measurements=options.ima_measurement_list,
            keyrings=options.keyrings,
            buffers=options.ima_buf,
            ignored_keyrings=options.ignored_keyrings,
            verification_keys=options.add_ima_signature_verification_key,
            algorithm=options.algo,
            root=options.rootfs,
            ramdisks=options.ramdisk_dir,
            rpm_repository=options.local_rpm_repo,
            rpm_url=options.remote_rpm_repo,
            deb_packages=options.deb_packages,
            deb_repository=_deb_source(options),
            workers=options.max_workers,
            skip=[part for part in options.skip_path.split(",") if part],
            progress=lambda done: bar.update(task, completed=done),
        )
        document = build.build(request, datetime.fromtimestamp(time(), UTC))
    text = build.listing(document) if options.show_legacy_allowlist else json.dumps(document)
    write_whole(options.output, text)
    return 0


def write_whole(path: str, text: str) -> None:
    """Write a result. To a file it goes whole or not at all."""
    if path in {"", "-", "/dev/stdout"}:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    target = Path(path)
    try:
        if target.exists() and not target.is_file():
            target.write_text(text, encoding="utf-8", errors="surrogateescape")
            return
        beside = target.with_name(f".{target.name}.new")
        beside.write_text(text, encoding="utf-8", errors="surrogateescape")
        beside.replace(target)
    except OSError as problem:
        problem.filename = path
        raise SourceError(f"An error occurred while writing the policy: {problem}") from None


def _add_boot(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("-e", "--eventlog-file", required=True, help="binary boot log")
    option("-i", "--without-secureboot", action="store_true", help="allow a log without Secure Boot")
    option("-o", "--output", default="-", help="file to write")
    parser.set_defaults(run=_boot)


def _boot(options: argparse.Namespace) -> int:
    write_whole(options.output, json.dumps(state_of_file(options.eventlog_file, options.without_secureboot)))
    return 0


def state_of_file(path: str, without_secure_boot: bool, strictness: Strictness | None = None) -> dict[str, Any]:
    """Return the reference state of a boot log. Raises SourceError."""
    try:
        data = Path(path).read_bytes()
        decoded = enriched(parse_boot_log(data))
    except (OSError, MalformedEvidence) as problem:
        raise SourceError(f"Parsing of binary boot measurements ({path}) failed with: {problem}") from None
    return reference_state(decoded, without_secure_boot=without_secure_boot, strictness=strictness)


def _add_sign(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("-o", "--output", default="", help="file to write, standard output if there is none")
    option("-r", "--runtime-policy", required=True, help="the policy")
    option("-k", "--keyfile", default="", help="PEM file of an elliptic curve key")
    option("-p", "--keypath", default="", help=f"where a new key is written ({STANDARD_KEY})")
    option("-b", "--backend", type=str.lower, choices=("ecdsa", "x509"), default="ecdsa", help="what names the key")
    option("-c", "--cert-outfile", default="", help="where the certificate of the key is written, for x509")
    parser.set_defaults(run=_sign)


def _sign(options: argparse.Namespace) -> int:
    if options.keyfile and options.keypath:
        raise SourceError("Only one of keyfile or keypath must be specified at once")
    if options.backend == "x509" and not options.cert_outfile:
        raise SourceError("Unable to obtain a valid signer from the input data: x509 needs --cert-outfile")
    payload = signing.checked_policy(options.runtime_policy)
    key = signing.load_key(options.keyfile) if options.keyfile else signing.make_key(options.keypath or STANDARD_KEY)
    certificate = options.cert_outfile if options.backend == "x509" else None
    envelope = signing.sign(payload, key, certificate, datetime.fromtimestamp(time(), UTC))
    write_whole(options.output, envelope if options.output else f"{envelope}\n")
    return 0


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-r", "--runtime-policy", required=True, help="the signed policy")
    parser.add_argument("-k", "--keyfile", required=True, help="PEM public key or certificate of the signer")
    parser.add_argument("-o", "--output", default="", help="file to write, standard output if there is none")
    parser.set_defaults(run=_verify)


def _verify(options: argparse.Namespace) -> int:
    write_whole(options.output, signing.verify(options.runtime_policy, options.keyfile).decode())
    return 0


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--allowlist", required=True, help="flat or JSON allowlist")
    parser.add_argument("-e", "--excludelist", default="", help="exclude patterns, one a line")
    parser.add_argument("-o", "--output", default="", help="file to write, standard output if there is none")
    parser.set_defaults(run=_convert)


def _convert(options: argparse.Namespace) -> int:
    document = convert(_text(options.allowlist), str(datetime.fromtimestamp(time(), UTC).replace(tzinfo=None)))
    if options.excludelist:
        document["excludes"] = [*document["excludes"], *exclude_lines(_text(options.excludelist))]
    write_whole(options.output, json.dumps(document))
    return 0


def _add_diff(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", help="the policy as it was")
    parser.add_argument("after", help="the policy as it is")
    parser.add_argument("--json", action="store_true", help="JSON for programs")
    parser.set_defaults(run=_diff)


def _diff(options: argparse.Namespace) -> int:
    changes = list(differences(_document(options.before), _document(options.after)))
    if options.json:
        print(json.dumps(changes))
        return int(bool(changes))
    for change in changes:
        sign = {"added": "+", "removed": "-", "changed": "~"}[change["change"]]
        print(f"{sign} {change['member']} {change['name']}".rstrip())
        if change["change"] == "changed":
            print(f"    {', '.join(map(str, change['before']))} -> {', '.join(map(str, change['after']))}")
    return int(bool(changes))


def _add_check(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("--policy", required=True, help="runtime policy")
    option("--log", required=True, help="ASCII or binary measurement list")
    option("--pcr", default="", help="PCR 10 as the TPM had it, hexadecimal; without it the list is not believed more")
    option("--bank", choices=ALGORITHMS, default="sha256", help="bank of that PCR")
    option("--ignore-violations", action="store_true", help="pass over ToMToU and open-writers violations")
    option("--json", action="store_true", help="JSON for programs")
    parser.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    from limeguard.cli.policy_check import check

    return check(options)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as problem:
        raise SourceError(f"An error occurred: {problem}") from None


def _document(path: str) -> dict[str, Any]:
    try:
        document = json.loads(_text(path))
    except (ValueError, RecursionError) as problem:
        raise SourceError(f"{path} is not JSON: {problem}") from None
    if not isinstance(document, dict):
        raise SourceError(f"{path} is not a JSON object")
    return document
