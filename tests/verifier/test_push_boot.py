"""Measured boot of nodes that attest by themselves: the same logs, policies and lies as of nodes that are polled."""

import asyncio
import hashlib
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.pki import Authority
from tests.fakes.push_agent import PushAgent, enrolled
from tests.fakes.shared import shared_path
from tests.fakes.soft_boot import SoftFirmware
from tests.fakes.soft_ima import SoftKernel, policy_for
from tests.fakes.verifier_site import Site, running_verifier

from limeguard.crypto.hashes import SHA256
from limeguard.evidence.bootlog.event_types import EV_SEPARATOR
from limeguard.evidence.bootlog.log import parse_boot_log
from limeguard.evidence.bootlog.replay import replay
from limeguard.simulator.softtpm import SoftNode

pytestmark = pytest.mark.services

PUSH = {"mode": "push", "quote_interval": 0.0, "trust_lifetime": 60.0}
ACCEPTED = '{"any": "reference state"}'


@pytest.fixture
async def site(tmp_path: Path, authority: Authority) -> AsyncIterator[Site]:
    async with running_verifier(tmp_path, authority, **PUSH) as running:
        yield running


async def booted(site: Site, **changes: Any) -> tuple[PushAgent, SoftFirmware]:
    """Enrol a node that was started, under a policy that takes every log which leads to the quoted PCRs."""
    node = SoftNode.create("ecc256")
    firmware = SoftFirmware(node)
    firmware.boot("linux /vmlinuz")
    agent = await enrolled(site, node=node, **{"mb_policy": ACCEPTED, **changes})
    agent.boot_log = firmware.log
    return agent, firmware


def asked(agent: PushAgent) -> list[str]:
    """Return what the latest negotiation asked for."""
    return [one["evidence_type"] for one in agent.asked[-1]["attributes"]["evidence_requested"]]


def event_ids(view: dict[str, list[dict[str, str]]]) -> list[str]:
    return [one["event_id"] for one in view["findings"]]


async def test_the_log_of_a_real_machine_is_judged_and_explains_its_boot_aggregate(site: Site) -> None:
    log = shared_path("fixtures/vm/grub-off-imang/uefi.bin").read_bytes()
    node = SoftNode.create("ecc256")
    for pcr, value in replay(parse_boot_log(log), SHA256).items():
        node.pcrs[pcr] = value
    tools = encoded(policy_for("/usr/bin/tool"))
    agent = await enrolled(site, node=node, mb_policy=ACCEPTED, runtime_policy=tools, tpm_policy='{"mask": "0x400"}')
    agent.boot_log, agent.kernel = log, SoftKernel(node)
    aggregate = hashlib.sha256(b"".join(node.pcrs[pcr] for pcr in range(10))).hexdigest()
    agent.kernel.measure("boot_aggregate", aggregate)  # which no policy lists
    agent.kernel.measure("/usr/bin/tool")
    await agent.log_in()
    assert (await agent.judged())["evaluation"] == "pass"
    assert asked(agent) == ["tpm_quote", "uefi_log", "ima_log"]
    quoted = agent.asked[-1]["attributes"]["evidence_requested"][0]["chosen_parameters"]["selected_subjects"]
    assert quoted == {"sha256": list(range(16))}
    view = await agent.reaches("trusted")
    assert {"boot-log", "ima-log"} <= set(view["checks"]["required"]) & set(view["checks"]["ran"])
    assert not view["identity_only"]
    assert (await agent.judged())["evaluation"] == "pass"  # by the verdict that is remembered


Lie = Callable[[PushAgent, SoftFirmware], None]


def left_out(agent: PushAgent, firmware: SoftFirmware) -> None:
    firmware.measure(9, EV_SEPARATOR, b"evil")
    del agent


def cut(agent: PushAgent, firmware: SoftFirmware) -> None:
    agent.boot_log = firmware.log[:-3]


def nothing(agent: PushAgent, firmware: SoftFirmware) -> None:
    agent.boot_log = b""
    del firmware


@pytest.mark.parametrize(
    ("lie", "events", "reason"),
    [
        (left_out, ["measured_boot.invalid_pcr_9"], "broken_evidence_chain"),
        (cut, ["measured_boot.parser.tpm2_eventlog.error"], "policy_violation"),
        (nothing, [f"pcr_validation.unused_pcr_{pcr}" for pcr in range(16) if pcr != 10], "policy_violation"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_lie_about_the_boot_is_found(site: Site, lie: Lie, events: list[str], reason: str) -> None:
    # trust: replayed-before-believed, empty-is-not-valid, fail-closed
    agent, firmware = await booted(site)
    await agent.log_in()
    assert (await agent.judged())["evaluation"] == "pass"
    lie(agent, firmware)
    judged = await agent.judged()
    assert (judged["evaluation"], judged["failure_reason"]) == ("fail", reason)
    assert event_ids(await agent.reaches("distrusted")) == events


async def test_a_policy_that_is_gone_is_our_fault_and_no_trust(site: Site) -> None:
    # trust: fail-closed
    agent, _ = await booted(site)
    site.verifier._holdings._desk._boot_shelf._checksums.clear()
    await agent.start()
    assert "uefi_log" in asked(agent)
    await asyncio.sleep(0.2)
    view = await agent.view()
    assert (view["condition"], view["attestation_count"], view["findings"]) == ("pending", 0, [])
    assert site.verifier.engine is not None
    assert site.verifier.engine.fleet.counters.faults == 1


async def test_a_policy_that_asks_for_more_since_the_offer_is_no_verdict(site: Site) -> None:
    # trust: fail-closed
    assert (await site.ask("POST", "/v2.6/mbpolicies/fleet", {"mb_policy": "{}"})).status == 201
    agent, _ = await booted(site, mb_policy=None, mb_policy_name="fleet")
    await agent.log_in()
    location, requested = await agent.negotiate()
    assert asked(agent) == ["tpm_quote"]
    assert (await site.ask("PUT", "/v2.6/mbpolicies/fleet", {"mb_policy": ACCEPTED})).status == 201
    agent.check_taken(await agent.send_evidence(location, agent.evidence(requested)))
    await asyncio.sleep(0.2)
    view = await agent.view()
    assert (view["condition"], view["findings"]) == ("pending", [])
    assert (await agent.judged())["evaluation"] == "pass"
    assert asked(agent) == ["tpm_quote", "uefi_log"]
    assert "boot-log" in (await agent.reaches("trusted"))["checks"]["ran"]


async def test_a_node_that_offers_no_boot_log_is_told_that_it_must(site: Site) -> None:
    agent, _ = await booted(site)
    await agent.log_in()
    document = agent.offer()
    evidence = document["data"]["attributes"]["evidence_supported"]
    document["data"]["attributes"]["evidence_supported"] = [
        one for one in evidence if one["evidence_type"] != "uefi_log"
    ]
    answer = await agent.ask("POST", agent.path, document)
    assert answer.status == 422
    assert "must contain a log item of type 'uefi_log'" in answer.text


def encoded(document: object) -> str:
    return b64encode(json.dumps(document).encode()).decode()
