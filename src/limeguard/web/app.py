"""Routes to handlers: the order in which a request is checked before any handler sees it.

    request id -> route (404, 405, 501) -> transport (400) -> caller (401) -> authority (403) -> body (413) -> handler

A handler gets a `Request` and returns a `Response`; both are plain values, so an app can be driven in process without a
socket. What a request means is the business of the handlers.
"""

import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl

import msgspec

from limeguard.telemetry import clean, get_logger
from limeguard.web.auth import ANONYMOUS, Authorizer, Caller, Unauthorized

log = get_logger("keylime.web")

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
MAX_REQUEST_ID = 36
MAX_QUERY_FIELDS = 64
EMPTY_TYPE = "text/html; charset=UTF-8"
JSON_TYPE = "application/json"


class Response(msgspec.Struct, frozen=True):
    """What goes back: a status, a body, and headers beside the content type."""

    status: int
    body: bytes = b""
    content_type: str = EMPTY_TYPE
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)


def with_header(response: Response, name: str, value: str) -> Response:
    """Return the response with one more header."""
    return msgspec.structs.replace(response, headers={**response.headers, name: value})


BodyReader = Callable[[int], Awaitable[bytes]]
"""Reads the whole body of a request, of at most so many bytes; raises BodyTooLarge, BodyTimeout, BodyBroken."""


class BodyTooLarge(Exception):  # noqa: N818 - a fact about the request
    """The body is larger than the bound."""


class BodyTimeout(Exception):  # noqa: N818 - a fact about the request
    """The body did not arrive in time."""


class BodyBroken(Exception):  # noqa: N818 - a fact about the request
    """The body ended early, or is not HTTP."""


async def no_body(_limit: int) -> bytes:
    """Return the empty body."""
    return b""


class Request(msgspec.Struct, frozen=True):
    """One request as a handler sees it.

    `params` are the path's own segments, not percent-decoded; no query can shadow them. `relayed`: another process of
    this service has taken it and handed it on.
    """

    method: str
    path: str
    params: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    caller: Caller
    secure: bool
    request_id: str
    peer: str
    relayed: bool = False


Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """One operation: method, path pattern such as `/v2/agents/{agent_id}`, the action to be allowed, and what to call.

    `{name}` matches one non-empty segment. The first segment may name a version group (`versions` of the app).
    `plain_http` opens the route to the listener without TLS. `max_body` is a bound below that of the app. Without
    `credentials` nobody looks at those of the caller: on such a route agents prove who they are, and may hold a token
    that is out of date.
    """

    method: str
    pattern: str
    action: str
    handler: Handler
    plain_http: bool = False
    max_body: int | None = None
    credentials: bool = True


class Incoming(msgspec.Struct, frozen=True):
    """A request before it has been routed: what the transport knows. `target` is path and query as sent."""

    method: str
    target: str
    headers: Mapping[str, str]
    read_body: BodyReader = no_body
    certificate_name: str | None = None
    secure: bool = True
    peer: str = ""
    relayed: bool = False


ErrorResponder = Callable[[int, str], Response]
"""Builds the answer for a refusal of the kit that carries a text (413, 408) in the service's own envelope."""


def constant(response: Response) -> Handler:
    """Return a handler that always answers the same."""

    async def handle(_request: Request) -> Response:
        return response

    return handle


def says_json(request: Request) -> bool:
    """Say whether the request calls its body JSON."""
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def empty(status: int) -> Response:
    """Return the bare answer that the framework gives before a handler is reached."""
    return Response(status)


def bare_error(status: int, _text: str) -> Response:
    """Answer a refusal without text."""
    return empty(status)


def auth_error(status: int, title: str, detail: str) -> Response:
    """Return the one-line document of a refused credential (401) or a refused action (403)."""
    document = {"errors": [{"status": str(status), "title": title, "detail": detail}]}
    return Response(status, json.dumps(document).encode(), "application/json; charset=UTF-8")


def clean_request_id(value: str) -> str:
    """Keep the word characters of a request id, at most 36."""
    return re.sub(r"\W", "", value, flags=re.ASCII)[:MAX_REQUEST_ID] if value else ""


