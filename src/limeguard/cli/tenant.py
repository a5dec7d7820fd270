"""`keylime_tenant`, and `limeguard tenant`: the same options and commands, for scripts and for people.

Under Keylime's name everything is laid out as scripts expect it: log lines and results share stdout. Under our own name
stdout has the result alone, as JSON for pipes and as text on a terminal, and everything else is on stderr.
"""

import argparse
import asyncio
import contextlib
import getpass
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from limeguard.cli.logs import set_up_logging
from limeguard.cli.tenant_authority import PayloadAuthority
from limeguard.cli.tenant_report import PlainReport
from limeguard.settings import SettingsError, Sources
from limeguard.telemetry import get_logger, setup_logging
from limeguard.tenant.errors import ArgumentError, TenantError
from limeguard.tenant.payload import CertificateAuthority
from limeguard.tenant.report import KeylimeReport, Report, error, info, warning
from limeguard.tenant.request import COMMANDS, ENROLMENTS, OWN_COMMANDS, Request, check_arguments
from limeguard.tenant.run import Connections, run
from limeguard.tenant.settings import TenantSettings, load_tenant_settings
from limeguard.web.tls import TlsError, agent_client_context, client_context

PASSWORD_PROMPT = "Please enter the password to decrypt your keystore: "  # noqa: S105 - what is asked, no password
MAX_PORT = 65535
CHANGES = ENROLMENTS | {"delete", "reactivate", "regdelete"}
"""Commands whose steps are told to somebody who watches."""


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= MAX_PORT:
        raise argparse.ArgumentTypeError(f"{text} is no port")
    return int(text)


