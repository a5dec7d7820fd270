"""The certificate authority on the command line: `keylime_ca` as its users type it, and `limeguard ca`.

Reads settings, asks for the password, calls `authoring`, and turns its errors into messages and exit codes.
"""

import argparse
import getpass
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from limeguard.authoring.ca import CaError, CertificateAuthority, Issued
from limeguard.authoring.crl_server import crl_server
from limeguard.authoring.files import FilesError
from limeguard.authoring.keystore import KeyStoreError
from limeguard.authoring.settings import ASK, CaSettings, load_ca_settings
from limeguard.cli.logs import set_up_logging
from limeguard.settings import SettingsError, Sources
from limeguard.telemetry import clean, get_logger, setup_logging

log = get_logger("keylime.ca-util")

PROMPT = "Please enter the password to decrypt your keystore: "
"""Scripts wait for exactly this text."""
USAGE_ERROR = 255
CRL_PORT = 38080
MAX_KEY = 1024 * 1024

Ask = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Opened:
    """The settings, and a way to the authority that asks for the password only when it is needed."""

    settings: CaSettings
    directory: Path
    ask: Ask

    def authority(self, *, password: bool = True) -> CertificateAuthority:
        """Return the authority; without `password` it can only be looked at."""
        word = self.settings.password if password else ""
        if word == ASK:
            word = self.ask(PROMPT)
        return CertificateAuthority(directory=self.directory, settings=self.settings, password=word)


def open_ca(sources: Sources, directory: str | None, ask: Ask, *, notices: bool = True) -> Opened:
    """Read the settings of the authority; `notices` tells of the files as Keylime does. Raises SettingsError."""
    loaded = load_ca_settings(sources)
    if notices:
        loaded.announce(get_logger("keylime.config"))
    else:
        loaded.announce_warnings(get_logger("keylime.config"))
    return Opened(loaded.settings, Path(directory) if directory else loaded.settings.ca_directory, ask)


class _Refused(Exception):  # noqa: N818 - an answer on its way out
    """The arguments do not make a command; the text is logged and the help shown."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("keylime_ca")
    commands = "init,create,pkg,revoke,listen,import-priv"
    parser.add_argument("-c", "--command", required=True, help=f"valid commands are {commands}, list and show")
    parser.add_argument("-n", "--name", help="common name of the certificate")
    parser.add_argument("-d", "--dir", help="directory of the CA")
    parser.add_argument("-i", "--insecure", action="store_true", help="accepted; private keys in packages are plain")
    parser.add_argument("-f", "--file", default="ca-private.pem", help="private key for import-priv")
    parser.add_argument("-s", "--serial", help="last serial number that the CA of import-priv has used")
    return parser


def main(argv: Sequence[str] | None = None, *, sources: Sources | None = None, ask: Ask = getpass.getpass) -> int:
    """Run `keylime_ca`, by default as this process was started, and return its exit status.

    Wrong usage of options raises SystemExit(2) as argparse does.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if sources is None:
        sources = Sources.of_process()
        set_up_logging(sources)
    os.umask(0o077)
    try:
        opened = open_ca(sources, arguments.dir, ask)
        _check_access(sources, arguments.dir)
        _run(arguments, opened)
    except _Refused as refused:
        log.error("%s", refused)  # noqa: TRY400 - a sentence, not a traceback
        parser.print_help()
        return USAGE_ERROR
    except (CaError, FilesError, KeyStoreError, SettingsError, OSError) as problem:
        log.error("%s", problem)  # noqa: TRY400 - a sentence, not a traceback
        return 1
    return 0


def _check_access(sources: Sources, directory: str | None) -> None:
    work_dir = sources.work_dir
    if directory is None and not os.access(work_dir, os.R_OK | os.W_OK):
        raise _Refused(f"Reading and writing in {work_dir} is not permitted to this user")


def _run(arguments: argparse.Namespace, opened: Opened) -> None:
    name = clean(arguments.name)
    match arguments.command:
        case "init":
            opened.authority().init()
            log.info("CA certificate created successfully in %s", opened.directory)
        case "create":
            opened.authority().create(_name(arguments))
            log.info("Created certificate for name %s successfully in %s", name, opened.directory)
        case "pkg":
            path = opened.authority(password=False).package(_name(arguments))
            log.info("Creating cert package for %s in %s", name, path.name)
        case "revoke":
            serial = opened.authority().revoke(_name(arguments))
            log.info("Revoked the certificate of %s, serial %d", name, serial)
        case "import-priv":
            _import(opened, arguments.file, arguments.serial)
        case "list":
            _say_list(opened.authority(password=False).issued())
        case "show":
            _say(describe(opened.authority(password=False).find(_name(arguments))))
        case "listen":
            _listen(opened, "127.0.0.1", None)
        case _:
            raise _Refused(f"Invalid command: {clean(arguments.command)}")


def _name(arguments: argparse.Namespace) -> str:
    if not arguments.name:
        raise _Refused("you must pass in a name for the certificate using -n (or --name)")
    return str(arguments.name)


def _import(opened: Opened, file: str, serial: str | None) -> None:
    if not serial:
        raise _Refused("you must pass in the last serial number the CA has used using -s (or --serial)")
    if not (serial.isascii() and serial.isdecimal()):
        raise _Refused(f"{clean(serial)} is not a serial number")
    with Path(file).open("rb") as handle:
        pem = handle.read(MAX_KEY)
    opened.authority().import_key(pem, int(serial))
    log.info("Imported the private key of a CA into %s", opened.directory)


