"""Nodes that attest by themselves, over real connections: honest ones, ones that lie, and what everybody is told."""

import asyncio
import json
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from tests.fakes.pki import Authority
from tests.fakes.push_agent import PushAgent, enrolled, push_enrolment
from tests.fakes.soft_ima import SoftKernel, policy_for
from tests.fakes.verifier_site import Site, running_verifier

from limeguard.evidence.tpm.structures import ClockInfo
from limeguard.simulator.softtpm import SoftAk, SoftNode
from limeguard.store.database import StoreUnavailable
from limeguard.store.nodes import Nodes
from limeguard.store.sessions import SessionRows

pytestmark = pytest.mark.services

TOOLS = tuple(f"/usr/bin/tool{number}" for number in range(5))
PUSH = {"mode": "push", "quote_interval": 0.0, "trust_lifetime": 60.0}
WITH_IMA = {"tpm_policy": '{"mask": "0x400"}'}


@pytest.fixture
async def site(tmp_path: Path, authority: Authority) -> AsyncIterator[Site]:
    async with running_verifier(tmp_path, authority, **PUSH) as running:
        yield running


def encoded(document: object) -> str:
    return b64encode(json.dumps(document).encode()).decode()


async def measured(site: Site, *tools: str, kind: str = "ecc256", **changes: Any) -> PushAgent:
    """Enrol a node whose policy allows all tools and that has measured some."""
    node = SoftNode.create(kind)
    agent = await enrolled(site, node=node, runtime_policy=encoded(policy_for(*TOOLS)), **WITH_IMA, **changes)
    agent.kernel = SoftKernel(node)
    for name in tools:
        agent.kernel.measure(name)
    return agent


# --- honest nodes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "hash_name"),
    [("rsa2048", "sha256"), ("rsa3072", "sha384"), ("ecc256", "sha256"), ("ecc384", "sha384"), ("ecc521", "sha512")],
)
async def test_an_honest_node_without_policy_proves_its_identity(site: Site, kind: str, hash_name: str) -> None:
    agent = await enrolled(site, node=SoftNode.create(kind, hash_name))
    before = await agent.status()
    assert (before["operational_state"], before["attestation_status"]) == (3, "PENDING")
    assert (before["ip"], before["port"], before["hash_alg"]) == (None, None, "")
    taken = await agent.start()
    assert (await agent.evaluated())["evaluation"] == "pass"
    assert taken["meta"]["seconds_to_next_attestation"] == 0
    view = await agent.reaches("trusted")
    assert view["identity_only"]
    assert view["push"]
    after = await agent.status()
    assert (after["operational_state"], after["attestation_status"], after["attestation_count"]) == (3, "PASS", 1)
    assert (await agent.judged())["evaluation"] == "pass"


async def test_rounds_are_counted_by_what_they_leave(site: Site) -> None:
    agent = await measured(site, TOOLS[0])
    assert agent.kernel is not None
    await agent.log_in()
    assert (await agent.judged())["evaluation"] == "pass"
    agent.kernel.measure("/tmp/evil")
    assert (await agent.judged())["evaluation"] == "fail"
    figures = (await site.ask("GET", "/metrics")).text
    assert 'limeguard_verifier_verdicts_total{condition="trusted"} 1' in figures
    assert 'limeguard_verifier_verdicts_total{condition="distrusted"} 1' in figures


async def test_a_key_of_another_scheme_is_asked_for_what_it_can_do(site: Site) -> None:
    node = SoftNode.create("rsa2048")
    pss = replace(node, ak=SoftAk.generate("rsa2048", scheme="rsapss", number=7))
    agent = await enrolled(site, node=pss)
    await agent.start()
    assert (await agent.evaluated())["evaluation"] == "pass"


async def test_a_growing_measurement_list_is_read_on_and_a_bad_file_ends_trust(site: Site) -> None:
    agent = await measured(site, TOOLS[0], kind="rsa2048")
    assert agent.kernel is not None
    await agent.log_in()
    assert (await agent.judged())["evaluation"] == "pass"
    agent.kernel.measure(TOOLS[1])
    assert (await agent.judged())["evaluation"] == "pass"
    assert agent.offsets == [0, 1]
    assert not (await agent.view())["identity_only"]
    agent.kernel.measure("/tmp/evil")
    seen = await agent.judged()
    assert (seen["evaluation"], seen["failure_reason"]) == ("fail", "policy_violation")
    view = await agent.reaches("distrusted")
    assert [one["event_id"] for one in view["findings"]] == ["ima.validation.ima-ng.not_in_allowlist"]
    status = await agent.status()
    assert (status["attestation_status"], status["operational_state"]) == ("FAIL", 3)


