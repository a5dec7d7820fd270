"""Keylime's tenant with our verifier: measured boot policies as objects, and a node judged by one."""

import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.firmware import boot, vm_log
from tests.fakes.mixed_site import MixedSite
from tests.fakes.peer import peer_program
from tests.fakes.site import KEYLIME_TENANT

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MixedSite]:
    if shutil.which("swtpm") is None:
        pytest.skip("needs swtpm (Debian and Ubuntu: swtpm, swtpm-tools)")
    with MixedSite(tmp_path_factory.mktemp("boot"), "limeguard", "limeguard", "keylime") as running:
        running.start_servers()
        yield running


def test_stored_boot_policies_look_the_same_through_both_tenants(site: MixedSite, tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text('{"has_secureboot": false}')
    (tmp_path / "two.json").write_text("{}")
    (tmp_path / "none.json").write_text("[]")
    one, two, none = (("--mb-policy", str(tmp_path / f"{name}.json")) for name in ("one", "two", "none"))
    named = ("--mb-policy-name", "mypolicy")
    created, exists = "{'code': 201, 'status': 'Created', 'results': {}}", "already exists', 'results': {}}"
    absent = "{'code': 404, 'status': 'Measured boot policy mypolicy not found', 'results': {}}"
    shown = "{'code': 200, 'status': 'Success', 'results': {'name': 'mypolicy', 'mb_policy': '%s'}}"
    steps: list[tuple[tuple[str, ...], int, str]] = [
        (("listmbpolicy",), 0, "{'code': 200, 'status': 'Success', 'results': {'mbpolicy names': []}}"),
        (("addmbpolicy", *one, *named), 0, created),
        (
            ("addmbpolicy", *one, *named),
            1,
            f"{{'code': 409, 'status': 'Measured boot policy with name mypolicy {exists}",
        ),
        (("showmbpolicy", *named), 0, shown % '{"has_secureboot": false}'),
        (("updatembpolicy", *two, *named), 0, created),
        (("showmbpolicy", *named), 0, shown % "{}"),
        (("listmbpolicy",), 0, "{'code': 200, 'status': 'Success', 'results': {'mbpolicy names': ['mypolicy']}}"),
        (
            ("updatembpolicy", *none, *named),
            1,
            "{'code': 400, 'status': 'Measured boot policy cannot be used: the policy",
        ),
        (("deletembpolicy", *named), 0, "{}"),
        (("deletembpolicy", *named), 1, absent),
        (("showmbpolicy", *named), 1, absent),
    ]
    for arguments, status, said in steps:
        for program in (str(peer_program("keylime_tenant")), KEYLIME_TENANT):
            if (arguments[0], status) in {("addmbpolicy", 0), ("deletembpolicy", 0)} and program == KEYLIME_TENANT:
                continue  # done by the other one
            done = site.tenant("-c", *arguments, program=[program])
            text = done.stdout + done.stderr
            assert (done.returncode, said in text) == (status, True), f"{program} {arguments}: {text}"


def test_a_node_is_judged_by_a_policy_that_keylime_s_tenant_gives(site: MixedSite, tmp_path: Path) -> None:
    log, policy = tmp_path / "binary_bios_measurements", tmp_path / "policy.json"
    log.write_bytes(vm_log("grub-off"))
    policy.write_text(json.dumps({"has_secureboot": False}))
    node = site.add_node(str(uuid.uuid4()), None, measuredboot_ml_path=str(log))
    site.trust_tpm_maker()
    boot(node.tpm, log.read_bytes())
    node.start()
    refused = site.tenant(
        *("-c", "add", "-u", node.id, "--mb-policy-name", "non_existing_policy"),
        program=[str(peer_program("keylime_tenant"))],
    )
    said = '{"code": 404, "status": "Could not find mb_policy with name non_existing_policy!", "results": {}}'
    assert (refused.returncode, said in refused.stdout + refused.stderr) == (1, True)

    site.run_tenant("-c", "add", "-u", node.id, "--mb-policy", str(policy))
    assert site.comes_to(node, "Get Quote", rounds=3)["has_mb_refstate"] == 1
    site.run_tenant("-c", "update", "-u", node.id, "--mb-policy", str(policy))
    site.comes_to(node, "Get Quote", rounds=2)
    in_use = site.tenant("-c", "deletembpolicy", "--mb-policy-name", node.id)
    assert in_use.returncode == 1
    assert f"Can't delete mb_policy as it's currently in use by agent {node.id}" in in_use.stdout + in_use.stderr

    log.write_bytes(vm_log("direct"))
    record = site.comes_to(node, "Invalid Quote")
    assert record["last_event_id"].startswith("measured_boot.invalid_pcr_")
    site.run_tenant("-c", "delete", "-u", node.id)
    node.stop()
