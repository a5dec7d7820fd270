"""Device-mapper policies over real connections: what is known of a device outlives the verifier, not the policy."""

from pathlib import Path
from typing import Any

import pytest
from tests.appraisal.ima.test_devices import DEVICE, LOAD, resume
from tests.fakes.pki import Authority
from tests.fakes.soft_ima import SoftKernel, policy_for
from tests.fakes.verifier_site import running_verifier
from tests.policy.test_device_mapper import RULE
from tests.verifier.test_runtime import encoded

from limeguard.policy.runtime import empty_policy_document

pytestmark = pytest.mark.services

CLEAR = f"dm_version=4.45.0;{DEVICE}inactive_table_hash=sha256:00;current_device_capacity=8;"


def policy(*, clear: bool) -> str:
    """Return a policy whose one device may or may not be cleared, ready for upload."""
    rule = {**RULE, "allow_clear": clear}
    ima = empty_policy_document()["ima"]
    ima["dm_policy"] = {"version": 1, "match_on": "name", "rules": {"root": rule}}
    return encoded(policy_for(ima=ima))


# trust: restart
async def test_events_are_followed_over_a_restart_and_a_change_of_policy(tmp_path: Path, authority: Authority) -> None:
    async with running_verifier(tmp_path, authority) as site:
        agent = await site.add_agent()
        kernel = SoftKernel(agent.node)
        agent.alter = kernel.alter
        kernel.load_key("dm_table_load", LOAD.encode())  # any entry of ima-buf: a name, and bytes with their digest
        kernel.load_key("dm_device_resume", resume().encode())
        enrolment: dict[str, Any] = {"runtime_policy": policy(clear=False), "runtime_policy_name": "disks"}
        await site.enrol(agent, tpm_policy='{"mask": "0x400"}', **enrolment)
        await site.reaches(agent, "trusted", rounds=2)
        port, asked = agent.port, len(kernel.asked)
        await agent.stop()
    async with running_verifier(tmp_path, authority) as site:
        await agent.start(port)
        await site.reaches(agent, "trusted", rounds=3)
        assert all(entry > 0 for entry in kernel.asked[asked:])
        asked = len(kernel.asked)
        update = {"runtime_policy": policy(clear=True)}
        assert (await site.ask("PUT", "/v2.6/allowlists/disks", update)).status == 201
        kernel.load_key("dm_table_clear", CLEAR.encode())
        rounds = (await site.view(agent))["attestation_count"]
        assert (await site.reaches(agent, "trusted", rounds=rounds + 3))["findings"] == []
        assert 0 in kernel.asked[asked:]  # another device policy has to see every event of this boot
        kernel.load_key("dm_table_load", LOAD.encode())
        view = await site.reaches(agent, "distrusted")
        assert site.event_ids(view) == ["ima.validation.dm.dm_table_load.multiple_table_loads"]
        assert view["findings"][0]["context"]["device"] == "test"
        await agent.stop()