async def test_nodes_of_both_kinds_live_in_one_verifier(site: Site) -> None:
    pulled = await site.add_agent("pulled")
    await site.enrol(pulled)
    agent = await enrolled(site)
    await agent.start()
    await agent.reaches("trusted")
    await site.reaches(pulled, "trusted", rounds=2)
    assert (await site.status(pulled))["ip"] == "127.0.0.1"
    pull_token = PushAgent(site, "pulled", pulled.node)
    await pull_token.log_in()
    answer = await pull_token.send_offer()
    assert (answer.status, answer.json["errors"][0]["code"]) == (403, "agent_attestations_disabled")


async def test_where_polling_is_usual_a_node_without_address_pushes(tmp_path: Path, authority: Authority) -> None:
    async with running_verifier(tmp_path, authority, quote_interval=0.0) as site:
        agent = await enrolled(site, cloudagent_ip=None, cloudagent_port=None)
        await agent.start()
        await agent.reaches("trusted")
        answer = await site.ask("POST", "/v2.6/agents/other", push_enrolment(agent.node))
        assert (answer.status, answer.said) == (400, "mTLS certificate for agent is required!")
        assert (await site.ask("GET", "/version")).status == 200


async def test_where_pushing_is_usual_the_version_list_is_gone(site: Site) -> None:
    for path in ("/version", "/versions"):
        answer = await site.ask("GET", path)
        assert (answer.status, answer.json) == (410, {"code": 410, "status": "Gone", "results": {}})


async def test_a_payload_is_refused_where_nobody_can_deliver_it(site: Site) -> None:
    body = push_enrolment(SoftNode.create("ecc256"), v=b64encode(bytes(32)).decode())
    answer = await site.ask("POST", "/v2.6/agents/pusher", body)
    assert answer.status == 400
    assert "no way to get a payload" in answer.said


# --- reboots ----------------------------------------------------------------------------------------------------------


async def test_a_rebooted_node_comes_back_to_trusted_by_itself(site: Site) -> None:
    # trust: clock-and-reset
    agent = await measured(site, *TOOLS[:3])
    assert agent.kernel is not None
    await agent.log_in()
    assert (await agent.judged())["evaluation"] == "pass"
    agent.kernel.reboot()
    agent.kernel.measure(TOOLS[0])
    agent.boot_time = "2026-01-05T09:00:00Z"
    await agent.log_in()
    assert (await agent.judged())["evaluation"] == "pass"
    assert agent.offsets == [0, 0]
    await agent.reaches("trusted")


async def test_so_does_one_that_lost_power(site: Site) -> None:
    # trust: clock-and-reset
    agent = await measured(site, *TOOLS[:3])
    assert agent.kernel is not None
    await agent.log_in()
    assert (await agent.judged())["evaluation"] == "pass"
    agent.kernel.reboot()
    agent.kernel.measure(TOOLS[0])
    agent.node.clock = ClockInfo(10, agent.node.clock.reset_count, 0, safe=False)
    # The clock of the wall is as it was: the TPM alone tells that the machine was started again.
    await agent.log_in()
    assert (await agent.judged())["evaluation"] == "pass"
    assert agent.offsets == [0, 0]
    await agent.reaches("trusted")


@pytest.mark.parametrize(
    "boot_time", ["2025-12-31T00:00:00Z", "2026-01-05T08:00:01+00:00", "2099-01-01T00:00:00+02:00"]
)
async def test_a_wall_clock_that_was_set_costs_a_full_replay_and_nothing_else(site: Site, boot_time: str) -> None:
    agent = await measured(site, *TOOLS[:3])
    await agent.log_in()
    assert (await agent.judged())["evaluation"] == "pass"
    agent.boot_time = boot_time
    assert (await agent.judged())["evaluation"] == "pass"
    assert agent.offsets == [0, 0]


async def test_a_clock_that_goes_back_without_reset_is_not_believed(site: Site) -> None:
    # trust: clock-and-reset
    agent = await enrolled(site)
    await agent.start()
    await agent.reaches("trusted")
    agent.node.clock = structs.replace(agent.node.clock, clock=1)
    assert (await agent.judged())["failure_reason"] == "broken_evidence_chain"
    await agent.reaches("distrusted")


