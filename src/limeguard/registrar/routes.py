"""The registrar's HTTP routes: decode, call, encode. Authority stands beside each path; no rule and no SQL here."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from limeguard import __version__
from limeguard.registrar.openapi import OPERATIONS
from limeguard.registrar.service import RegistrarService
from limeguard.store.database import StoreUnavailable
from limeguard.store.registrations import Registration
from limeguard.telemetry import clean, get_logger
from limeguard.web.app import App, Handler, Request, Response, Route, constant, empty, json_response, says_json
from limeguard.web.auth import Authorizer, Rule
from limeguard.web.openapi import described
from limeguard.wire import registrar_v2 as wire
from limeguard.wire import versions
from limeguard.wire.envelope import SUCCESS, BadRequest, envelope, error

log = get_logger("keylime.registrar")

RULES: Final[Mapping[str, Rule]] = {
    "read_version": Rule.PUBLIC,
    "register_agent": Rule.PUBLIC,
    "activate_agent": Rule.PUBLIC,
    "list_registrations": Rule.ADMIN,
    "read_registration": Rule.ADMIN,
    "delete_registration": Rule.ADMIN,
    "read_api_description": Rule.ADMIN,
}
"""Who may do what. An action that is not here is refused."""

DONE: Final = envelope(200, SUCCESS, {})

Call = Callable[[Request], Awaitable[Response]]


def refuse(status: int, text: str) -> Response:
    """Answer with an error envelope."""
    return json_response(status, error(status, text))


def make_app(service: RegistrarService, max_body: int) -> App:
    """Return the application for both listeners. No legal body is larger than the wire's own bound."""
    return App(
        make_routes(service),
        Authorizer(RULES),
        versions=versions.PREFIXES,
        max_body=min(max_body, wire.MAX_BODY),
        on_error=refuse,
    )


def make_routes(service: RegistrarService) -> tuple[Route, ...]:
    """Return the table of routes over one service."""
    nodes = _Handlers(service)
    register, activate = _guarded(nodes.register), _guarded(nodes.activate)
    ids, read, delete = _guarded(nodes.ids), _guarded(nodes.read), _guarded(nodes.delete)
    routes = [
        Route(
            "GET", wire.VERSION, "read_version", constant(json_response(200, wire.encode_versions())), plain_http=True
        ),
        Route("GET", wire.ROOT_V3, "read_version", constant(json_response(200, DONE)), plain_http=True),
        Route("POST", wire.NODES, "register_agent", register, plain_http=True),
        Route("POST", wire.NODE, "register_agent", register, plain_http=True),
        Route("POST", wire.NODES_V3, "register_agent", register, plain_http=True),
        # Agents activate by PUT on the node itself.
        Route("PUT", wire.NODE, "activate_agent", activate, plain_http=True),
        Route("PUT", wire.ACTIVATE, "activate_agent", activate, plain_http=True),
        Route("POST", wire.ACTIVATE, "activate_agent", activate, plain_http=True),
        Route("POST", wire.ACTIVATE_V3, "activate_agent", activate, plain_http=True),
    ]
    for collection, node in ((wire.NODES, wire.NODE), (wire.NODES_V3, wire.NODE_V3)):
        routes += [
            Route("GET", collection, "list_registrations", ids),
            Route("GET", node, "read_registration", read),
            Route("DELETE", node, "delete_registration", delete),
        ]
    return described("limeguard registrar", __version__, routes, RULES, OPERATIONS)


class _Handlers:
    """Handlers about nodes."""

    def __init__(self, service: RegistrarService) -> None:
        self._service = service

    async def register(self, request: Request) -> Response:
        agent_id, registration = wire.decode_registration(_json_body(request), request.params.get("agent_id"))
        return json_response(200, wire.encode_challenge(await self._service.register(agent_id, registration)))

    async def activate(self, request: Request) -> Response:
        agent_id = _agent_id(request)
        await self._service.activate(agent_id, wire.decode_activation(_json_body(request)))
        return json_response(200, DONE)

    async def ids(self, _request: Request) -> Response:
        return json_response(200, wire.encode_ids(await self._service.ids()))

    async def read(self, request: Request) -> Response:
        record = await self._service.read(_agent_id(request))
        return json_response(200, wire.encode_record(_shown(record)))

    async def delete(self, request: Request) -> Response:
        await self._service.delete(_agent_id(request))
        return json_response(200, DONE)


def _guarded(call: Call) -> Handler:
    """Turn what a handler raises into an answer; the cause of an outage is logged, never sent."""

    async def handle(request: Request) -> Response:
        try:
            return await call(request)
        except wire.MalformedBody:
            return empty(400)
        except BadRequest as problem:
            return refuse(problem.code, problem.status_text)
        except StoreUnavailable as problem:
            log.error("%s %s: %s", clean(request.method), clean(request.path), clean(problem))  # noqa: TRY400
            return refuse(503, wire.UNAVAILABLE)

    return handle


def _agent_id(request: Request) -> str:
    agent_id = request.params["agent_id"]
    wire.check_id(agent_id)
    return agent_id


def _json_body(request: Request) -> bytes:
    """Return the body when it says that it is JSON, else nothing: other bodies have no members."""
    return request.body if says_json(request) else b""


def _shown(record: Registration) -> wire.RecordResults:
    return wire.RecordResults(
        agent_id=record.agent_id,
        ek_tpm=wire.b64(record.ek_tpm),
        ekcert=wire.b64(record.ekcert),
        aik_tpm=wire.b64(record.aik_tpm) or "",
        mtls_cert=record.mtls_cert,
        ip=record.ip,
        port=record.port,
        regcount=record.regcount,
    )
