"""Who may do what on the verifier: every route of the table with every kind of caller, over real sockets."""

import json
import ssl
from pathlib import Path
from typing import cast

import pytest
from tests.fakes.pki import Authority, client_context, self_signed
from tests.fakes.verifier_site import Site, running_verifier

from limeguard.verifier.api import OPERATIONS
from limeguard.verifier.onetime import OneTime
from limeguard.verifier.routes import RULES, Figures, Watch, make_routes
from limeguard.verifier.service import VerifierService
from limeguard.web.app import App, Incoming, Route
from limeguard.web.auth import Authorizer, Rule
from limeguard.wire.versions import PREFIXES

pytestmark = pytest.mark.services

PUBLIC = {"read_server_info", "read_version", "verify_identity", "verify_evidence", "read_health"}
"""What anybody may do, written down a second time: a new public route must be put here too."""


async def nothing() -> None:
    """Stand for what says whether a verifier is ready."""


# Paths and actions are read from the table; no handler is called.
TABLE = make_routes(cast("VerifierService", None), cast("OneTime", None), Watch(nothing, cast("Figures", None)))


def path_of(route: Route) -> str:
    return route.pattern.format(agent_id="node-1", name="mine")


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
                    wanted = "authentication" if RULES[route.action] is Rule.AGENT_OR_ADMIN else "admin authentication"
                    assert error["detail"].startswith(f"Action {route.action} requires {wanted}")


async def test_an_operator_gets_past_every_rule(site: Site) -> None:
    for route in TABLE:
        answer = await site.ask(route.method, path_of(route), {})
        assert answer.status not in {401, 403}, (route.method, route.pattern)


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