# --- nodes that lie ---------------------------------------------------------------------------------------------------


async def test_evidence_of_an_earlier_round_is_worth_nothing(site: Site) -> None:
    # trust: fresh
    agent = await enrolled(site)
    await agent.log_in()
    location, requested = await agent.negotiate()
    old = agent.evidence(requested)
    agent.check_taken(await agent.send_evidence(location, old))
    await agent.reaches("trusted")
    location, _ = await agent.negotiate()
    agent.check_taken(await agent.send_evidence(location, old))
    seen = await agent.evaluated(location.rpartition("/")[2])
    assert (seen["evaluation"], seen["failure_reason"]) == ("fail", "broken_evidence_chain")
    await agent.reaches("distrusted")


async def test_another_machines_quote_is_worth_nothing(site: Site) -> None:
    # trust: bound-identity
    agent = await enrolled(site)
    await agent.log_in()
    liar = SoftNode.create("ecc256", number=9)
    location, requested = await agent.negotiate()
    agent.node = liar
    agent.check_taken(await agent.send_evidence(location, agent.evidence(requested)))
    assert (await agent.evaluated())["evaluation"] == "fail"
    await agent.reaches("distrusted")


async def test_a_node_that_failed_stays_failed_until_an_operator_speaks(site: Site) -> None:
    node = SoftNode.create("ecc256")
    policy = json.dumps({"23": ["00" * 32], "mask": "0x800000"})
    agent = await enrolled(site, node=node, tpm_policy=policy)
    node.extend(23, bytes(32))
    await agent.log_in()
    assert (await agent.judged())["failure_reason"] == "policy_violation"
    await agent.reaches("distrusted")
    node.pcrs[23] = bytes(32)
    assert (await agent.judged())["evaluation"] == "pass"
    assert (await agent.status())["attestation_status"] == "FAIL"
    assert (await site.ask("PUT", f"/v2.6/agents/{agent.agent_id}/reactivate")).status == 200
    assert (await agent.status())["attestation_status"] == "PENDING"
    assert (await agent.judged())["evaluation"] == "pass"
    await agent.reaches("trusted")


async def test_a_node_recovers_by_itself_where_that_is_wanted(tmp_path: Path, authority: Authority) -> None:
    async with running_verifier(tmp_path, authority, **PUSH, auto_recover_attestation_failures=True) as site:
        node = SoftNode.create("ecc256")
        policy = json.dumps({"23": ["00" * 32], "mask": "0x800000"})
        agent = await enrolled(site, node=node, tpm_policy=policy)
        node.extend(23, bytes(32))
        await agent.log_in()
        assert (await agent.judged())["evaluation"] == "fail"
        await agent.reaches("distrusted")
        node.pcrs[23] = bytes(32)
        assert (await agent.judged())["evaluation"] == "pass"
        await agent.reaches("trusted")


async def test_a_stopped_node_is_not_heard(site: Site) -> None:
    agent = await enrolled(site)
    await agent.log_in()
    location, requested = await agent.negotiate()
    assert (await site.ask("PUT", f"/v2.6/agents/{agent.agent_id}/stop")).status == 200
    for answer in (await agent.send_offer(), await agent.send_evidence(location, agent.evidence(requested))):
        assert (answer.status, answer.json["errors"][0]["code"]) == (403, "agent_attestations_disabled")
    assert (await agent.status())["operational_state"] == 10


async def test_a_challenge_from_before_a_reactivation_counts_no_more(site: Site) -> None:
    # trust: fresh
    agent = await enrolled(site)
    await agent.log_in()
    location, requested = await agent.negotiate()
    assert (await site.ask("PUT", f"/v2.6/agents/{agent.agent_id}/reactivate")).status == 200
    answer = await agent.send_evidence(location, agent.evidence(requested))
    assert (answer.status, answer.json["errors"][0]["code"]) == (403, "challenges_expired")


# --- time -------------------------------------------------------------------------------------------------------------


