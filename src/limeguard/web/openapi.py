"""An OpenAPI 3.1 document out of a table of routes and the types that travel on them.

The kit does not know the types: a service hands in one `Operation` for each of its routes. A route without one is an
error, so the document cannot fall behind the code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from limeguard.web.app import Request, Response, Route, json_response
from limeguard.web.auth import Rule

OPENAPI = "3.1.0"
DESCRIPTION = "/openapi.json"
"""Where a service serves its description."""
REF = "#/components/schemas/{name}"
SECURITY: dict[Rule, list[dict[str, list[str]]]] = {
    Rule.PUBLIC: [],
    Rule.ADMIN: [{"clientCertificate": []}],
    Rule.AGENT: [{"agentToken": []}],
    Rule.AGENT_OR_ADMIN: [{"clientCertificate": []}, {"agentToken": []}],
}


Body = type | tuple[type, ...] | None


@dataclass(frozen=True, slots=True)
class Operation:
    """What one route takes and gives: a sentence, the type of the body, and per status a sentence with its type.

    `query` maps a parameter to its description. A status with type None has no body; one with several types has any.
    """

    summary: str
    responses: Mapping[int, tuple[str, Body]]
    request: type | None = None
    query: Mapping[str, str] = field(default_factory=dict)


class UndocumentedRouteError(LookupError):
    """A route has no operation."""


def openapi_document(
    title: str,
    version: str,
    routes: Sequence[Route],
    rules: Mapping[str, Rule],
    operations: Mapping[tuple[str, str], Operation],
) -> dict[str, Any]:
    """Return the document. Raises UndocumentedRouteError when a route has no entry in `operations`."""
    schemas, components = _schemas(operations)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operation = operations.get((route.method, route.pattern))
        if operation is None:
            raise UndocumentedRouteError(f"{route.method} {route.pattern}")
        path = paths.setdefault(route.pattern, {})
        path[route.method.lower()] = _operation(route, operation, rules.get(route.action), schemas)
    return {
        "openapi": OPENAPI,
        "info": {"title": title, "version": version, "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "clientCertificate": {"type": "mutualTLS"},
                "agentToken": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def described(
    title: str,
    version: str,
    routes: Sequence[Route],
    rules: Mapping[str, Rule],
    operations: Mapping[tuple[str, str], Operation],
) -> tuple[Route, ...]:
    """Return the routes and one more, which serves the description of all of them to administrators.

    Raises UndocumentedRouteError when a route has no entry in `operations`; the one more needs an entry too.
    """
    document: list[bytes] = []

    async def describe(_request: Request) -> Response:
        return json_response(200, document[0])

    whole = (*routes, Route("GET", DESCRIPTION, "read_api_description", describe))
    document.append(msgspec.json.encode(openapi_document(title, version, whole, rules, operations)))
    return whole


def _schemas(operations: Mapping[tuple[str, str], Operation]) -> tuple[dict[type, dict[str, Any]], dict[str, Any]]:
    types: dict[type, None] = {}
    for operation in operations.values():
        if operation.request is not None:
            types[operation.request] = None
        types.update((one, None) for _, given in operation.responses.values() for one in _alternatives(given))
    ordered = list(types)
    schemas, components = msgspec.json.schema_components(ordered, schema_hook=_anything, ref_template=REF)
    return dict(zip(ordered, schemas, strict=True)), components


def _anything(kind: type) -> dict[str, Any]:
    """Describe members that may hold any JSON value. Raises NotImplementedError for other types without a schema."""
    if kind is object:
        return {"description": "Any JSON value."}
    raise NotImplementedError(kind)


def _operation(
    route: Route, operation: Operation, rule: Rule | None, schemas: Mapping[type, dict[str, Any]]
) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": f"{route.action}_{route.method.lower()}_{_slug(route.pattern)}",
        "security": SECURITY[rule] if rule is not None else [{"clientCertificate": []}],
        "parameters": _parameters(route, operation),
        "responses": {
            str(status): {"description": text, **_answer([schemas[one] for one in _alternatives(given)])}
            for status, (text, given) in sorted(operation.responses.items())
        },
    }
    if operation.request is not None:
        described["requestBody"] = {"required": True, **_content(schemas[operation.request])}
    return described


def _parameters(route: Route, operation: Operation) -> list[dict[str, Any]]:
    names = [segment[1:-1] for segment in route.pattern.split("/") if segment.startswith("{")]
    in_path = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names]
    in_query = [
        {"name": n, "in": "query", "required": False, "description": text, "schema": {"type": "string"}}
        for n, text in operation.query.items()
    ]
    return in_path + in_query


def _alternatives(given: Body) -> tuple[type, ...]:
    if given is None:
        return ()
    return given if isinstance(given, tuple) else (given,)


def _answer(schemas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if not schemas:
        return {}
    return _content(schemas[0] if len(schemas) == 1 else {"oneOf": list(schemas)})


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def _slug(pattern: str) -> str:
    return "_".join(segment.strip("{}") for segment in pattern.strip("/").split("/")) or "root"
