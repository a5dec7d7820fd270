"""Measured boot over real connections: a boot log beside its quote, its policy as an object, ways to lie."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.pki import Authority
from tests.fakes.soft_agent import SoftAgent
from tests.fakes.soft_boot import SoftFirmware
from tests.fakes.verifier_site import Site, running_verifier

from limeguard.evidence.bootlog.event_types import EV_SEPARATOR
from limeguard.evidence.bootlog.log import BootLog, parse_boot_log
from limeguard.wire.agent_v2 import MAX_BOOT_LOG

pytestmark = pytest.mark.services

ACCEPTED = '{"any": "reference state"}'
FORBIDDING = (
    '{"scrtm_and_bios": [], "pk": [], "kek": [], "db": [], "dbx": [], "mokdig": [], "mokxdig": [], "kernels": []}'
)
"""A reference state that lists no kernel, so that no boot satisfies it."""


async def booted(site: Site, **changes: Any) -> tuple[SoftAgent, SoftFirmware]:
    """Enrol a node that was started, under a policy that takes every log which leads to the quoted PCRs."""
    agent = await site.add_agent()
    firmware = SoftFirmware(agent.node)
    firmware.boot("linux /vmlinuz")
    agent.alter = firmware.alter
    await site.enrol(agent, **{"mb_policy": ACCEPTED, **changes})
    return agent, firmware


async def test_a_node_whose_log_leads_to_its_pcrs_is_trusted(site: Site) -> None:
    agent, _ = await booted(site)
    view = await site.reaches(agent, "trusted", rounds=2)
    assert {"boot-log"} <= set(view["checks"]["required"]) & set(view["checks"]["ran"])
    assert not view["identity_only"]
    assert (await site.status(agent))["has_mb_refstate"] == 1


async def test_an_empty_policy_asks_for_nothing(site: Site) -> None:
    agent, firmware = await booted(site, mb_policy="{}")
    firmware.node.extend(11, bytes(32))
    view = await site.reaches(agent, "trusted", rounds=1)
    assert "boot-log" not in view["checks"]["required"]
    assert view["identity_only"]


Lie = Callable[[SoftFirmware], None]


def left_out(firmware: SoftFirmware) -> None:
    before = firmware.log
    firmware.measure(9, EV_SEPARATOR, b"evil")
    firmware.log = before


def invented(firmware: SoftFirmware) -> None:
    firmware.append(9, EV_SEPARATOR, b"good", bytes(32))


def cut(firmware: SoftFirmware) -> None:
    firmware.log = firmware.log[:-3]


def nothing(firmware: SoftFirmware) -> None:
    firmware.sent = b""


def no_base64(firmware: SoftFirmware) -> None:
    firmware.sent = "@@@"


def far_too_long(firmware: SoftFirmware) -> None:
    firmware.sent = "A" * (MAX_BOOT_LOG + 4)


def other_bank(firmware: SoftFirmware) -> None:
    firmware.log = bytes(4) + (7).to_bytes(4, "little") + bytes(20) + (16).to_bytes(4, "little") + bytes(16)


def behind_the_log(firmware: SoftFirmware) -> None:
    firmware.node.extend(12, b"\1" * 32)


@pytest.mark.parametrize(
    ("lie", "event"),
    [
        (left_out, "measured_boot.invalid_pcr_9"),
        (invented, "measured_boot.invalid_pcr_9"),
        (behind_the_log, "measured_boot.invalid_pcr_12"),
        (cut, "measured_boot.parser.tpm2_eventlog.error"),
        (no_base64, "measured_boot.parser.log.base64decode"),
        (far_too_long, "measured_boot.parser.log.base64decode"),
        (other_bank, "measured_boot.parser.invalid_pcrs_hashes"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_a_lie_about_the_boot_is_found(site: Site, lie: Lie, event: str) -> None:
    # trust: replayed-before-believed, fail-closed
    agent, firmware = await booted(site)
    await site.reaches(agent, "trusted", rounds=1)
    lie(firmware)
    assert site.event_ids(await site.reaches(agent, "distrusted")) == [event]
    assert (await site.status(agent))["last_event_id"] == event


async def test_the_log_says_which_pcr_parts_from_the_boot_log_as_test_suites_expect(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    agent, _ = await booted(site)
    before = agent.node.pcrs[0]
    agent.node.extend(0, bytes(32))
    await site.reaches(agent, "distrusted")
    told, quoted = before.hex(), agent.node.pcrs[0].hex()
    said = f"For PCR 0 and hash sha256 the boot event log has value '{told}' but the agent node-1 returned '{quoted}'"
    assert ("keylime.tpm", "ERROR", said) in [(one.name, one.levelname, one.getMessage()) for one in caplog.records]


@pytest.mark.parametrize("lie", [cut, no_base64], ids=lambda lie: lie.__name__)
async def test_a_log_that_cannot_be_read_is_found_where_no_policy_asks_for_it(site: Site, lie: Lie) -> None:
    # trust: fail-closed
    agent, firmware = await booted(site, mb_policy=None, tpm_policy='{"mask": "0x1"}')
    await site.reaches(agent, "trusted", rounds=1)
    lie(firmware)
    (event,) = site.event_ids(await site.reaches(agent, "distrusted"))
    assert event.startswith("measured_boot.parser.")


async def test_an_empty_log_is_none_where_no_policy_asks_for_one(site: Site) -> None:
    agent, firmware = await booted(site, mb_policy=None, tpm_policy='{"mask": "0x1"}')
    nothing(firmware)
    await site.reaches(agent, "trusted", rounds=1)


@pytest.mark.parametrize("empty", [True, False])
async def test_a_node_that_sends_no_log_is_not_trusted(site: Site, *, empty: bool) -> None:
    # trust: empty-is-not-valid
    agent, firmware = await booted(site)
    await site.reaches(agent, "trusted", rounds=1)
    if empty:
        nothing(firmware)
    else:
        agent.alter = lambda _request, results: results
    events = site.event_ids(await site.reaches(agent, "distrusted"))
    assert events == [f"pcr_validation.unused_pcr_{pcr}" for pcr in range(16) if pcr != 10]


async def test_reject_all_rejects_and_says_so(tmp_path: Path, authority: Authority) -> None:
    async with running_verifier(tmp_path, authority, measured_boot_policy_name="reject-all") as site:
        agent, _ = await booted(site)
        assert site.event_ids(await site.reaches(agent, "distrusted")) == ["measured_boot.policy_reject-all"]


@pytest.mark.parametrize("evaluate", ["once", "always"])
async def test_a_replaced_policy_judges_the_same_log_anew(tmp_path: Path, authority: Authority, evaluate: str) -> None:
    # trust: fail-closed - Keylime goes on with the first verdict under `once`
    changed = {"measured_boot_policy_name": "example", "measured_boot_evaluate": evaluate}
    async with running_verifier(tmp_path, authority, **changed) as site:
        assert (await site.ask("POST", "/v2.6/mbpolicies/fleet", {"mb_policy": "{}"})).status == 201
        agent, _ = await booted(site, mb_policy=None, mb_policy_name="fleet")
        await site.reaches(agent, "trusted", rounds=3)
        assert (await site.ask("PUT", "/v2.6/mbpolicies/fleet", {"mb_policy": FORBIDDING})).status == 201
        assert site.event_ids(await site.reaches(agent, "distrusted")) == ["measured_boot.policy_example"]
        assert (await site.ask("PUT", "/v2.6/mbpolicies/fleet", {"mb_policy": "{}"})).status == 201
        assert (await site.ask("PUT", f"/v2.6/agents/{agent.agent_id}/reactivate")).status == 200
        await site.reaches(agent, "trusted", rounds=1)


@pytest.mark.parametrize(("evaluate", "again"), [("once", False), ("always", True)])
async def test_an_unchanged_log_is_judged_once_or_always(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch, evaluate: str, again: bool
) -> None:
    parsed: list[int] = []

    def parse(data: bytes) -> BootLog:
        parsed.append(len(data))
        return parse_boot_log(data)

    monkeypatch.setattr("limeguard.appraisal.boot.parse_boot_log", parse)
    async with running_verifier(tmp_path, authority, measured_boot_evaluate=evaluate) as site:
        agent, firmware = await booted(site)
        view = await site.reaches(agent, "trusted", rounds=4)
        before = len(parsed)
        assert (before >= 4) if again else (before == 1)
        firmware.measure(9, EV_SEPARATOR, b"more")
        await site.reaches(agent, "trusted", rounds=view["attestation_count"] + 4)
        assert len(parsed) >= before + 4 if again else len(parsed) == 2


async def test_a_long_log_is_judged_beside_the_loop(site: Site) -> None:
    agent, _ = await booted(site, mb_policy=None)
    long = await site.add_agent("node-2")
    firmware = SoftFirmware(long.node)
    firmware.boot(*(f"menuentry {number:0500d}" for number in range(100)))
    long.alter = firmware.alter
    await site.enrol(long, mb_policy=ACCEPTED)
    await site.reaches(long, "trusted", rounds=2)
    firmware.measure(9, EV_SEPARATOR, b"more")
    rounds = (await site.view(long))["attestation_count"]
    await site.reaches(long, "trusted", rounds=rounds + 2)
    assert (await site.view(agent))["condition"] == "trusted"


async def test_a_reboot_into_another_system_is_judged_by_its_own_log(site: Site) -> None:
    # trust: clock-and-reset
    agent, firmware = await booted(site)
    await site.reaches(agent, "trusted", rounds=1)
    rounds = (await site.view(agent))["attestation_count"]
    firmware.node.reboot()
    fresh = SoftFirmware(agent.node)
    fresh.boot("linux /vmlinuz.new")
    agent.alter = fresh.alter
    await site.reaches(agent, "trusted", rounds=rounds + 3)
    agent.alter = firmware.alter  # the log of the boot before
    assert "measured_boot.invalid_pcr_8" in site.event_ids(await site.reaches(agent, "distrusted"))


async def test_policies_outlive_a_restart_of_the_verifier(tmp_path: Path, authority: Authority) -> None:
    # trust: upgrade
    async with running_verifier(tmp_path, authority) as site:
        agent, firmware = await booted(site)
        await site.reaches(agent, "trusted", rounds=1)
        port = agent.port
    async with running_verifier(tmp_path, authority) as site:
        await agent.start(port)
        rounds = (await site.view(agent))["attestation_count"]
        view = await site.reaches(agent, "trusted", rounds=rounds + 2)
        assert "boot-log" in view["checks"]["ran"]
        left_out(firmware)
        await site.reaches(agent, "distrusted")
        await agent.stop()


async def test_a_policy_that_is_gone_is_our_fault_and_no_trust(tmp_path: Path, authority: Authority) -> None:
    # trust: fail-closed
    async with running_verifier(tmp_path, authority) as site:
        agent, _ = await booted(site)
        await site.reaches(agent, "trusted", rounds=1)
        site.verifier._holdings._desk._boot_shelf._checksums.clear()
        rounds = (await site.view(agent))["attestation_count"]
        await asyncio.sleep(0.5)
        view = await site.view(agent)
        assert view["attestation_count"] <= rounds + 1
        assert view["findings"] == []
