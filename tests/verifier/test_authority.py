"""Who may do what on the verifier: every route of the table with every kind of caller, over real sockets."""

import json
import ssl
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.pki import Authority, client_context, self_signed
from tests.fakes.push_agent import enrolled
from tests.fakes.verifier_site import Site, running_verifier

from limeguard.verifier.api import OPERATIONS
from limeguard.verifier.routes import RULES, Watch, make_routes
from limeguard.web.app import App, Incoming, Request, Response, Route, constant
from limeguard.web.auth import Authorizer, Caller, CallerKind, Rule
from limeguard.wire.versions import PREFIXES

pytestmark = pytest.mark.services

PUBLIC = {
    "read_server_info",
    "read_version",
    "verify_identity",
    "verify_evidence",
    "read_health",
    "create_session",
    "extend_session",
}
"""What anybody may do, written down a second time: a new public route must be put here too."""


async def nothing() -> None:
    """Stand for what says whether a verifier is ready."""


# Paths and actions are read from the table; no handler is called.
_NOTHING: Any = None
TABLE = make_routes(
    _NOTHING,
    _NOTHING,
    Watch(nothing, _NOTHING),
    _NOTHING,
    _NOTHING,
    lambda handler: handler,
    push_by_default=False,
)
WANTED = {
    Rule.ADMIN: "requires admin authentication (mTLS certificate)",
    Rule.AGENT: "requires agent authentication (PoP token)",
    Rule.AGENT_OR_ADMIN: "requires authentication",
}


def path_of(route: Route) -> str:
    return route.pattern.format(agent_id="node-1", name="mine", session_id="x", index="0")


def callers(site: Site, folder: Path, authority: Authority) -> dict[str, ssl.SSLContext]:
    """Return everybody who is not an operator of this site."""
    trusted = authority.identity.certificate
    foreign = Authority(folder / "foreign", "Test CA")  # it even has the same name
    return {
        "nobody": client_context(None, trusted),
        "no common name": client_context(authority.issue(""), trusted),
        "foreign authority": client_context(foreign.issue("operator"), trusted),
        "an agent's own certificate": client_context(self_signed(folder / "agent", "node-1"), trusted),
    }


async def test_whatever_agents_may_do_goes_to_the_worker_that_knows_their_enrolment() -> None:
    # trust: authority - others take a token for what it says until the owner has looked at it
    owner = Response(299)
    elsewhere = make_routes(
        *(_NOTHING, _NOTHING, Watch(nothing, _NOTHING), _NOTHING, _NOTHING),
        lambda _handler: constant(owner),
        push_by_default=False,
    )
    asked = Request(
        "GET", "/", {}, {}, {}, b"", Caller(CallerKind.AGENT, "node-1"), secure=True, request_id="", peer=""
    )
    of_agents = [route for route in elsewhere if RULES[route.action] in {Rule.AGENT, Rule.AGENT_OR_ADMIN}]
    assert len(of_agents) >= 4
    for route in of_agents:
        assert await route.handler(asked) == owner, route.pattern


def test_every_route_has_an_operation_and_a_rule() -> None:
    # trust: default-deny
    assert {(route.method, route.pattern) for route in TABLE} == set(OPERATIONS)
    assert {route.action for route in TABLE} == set(RULES)
    assert {action for action, rule in RULES.items() if rule is Rule.PUBLIC} == PUBLIC


async def test_no_one_but_an_operator_gets_past_a_rule(tmp_path: Path, authority: Authority) -> None:
    # trust: default-deny
    async with running_verifier(tmp_path, authority) as site:
        for name, tls in callers(site, tmp_path, authority).items():
            for route in TABLE:
                try:
                    answer = await site.ask(route.method, path_of(route), {}, tls=tls)
                except OSError:
                    # The certificate is not of our authority: TLS itself says no.
                    assert name in {"foreign authority", "an agent's own certificate"}
                    continue
                if route.action in PUBLIC:
                    assert answer.status not in {401, 403}, (name, route.method, route.pattern)
                else:
                    assert answer.status == 403, (name, route.method, route.pattern)
                    (error,) = answer.json["errors"]
                    assert error["detail"] == f"Action {route.action} {WANTED[RULES[route.action]]}"


async def test_an_operator_gets_past_every_rule_but_those_for_agents(site: Site) -> None:
    # trust: bound-identity
    for route in TABLE:
        answer = await site.ask(route.method, path_of(route), {})
        if RULES[route.action] is Rule.AGENT:
            assert answer.status == 403
            assert answer.json["errors"][0]["detail"] == f"Action {route.action} {WANTED[Rule.AGENT]}"
        else:
            assert answer.status not in {401, 403}, (route.method, route.pattern)


async def test_a_token_speaks_for_its_own_node_alone(site: Site) -> None:
    # trust: bound-identity, default-deny
    own = await enrolled(site, "node-1", cloudagent_ip=None, cloudagent_port=None)
    thief = await enrolled(site, "node-2", cloudagent_ip=None, cloudagent_port=None)
    await thief.log_in()
    for agent, status in ((own, {200, 400, 404, 415}), (thief, {403})):
        await agent.log_in()
        for route in TABLE:
            answer = await agent.ask(route.method, path_of(route), b"{}", Content_Type="text/plain")
            rule = RULES[route.action]
            if rule is Rule.PUBLIC:
                assert answer.status not in {401, 403}, (route.method, route.pattern)
            elif rule is Rule.ADMIN:
                assert answer.status == 403, (route.method, route.pattern)
                assert answer.json["errors"][0]["detail"] == f"Action {route.action} {WANTED[rule]}"
            else:
                assert answer.status in status, (agent.agent_id, route.method, route.pattern, answer.text)
                if agent is thief:
                    detail = "Agent node-2 cannot access resource node-1 (ownership required)"
                    assert answer.json["errors"][0]["detail"] == detail


@pytest.mark.parametrize(
    ("header", "detail"),
    [
        ("Basic b3BlcmF0b3I6eA==", "Invalid Authorization header format"),
        ("Bearer", "Invalid Authorization header format"),
        ("bearer x", "Invalid Authorization header format"),
        ("Bearer x", "Invalid authentication token"),
        ("Bearer " + "x" * 4000, "Invalid authentication token"),
        ("", "Invalid Authorization header format"),
    ],
)
async def test_a_bad_token_is_not_made_good_by_a_certificate(site: Site, header: str, detail: str) -> None:
    # trust: default-deny
    for route in TABLE:
        answer = await site.ask(route.method, path_of(route), {}, Authorization=header)
        if not route.credentials:
            # Agents come here with tokens that are out of date, in order to get another one.
            assert answer.status in {400, 404}
            continue
        assert answer.status == 401, (route.method, route.pattern)
        assert answer.json == {"errors": [{"status": "401", "title": "Unauthorized", "detail": detail}]}


@pytest.mark.parametrize("action", sorted(RULES))
async def test_an_action_without_a_rule_is_refused_even_to_operators(action: str) -> None:
    # trust: default-deny
    rules = {known: rule for known, rule in RULES.items() if known != action}
    app = App(TABLE, Authorizer(rules), versions=PREFIXES)
    for route in TABLE:
        if route.action == action:
            answer = await app.handle(Incoming(route.method, path_of(route), {}, certificate_name="operator"))
            assert answer.status == 403
            assert f"Action {action} requires admin authentication" in json.loads(answer.body)["errors"][0]["detail"]
