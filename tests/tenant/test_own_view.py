"""What only our own verifier can answer: the condition of a node and why, against a server that answers as it does."""

from typing import Any

import msgspec
import pytest
from tests.fakes.tenant_site import NODE, Site
from tests.tenant.conftest import Tenant

from limeguard.wire.limeguard_v1 import Checks, FindingView, NodeList, NodeSummary, NodeView

pytestmark = pytest.mark.services

VIEW = NodeView(
    id=NODE,
    condition="distrusted",
    integrity="distrusted",
    reachability="reachable",
    phase="condemned",
    identity_only=False,
    trust_expires_at=None,
    last_answer_at=1767607200.0,
    last_trusted_at=None,
    attestation_count=3,
    failed_attempts=0,
    findings=(
        FindingView(
            id="pcr.not-allowed",
            event_id="pcr_validation.invalid_pcr_23",
            severity="emergency",
            found_at=1767607200.0,
            context={"pcr": 23},
            advice="Find out what changed.",
        ),
    ),
    checks=Checks(("pcr-policy",), ("pcr-policy",)),
    ip="127.0.0.1",
    port=9002,
    agent_api_version="2.6",
    verifier_id="default",
    enrolled_at=1767607100.0,
)
LISTED = NodeList(
    {"trusted": 1, "distrusted": 1},
    tuple(
        NodeSummary(
            id=name,
            condition=condition,
            integrity=condition,
            reachability="reachable",
            trust_expires_at=None,
            last_event_id=None,
        )
        for name, condition in (("a", "trusted"), ("b", "distrusted"))
    ),
)


def answers(site: Site, suffix: str, status: int, document: Any) -> None:
    site.overrides.append(lambda call: (status, document) if call.path.endswith(suffix) else None)


@pytest.mark.parametrize(("condition", "exit_status"), [("distrusted", 1), ("stale", 1), ("trusted", 0)])
async def test_why_shows_the_findings_and_says_by_its_exit_status_whether_the_node_is_trusted(
    site: Site, tenant: Tenant, condition: str, exit_status: int
) -> None:
    view = msgspec.to_builtins(msgspec.structs.replace(VIEW, condition=condition))
    answers(site, f"/limeguard/v1/nodes/{NODE}", 200, view)
    assert await tenant("why") == exit_status
    assert msgspec.convert(tenant.heard.documents["condition"], NodeView).condition == condition
    assert tenant.heard.documents["condition"]["findings"][0]["advice"] == "Find out what changed."


async def test_why_of_a_node_that_is_not_there_says_where_to_look(site: Site, tenant: Tenant) -> None:
    answers(site, f"/nodes/{NODE}", 404, {"error": "No node is enrolled under this id."})
    assert await tenant("why") == 1
    assert f"has no node {NODE}" in tenant.heard.text
    assert "cvlist" in tenant.heard.text


async def test_nodes_lists_all_with_their_conditions(site: Site, tenant: Tenant) -> None:
    answers(site, "/limeguard/v1/nodes", 200, msgspec.to_builtins(LISTED))
    assert await tenant("nodes", agent_id=None) == 0
    assert tenant.heard.documents["nodes"]["counts"] == {"trusted": 1, "distrusted": 1}


async def test_another_verifier_cannot_be_asked_for_conditions(site: Site, tenant: Tenant) -> None:
    answers(site, "/limeguard/v1/nodes", 404, {"code": 404, "status": "Not Found", "results": {}})
    assert await tenant("nodes", agent_id=None) == 1
    assert "is no limeguard verifier" in tenant.heard.text


# trust: fail-closed
@pytest.mark.parametrize("document", [{}, {"condition": "trusted"}, [], "trusted", {"id": 1, "condition": "trusted"}])
async def test_an_answer_that_is_not_whole_is_not_trust(site: Site, tenant: Tenant, document: Any) -> None:
    answers(site, f"/nodes/{NODE}", 200, document)
    assert await tenant("why") == 1
    assert "condition" not in tenant.heard.documents


async def test_an_unusual_status_is_said(site: Site, tenant: Tenant) -> None:
    answers(site, f"/nodes/{NODE}", 500, {"code": 500, "status": "Internal server error", "results": {}})
    assert await tenant("why") == 1
    assert "answered 500: Internal server error" in tenant.heard.text