class _Refused(Exception):  # noqa: N818 - an answer on its way out
    """A check before the handler gave the answer."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


class _Node:
    """One level of the routing tree."""

    __slots__ = ("literal", "name", "parameter", "routes")

    def __init__(self) -> None:
        self.literal: dict[str, _Node] = {}
        self.parameter: _Node | None = None
        self.name = ""
        self.routes: dict[str, tuple[Route, tuple[str, ...]]] = {}


class App:
    """A table of routes with authority beside each path, and the fixed order of checks in front of it."""

    def __init__(
        self,
        routes: Sequence[Route],
        authorizer: Authorizer,
        *,
        versions: Mapping[str, str] | None = None,
        max_body: int = 100 * 1024 * 1024,
        on_error: ErrorResponder = bare_error,
    ) -> None:
        """Build the routing tree. `versions` maps a first path segment as sent (`v2.6`) to its pattern (`v2`)."""
        self.routes = tuple(routes)
        self.authorizer = authorizer
        self._versions = dict(versions or {})
        self._max_body = max_body
        self._on_error = on_error
        self._root = _Node()
        for route in self.routes:
            self._add(route)

    def _add(self, route: Route) -> None:
        node, names = self._root, []
        for segment in _segments(route.pattern):
            if segment.startswith("{"):
                names.append(segment[1:-1])
                node.parameter = node.parameter or _Node()
                node = node.parameter
            else:
                node = node.literal.setdefault(segment, _Node())
        if route.method in node.routes:
            raise ValueError(f"two routes for {route.method} {route.pattern}")
        node.routes[route.method] = (route, tuple(names))

    def _find(self, path: str) -> tuple[_Node | None, list[str]]:
        if "//" in path:
            return None, []
        segments = _segments(path)
        if segments and segments[0] in self._versions:
            segments[0] = self._versions[segments[0]]
        elif segments and segments[0] in self._versions.values():
            return None, []
        node, values = self._root, []
        for segment in segments:
            following = node.literal.get(segment)
            if following is None and segment and node.parameter is not None:
                values.append(segment)
                following = node.parameter
            if following is None:
                return None, []
            node = following
        return (node, values) if node.routes else (None, [])

    async def handle(self, incoming: Incoming) -> Response:
        """Answer one request. Never raises: a fault of ours is logged and answered with an empty 500."""
        started = time.perf_counter()
        request_id = clean_request_id(incoming.headers.get("X-Request-ID", ""))
        try:
            response = await self._answer(incoming, request_id)
        except Exception:
            log.exception("Error while answering %s %s", clean(incoming.method), clean(incoming.target))
            response = empty(500)
        # What agents with a token do all the time is a line for those who look closely.
        level = logging.DEBUG if "Authorization" in incoming.headers and response.status < 400 else logging.INFO
        if log.isEnabledFor(level):
            log.log(
                level,
                "%s %s from %s -> %d in %.1f ms",
                clean(incoming.method),
                clean(incoming.target),
                clean(incoming.peer),
                response.status,
                (time.perf_counter() - started) * 1000,
            )
        return with_header(response, "X-Request-ID", request_id)

    async def _answer(self, incoming: Incoming, request_id: str) -> Response:
        try:
            route, params = self._route(incoming)
            caller = await self._authorize(incoming, route, params)
            path, _, query_text = incoming.target.partition("?")
            query = _query(query_text)
            body = await self._body(incoming, route)
        except _Refused as refused:
            return refused.response
        except ValueError:
            return empty(400)
        return await route.handler(
            Request(
                method=incoming.method,
                path=path,
                params=params,
                query=query,
                headers=incoming.headers,
                body=body,
                caller=caller,
                secure=incoming.secure,
                request_id=request_id,
                peer=incoming.peer,
                relayed=incoming.relayed,
            )
        )

    def _route(self, incoming: Incoming) -> tuple[Route, dict[str, str]]:
        if incoming.method not in METHODS:
            raise _Refused(empty(501))
        node, values = self._find(incoming.target.partition("?")[0])
        if node is None:
            raise _Refused(empty(404))
        found = node.routes.get(incoming.method)
        if found is None:
            raise _Refused(Response(405, headers={"Allow": ", ".join(sorted(node.routes))}))
        route, names = found
        if not incoming.secure and not route.plain_http:
            raise _Refused(empty(400))
        return route, dict(zip(names, values, strict=True))

    async def _authorize(self, incoming: Incoming, route: Route, params: Mapping[str, str]) -> Caller:
        try:
            caller = await self._caller(incoming) if route.credentials else ANONYMOUS
        except Unauthorized as refused:
            raise _Refused(auth_error(401, "Unauthorized", str(refused))) from refused
        reason = self.authorizer.refusal(route.action, caller, params.get("agent_id"))
        if reason is not None:
            raise _Refused(auth_error(403, "Forbidden", reason))
        return caller

    async def _body(self, incoming: Incoming, route: Route) -> bytes:
        limit = self._max_body if route.max_body is None else min(route.max_body, self._max_body)
        try:
            return await incoming.read_body(limit)
        except BodyTooLarge:
            text = f"Request body is larger than {limit} bytes"
            raise _Refused(self._on_error(413, text)) from None
        except BodyTimeout:
            raise _Refused(self._on_error(408, "Request body did not arrive in time")) from None
        except BodyBroken:
            raise _Refused(empty(400)) from None

    async def _caller(self, incoming: Incoming) -> Caller:
        if not incoming.secure and "Authorization" not in incoming.headers:
            return ANONYMOUS
        return await self.authorizer.identify(incoming.headers.get("Authorization"), incoming.certificate_name)


def _segments(path: str) -> list[str]:
    trimmed = path.strip("/")
    return trimmed.split("/") if trimmed else []


def _query(text: str) -> dict[str, str]:
    """Decode a query string; the last of equal names wins, blank values count as absent. Raises ValueError."""
    if not text:
        return {}
    return dict(parse_qsl(text, keep_blank_values=False, max_num_fields=MAX_QUERY_FIELDS, errors="replace"))


def json_response(status: int, body: bytes) -> Response:
    """Return a JSON body that a `wire` module encoded."""
    return Response(status, body, JSON_TYPE)
