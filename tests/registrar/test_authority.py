"""Who may do what: every route of the table with every kind of caller, over real sockets."""

import asyncio
import itertools
import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.fakes.pki import Authority, client_context, self_signed
from tests.registrar.conftest import AGENT_ID, Site

from limeguard.registrar.identity import IdentityRules
from limeguard.registrar.openapi import OPERATIONS
from limeguard.registrar.routes import RULES, make_app, make_routes
from limeguard.registrar.service import RegistrarService
from limeguard.store.database import Database
from limeguard.store.registrations import Registrations
from limeguard.web.app import Incoming, Route
from limeguard.web.auth import Rule
from limeguard.wire.versions import PREFIXES

pytestmark = pytest.mark.services

PUBLIC = {"read_version", "register_agent", "activate_agent"}
"""What anybody may do, written down a second time: a new public route must be put here too."""


def routes() -> tuple[Route, ...]:
    """Return the table; its handlers are never called."""
    return make_routes(RegistrarService(Registrations(Database("sqlite://")), IdentityRules()))


def spellings(route: Route) -> list[str]:
    """Return every path that leads to a route, with and without slash at its end."""
    first, _, rest = route.pattern.strip("/").partition("/")
    heads = [sent for sent, group in PREFIXES.items() if group == first] or [first]
    paths = ["/" + "/".join(filter(None, (head, rest))).format(agent_id=AGENT_ID) for head in heads]
    return [*paths, *(path + "/" for path in paths)]


TABLE = routes()
EVERY = [(route, path) for route in TABLE for path in spellings(route)]


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: Any

    @property
    def detail(self) -> str:
        (error,) = json.loads(self.body)["errors"]
        assert error.keys() == {"status", "title", "detail"}
        assert error["status"] == str(self.status)
        return str(error["detail"])


async def ask(
    base: str, route: Route, path: str, tls: ssl.SSLContext | None = None, headers: dict[str, str] | None = None
) -> Answer:
    async with (
        aiohttp.ClientSession() as session,
        session.request(
            route.method,
            base + path,
            data=b"{}",
            ssl=tls or False,
            headers={"Content-Type": "application/json", **(headers or {})},
        ) as answer,
    ):
        return Answer(answer.status, await answer.read(), answer.headers)


def admin_refusal(route: Route) -> str:
    return f"Action {route.action} requires admin authentication (mTLS certificate)"


# trust: default-deny
def test_every_route_has_an_action_with_a_rule_and_a_description() -> None:
    assert {route.action for route in TABLE} == set(RULES)
    assert {(route.method, route.pattern) for route in TABLE} == set(OPERATIONS)
    assert {action for action, rule in RULES.items() if rule is Rule.PUBLIC} == PUBLIC
    assert {rule for action, rule in RULES.items() if action not in PUBLIC} == {Rule.ADMIN}


# trust: default-deny
def test_plain_http_serves_nothing_that_is_not_public() -> None:
    assert {route.action for route in TABLE if route.plain_http} == PUBLIC


# trust: default-deny
async def test_plain_http_reaches_public_routes_alone(site: Site) -> None:
    for route, path in EVERY:
        answer = await ask(site.plain, route, path)
        if route.action in PUBLIC:
            assert answer.status in {200, 400, 404}, (route, path)
            assert answer.status == 200 or route.action != "read_version"
        else:
            assert (answer.status, answer.body) == (400, b""), (route, path)
    assert await Registrations(site.database).ids() == []


# trust: default-deny
async def test_without_a_certificate_only_public_routes_answer(site: Site) -> None:
    await site.agent().enrol()
    for route, path in EVERY:
        answer = await ask(site.secure, route, path, site.anonymous_tls)
        if route.action in PUBLIC:
            assert answer.status != 403, (route, path)
        else:
            assert (answer.status, answer.detail) == (403, admin_refusal(route)), (route, path)
    assert await Registrations(site.database).ids() == [AGENT_ID]


# trust: default-deny
async def test_an_operator_is_refused_nowhere(site: Site) -> None:
    tls = site.admin_tls
    for route, path in EVERY:
        await site.agent().enrol()
        answer = await ask(site.secure, route, path, tls)
        lacking = route.action == "activate_agent" or (route.method == "POST" and "{agent_id}" not in route.pattern)
        assert answer.status == (400 if lacking else 200), (route, path, answer)