def _listen(opened: Opened, address: str, port: int | None) -> None:
    where = urlsplit(opened.settings.cert_crl_dist)
    opened.authority(password=False).issued()
    with crl_server(opened.directory, address, port or where.port or CRL_PORT, where.path) as server:
        log.info("Serving the list of revoked certificates on %s:%d%s", address, server.server_port, where.path)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            log.info("Stopped")


def summary(issued: Issued) -> dict[str, Any]:
    """Return one certificate for a list."""
    return {
        "name": issued.name,
        "serial": issued.serial,
        "expires": issued.expires.astimezone(UTC).isoformat(),
        "revoked": issued.revoked,
    }


def describe(issued: Issued) -> dict[str, Any]:
    """Return everything about one certificate that is worth showing."""
    certificate = issued.certificate
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        alternatives = [str(each.value) for each in names]
    except x509.ExtensionNotFound:
        alternatives = []
    return {
        **summary(issued),
        "subject": issued.subject,
        "issuer": certificate.issuer.rfc4514_string(),
        "begins": certificate.not_valid_before_utc.isoformat(),
        "names": alternatives,
        "sha256": certificate.fingerprint(hashes.SHA256()).hex(),
    }


def _say_list(issued: Sequence[Issued]) -> None:
    width = max((len(each.name) for each in issued), default=0)
    for each in issued:
        state = "revoked" if each.revoked else f"until {each.expires:%Y-%m-%d}"
        sys.stdout.write(f"{each.serial:>6}  {clean(each.name):<{width}}  {state}\n")


def _say(fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        text = ", ".join(value) if isinstance(value, list) else str(value)
        sys.stdout.write(f"{name:<8} {clean(text)}\n")


@contextmanager
def _messages() -> Iterator[None]:
    try:
        yield
    except (CaError, FilesError, KeyStoreError, SettingsError, OSError) as problem:
        raise click.ClickException(str(problem)) from problem


@click.group("ca")
@click.option("-d", "--dir", "directory", type=click.Path(), help="Directory of the CA.")
@click.pass_context
def ca(context: click.Context, directory: str | None) -> None:
    """Make, list, issue and revoke certificates."""
    setup_logging(level="WARNING", to_stderr=True)
    os.umask(0o077)
    with _messages():
        context.obj = open_ca(Sources.of_process(), directory, getpass.getpass, notices=False)


@ca.command("init")
@click.option("--force", is_flag=True, help="Replace an authority that is there.")
@click.pass_obj
def _init(opened: Opened, *, force: bool) -> None:
    """Make a new certificate authority."""
    with _messages():
        authority = opened.authority()
        if authority.exists and not force:
            raise click.ClickException(f"There is a CA in {opened.directory} already; --force removes it.")
        authority.init()
    click.echo(f"New CA in {opened.directory}")


@ca.command("create")
@click.argument("name")
@click.option("--san", "names", multiple=True, help="DNS name or address; may be repeated. By default the name.")
@click.pass_obj
def _create(opened: Opened, name: str, names: tuple[str, ...]) -> None:
    """Issue key and certificate for NAME."""
    with _messages():
        issued = opened.authority().create(name, names=names)
    click.echo(f"{name}: serial {issued.serial}, until {issued.expires:%Y-%m-%d}")


@ca.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def _list(opened: Opened, *, as_json: bool) -> None:
    """List the certificates that were issued."""
    with _messages():
        issued = opened.authority(password=False).issued()
    if as_json:
        click.echo(json.dumps([summary(each) for each in issued], indent=2))
    else:
        _say_list(issued)


@ca.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def _show(opened: Opened, name: str, *, as_json: bool) -> None:
    """Show the certificate of NAME."""
    with _messages():
        fields = describe(opened.authority(password=False).find(name))
    if as_json:
        click.echo(json.dumps(fields, indent=2))
    else:
        _say(fields)


@ca.command("package")
@click.argument("name")
@click.pass_obj
def _package(opened: Opened, name: str) -> None:
    """Pack key and certificate of NAME with the CA into a ZIP file."""
    with _messages():
        click.echo(str(opened.authority(password=False).package(name)))


@ca.command("revoke")
@click.argument("name")
@click.pass_obj
def _revoke(opened: Opened, name: str) -> None:
    """Put the certificate of NAME on the list of revoked ones."""
    with _messages():
        serial = opened.authority().revoke(name)
    click.echo(f"{name}: serial {serial} is revoked")


@ca.command("import-key")
@click.argument("file", type=click.Path())
@click.option("--serial", required=True, help="Last serial number that the CA has used.")
@click.pass_obj
def _import_key(opened: Opened, file: str, serial: str) -> None:
    """Take over a CA from elsewhere, whose private key is in FILE."""
    with _messages():
        try:
            _import(opened, file, serial)
        except _Refused as refused:
            raise click.ClickException(str(refused)) from refused
    click.echo(f"CA key in {opened.directory}")


@ca.command("listen")
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port; by default that of cert_crl_dist.")
@click.pass_obj
def _serve(opened: Opened, address: str, port: int | None) -> None:
    """Serve the list of revoked certificates over HTTP."""
    setup_logging(to_stderr=True)
    with _messages():
        _listen(opened, address, port)
