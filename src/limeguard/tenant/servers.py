"""Calls to verifier, registrar and agent as the tenant makes them: one negotiated version each, answers kept whole.

Knows how to ask, not what an answer means for a node.
"""

import re
from dataclasses import dataclass

from limeguard.telemetry import clean
from limeguard.tenant.errors import TenantError
from limeguard.tenant.report import Report, info, warning
from limeguard.web.answers import Answer, Pin, Unreachable
from limeguard.web.client import HttpClient
from limeguard.wire import versions
from limeguard.wire.operator_view import Document, code_of, read_document, server_versions, status_of

JSON = {"Content-Type": "application/json"}
OK = 200
GONE = 410
REFUSED = "The peer hung up, as it does when it refuses the client certificate (SSLError)"
HOST = re.compile(r"[A-Za-z0-9._:%-]{1,255}")


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: its HTTP status, and the JSON object in it if there is one."""

    http_status: int
    document: Document | None
    body: bytes

    @property
    def code(self) -> int:
        """The envelope's code, or the HTTP status where there is no envelope."""
        code = code_of(self.document)
        return self.http_status if code is None else code

    @property
    def status(self) -> str:
        """The envelope's text, safe to show; the start of the body where there is no envelope."""
        return clean(status_of(self.document) or self.body[:512].decode("utf-8", "replace"))

    def require_document(self, who: str) -> Document:
        """Return the JSON object. Raises TenantError when the peer sent something else."""
        if self.document is None:
            raise TenantError(f"{who} answered {self.http_status} with something that is no JSON object")
        return self.document


def reply_of(answer: Answer) -> Reply:
    """Read an HTTP answer."""
    return Reply(answer.status, read_document(answer.body), answer.body)


def address(host: str, port: int) -> str:
    """Return host and port as they stand in a URL. Raises TenantError when the host is none.

    Hosts also come from registrations, so nothing but a host may pass.
    """
    bare = host.strip("[]")
    if not HOST.fullmatch(bare):
        raise TenantError(f"{clean(host)} is no host name or address")
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def tenant_versions() -> tuple[str, ...]:
    """Return the versions the tenant can speak with a server: nobody serves 1.0 any more, and 3 is for agents."""
    return tuple(v for v in versions.SUPPORTED if v.startswith("2."))


class Server:
    """A registrar or verifier. Its API version is asked for once, before the first real call."""

    def __init__(self, kind: str, host: str, port: int, http: HttpClient, report: Report) -> None:
        """Prepare calls to one server; `kind` is `verifier` or `registrar`."""
        self.kind = kind
        self.host = host
        self.port = port
        self._http = http
        self._report = report
        self._version: str | None = None
        self.offered: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """Address as messages show it."""
        return f"{self.host}:{self.port}"

    def moved(self, host: str, port: int) -> "Server":
        """Return the same kind of server elsewhere, or this one when that is where it is."""
        if (host, port) == (self.host, self.port):
            return self
        return Server(self.kind, host, port, self._http, self._report)

    async def version(self) -> str:
        """Return the API version to speak. Raises TenantError when the two sides share none."""
        if self._version is None:
            self._version = await self._negotiate()
            info(self._report, f"Using API version {self._version} for {self.kind} communication")
        return self._version

    async def _negotiate(self) -> str:
        self.offered = await self._offered()
        if not self.offered:
            return versions.CURRENT
        mine = tenant_versions()
        chosen = versions.negotiate(mine, self.offered)
        if chosen is None:
            raise TenantError(
                f"No compatible API version with {self.kind}. Tenant supports: {list(mine)}, "
                f"Server supports: {[clean(v) for v in self.offered]}"
            )
        return chosen

    async def _offered(self) -> tuple[str, ...]:
        try:
            reply = reply_of(await self._http.request("GET", f"{self._base}/version"))
        except Unreachable as problem:
            warning(self._report, f"Error fetching versions from {self.kind}: {explain(self._base, problem)}")
            return ()
        found = server_versions(reply.document) if reply.http_status == OK else ()
        if not found and reply.http_status != GONE:
            warning(self._report, f"{self.kind} at {self.shown} lists no API versions ({reply.http_status})")
        return found

    @property
    def _base(self) -> str:
        return f"https://{address(self.host, self.port)}"

    async def call(self, method: str, path: str, body: bytes | None = None) -> Reply:
        """Send a request below the negotiated version; `path` starts with `/`. Raises TenantError."""
        return await self.call_plain(method, f"/v{await self.version()}{path}", body)

    async def call_plain(self, method: str, path: str, body: bytes | None = None) -> Reply:
        """Send a request to a path outside the versions. Raises TenantError."""
        try:
            answer = await self._http.request(method, f"{self._base}{path}", body=body, headers=JSON if body else None)
        except Unreachable as problem:
            raise TenantError(
                f"No answer from {self.kind}: {explain(self._base, problem)}{_server_hint(problem)}"
            ) from problem
        return reply_of(answer)


class AgentLink:
    """An agent under its registered certificate, or in the clear when it has none and the operator allows that."""

    def __init__(self, host: str, port: int, http: HttpClient, pin: Pin | None) -> None:
        """Prepare calls; `pin` None means plain HTTP. Raises TenantError when `host` is no host."""
        self._http = http
        self._pin = pin
        self._base = f"{'http' if pin is None else 'https'}://{address(host, port)}"

    async def call(self, method: str, path: str, body: bytes | None = None) -> Reply:
        """Send one request; `path` is whole, with its version. Raises Unreachable."""
        headers = JSON if body else None
        return reply_of(
            await self._http.request(method, f"{self._base}{path}", body=body, headers=headers, pin=self._pin)
        )

    def explain(self, problem: Unreachable) -> str:
        """Say why there was no answer, and what the operator can do about the usual reasons."""
        text = explain(self._base, problem)
        if self._pin is not None and refused_client_certificate(problem):
            return f"{text}. {REFUSED}: is the CA of client_cert in trusted_client_ca of the agent?"
        if problem.kind == "certificate":
            return f"{text}. Something else answers on this address, or the agent has to register its new certificate"
        return text


def explain(base: str, problem: Unreachable) -> str:
    """Say why there was no answer, with the name of the fault that people search for."""
    name = "SSLError: " if problem.kind in {"tls", "certificate"} or "SSL" in problem.reason else ""
    return f"{base}: {name}{clean(problem.reason)}"


def refused_client_certificate(problem: Unreachable) -> bool:
    """Whether the peer probably did not accept who issued our certificate.

    It says so by TLS alert 48, or, like every server on asyncio, by hanging up.
    """
    lowered = problem.reason.lower()
    return any(sign in lowered for sign in ("unknown_ca", "unknown ca", "disconnected", "reset by peer"))


def _server_hint(problem: Unreachable) -> str:
    lowered = problem.reason.lower()
    if refused_client_certificate(problem):
        return f". {REFUSED}: is its CA in trusted_client_ca of the server?"
    if "certificate_verify_failed" in lowered or "certificate verify failed" in lowered:
        return ". The server's certificate is not issued by a CA in trusted_server_ca of the tenant"
    return ""