# trust: default-deny
@pytest.mark.parametrize("who", ["foreign CA", "self-signed", "same name as the CA"])
async def test_a_certificate_that_nobody_trusts_ends_in_the_handshake(site: Site, tmp_path: Path, who: str) -> None:
    name = "Test CA" if who == "same name as the CA" else "Foreign CA"
    foreign = Authority(tmp_path / "foreign", name)
    identity = self_signed(tmp_path, "operator") if who == "self-signed" else foreign.issue("operator")
    tls = client_context(identity, site.authority.identity.certificate)
    await site.agent().enrol()
    for route in TABLE:
        with pytest.raises((aiohttp.ClientError, ConnectionError, ssl.SSLError)):
            await ask(site.secure, route, spellings(route)[0], tls)
    assert await Registrations(site.database).ids() == [AGENT_ID]


# trust: default-deny
async def test_a_certificate_without_a_name_is_nobody(site: Site) -> None:
    tls = client_context(site.authority.issue(""), site.authority.identity.certificate)
    for route in TABLE:
        answer = await ask(site.secure, route, spellings(route)[0], tls)
        assert (answer.status == 403) == (route.action not in PUBLIC), route


# trust: default-deny
@pytest.mark.parametrize(
    ("offered", "detail"),
    [
        ("Bearer x", "Invalid authentication token"),
        ("Bearer ", "Invalid Authorization header format"),
        ("bearer x", "Invalid Authorization header format"),
        ("Basic b3BlcmF0b3I6", "Invalid Authorization header format"),
        ("", "Invalid Authorization header format"),
    ],
)
async def test_a_bad_credential_is_never_replaced_by_the_certificate(site: Site, offered: str, detail: str) -> None:
    # also on public routes, and on both listeners where they are reachable
    for base, tls in ((site.secure, site.admin_tls), (site.secure, site.anonymous_tls), (site.plain, None)):
        for route in TABLE:
            if tls is None and not route.plain_http:
                continue
            answer = await ask(base, route, spellings(route)[0], tls, {"Authorization": offered})
            assert (answer.status, answer.detail) == (401, detail), route
    assert await Registrations(site.database).ids() == []


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


# trust: default-deny
async def test_other_methods_and_versions_lead_nowhere(site: Site) -> None:
    tls = site.admin_tls
    served = {(route.method, path) for route, path in EVERY}
    for method, path in itertools.product(METHODS, sorted({path for _, path in served})):
        if (method, path) in served:
            continue
        answer = await ask(site.secure, Route(method, path, "", TABLE[0].handler), path, tls)
        assert (answer.status, answer.body) == (405, b""), (method, path)
        assert set(answer.headers["Allow"].split(", ")) == {m for m, p in served if p == path}
    for version in ("v1.0", "v2.7", "v2.06", "v2.6.0", "v3.1", "v4", "V2.6", "2.6", "v", "v2.6%2e"):
        for route in TABLE:
            if "/v" in route.pattern and route.pattern != "/version":
                path = spellings(route)[0].replace("/v2/", f"/{version}/").replace("/v3/", f"/{version}/")
                if path.startswith("/v3"):
                    continue
                answer = await ask(site.secure, route, path, tls)
                assert (answer.status, answer.body) == (404, b""), path
    assert await Registrations(site.database).ids() == []


# trust: default-deny
def test_an_action_without_a_rule_is_refused_for_everybody() -> None:
    service = RegistrarService(Registrations(Database("sqlite://")), IdentityRules())
    app = make_app(service, 1000)
    for action in RULES:
        app.authorizer.rules = {known: rule for known, rule in RULES.items() if known != action}
        for route in TABLE:
            if route.action != action:
                continue
            for certificate in (None, "operator"):
                incoming = Incoming(route.method, spellings(route)[0], {}, certificate_name=certificate)
                answer = asyncio.run(app.handle(incoming))
                assert answer.status == 403, (route, certificate)
                assert admin_refusal(route).encode() in answer.body


# trust: default-deny
async def test_every_refusal_is_written_down(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    (route,) = (r for r in TABLE if (r.method, r.pattern) == ("DELETE", "/v2/agents/{agent_id}"))
    await ask(site.secure, route, spellings(route)[0], site.anonymous_tls)
    assert "Authorization DENIED: identity=none, identity_type=anonymous, action=delete_registration" in caplog.text