def _add_addresses(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-t", "--targethost", dest="agent_host", metavar="IP", help="address of the node's agent")
    add("-tp", "--targetport", dest="agent_port", metavar="PORT", type=_port, help="port of the node's agent")
    add("-r", "--registrarhost", dest="registrar_host", metavar="IP", help="address of the registrar")
    add("-rp", "--registrarport", dest="registrar_port", metavar="PORT", type=_port, help="HTTPS port of the registrar")
    add(
        "--cv_targethost",
        dest="verifier_agent_host",
        metavar="IP",
        help="address of the agent as the verifier reaches it, where it differs from -t",
    )
    add("-v", "--cv", dest="verifier_host", metavar="IP", help="address of the verifier")
    add("-vp", "--cvport", dest="verifier_port", metavar="PORT", type=_port, help="port of the verifier")
    add("-vi", "--cvid", dest="verifier_id", metavar="ID", default="", help="lists: only the nodes of this verifier")
    add(
        "-nvc",
        "--no-verifier-check",
        dest="verifier_check",
        action="store_false",
        help="delete, update, reactivate: ask the given verifier, not the one that the node's record names",
    )


def _add_payload(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-f", "--file", metavar="FILE", help="encrypt this file and deliver it to the node")
    add("--cert", metavar="DIR", help="deliver a certificate package of the CA in DIR (`default`: the usual place)")
    add("-k", "--key", metavar="FILE", help="deliver under the key in this file, made by keylime_userdata_encrypt")
    add("-p", "--payload", metavar="FILE", help="the encrypted payload that belongs to -k")
    add("--include", metavar="DIR", help="add the files of this directory to the package of --cert")
    add("--verify", action="store_true", help="wait until the node shows that it has the payload key")


def _add_policies(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--tpm_policy", metavar="JSON", help='allowed PCR values, such as {"15": ["00…"]}')
    add("--runtime-policy", metavar="FILE", help="runtime policy (JSON, or a signed envelope)")
    add("--runtime-policy-url", metavar="URL", help="the same, to be downloaded")
    add("--runtime-policy-checksum", metavar="HEX", help="SHA-256 that the runtime policy must have")
    add("--runtime-policy-sig-key", metavar="FILE", help="public key that must have signed the runtime policy")
    add("--runtime-policy-name", metavar="NAME", help="name of a runtime policy stored on the verifier")
    policy = "measured boot policy (JSON); `default` is the file of the setting mb_refstate"
    add("--mb-policy", "--mb_refstate", dest="mb_policy", metavar="FILE", help=policy)
    add("--mb-policy-name", metavar="NAME", help="name of a measured boot policy stored on the verifier")
    add("--allowlist", metavar="FILE", help="deprecated, see --runtime-policy")
    add("--allowlist-url", metavar="URL", help="deprecated, see --runtime-policy-url")
    add("--allowlist-name", metavar="NAME", help="deprecated, see --runtime-policy-name")
    add("--exclude", metavar="FILE", help="deprecated, see --runtime-policy")
    for name in ("", "-sig", "-sig-key", "-url", "-sig-url", "-sig-url-key"):
        old = ["--sign_verification_key"] if not name else []
        add(
            f"--signature-verification-key{name}",
            *old,
            dest="ima_keys",
            action="append",
            metavar="URL" if name.endswith("url") else "FILE",
            help="deprecated, keys belong into the runtime policy",
        )


def _add_versions(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--agent-api-version", metavar="VERSION", help="API version to speak with the agent, instead of asking it")
    add("--supported-version", metavar="VERSION", help="deprecated, see --agent-api-version")


def make_parser(prog: str, *, plain: bool) -> argparse.ArgumentParser:
    """Return the parser; `plain` adds what only our own command has."""
    parser = argparse.ArgumentParser(prog=prog, description="Manage the nodes of a registrar and a verifier.")
    shown = ", ".join(sorted(COMMANDS if plain else COMMANDS - OWN_COMMANDS))
    parser.add_argument("-c", "--command", default=None, metavar="COMMAND", help=f"what to do (default: add): {shown}")
    if plain:
        parser.add_argument("word", nargs="?", metavar="COMMAND", help="the same as -c COMMAND")
        parser.add_argument("--json", action="store_true", help="print the result as JSON, also on a terminal")
        parser.add_argument("--verbose", action="store_true", help="tell each step on stderr")
    parser.add_argument("--push-model", action="store_true", help="the node calls the verifier: do not contact it")
    parser.add_argument("-u", "--uuid", dest="agent_id", metavar="ID", help="id of the node")
    _add_addresses(parser)
    _add_payload(parser)
    _add_policies(parser)
    _add_versions(parser)
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> tuple[Request, argparse.Namespace]:
    """Parse options. Ends the program with status 2, and usage on stderr, when they contradict each other."""
    options = parser.parse_args(argv)
    word = getattr(options, "word", None)
    if word and options.command and word != options.command:
        parser.error(f"two commands: {word} and {options.command}")
    known = Request.__dataclass_fields__
    values = {name: value for name, value in vars(options).items() if name in known and value is not None}
    values["command"] = options.command or word or "add"
    values["ima_keys"] = tuple(options.ima_keys or ())
    request = Request(**values)
    try:
        check_arguments(request)
    except ArgumentError as problem:
        parser.error(str(problem))
    return request, options


def keylime_tenant(argv: Sequence[str] | None = None) -> int:
    """Run as `keylime_tenant` and return the exit status."""
    request, _ = parse(make_parser("keylime_tenant", plain=False), argv)
    sources = Sources.of_process()
    set_up_logging(sources)
    # A reader that goes away (`| grep -q`) must not end an enrolment half-way, nor fill stderr with tracebacks.
    logging.raiseExceptions = False
    return _settled(_guarded(request, sources, KeylimeReport(), notices=True))


def _settled(status: int) -> int:
    """Write out what is left for stdout; nobody reading it changes nothing about the outcome."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def tenant(argv: Sequence[str] | None = None) -> int:
    """Run as `limeguard tenant` and return the exit status."""
    request, options = parse(make_parser("limeguard tenant", plain=True), argv)
    as_json = options.json or not sys.stdout.isatty()
    verbose = options.verbose or (request.command in CHANGES and sys.stderr.isatty())
    report = PlainReport(request.command, sys.stdout, sys.stderr, as_json=as_json, verbose=verbose)
    setup_logging(None, "WARNING", to_stderr=True)
    status = _guarded(request, Sources.of_process(), report, notices=False)
    with contextlib.suppress(BrokenPipeError):
        report.finish(status)
    return _settled(status)


def _guarded(request: Request, sources: Sources, report: Report, *, notices: bool) -> int:
    """Run, and turn whatever goes wrong into a message and an exit status. `notices` tells which files were read."""
    try:
        return _run(request, sources, report, notices=notices)
    except (SettingsError, TlsError, TenantError) as problem:
        error(report, str(problem))
        return 1
    except KeyboardInterrupt:
        error(report, "ended by the operator")
        return 130
    except Exception as problem:  # noqa: BLE001 - the outermost edge: whatever is left is our own fault
        get_logger("keylime.tenant").exception("%s: %s", type(problem).__name__, problem)
        return 1


def _run(request: Request, sources: Sources, report: Report, *, notices: bool) -> int:
    loaded = load_tenant_settings(sources)
    for notice in loaded.notices if notices else ():
        get_logger("keylime.config").log(notice.level, "%s", notice.text)
    for caution in loaded.warnings if request.command in ENROLMENTS else ():
        get_logger("keylime.config").warning("%s", caution)
    settings = loaded.settings

    def authority(folder: str) -> CertificateAuthority:
        where = settings.ca_directory if folder == "default" else Path(folder)
        return PayloadAuthority(where, sources, report, lambda: getpass.getpass(PASSWORD_PROMPT))

    return asyncio.run(
        run(
            request,
            settings,
            _connections(settings, report),
            report,
            environment=sources.env,
            authority=authority,
        )
    )


def _connections(settings: TenantSettings, report: Report) -> Connections:
    """Build the TLS contexts. Without client certificate nothing is built, and the first request will fail."""
    info(report, "Setting up client TLS...")
    files = settings.tls_files
    client = files.client
    named = [] if client is None else [("client_cert", client.certificate), ("client_key", client.key)]
    missing = [(option, path) for option, path in named if not path.is_file()]
    for option, path in missing:
        warning(report, f"Could not find file {path} provided in '{option}'")
    if client is None or missing:
        warning(report, "TLS is disabled.")
        return Connections(None, None)
    # Host names are not compared, so a CA of the public web would let anybody pass: the system's store counts only
    # where the operator names no CA at all.
    servers = client_context(
        client.certificate, client.key, client.password, files.server_cas, system_store=not files.server_cas
    )
    connections = Connections(servers, agent_client_context(client.certificate, client.key, client.password))
    info(report, "TLS is enabled.")
    return connections
