"""Nodes that attest by themselves, over real connections: honest ones, ones that lie, and what everybody is told."""

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.pki import Authority
from tests.fakes.push_agent import PushAgent, enrolled
from tests.fakes.soft_ima import SoftKernel, policy_for
from tests.fakes.verifier_site import Site, running_verifier

from limeguard.simulator.softtpm import SoftNode

pytestmark = pytest.mark.services

TOOLS = tuple(f"/usr/bin/tool{number}" for number in range(5))


@pytest.fixture
async def site(tmp_path: Path, authority: Authority) -> AsyncIterator[Site]:
    async with running_verifier(tmp_path, authority, mode="push", quote_interval=0.0, trust_lifetime=60.0) as running:
        yield running


def encoded(document: object) -> str:
    return b64encode(json.dumps(document).encode()).decode()


async def view_of(site: Site, agent: PushAgent) -> dict[str, Any]:
    answer = await site.ask("GET", f"/limeguard/v1/nodes/{agent.agent_id}")
    assert answer.status == 200, answer.text
    return answer.json


async def status_of(site: Site, agent: PushAgent) -> dict[str, Any]:
    found: dict[str, Any] = (await site.ask("GET", f"/v2.6/agents/{agent.agent_id}")).json["results"]
    return found


async def reaches(site: Site, agent: PushAgent, condition: str) -> dict[str, Any]:
    for _ in range(500):
        view = await view_of(site, agent)
        if view["condition"] == condition:
            return view
        await asyncio.sleep(0.01)
    raise AssertionError(f"not {condition}: {view}")


@pytest.mark.parametrize(
    ("kind", "hash_name"),
    [("rsa2048", "sha256"), ("rsa3072", "sha384"), ("ecc256", "sha256"), ("ecc384", "sha384"), ("ecc521", "sha512")],
)
async def test_an_honest_node_is_trusted_with_and_without_policy(site: Site, kind: str, hash_name: str) -> None:
    agent = await enrolled(site, node=SoftNode.create(kind, hash_name))
    before = await status_of(site, agent)
    assert (before["operational_state"], before["attestation_status"]) == (3, "PENDING")
    assert (before["ip"], before["port"], before["hash_alg"]) == (None, None, "")
    taken = await agent.start()
    assert (await agent.evaluated())["evaluation"] == "pass"
    assert taken["meta"]["seconds_to_next_attestation"] == 0
    view = await reaches(site, agent, "trusted")
    assert view["identity_only"]
    assert view["push"]
    after = await status_of(site, agent)
    assert (after["operational_state"], after["attestation_status"], after["attestation_count"]) == (3, "PASS", 1)
    await agent.attest()
    assert (await agent.evaluated())["evaluation"] == "pass"


async def test_a_growing_measurement_list_is_read_on_and_a_bad_file_ends_trust(site: Site) -> None:
    node = SoftNode.create("rsa2048")
    agent = await enrolled(site, node=node, runtime_policy=encoded(policy_for(*TOOLS)), tpm_policy='{"mask": "0x400"}')
    agent.kernel = SoftKernel(node)
    agent.kernel.measure(TOOLS[0])
    await agent.start()
    assert (await agent.evaluated())["evaluation"] == "pass"
    agent.kernel.measure(TOOLS[1])
    await agent.attest()
    assert (await agent.evaluated())["evaluation"] == "pass"
    offsets = [
        one["attributes"]["evidence_requested"][1]["chosen_parameters"]["starting_offset"] for one in agent.asked
    ]
    assert offsets == [0, 1]
    assert not (await view_of(site, agent))["identity_only"]
    agent.kernel.measure("/tmp/evil")
    await agent.attest()
    seen = await agent.evaluated()
    assert (seen["evaluation"], seen["failure_reason"]) == ("fail", "policy_violation")
    view = await reaches(site, agent, "distrusted")
    assert [one["event_id"] for one in view["findings"]] == ["ima.validation.ima-ng.not_in_allowlist"]
    status = await status_of(site, agent)
    assert (status["attestation_status"], status["operational_state"]) == ("FAIL", 3)