async def test_a_node_that_falls_silent_is_not_green_and_is_told_of(tmp_path: Path, authority: Authority) -> None:
    # trust: green-is-recent
    changed = {**PUSH, "trust_lifetime": 0.4, "enabled_revocation_notifications": ("agent",)}
    async with running_verifier(tmp_path, authority, **changed) as site:
        listener = await site.add_agent("listener")
        await site.enrol(listener)
        agent = await enrolled(site)
        await agent.start()
        await agent.reaches("trusted")
        view = await agent.reaches("unreachable")
        assert [one["event_id"] for one in view["findings"]] == ["internal.verifier.not_reachable"]
        assert (await agent.status())["attestation_status"] == "TIMEOUT"
        for _ in range(500):
            if listener.notices:
                break
            await site.view(listener)
        message = json.loads(listener.notices[0]["msg"])
        assert (message["type"], message["agent_id"], message["ip"]) == ("comm_error", agent.agent_id, None)
        assert (await agent.judged())["evaluation"] == "pass"
        view = await agent.reaches("trusted")
        assert view["findings"] == []


async def test_the_deadline_holds_over_a_restart(tmp_path: Path, authority: Authority) -> None:
    # trust: green-is-recent
    changed = {**PUSH, "trust_lifetime": 1.0}
    async with running_verifier(tmp_path, authority, **changed) as site:
        agent = await enrolled(site)
        await agent.start()
        await agent.reaches("trusted")
        await site.verifier.writer.flush() if site.verifier.writer else None
    async with running_verifier(tmp_path, authority, **changed) as site:
        agent.site, agent.tls = site, None
        await agent.reaches("unreachable")
        assert (await agent.judged())["evaluation"] == "pass"
        await agent.reaches("trusted")


async def test_whoever_comes_too_early_hears_when_to_come(tmp_path: Path, authority: Authority) -> None:
    async with running_verifier(tmp_path, authority, **{**PUSH, "quote_interval": 30.0}) as site:
        agent = await enrolled(site)
        taken = await agent.start()
        assert taken["meta"]["seconds_to_next_attestation"] == 30
        await agent.reaches("trusted")
        answer = await agent.send_offer()
        assert (answer.status, answer.json["errors"][0]["code"]) == (429, "premature_attestation")
        assert 28 <= int(answer.headers["Retry-After"]) <= 30
        assert f"Wait {answer.headers['Retry-After']} seconds" in answer.json["errors"][0]["detail"]


async def test_late_evidence_is_refused(tmp_path: Path, authority: Authority) -> None:
    # trust: fresh
    async with running_verifier(tmp_path, authority, **PUSH, challenge_lifetime=0.0) as site:
        agent = await enrolled(site)
        await agent.log_in()
        location, requested = await agent.negotiate()
        answer = await agent.send_evidence(location, agent.evidence(requested))
        assert (answer.status, answer.json["errors"][0]["code"]) == (403, "challenges_expired")


# --- repetitions, restarts --------------------------------------------------------------------------------------------


async def test_evidence_whose_answer_was_lost_may_be_sent_again_but_no_other(site: Site) -> None:
    agent = await enrolled(site)
    await agent.log_in()
    location, requested = await agent.negotiate()
    evidence = agent.evidence(requested)
    first = agent.check_taken(await agent.send_evidence(location, evidence))
    again = agent.check_taken(await agent.send_evidence(location, evidence))
    assert again == first
    await agent.reaches("trusted")
    assert agent.check_taken(await agent.send_evidence(location, evidence)) == first
    answer = await agent.send_evidence(location, agent.evidence(requested))
    assert (answer.status, answer.json["errors"][0]["code"]) == (403, "evidence_immutable")
    assert (await agent.status())["attestation_count"] == 1


async def test_a_restart_between_offer_and_evidence_makes_the_agent_begin_again(
    tmp_path: Path, authority: Authority
) -> None:
    async with running_verifier(tmp_path, authority, **PUSH) as site:
        agent = await enrolled(site)
        await agent.log_in()
        location, requested = await agent.negotiate()
    async with running_verifier(tmp_path, authority, **PUSH) as site:
        agent.site, agent.tls = site, None
        answer = await agent.send_evidence(location, agent.evidence(requested))
        assert (answer.status, answer.json["errors"][0]["code"]) == (404, "not_found")
        assert (await agent.judged())["evaluation"] == "pass"  # with the token from before
        await agent.reaches("trusted")


