"""One run of the tenant: settings and request in, exit status out. The only place that knows every command."""

import asyncio
import secrets
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from limeguard import __version__
from limeguard.tenant import enrol, nodes, own_view, policy_commands
from limeguard.tenant.context import Context, Edges, Rules
from limeguard.tenant.ekcheck import EkRules, resolve_script
from limeguard.tenant.errors import TenantError
from limeguard.tenant.identity import AcceptLists
from limeguard.tenant.nodes import Command
from limeguard.tenant.payload import CertificateAuthority
from limeguard.tenant.report import Report, error, warning
from limeguard.tenant.request import ALIASES, NODE_COMMANDS, Request, check_request
from limeguard.tenant.retry import Retry
from limeguard.tenant.servers import Server
from limeguard.tenant.settings import TenantSettings
from limeguard.web.client import HttpClient

MAX_SERVER_ANSWER = 256 * 1024 * 1024
"""A list of a large fleet in full."""
MAX_AGENT_ANSWER = 256 * 1024
"""An identity quote takes 4 kB."""
MAX_DOWNLOAD = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Connections:
    """TLS contexts: towards servers (by CA), and towards agents (client certificate only, agents are pinned).

    None: there is no client certificate, and nobody that asks for one will answer.
    """

    servers: ssl.SSLContext | None
    agents: ssl.SSLContext | None


async def version(context: Context) -> int:
    """Show our version, and what is spoken with the servers."""
    found: dict[str, object] = {"limeguard": __version__}
    for server in (context.verifier, context.registrar):
        chosen = await server.version()
        answered = bool(server.offered)
        found[server.kind] = {"address": server.shown, "api_version": chosen if answered else None}
    context.report.document("version", f"limeguard {__version__}", found)
    return 0


COMMANDS: Mapping[str, Command] = {
    "add": enrol.add,
    "update": enrol.update,
    "version": version,
    **nodes.COMMANDS,
    **policy_commands.COMMANDS,
    **own_view.COMMANDS,
}


def rules_of(settings: TenantSettings, environment: Mapping[str, str]) -> Rules:
    """Return the rules that the settings make."""
    return Rules(
        accept=AcceptLists(
            settings.accept_tpm_hash_algs, settings.accept_tpm_encryption_algs, settings.accept_tpm_signing_algs
        ),
        ek=EkRules(
            certificate_required=settings.require_ek_cert,
            store=settings.work_dir / settings.tpm_cert_store,
            script=resolve_script(settings.ek_check_script, settings.work_dir),
            work_dir=settings.work_dir,
            environment=environment,
        ),
        retry=Retry(settings.max_retries, settings.retry_interval, settings.exponential_backoff),
        max_payload_size=settings.max_payload_size,
        agent_tls=settings.enable_agent_mtls,
        default_boot_policy=settings.mb_refstate,
    )


async def run(
    request: Request,
    settings: TenantSettings,
    connections: Connections,
    report: Report,
    *,
    environment: Mapping[str, str],
    authority: Callable[[str], CertificateAuthority],
) -> int:
    """Carry out one request and return the exit status. Every failure has been reported."""
    try:
        check_request(request)
        if request.agent_id is None and request.command in NODE_COMMANDS:
            warning(report, f"Using default UUID {request.node}")
        _warn_about_old_names(request, report)
        return await _run(request, settings, connections, report, environment, authority)
    except TenantError as problem:
        error(report, str(problem))
        return 1


def _warn_about_old_names(request: Request, report: Report) -> None:
    if request.command in ALIASES:
        new = ALIASES[request.command]
        warning(report, f"WARNING: -c {request.command} is deprecated. Use -c {new} instead")
    for old, new, given in (
        ("--allowlist-name", "--runtime-policy-name", request.allowlist_name),
        ("--supported-version", "--agent-api-version", request.supported_version),
    ):
        if given:
            warning(report, f"WARNING: {old} is deprecated. Use {new} instead")


async def _run(
    request: Request,
    settings: TenantSettings,
    connections: Connections,
    report: Report,
    environment: Mapping[str, str],
    authority: Callable[[str], CertificateAuthority],
) -> int:
    timeout = settings.request_timeout
    servers = HttpClient(connections.servers, timeout=timeout, max_answer=MAX_SERVER_ANSWER)
    agents = HttpClient(connections.agents, timeout=timeout, max_answer=MAX_AGENT_ANSWER)
    downloads = HttpClient(None, timeout=timeout, max_answer=MAX_DOWNLOAD)
    registrar = request.registrar_host or settings.registrar_ip, request.registrar_port or settings.registrar_port
    verifier = request.verifier_host or settings.verifier_ip, request.verifier_port or settings.verifier_port
    context = Context(
        request=request,
        rules=rules_of(settings, environment),
        edges=Edges(
            agents=agents,
            downloads=downloads,
            now=time.time,
            sleep=asyncio.sleep,
            randomness=secrets.token_bytes,
            choose=secrets.choice,
        ),
        report=report,
        registrar=Server("registrar", *registrar, servers, report),
        verifier=Server("verifier", *verifier, servers, report),
        verifier_id=request.verifier_id,
        authority=authority,
    )
    try:
        return await COMMANDS[ALIASES.get(request.command, request.command)](context)
    finally:
        for client in (servers, agents, downloads):
            await client.close()
