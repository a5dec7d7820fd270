"""The push model across implementations: our agent with Keylime's verifier, Keylime's tenant with ours."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.keylime_peer import LOGGING, Ended
from tests.fakes.mixed_site import MixedSite
from tests.fakes.peer import peer_program
from tests.fakes.push_node import ACCEPTED, RSA, PushNode
from tests.fakes.site import KEYLIME_TENANT
from tests.fakes.soft_ima import policy_for
from tests.peer.test_tenant import said

from limeguard.cli.sandbox import wait_until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

UNTOUCHED = "00" * 32
TOOLS = tuple(f"/usr/bin/tool{number}" for number in range(5))
INTERVAL = "2"


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


class PushSite(MixedSite):
    """A site whose programs log in the layout that scripts read."""

    def environment(self) -> dict[str, str]:
        made = super().environment()
        Path(made["KEYLIME_LOGGING_CONFIG"]).write_text(LOGGING)
        return made


@pytest.fixture(scope="module", params=["keylime", "limeguard"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MixedSite]:
    """Keylime's registrar and tenant, with Keylime's verifier or with ours."""
    with PushSite(tmp_path_factory.mktemp("push"), request.param, "keylime", "keylime") as running:
        running.options["verifier"] = {"mode": "push", "quote_interval": INTERVAL}
        running.start_servers()
        yield running


def comes_to(site: MixedSite, node: PushNode, status: str, *, rounds: int = 0, seconds: float = 40) -> dict[str, Any]:
    """Wait for an attestation status, and return what the tenant shows."""
    seen: dict[str, Any] = {}

    def look() -> bool:
        seen.clear()
        seen.update(site.status(node) or {})
        return seen.get("attestation_status") == status and seen["attestation_count"] >= rounds

    try:
        wait_until(f"{node.id} to be {status}", seconds, look)
    except Exception as problem:
        raise AssertionError(f"{problem}\nlast seen: {seen}\n{site.ends_of_logs()}") from problem
    return dict(seen)


def started(site: MixedSite, **options: object) -> PushNode:
    node = PushNode(site, site.add_tpm(), {**RSA, **options})
    assert node.kernel is not None
    for name in TOOLS:
        node.kernel.measure(name, digest(name))
    node.start()
    return node


def policy_file(folder: Path, *names: str) -> str:
    path = folder / "policy.json"
    # Their verifier asks for no list where the policy does not name a tool that made it.
    path.write_text(json.dumps({**policy_for(*TOOLS, *names), "meta": {"version": 1, "generator": 2}}))
    return str(path)


def test_our_agent_attests_to_either_verifier_and_a_changed_pcr_fails(site: MixedSite) -> None:
    node = started(site)
    site.run_tenant("-c", "add", "-u", node.id, "--push-model", "--tpm_policy", json.dumps({"23": [UNTOUCHED]}))
    comes_to(site, node, "PASS", rounds=2)
    node.tpm.extend(23, hashlib.sha256(b"changed").digest())
    comes_to(site, node, "FAIL")
    site.run_tenant("-c", "delete", "-u", node.id)
    node.stop()


def test_our_list_is_sent_piece_by_piece_and_an_unlisted_file_fails(site: MixedSite, tmp_path: Path) -> None:
    node = started(site)
    policy = policy_file(tmp_path, "/usr/bin/later")
    site.run_tenant("-c", "add", "-u", node.id, "--push-model", "--runtime-policy", policy)
    seen = comes_to(site, node, "PASS", rounds=2)
    assert node.kernel is not None
    node.kernel.measure("/usr/bin/later", digest("/usr/bin/later"))
    seen = comes_to(site, node, "PASS", rounds=seen["attestation_count"] + 2)
    node.kernel.measure("/opt/evil", digest("/opt/evil"))
    comes_to(site, node, "FAIL")
    site.run_tenant("-c", "delete", "-u", node.id)
    node.stop()


def test_a_list_with_a_forged_line_fails(site: MixedSite, tmp_path: Path) -> None:
    node = started(site)
    site.run_tenant("-c", "add", "-u", node.id, "--push-model", "--runtime-policy", policy_file(tmp_path))
    comes_to(site, node, "PASS", rounds=1)
    # PCR 10 is extended for a file that the list does not name.
    node.tpm.extend(10, hashlib.sha256(b"hidden").digest())
    comes_to(site, node, "FAIL")
    site.run_tenant("-c", "delete", "-u", node.id)
    node.stop()


def test_a_node_that_is_not_enrolled_is_told_so_and_attests_once_it_is(site: MixedSite) -> None:
    node = started(site)
    node.says("Authentication failed with evaluation: fail", 3)
    site.run_tenant("-c", "add", "-u", node.id, "--push-model", "--tpm_policy", json.dumps({"23": [UNTOUCHED]}))
    node.says(ACCEPTED, 2)
    comes_to(site, node, "PASS", rounds=1)
    site.run_tenant("-c", "delete", "-u", node.id)
    node.stop()


# --- the tenants, side by side ----------------------------------------------------------------------------------------


def told(site: MixedSite, program: str, *arguments: str) -> tuple[int, list[str]]:
    """Run one of the tenants; return its status, and what it said without what changes from run to run."""
    done = site.tenant(*arguments, program=[program])
    lines = said(Ended(done.returncode, done.stdout, done.stderr))
    lines = [re.sub(r'"(TIMEOUT|PASS|PENDING)"', '"A"', line) for line in lines]
    # They name the address of a node that has none in their records, and say which of its versions they do not know.
    lines = [re.sub(r"(INFO Agent [\w-]+) \([\d.:]+\) added", r"\1 added", line) for line in lines]
    return done.returncode, [line for line in lines if "Could not detect supported API version" not in line]


def test_both_tenants_tell_a_push_nodes_life_alike(site: MixedSite, tmp_path: Path) -> None:
    node = started(site)
    policy = ["--tpm_policy", json.dumps({"23": [UNTOUCHED]})]
    steps = [
        ["add", *policy],
        ["add", *policy],
        ["cvstatus"],
        ["status"],
        ["bulkinfo"],
        ["cvlist"],
        ["reactivate"],
        ["update", *policy, "--runtime-policy", policy_file(tmp_path)],
        ["delete"],
        ["cvstatus"],
        ["delete"],
    ]
    heard = {
        program: [told(site, program, "-c", command, "--push-model", "-u", node.id, *more) for command, *more in steps]
        for program in (str(peer_program("keylime_tenant")), KEYLIME_TENANT)
    }
    theirs, ours = heard.values()
    for number, step in enumerate(steps):
        assert ours[number] == theirs[number], step
    assert [status for status, _ in ours] == [0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0]
    node.stop()
