"""Rounds over real connections: honest nodes, nodes that lie in every way, and what the operator is told of each."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from msgspec.structs import replace as with_clock
from tests.fakes.pki import Authority
from tests.fakes.soft_agent import Alter, SoftAgent, altered_part
from tests.fakes.verifier_site import FAILED_AT_ONCE, Site, running_verifier

from limeguard.evidence.tpm.structures import ClockInfo
from limeguard.simulator.softtpm import SoftAk, SoftNode

pytestmark = pytest.mark.services


def policy(node: SoftNode, *pcrs: int) -> str:
    allowed: dict[str, Any] = {str(pcr): [node.pcrs[pcr].hex()] for pcr in pcrs}
    return json.dumps({**allowed, "mask": hex(sum(1 << pcr for pcr in pcrs))})


@pytest.mark.parametrize("kind", ["rsa2048", "rsa3072", "ecc256", "ecc384"])
async def test_an_honest_node_is_trusted_round_after_round(site: Site, kind: str) -> None:
    agent = await site.add_agent(node=SoftNode.create(kind))
    schemes = ["rsassa", "rsapss", "ecdsa"]
    await site.enrol(
        agent,
        tpm_policy=policy(agent.node, 15, 23),
        accept_tpm_signing_algs=schemes,
        accept_tpm_encryption_algs=[agent.node.kind],
    )
    view = await site.reaches(agent, "trusted", rounds=3)
    assert view["findings"] == []
    assert set(view["checks"]["required"]) == set(view["checks"]["ran"])
    assert not view["identity_only"]
    status = await site.status(agent)
    assert status["operational_state"] == 3
    assert status["attestation_status"] == "PASS"
    assert status["last_successful_attestation"] == status["last_received_quote"] > 0


async def test_the_first_question_asks_for_the_key_and_later_ones_do_not(site: Site) -> None:
    agent = await site.add_agent()
    await site.enrol(agent)
    await site.reaches(agent, "trusted", rounds=4)
    asked = [path for method, path in agent.requests if "/quotes/integrity" in path and method == "GET"]
    assert "partial=0" in asked[0]
    assert all("partial=1" in path for path in asked[1:])
    nonces = [path.partition("nonce=")[2].partition("&")[0] for path in asked]
    assert len(set(nonces)) == len(nonces)  # trust: fresh
    assert all(len(nonce) == 20 and nonce.isalnum() for nonce in nonces)
    assert all(headers.get("Content-Type") == "application/json" for headers in agent.headers)


async def test_the_share_is_delivered_once_and_only_after_a_good_quote(site: Site) -> None:
    # trust: enrolment-order
    agent = await site.add_agent(node=SoftNode.create("rsa2048"))
    agent.node.extend(23, bytes(32))
    await site.enrol(agent, v="QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=", tpm_policy=_zero(23))
    await site.reaches(agent, "distrusted")
    assert agent.shares == []
    agent.node.pcrs[23] = bytes(32)
    await site.ask("PUT", f"/v2.6/agents/{agent.agent_id}/reactivate", b"")
    await site.reaches(agent, "trusted", rounds=3)
    assert agent.shares == [b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef"]


def _zero(pcr: int) -> str:
    return json.dumps({str(pcr): ["00" * 32], "mask": hex(1 << pcr)})


def changed(**values: str) -> Alter:
    return lambda _request, results: {**results, **values}


def altered(part: int, position: int) -> Alter:
    return lambda _request, results: {**results, "quote": altered_part(results["quote"], part, position)}


def requoted(node: Callable[[SoftNode], SoftNode]) -> Callable[[SoftAgent], Alter]:
    """Answer with the quote of a changed node."""

    def make(agent: SoftAgent) -> Alter:
        def alter(request: web.Request, results: dict[str, Any]) -> dict[str, Any]:
            liar = node(agent.node)
            bits = int(request.query["mask"], 16)
            return {**results, "quote": liar.quote(request.query["nonce"], {n for n in range(24) if bits >> n & 1})}

        return alter

    return make


def other_nonce(agent: SoftAgent) -> Alter:
    return lambda _request, results: {**results, "quote": agent.node.quote("another nonce", {23})}


def without_binding(agent: SoftAgent) -> Alter:
    def alter(request: web.Request, results: dict[str, Any]) -> dict[str, Any]:
        ak = agent.node.ak
        clock = with_clock(agent.node.clock, clock=agent.node.clock.clock + 3)
        agent.node.clock = clock
        nonce = request.query["nonce"].encode()
        return {**results, "quote": ak.quote(nonce, {23: agent.node.pcrs[23]}, ak.hash_alg.name, clock)}

    return alter


def fixed(alter: Alter) -> Callable[[SoftAgent], Alter]:
    return lambda _agent: alter


OTHER_AK = SoftAk.generate("ecc256", number=77)
LIES: dict[str, tuple[Callable[[SoftAgent], Alter], str]] = {
    "another nonce": (other_nonce, "qoute_validation.quote_validation"),
    "another key": (requoted(lambda node: replace(node, ak=OTHER_AK)), "qoute_validation.quote_validation"),
    "altered attestation": (fixed(altered(0, -1)), "qoute_validation.quote_validation"),
    "altered signature": (fixed(altered(1, -1)), "qoute_validation.quote_validation"),
    "altered PCR value": (fixed(altered(2, 150)), "qoute_validation.quote_validation"),
    "a PCR that is not allowed": (
        requoted(lambda node: replace(node, pcrs={**node.pcrs, 23: b"\7" * 32})),
        "pcr_validation.invalid_pcr_23",
    ),
    "no PCR 16": (without_binding, "pcr_validation.missing_pcr_16"),
    "PCR 16 of another key": (fixed(changed(pubkey=SoftNode.create(number=9).pubkey)), "pcr_validation.invalid_pcr_16"),
    "a hash that is not accepted": (fixed(changed(hash_alg="sha1")), "qoute_validation.invalid_hash_alg"),
    "a key that is not accepted": (fixed(changed(enc_alg="rsa1024")), "qoute_validation.invalid_enc_alg"),
    "a scheme that is not accepted": (fixed(changed(sign_alg="ecdaa")), "qoute_validation.invalid_sign_alg"),
    "no quote at all": (
        fixed(lambda _request, results: {k: v for k, v in results.items() if k != "quote"}),
        "qoute_validation.invalid_data",
    ),
    "a quote of the wrong type": (
        fixed(lambda _request, results: {**results, "quote": 7}),
        "qoute_validation.invalid_data",
    ),
    "a clock that goes back": (
        requoted(lambda node: replace(node, clock=ClockInfo(1, 2, 0, safe=True))),
        "qoute_validation.quote_validation",
    ),
    "a reset count that goes back": (
        requoted(lambda node: replace(node, clock=ClockInfo(10**9, 1, 0, safe=True))),
        "qoute_validation.quote_validation",
    ),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_trusted_node_that_begins_to_lie_is_distrusted_with_the_reason(site: Site, lie: str) -> None:
    # trust: fail-closed, bound-identity, clock-and-reset
    make, event_id = LIES[lie]
    agent = await site.add_agent()
    await site.enrol(agent, tpm_policy=policy(agent.node, 23), accept_tpm_signing_algs=["ecdsa"])
    await site.reaches(agent, "trusted", rounds=2)
    agent.alter = make(agent)
    view = await site.reaches(agent, "distrusted")
    assert site.event_ids(view) == [event_id]
    assert view["findings"][0]["advice"]
    assert view["trust_expires_at"] is None
    status = await site.status(agent)
    assert status["operational_state"] == 9
    assert status["attestation_status"] == "FAIL"
    assert status["last_event_id"] == event_id
    # It stays so until somebody decides, whatever the node says now.
    from tests.fakes.soft_agent import unaltered

    agent.alter = unaltered
    await asyncio.sleep(4 * 0.05)
    assert (await site.view(agent))["condition"] == "distrusted"


@pytest.mark.parametrize("lie", LIES)
async def test_a_node_that_lies_from_the_start_is_never_trusted(site: Site, lie: str) -> None:
    # trust: fail-closed
    make, event_id = LIES[lie]
    agent = await site.add_agent()
    agent.alter = make(agent)
    if "goes back" in lie:
        return  # there is nothing before the first reading
    await site.enrol(agent, tpm_policy=policy(agent.node, 23), accept_tpm_signing_algs=["ecdsa"])
    view = await site.reaches(agent, "distrusted")
    assert site.event_ids(view) == [event_id]
    assert view["attestation_count"] == 0
    assert view["last_trusted_at"] is None


async def test_an_old_answer_replayed_is_distrusted(site: Site) -> None:
    # trust: fresh
    agent = await site.add_agent()
    kept: list[dict[str, Any]] = []

    def replay(_request: web.Request, results: dict[str, Any]) -> dict[str, Any]:
        kept.append(results)
        return {**kept[0], "pubkey": agent.node.pubkey} if len(kept) > 2 else results

    agent.alter = replay
    await site.enrol(agent)
    view = await site.reaches(agent, "distrusted")
    assert view["attestation_count"] == 2
    assert site.event_ids(view) == ["qoute_validation.quote_validation"]


async def test_a_reboot_is_no_lie(site: Site) -> None:
    # trust: clock-and-reset
    agent = await site.add_agent()
    await site.enrol(agent, tpm_policy=policy(agent.node, 15))
    view = await site.reaches(agent, "trusted", rounds=2)
    agent.node.reboot()
    await site.reaches(agent, "trusted", rounds=view["attestation_count"] + 3)


async def test_a_change_that_is_undone_can_be_forgiven_by_an_operator(site: Site) -> None:
    agent = await site.add_agent()
    await site.enrol(agent, tpm_policy=_zero(23))
    await site.reaches(agent, "trusted", rounds=1)
    agent.node.extend(23, bytes(32))
    await site.reaches(agent, "distrusted")
    agent.node.pcrs[23] = bytes(32)
    assert (await site.ask("PUT", f"/v2.6/agents/{agent.agent_id}/reactivate", b"")).status == 200
    view = await site.reaches(agent, "trusted", rounds=1)
    assert view["findings"] == []
    assert (await site.status(agent))["last_event_id"] is None


async def test_findings_can_be_collected_without_an_end(tmp_path: Path, authority: Authority) -> None:
    async with running_verifier(
        tmp_path, authority, continue_after_failure=True, severity_policy=((".*", "notice"),)
    ) as site:
        agent = await site.add_agent()
        await site.enrol(agent, tpm_policy=_zero(23))
        await site.reaches(agent, "trusted", rounds=1)
        agent.node.extend(23, bytes(32))
        await site.reaches(agent, "distrusted")
        asked = agent.quotes
        await site.shows(agent, lambda _: agent.quotes > asked + 3)
        agent.node.pcrs[23] = bytes(32)
        view = await site.reaches(agent, "trusted")
        assert view["findings"] == []


async def test_an_agent_of_an_older_version_is_found_and_one_that_goes_back_is_not_followed(
    tmp_path: Path, authority: Authority
) -> None:
    # trust: downgrade
    async with running_verifier(tmp_path, authority, **FAILED_AT_ONCE) as site:
        agent = await site.add_agent()
        agent.versions = ("2.1", "2.2", "2.3")
        await site.enrol(agent, supported_version="2.3", accept_tpm_encryption_algs=["ecc"])
        await site.reaches(agent, "trusted", rounds=2)
        assert (await site.view(agent))["agent_api_version"] == "2.3"
        agent.versions = ("2.4", "2.5", "2.6")
        await site.shows(agent, lambda view: bool(view["agent_api_version"] == "2.6"))
        count = (await site.view(agent))["attestation_count"]
        await site.reaches(agent, "trusted", rounds=count + 2)
        agent.versions = ("2.1",)
        view = await site.shows(agent, lambda view: bool(view["phase"] == "failed"))
        assert site.event_ids(view) == ["internal.verifier.version_not_supported"]
        assert view["agent_api_version"] == "2.6"


async def test_many_nodes_are_attested_side_by_side(site: Site) -> None:
    agents = [await site.add_agent(f"node-{number}", SoftNode.create("ecc256", number=number)) for number in range(12)]
    for agent in agents:
        await site.enrol(agent)
    for agent in agents:
        await site.reaches(agent, "trusted", rounds=3)
    listed = (await site.ask("GET", "/limeguard/v1/nodes")).json
    assert listed["counts"]["trusted"] == 12
