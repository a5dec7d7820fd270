"""The verifier's HTTP interface as deployed tenants use it: statuses, texts, members, types and headers."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.fakes.pki import Authority
from tests.fakes.soft_agent import enrolment
from tests.fakes.verifier_site import Answer, Site, running_verifier

from limeguard.cli.reference import PAGES
from limeguard.simulator.softtpm import SoftNode
from limeguard.wire.limeguard_v1 import NodeList, NodeView

pytestmark = pytest.mark.services

VERSIONS = ["1.0", "2.0", "2.1", "2.2", "2.3", "2.4", "2.5", "2.6", "3.0"]
MEMBERS: dict[str, tuple[type, ...]] = {
    "operational_state": (int,),
    "v": (str, type(None)),
    "ip": (str, type(None)),
    "port": (int, type(None)),
    "tpm_policy": (str,),
    "meta_data": (str,),
    "has_mb_refstate": (int,),
    "has_runtime_policy": (int,),
    "accept_tpm_hash_algs": (list,),
    "accept_tpm_encryption_algs": (list,),
    "accept_tpm_signing_algs": (list,),
    "hash_alg": (str,),
    "enc_alg": (str,),
    "sign_alg": (str,),
    "verifier_id": (str,),
    "verifier_ip": (str,),
    "verifier_port": (int,),
    "severity_level": (int, type(None)),
    "last_event_id": (str, type(None)),
    "attestation_count": (int,),
    "last_received_quote": (int,),
    "last_successful_attestation": (int,),
    "attestation_status": (str,),
    "attestation_period": (str,),
    "maximum_attestation_interval": (str,),
}
PATH = "/v2.6/agents/node-1"


def strict(answer: Answer, status: int = 200) -> dict[str, Any]:
    """Return `results` of an envelope, as strictly as peers look at it."""
    assert answer.status == status, answer.text
    assert answer.headers["Content-Type"].startswith("application/json")
    assert "Retry-After" not in answer.headers
    envelope = answer.json
    assert list(envelope) == ["code", "status", "results"]
    assert type(envelope["code"]) is int
    assert envelope["code"] == status
    assert isinstance(envelope["status"], str)
    assert isinstance(envelope["results"], dict)
    found: dict[str, Any] = envelope["results"]
    return found


def same_types(record: dict[str, Any]) -> None:
    assert list(record) == list(MEMBERS)
    for name, kinds in MEMBERS.items():
        assert type(record[name]) in kinds, name


@pytest.mark.parametrize("version", ["2", "2.0", "2.1", "2.2", "2.3", "2.4", "2.5", "2.6"])
async def test_a_node_s_life_in_every_version(site: Site, version: str) -> None:
    agent = await site.add_agent()
    base = f"/v{version}/agents"
    body = agent.enrolment(v="QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=")
    # The tenant sends JSON without saying so.
    assert strict(await site.ask("POST", f"{base}/node-1", body, Content_Type="application/octet-stream")) == {}
    record = strict(await site.ask("GET", f"{base}/node-1"))
    same_types(record)
    assert record["v"] == body["v"]
    assert (record["ip"], record["port"]) == ("127.0.0.1", agent.port)
    assert (record["verifier_id"], record["verifier_port"]) == ("default", 8881)
    assert record["tpm_policy"] == body["tpm_policy"]
    assert record["accept_tpm_hash_algs"] == body["accept_tpm_hash_algs"]
    await site.reaches(agent, "trusted", rounds=1)
    assert strict(await site.ask("GET", f"{base}/")) == {"uuids": [["node-1"]]}
    bulk = strict(await site.ask("GET", f"{base}/?bulk=True&verifier="))
    same_types(bulk["node-1"])
    assert strict(await site.ask("PUT", f"{base}/node-1/stop", b"")) == {}
    assert strict(await site.ask("GET", f"{base}/node-1/"))["operational_state"] == 10
    assert strict(await site.ask("PUT", f"{base}/node-1/reactivate", b"")) == {}
    answer = await site.ask("DELETE", f"{base}/node-1")
    assert strict(answer, answer.status) == {}
    assert answer.status in {200, 202}


async def test_the_lists_of_a_verifier_without_nodes(site: Site) -> None:
    assert strict(await site.ask("GET", "/v2.6/agents")) == {"uuids": []}
    assert strict(await site.ask("GET", "/v2.6/agents?bulk=False")) == {}  # to name it is to want it
    assert strict(await site.ask("GET", "/v2.6/allowlists/")) == {"runtimepolicy names": []}
    assert strict(await site.ask("GET", "/v2.6/mbpolicies/")) == {"mbpolicy names": []}


async def test_lists_can_be_of_one_verifier(site: Site) -> None:
    agent = await site.add_agent()
    await site.enrol(agent)
    for query, ids in (("", [["node-1"]]), ("?verifier=", [["node-1"]]), ("?verifier=default", [["node-1"]])):
        assert strict(await site.ask("GET", f"/v2.6/agents{query}"))["uuids"] == ids
    assert strict(await site.ask("GET", "/v2.6/agents?verifier=other"))["uuids"] == []
    assert strict(await site.ask("GET", "/v2.6/agents/?verifier=other&bulk=1")) == {}


@pytest.mark.parametrize("path", ["/version", "/versions"])
async def test_the_versions_are_listed_for_anybody(site: Site, path: str) -> None:
    answer = await site.ask("GET", path, tls=site.tls(certificate=False))
    assert strict(answer) == {"current_version": "2.6", "supported_versions": VERSIONS}


async def test_the_roots(site: Site) -> None:
    anybody = site.tls(certificate=False)
    home = await site.ask("GET", "/", tls=anybody)
    assert (home.status, home.headers["Location"], home.text) == (307, "/v3.0/", "")
    for path in ("/v2/", "/v2.6/", "/v2.6", "/v3/", "/v3.0/"):
        assert strict(await site.ask("GET", path, tls=anybody)) == {}


async def test_nodes_that_are_not_there(site: Site) -> None:
    assert (await site.ask("GET", PATH)).said == "agent id not found"
    assert (await site.ask("DELETE", PATH)).said == "agent id not found"
    for word in ("reactivate", "stop"):
        answer = await site.ask("PUT", f"{PATH}/{word}", b"")
        assert (answer.status, answer.said) == (400, "Exception error: No row was found when one was required")
    question = "agent_uuid=node-1&quote=r&nonce=x&hash_alg=sha256"
    answer = await site.ask("GET", f"/v2.6/verify/identity?{question}")
    assert (answer.status, answer.said) == (404, "agent id not found")


async def test_a_node_of_another_verifier_is_not_ours_to_change(tmp_path: Path, authority: Authority) -> None:
    async with running_verifier(tmp_path, authority, uuid="first") as first:
        agent = await first.add_agent()
        await first.enrol(agent)
        async with running_verifier(tmp_path, authority, uuid="second") as second:
            assert (await second.ask("DELETE", PATH)).said == "agent id associated to this verifier"
            assert (await second.ask("GET", PATH)).json["results"]["verifier_id"] == "first"
            assert (await second.ask("POST", PATH, agent.enrolment())).status == 409
            assert strict(await second.ask("GET", "/v2.6/agents?verifier=second"))["uuids"] == []


async def test_the_same_id_twice_is_a_conflict(site: Site) -> None:
    agent = await site.add_agent()
    await site.enrol(agent)
    answer = await site.ask("POST", PATH, agent.enrolment())
    assert answer.status == 409
    assert answer.said == "Agent of uuid node-1 already exists. Please use delete or update."


async def test_the_request_id_comes_back(site: Site) -> None:
    assert (await site.ask("GET", "/version", X_Request_ID="a1b2c3")).headers["X-Request-ID"] == "a1b2c3"
    assert (await site.ask("GET", "/version", X_Request_ID="a b<c>" + "d" * 50)).headers[
        "X-Request-ID"
    ] == "abc" + "d" * 33
    assert (await site.ask("GET", "/version")).headers["X-Request-ID"] == ""
    assert (await site.ask("GET", "/nowhere", X_Request_ID="a1")).headers["X-Request-ID"] == "a1"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1.0/agents", 404),
        ("GET", "/v2.7/agents", 404),
        ("GET", "/v9/agents", 404),
        ("GET", "//v2.6/agents", 404),
        ("GET", "/v2.6/agents/a/b/c", 404),
        ("PATCH", "/v2.6/agents/node-1", 405),
        ("PUT", "/v2.6/agents/node-1", 405),
        ("POST", "/version", 405),
        ("TRACE", "/version", 501),
        ("BREW", "/version", 400),  # no method of any standard: the parser refuses it
    ],
)
async def test_what_is_not_served_has_a_bare_answer(site: Site, method: str, path: str, status: int) -> None:
    answer = await site.ask(method, path)
    assert (answer.status, answer.text) == (status, "")


async def test_an_identity_can_be_checked_by_anybody(site: Site) -> None:
    agent = await site.add_agent()
    await site.enrol(agent)

    async def asked(**changes: str) -> Any:
        query = {"agent_uuid": "node-1", "quote": agent.node.quote("abc"), "nonce": "abc", "hash_alg": "sha256"}
        anybody = site.tls(certificate=False)
        text = "&".join(f"{k}={v.replace('+', '%2B')}" for k, v in {**query, **changes}.items() if v)
        return await site.ask("GET", f"/v2.6/verify/identity?{text}", tls=anybody)

    assert strict(await asked()) == {"valid": 1}
    for change in (
        {"nonce": "abd"},
        {"quote": SoftNode.create("ecc256", number=5).quote("abc")},
        {"quote": "rAAAA:AAAA:AAAA"},
        {"hash_alg": "sha1"},
        {"hash_alg": "sha384"},
    ):
        results = strict(await asked(**change))
        assert results["valid"] == 0
        assert set(json.loads(results["reason"])) == {"message", "error"}
    for name in ("agent_uuid", "quote", "nonce", "hash_alg"):
        answer = await asked(**{name: ""})
        assert (answer.status, answer.said) == (400, f"missing query parameter '{name}'")


async def test_our_own_interface_says_what_it_publishes(site: Site) -> None:
    agent = await site.add_agent()
    await site.enrol(agent)
    await site.reaches(agent, "trusted", rounds=1)
    msgspec.json.decode((await site.ask("GET", "/limeguard/v1/nodes/node-1")).text, type=NodeView, strict=True)
    msgspec.json.decode((await site.ask("GET", "/limeguard/v1/nodes")).text, type=NodeList, strict=True)
    answer = await site.ask("GET", "/limeguard/v1/nodes/nobody")
    assert (answer.status, list(answer.json)) == (404, ["error"])


async def test_the_description_that_is_served_is_the_one_that_is_printed(site: Site) -> None:
    served = (await site.ask("GET", "/openapi.json")).json
    assert served == json.loads(PAGES["openapi-verifier"]())


async def test_the_port_may_come_as_text_and_the_tls_of_an_agent_may_be_off(
    tmp_path: Path, authority: Authority
) -> None:
    async with running_verifier(tmp_path, authority, enable_agent_mtls=False) as site:
        body = enrolment(SoftNode.create("ecc256"), "disabled", 1)
        assert strict(await site.ask("POST", PATH, {**body, "cloudagent_port": "9002"})) == {}
        assert strict(await site.ask("GET", PATH))["port"] == 9002


async def test_a_node_without_certificate_is_refused_where_tls_is_demanded(site: Site) -> None:
    # trust: downgrade
    agent = await site.add_agent()
    for certificate in (None, "disabled", ""):
        answer = await site.ask("POST", PATH, agent.enrolment(mtls_cert=certificate))
        assert (answer.status, answer.said) == (400, "mTLS certificate for agent is required!")
