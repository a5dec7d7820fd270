"""The verifier's HTTP routes: decode, call, encode. Authority stands beside each path; no rule, no SQL stands here."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec

from limeguard import __version__
from limeguard.store.database import StoreUnavailable
from limeguard.telemetry import clean, get_logger
from limeguard.verifier.api import OPERATIONS
from limeguard.verifier.enrolment import MAX_NAME
from limeguard.verifier.onetime import MAX_EVIDENCE, UNPROCESSED, BusyError, OneTime
from limeguard.verifier.push.relay import NotHereError
from limeguard.verifier.push.rounds import PushRounds
from limeguard.verifier.push.routes import NOT_HERE_SECONDS, push_routes
from limeguard.verifier.push.sessions import Sessions
from limeguard.verifier.refused import Refused
from limeguard.verifier.service import Deletion, VerifierService
from limeguard.web.app import Handler, Request, Response, Route, constant, empty, json_response, says_json, with_header
from limeguard.web.auth import CallerKind, Rule
from limeguard.web.openapi import described
from limeguard.wire import limeguard_v1, verifier_v2, versions
from limeguard.wire.envelope import BadRequest, envelope, error
from limeguard.wire.evidence_v2 import VERIFY_EVIDENCE

log = get_logger("keylime.verifier")

RULES: Final[Mapping[str, Rule]] = {
    "read_server_info": Rule.PUBLIC,
    "read_version": Rule.PUBLIC,
    "verify_identity": Rule.PUBLIC,
    "verify_evidence": Rule.PUBLIC,
    "list_agents": Rule.ADMIN,
    "read_agent": Rule.AGENT_OR_ADMIN,
    "create_agent": Rule.ADMIN,
    "delete_agent": Rule.ADMIN,
    "reactivate_agent": Rule.ADMIN,
    "stop_agent": Rule.ADMIN,
    "list_runtime_policies": Rule.ADMIN,
    "read_runtime_policy": Rule.ADMIN,
    "create_runtime_policy": Rule.ADMIN,
    "update_runtime_policy": Rule.ADMIN,
    "delete_runtime_policy": Rule.ADMIN,
    "list_mb_policies": Rule.ADMIN,
    "read_mb_policy": Rule.ADMIN,
    "create_mb_policy": Rule.ADMIN,
    "update_mb_policy": Rule.ADMIN,
    "delete_mb_policy": Rule.ADMIN,
    "create_session": Rule.PUBLIC,
    "extend_session": Rule.PUBLIC,
    "submit_attestation": Rule.AGENT,
    "list_attestations": Rule.ADMIN,
    "read_attestation": Rule.ADMIN,
    "list_node_views": Rule.ADMIN,
    "read_node_view": Rule.ADMIN,
    "read_api_description": Rule.ADMIN,
    "read_health": Rule.PUBLIC,
    "read_metrics": Rule.ADMIN,
}
"""Who may do what. An action that is not here is refused."""

PLAIN: Final = "text/plain; charset=utf-8"
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

SUCCESS: Final = envelope(200, "Success", {})
CREATED: Final = envelope(201, "Created", {})
ACCEPTED: Final = envelope(202, "Accepted", {})

Call = Callable[[Request], Awaitable[Response]]


def refuse(status: int, text: str) -> Response:
    """Answer with an error envelope."""
    return json_response(status, error(status, text))


def guarded(call: Call) -> Handler:
    """Turn what a handler raises into the one shape of an error; the cause is logged, never sent."""

    async def handle(request: Request) -> Response:
        try:
            return await call(request)
        except BadRequest as problem:
            return refuse(problem.code, problem.status_text)
        except Refused as problem:
            return refuse(problem.status, problem.text)
        except NotHereError:
            said = refuse(503, "The process that answers for this node cannot be found at this moment")
            return with_header(said, "Retry-After", str(NOT_HERE_SECONDS))
        except StoreUnavailable as problem:
            log.error("%s %s: %s", clean(request.method), clean(request.path), clean(problem))  # noqa: TRY400
            return refuse(500, "Internal server error")

    return handle


def _agents_at(at_owner: Callable[[Handler], Handler], call: Call) -> Call:
    """Return the call as it is for agents where the node is: only there a token is known to be one of its enrolment."""
    of_agents = at_owner(call)

    async def handle(request: Request) -> Response:
        return await (of_agents if request.caller.kind is CallerKind.AGENT else call)(request)

    return handle


def make_routes(
    service: VerifierService,
    onetime: OneTime,
    watch: "Watch",
    sessions: Sessions,
    rounds: PushRounds,
    at_owner: Callable[[Handler], Handler],
    *,
    push_by_default: bool,
) -> tuple[Route, ...]:
    """Return the table of routes over the services; `at_owner` has handlers called where the node is."""
    version = _version_gone if push_by_default else _version
    nodes = _NodeHandlers(service)
    routes = (
        Route("GET", "/", "read_server_info", _to_newest),
        Route("GET", verifier_v2.ROOT, "read_server_info", _root),
        Route("GET", "/v3", "read_server_info", _root),
        Route("GET", "/version", "read_version", version),
        Route("GET", "/versions", "read_version", version),
        Route("GET", verifier_v2.NODES, "list_agents", guarded(nodes.list)),
        Route("GET", verifier_v2.NODE, "read_agent", guarded(_agents_at(at_owner, nodes.status))),
        Route("POST", verifier_v2.NODE, "create_agent", guarded(nodes.enrol)),
        Route("DELETE", verifier_v2.NODE, "delete_agent", guarded(nodes.delete)),
        Route("PUT", verifier_v2.REACTIVATE, "reactivate_agent", guarded(nodes.reactivate)),
        Route("PUT", verifier_v2.STOP, "stop_agent", guarded(nodes.stop)),
        Route("GET", verifier_v2.VERIFY_IDENTITY, "verify_identity", guarded(nodes.verify_identity)),
        Route("POST", VERIFY_EVIDENCE, "verify_evidence", guarded(_evidence(onetime)), max_body=MAX_EVIDENCE),
        Route("GET", limeguard_v1.NODES, "list_node_views", guarded(nodes.views)),
        Route("GET", limeguard_v1.NODE, "read_node_view", guarded(nodes.view)),
        *_policy_routes(service),
        *push_routes(sessions, rounds, at_owner),
        Route("GET", "/healthz", "read_health", constant(Response(200, b"ok\n", PLAIN))),
        Route("GET", "/readyz", "read_health", watch.ready),
        Route("GET", "/metrics", "read_metrics", watch.metrics),
    )
    return described("limeguard verifier", __version__, routes, RULES, OPERATIONS)


def _policy_routes(service: VerifierService) -> tuple[Route, ...]:
    runtime, boot = _PolicyHandlers(service), _BootPolicyHandlers(service)
    return (
        Route("GET", verifier_v2.RUNTIME_POLICIES, "list_runtime_policies", guarded(runtime.names)),
        Route("GET", verifier_v2.RUNTIME_POLICY, "read_runtime_policy", guarded(runtime.read)),
        Route("POST", verifier_v2.RUNTIME_POLICY, "create_runtime_policy", guarded(runtime.create)),
        Route("PUT", verifier_v2.RUNTIME_POLICY, "update_runtime_policy", guarded(runtime.update)),
        Route("DELETE", verifier_v2.RUNTIME_POLICY, "delete_runtime_policy", guarded(runtime.delete)),
        Route("GET", verifier_v2.BOOT_POLICIES, "list_mb_policies", guarded(boot.names)),
        Route("GET", verifier_v2.BOOT_POLICY, "read_mb_policy", guarded(boot.read)),
        Route("POST", verifier_v2.BOOT_POLICY, "create_mb_policy", guarded(boot.create)),
        Route("PUT", verifier_v2.BOOT_POLICY, "update_mb_policy", guarded(boot.update)),
        Route("DELETE", verifier_v2.BOOT_POLICY, "delete_mb_policy", guarded(boot.delete)),
    )


Figures = Callable[[], Awaitable[bytes]]
"""Returns the text of all metrics."""


class Watch:
    """Handlers for those who watch the verifier itself: load balancers, and Prometheus."""

    def __init__(self, problem: Callable[[], Awaitable[str | None]], figures: Figures) -> None:
        """Ask `problem` why no requests should come here, and `figures` for the text of all metrics."""
        self._problem, self._figures = problem, figures

    async def ready(self, _request: Request) -> Response:
        """Say whether requests are welcome."""
        problem = await self._problem()
        return Response(200 if problem is None else 503, f"{problem or 'ok'}\n".encode(), PLAIN)

    async def metrics(self, _request: Request) -> Response:
        """Return all figures."""
        return Response(200, await self._figures(), METRICS_TYPE)


class _NodeHandlers:
    """Handlers about nodes."""

    def __init__(self, service: VerifierService) -> None:
        self._service = service

    async def enrol(self, request: Request) -> Response:
        agent_id = _agent_id(request)
        if says_json(request) and request.body and not _readable(request.body):
            return empty(400)  # malformed under a JSON content type is refused before anybody looks at it
        await self._service.enrol(agent_id, request.body)
        return json_response(200, SUCCESS)

    async def status(self, request: Request) -> Response:
        status = await self._service.status(_agent_id(request))
        if request.caller.kind is CallerKind.AGENT:
            # The share is for a node that was found good: it is delivered, never fetched.
            status = msgspec.structs.replace(status, v=None)
        return json_response(200, verifier_v2.encode_status(status))

    async def list(self, request: Request) -> Response:
        verifier_id = request.query.get("verifier")
        if request.query.get("bulk"):
            return json_response(200, verifier_v2.encode_bulk(await self._service.statuses(verifier_id)))
        return json_response(200, verifier_v2.encode_ids(await self._service.ids(verifier_id)))

    async def delete(self, request: Request) -> Response:
        outcome = await self._service.delete(_agent_id(request))
        return json_response(200, SUCCESS) if outcome is Deletion.DONE else json_response(202, ACCEPTED)

    async def reactivate(self, request: Request) -> Response:
        await self._service.reactivate(_agent_id(request))
        return json_response(200, SUCCESS)

    async def stop(self, request: Request) -> Response:
        await self._service.stop(_agent_id(request))
        return json_response(200, SUCCESS)

    async def verify_identity(self, request: Request) -> Response:
        question = verifier_v2.decode_identity_question(request.query)
        return json_response(200, verifier_v2.encode_identity(await self._service.verify_identity(question)))

    async def view(self, request: Request) -> Response:
        view = await self._service.view(_agent_id(request))
        if view is None:
            return json_response(404, limeguard_v1.encode(limeguard_v1.Problem("No node is enrolled under this id.")))
        return json_response(200, limeguard_v1.encode(view))

    async def views(self, _request: Request) -> Response:
        return json_response(200, limeguard_v1.encode(await self._service.views()))


class _PolicyHandlers:
    """Handlers about runtime policies."""

    def __init__(self, service: VerifierService) -> None:
        self._service = service

    async def names(self, _request: Request) -> Response:
        return json_response(200, verifier_v2.encode_runtime_policy_names(await self._service.policies.policy_names()))

    async def read(self, request: Request) -> Response:
        policy = await self._service.policies.runtime_policy(_policy_name(request))
        return json_response(200, envelope(200, "Success", policy))

    async def create(self, request: Request) -> Response:
        await self._service.policies.store_policy(_policy_name(request), request.body, replace=False)
        return json_response(201, CREATED)

    async def update(self, request: Request) -> Response:
        await self._service.policies.store_policy(_policy_name(request), request.body, replace=True)
        return json_response(201, CREATED)

    async def delete(self, request: Request) -> Response:
        await self._service.policies.delete_policy(_policy_name(request))
        return empty(204)


class _BootPolicyHandlers:
    """Handlers about measured boot policies."""

    def __init__(self, service: VerifierService) -> None:
        self._service = service

    async def names(self, _request: Request) -> Response:
        return json_response(
            200, verifier_v2.encode_boot_policy_names(await self._service.policies.boot_policy_names())
        )

    async def read(self, request: Request) -> Response:
        name = _policy_name(request)
        return json_response(200, verifier_v2.encode_boot_policy(name, await self._service.policies.boot_policy(name)))

    async def create(self, request: Request) -> Response:
        await self._service.policies.store_boot_policy(_policy_name(request), request.body, replace=False)
        return json_response(201, CREATED)

    async def update(self, request: Request) -> Response:
        await self._service.policies.store_boot_policy(_policy_name(request), request.body, replace=True)
        return json_response(201, CREATED)

    async def delete(self, request: Request) -> Response:
        await self._service.policies.delete_boot_policy(_policy_name(request))
        return empty(204)


def _policy_name(request: Request) -> str:
    name = request.params["name"]
    if len(name) > MAX_NAME or "\0" in name:
        raise BadRequest(f"Exception error: the name of a policy has at most {MAX_NAME} characters and no NUL")
    return name


def _agent_id(request: Request) -> str:
    agent_id = request.params["agent_id"]
    verifier_v2.check_id(agent_id)
    return agent_id


def _readable(body: bytes) -> bool:
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return False
    return True


def _evidence(onetime: OneTime) -> Call:
    async def verify(request: Request) -> Response:
        try:
            return json_response(*await onetime.verify(request.body))
        except BusyError as busy:
            return refuse(503, str(busy))
        except BadRequest:
            raise
        except Exception:
            log.exception("Error while verifying evidence")
            return refuse(500, UNPROCESSED)

    return verify


async def _to_newest(_request: Request) -> Response:
    return Response(307, headers={"Location": "/v3.0/"})


async def _root(_request: Request) -> Response:
    return json_response(200, SUCCESS)


async def _version(_request: Request) -> Response:
    return json_response(200, versions_answer())


async def _version_gone(_request: Request) -> Response:
    """Answer as servers of the push model do; tenants then use the version that they know best."""
    return refuse(410, "Gone")


def versions_answer() -> bytes:
    """Encode the versions that this server advertises."""
    return envelope(200, "Success", {"current_version": versions.CURRENT, "supported_versions": versions.SUPPORTED})
