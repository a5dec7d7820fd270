"""The OpenAPI document follows from routes, rules and types."""

import json

import msgspec
import pytest

from limeguard.web.app import Request, Response, Route
from limeguard.web.auth import Rule
from limeguard.web.openapi import Operation, UndocumentedRouteError, openapi_document


class Thing(msgspec.Struct):
    name: str
    size: int = 0


async def handler(_request: Request) -> Response:
    return Response(200)


ROUTES = [Route("GET", "/v2/things/{agent_id}", "read", handler), Route("POST", "/v2/things", "make", handler)]
RULES = {"read": Rule.AGENT_OR_ADMIN, "make": Rule.ADMIN}
OPERATIONS = {
    ("GET", "/v2/things/{agent_id}"): Operation("Read one.", {200: ("It.", Thing), 404: ("None.", None)}),
    ("POST", "/v2/things"): Operation("Make one.", {200: ("Made.", Thing)}, request=Thing, query={"q": "A query."}),
}


def test_the_document_names_types_parameters_and_authority() -> None:
    document = openapi_document("Things", "1", ROUTES, RULES, OPERATIONS)
    assert json.loads(json.dumps(document)) == document
    read = document["paths"]["/v2/things/{agent_id}"]["get"]
    assert read["parameters"][0]["name"] == "agent_id"
    assert read["security"] == [{"clientCertificate": []}, {"agentToken": []}]
    assert read["responses"]["200"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Thing"}
    assert "content" not in read["responses"]["404"]
    make = document["paths"]["/v2/things"]["post"]
    assert make["requestBody"]["required"] is True
    assert [p["in"] for p in make["parameters"]] == ["query"]
    assert document["components"]["schemas"]["Thing"]["required"] == ["name"]


def test_a_route_without_documentation_is_an_error() -> None:
    with pytest.raises(UndocumentedRouteError, match="POST /v2/things"):
        openapi_document("Things", "1", ROUTES, RULES, {k: v for k, v in OPERATIONS.items() if k[0] == "GET"})