async def test_no_number_is_given_twice(tmp_path: Path, authority: Authority) -> None:
    numbers: list[int] = []
    agent: PushAgent | None = None
    for _ in range(3):
        async with running_verifier(tmp_path, authority, **PUSH) as site:
            if agent is None:
                agent = await enrolled(site)
                await agent.log_in()
            agent.site, agent.tls = site, None
            for _ in range(3):
                location, _ = await agent.negotiate()
                numbers.append(int(location.rpartition("/")[2]))
    assert numbers[0] == 0
    assert len(set(numbers)) == len(numbers)
    assert numbers == sorted(numbers)


async def test_what_is_kept_of_attestations(site: Site) -> None:
    node = SoftNode.create("ecc256")
    policy = json.dumps({"23": ["00" * 32], "mask": "0x800000"})
    agent = await enrolled(site, node=node, tpm_policy=policy)
    listed = await site.ask("GET", agent.path)
    assert (listed.status, listed.json["data"]) == (200, [])
    assert (await site.ask("GET", f"{agent.path}/latest")).status == 404
    await agent.log_in()
    for _ in range(4):
        assert (await agent.judged())["evaluation"] == "pass"
    node.extend(23, bytes(32))
    assert (await agent.judged())["evaluation"] == "fail"
    location, _ = await agent.negotiate()
    answer = (await site.ask("GET", agent.path)).json
    shown = [(one["id"], one["attributes"]["evaluation"]) for one in answer["data"]]
    assert shown == [("0", "pass"), ("3", "pass"), ("4", "fail"), ("5", "pending")]
    assert answer["data"][3]["links"]["self"] == location
    one = (await site.ask("GET", f"{agent.path}/4")).json["data"]["attributes"]
    quote = one["evidence"][0]
    assert quote["data"]["meta"]["pcrs"]["sha256"]["23"] == "0x" + node.pcrs[23].hex()
    assert quote["data"]["meta"]["clock_info"]["safe"] == 1
    assert b64decode(quote["data"]["message"])[:4] == b"\xff\x54\x43\x47"


async def test_a_deleted_node_leaves_nothing_behind(site: Site) -> None:
    agent = await enrolled(site)
    await agent.start()
    await agent.reaches("trusted")
    assert (await site.ask("DELETE", f"/v2.6/agents/{agent.agent_id}")).status == 200
    refused = await agent.send_offer()
    assert (refused.status, refused.json["errors"][0]["detail"]) == (401, "Invalid authentication token")
    again = await enrolled(site, node=agent.node)
    assert (await site.ask("GET", again.path)).json["data"] == []
    # trust: enrolment-order
    assert (await agent.send_offer()).status == 401
    location = (await again.start())["links"]["self"]
    assert location.endswith("/0")


# --- faults of our own ------------------------------------------------------------------------------------------------


async def test_a_fault_of_the_verifier_is_no_verdict_and_the_next_round_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # trust: fail-closed
    agent = await enrolled(site)
    await agent.log_in()

    def broken(*_arguments: object) -> Any:
        raise RuntimeError("injected")

    assert site.verifier._attesting is not None
    monkeypatch.setattr(site.verifier._attesting.rounds, "_judge", broken)
    location = (await agent.attest())["links"]["self"]
    await asyncio.sleep(0.05)
    shown = (await site.ask("GET", location)).json["data"]["attributes"]
    assert (shown["stage"], shown["evaluation"]) == ("evaluating_evidence", "pending")
    view = await agent.view()
    assert (view["condition"], view["attestation_count"], view["findings"]) == ("pending", 0, [])
    monkeypatch.undo()
    assert (await agent.judged())["evaluation"] == "pass"
    await agent.reaches("trusted")


