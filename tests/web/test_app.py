"""The order of checks in front of a handler, on an app driven in process."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limeguard.web.app import App, BodyTooLarge, Incoming, Request, Response, Route, clean_request_id
from limeguard.web.auth import Authorizer, Caller, CallerKind, Rule, Unauthorized, refusal

RULES = {"read": Rule.PUBLIC, "list": Rule.ADMIN, "own": Rule.AGENT_OR_ADMIN, "submit": Rule.AGENT}


async def echo(request: Request) -> Response:
    shown = {"params": dict(request.params), "query": dict(request.query), "caller": request.caller.name}
    return Response(200, json.dumps(shown).encode(), "application/json")


async def broken(_request: Request) -> Response:
    raise RuntimeError("a secret of ours")


async def tokens(token: str) -> Caller:
    if token == "good":
        return Caller(CallerKind.AGENT, "a1")
    raise Unauthorized("Invalid authentication token")


def make_app() -> App:
    return App(
        [
            Route("GET", "/version", "read", echo, plain_http=True),
            Route("GET", "/v2/agents", "list", echo),
            Route("GET", "/v2/agents/{agent_id}", "own", echo),
            Route("POST", "/v2/agents/{agent_id}", "submit", echo),
            Route("GET", "/v2/broken", "read", broken),
            Route("POST", "/v2/small", "read", echo, max_body=10),
            Route("GET", "/v2/forgotten", "an action without a rule", echo),
        ],
        Authorizer(RULES, tokens),
        versions={"v2": "v2", "v2.6": "v2"},
    )


async def call(method: str, target: str, **more: object) -> Response:
    fields: dict[str, object] = {"headers": {}, "certificate_name": "operator"} | more
    return await make_app().handle(Incoming(method=method, target=target, **fields))  # type: ignore[arg-type]


async def test_versions_and_trailing_slashes_reach_the_same_route() -> None:
    for target in ("/v2/agents", "/v2.6/agents", "/v2.6/agents/"):
        assert (await call("GET", target)).status == 200


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v2.7/agents", 404),
        ("GET", "//v2/agents", 404),
        ("GET", "/v2//agents", 404),
        ("PUT", "/v2/agents", 405),
        ("HEAD", "/version", 405),
        ("BREW", "/version", 501),
    ],
)
async def test_what_is_not_routed_is_answered_without_a_body(method: str, target: str, status: int) -> None:
    response = await call(method, target)
    assert (response.status, response.body) == (status, b"")


async def test_plain_http_reaches_only_the_routes_that_are_open_to_it() -> None:
    assert (await call("GET", "/version", secure=False, certificate_name=None)).status == 200
    refused = await call("GET", "/v2/agents", secure=False, certificate_name=None)
    assert (refused.status, refused.body) == (400, b"")


async def test_a_query_cannot_shadow_the_path() -> None:
    shown = json.loads((await call("GET", "/v2/agents/a1?agent_id=b2&blank=&x=1")).body)
    assert shown["params"] == {"agent_id": "a1"}
    assert shown["query"] == {"agent_id": "b2", "x": "1"}


async def test_path_segments_are_not_decoded() -> None:
    shown = json.loads((await call("GET", "/v2/agents/a%20b")).body)
    assert shown["params"] == {"agent_id": "a%20b"}


# trust: default-deny
async def test_an_action_without_a_rule_is_refused_even_to_an_operator() -> None:
    assert (await call("GET", "/v2/forgotten")).status == 403


async def test_no_certificate_is_answered_403_on_one_line() -> None:
    refused = await call("GET", "/v2/agents", certificate_name=None)
    assert refused.status == 403
    assert refused.body == (
        b'{"errors": [{"status": "403", "title": "Forbidden", "detail": '
        b'"Action list requires admin authentication (mTLS certificate)"}]}'
    )


async def test_a_bad_token_is_never_replaced_by_the_certificate() -> None:
    for header, detail in (
        ("Basic eDp5", "Invalid Authorization header format"),
        ("Bearer nonsense", "Invalid authentication token"),
    ):
        refused = await call("GET", "/v2/agents", headers={"Authorization": header})
        assert refused.status == 401
        assert json.loads(refused.body)["errors"][0]["detail"] == detail


async def test_an_agent_reaches_its_own_resource_only() -> None:
    headers = {"Authorization": "Bearer good"}
    assert (await call("GET", "/v2/agents/a1", headers=headers)).status == 200
    assert (await call("GET", "/v2/agents/b2", headers=headers)).status == 403
    assert (await call("GET", "/v2/agents", headers=headers)).status == 403


async def test_an_operator_may_not_submit_for_an_agent() -> None:
    refused = await call("POST", "/v2/agents/a1")
    assert "requires agent authentication (PoP token)" in refused.body.decode()


async def test_a_fault_of_ours_tells_nothing() -> None:
    response = await call("GET", "/v2/broken")
    assert (response.status, response.body) == (500, b"")


# trust: bounded
async def test_a_body_over_the_bound_is_answered_413() -> None:
    async def too_large(_limit: int) -> bytes:
        raise BodyTooLarge

    response = await call("POST", "/v2/agents/a1", headers={"Authorization": "Bearer good"}, read_body=too_large)
    assert response.status == 413


@pytest.mark.parametrize(("path", "bound"), [("/v2/small", 10), ("/v2/agents/a1", 100 * 1024 * 1024)])
async def test_a_route_may_have_a_bound_of_its_own_for_the_body(path: str, bound: int) -> None:
    # trust: bounded
    asked: list[int] = []

    async def read(limit: int) -> bytes:
        asked.append(limit)
        return b""

    headers = {"Authorization": "Bearer good"}
    assert (await call("POST", path, headers=headers, read_body=read)).status == 200
    assert asked == [bound]


async def test_a_refused_caller_does_not_make_us_read_the_body() -> None:
    async def never(_limit: int) -> bytes:
        pytest.fail("the body was read")

    assert (await call("POST", "/v2/agents/a1", certificate_name=None, read_body=never)).status == 403


async def test_the_request_id_comes_back_without_what_is_not_a_word() -> None:
    response = await call("GET", "/version", headers={"X-Request-ID": "ab-c\r\n1" + "x" * 50})
    assert response.headers["X-Request-ID"] == ("abc1" + "x" * 50)[:36]


@given(st.text())
def test_a_request_id_is_always_safe_to_echo(value: str) -> None:
    cleaned = clean_request_id(value)
    assert len(cleaned) <= 36
    assert all(c.isascii() and (c.isalnum() or c == "_") for c in cleaned)


@given(st.sampled_from([*Rule, None]), st.sampled_from(CallerKind), st.text(), st.text())
def test_nobody_but_the_right_kind_passes_a_rule(rule: Rule | None, kind: CallerKind, name: str, node: str) -> None:
    """# trust: default-deny."""
    allowed = refusal("act", rule, Caller(kind, name), node) is None
    own = kind is CallerKind.AGENT and name == node
    expected = {
        None: False,
        Rule.PUBLIC: True,
        Rule.ADMIN: kind is CallerKind.ADMIN,
        Rule.AGENT: own,
        Rule.AGENT_OR_ADMIN: own or kind is CallerKind.ADMIN,
    }
    assert allowed is expected[rule]