@pytest.mark.parametrize("step", ["add", "get", "activate"])
async def test_a_database_that_is_away_gives_out_no_token(
    site: Site, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    # trust: fail-closed
    agent = await enrolled(site)

    async def away(*_arguments: object, **_named: object) -> Any:
        raise StoreUnavailable("injected")

    with monkeypatch.context() as patched:
        patched.setattr(SessionRows, step, away)
        with pytest.raises(AssertionError, match="503"):
            await agent.log_in()
        assert agent.token == ""
    assert await agent.log_in()


async def test_known_tokens_and_rounds_outlive_an_outage_and_trust_waits_for_the_commit(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # trust: fail-closed
    agent = await enrolled(site)
    await agent.log_in()

    async def away(*_arguments: object, **_named: object) -> Any:
        raise StoreUnavailable("injected")

    with monkeypatch.context() as patched:
        patched.setattr(Nodes, "save_rounds", away)
        await agent.attest()
        await asyncio.sleep(0.3)
        assert (await agent.view())["condition"] == "pending"  # nobody hears of trust that the database does not hold
        assert (await agent.status())["attestation_status"] == "PENDING"
    await agent.reaches("trusted")


async def test_an_evidence_that_fails_is_told_to_those_who_listen(tmp_path: Path, authority: Authority) -> None:
    async with running_verifier(tmp_path, authority, **PUSH, enabled_revocation_notifications=("agent",)) as site:
        listener = await site.add_agent("listener")
        await site.enrol(listener)
        agent = await measured(site, TOOLS[0])
        assert agent.kernel is not None
        agent.kernel.measure("/tmp/evil")
        await agent.log_in()
        assert (await agent.judged())["evaluation"] == "fail"
        for _ in range(300):
            if listener.notices:
                break
            await asyncio.sleep(0.02)
        message = json.loads(listener.notices[0]["msg"])
        assert (message["type"], message["agent_id"]) == ("revocation", agent.agent_id)
        assert message["event_id"] == "ima.validation.ima-ng.not_in_allowlist"


async def test_a_long_list_is_judged_beside_the_loop(site: Site) -> None:
    names = tuple(f"/usr/lib/something/{number}" for number in range(4_000))
    node = SoftNode.create("ecc256")
    agent = await enrolled(site, node=node, runtime_policy=encoded(policy_for(*names)), **WITH_IMA)
    agent.kernel = SoftKernel(node)
    for name in names:
        agent.kernel.measure(name)
    await agent.log_in()
    assert (await agent.judged())["evaluation"] == "pass"
    assert (await agent.judged())["evaluation"] == "pass"
    assert agent.offsets == [0, 4_000]
    listed = (await site.ask("GET", f"{agent.path}/0")).json["data"]["attributes"]["evidence"][1]
    assert listed["data"] == {"entries": None, "entry_count": None}  # too long to be kept


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/vnd.api+json2"])
async def test_attestations_are_taken_in_their_own_media_type_alone(site: Site, content_type: str) -> None:
    agent = await enrolled(site)
    await agent.log_in()
    location, requested = await agent.negotiate()
    for answer in (
        await agent.ask("POST", agent.path, agent.offer(), Content_Type=content_type),
        await agent.ask("PATCH", location, agent.evidence(requested), Content_Type=content_type),
    ):
        assert (answer.status, answer.text) == (415, "")
    parameters = "application/vnd.api+json; charset=utf-8"
    taken = await agent.ask("PATCH", location, agent.evidence(requested), Content_Type=parameters)
    assert taken.status == 202


async def test_refusals_point_to_what_is_wrong_and_evidence_may_be_sent_again(site: Site) -> None:
    agent = await enrolled(site)
    await agent.log_in()
    offer = agent.offer()
    del offer["data"]["attributes"]["evidence_supported"][0]
    answer = await agent.ask("POST", agent.path, offer)
    assert answer.status == 422
    assert answer.json == {
        "errors": [
            {
                "status": "422",
                "code": "invalid_resource_data",
                "detail": "Attribute 'evidence' must contain a certification item of type 'tpm_quote' "
                "per agent policy.",
                "source": {"pointer": "/data/attributes/evidence"},
            }
        ],
        "links": {"self": agent.path},
        "jsonapi": {"version": "1.1"},
    }
    location, requested = await agent.negotiate()
    bad = agent.evidence(requested)
    bad["data"]["attributes"]["evidence_collected"] = []
    assert (await agent.send_evidence(location, bad)).status == 422
    cannot = {"data": {"type": "error", "attributes": {"evidence_collected": []}}}
    answer = await agent.send_evidence(location, cannot)
    assert (answer.status, answer.json["errors"][0]["code"]) == (400, "invalid_request")
    agent.check_taken(await agent.send_evidence(f"{agent.path}/latest", agent.evidence(requested)))
    await agent.reaches("trusted")
    newer, _ = await agent.negotiate()
    answer = await agent.send_evidence(location, bad)
    assert (answer.status, answer.json["errors"][0]["code"]) == (403, "old_attestation")
    for path in (f"{agent.path}/{int(newer.rpartition('/')[2]) + 1}", f"{agent.path}/x"):
        answer = await agent.send_evidence(path, bad)
        assert (answer.status, answer.json["errors"][0]["code"]) == (404, "not_found")
