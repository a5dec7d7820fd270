"""The push model with our own programs: nodes that call the verifier, change, lie, start again and come back."""

import asyncio
import hashlib
import json
import re
import ssl
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.push_node import ACCEPTED, ECC, RSA, PushNode
from tests.fakes.push_puppet import Puppet
from tests.fakes.site import Site, last_json
from tests.fakes.soft_ima import policy_for

from limeguard.cli.kernel import Kernel
from limeguard.clients.verifier_push import Refused, Session

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-push")]

UNTOUCHED = "00" * 32
POLICY = json.dumps({"23": [UNTOUCHED]})
CHANGE = hashlib.sha256(b"changed").digest()
CHANGED = hashlib.sha256(bytes(32) + CHANGE).hexdigest()
TOOLS = tuple(f"/usr/bin/tool{number}" for number in range(6))
NOT_LISTED = "ima.validation.ima-ng.not_in_allowlist"
CHALLENGE_SECONDS = 4
TOKEN = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.[A-Za-z0-9_-]{43}")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    pytest.importorskip("tpm2_pytss", reason="needs the extra `agent` (tpm2-pytss)")
    with Site(tmp_path_factory.mktemp("push")) as running:
        running.options["verifier"] = {
            "mode": "push",
            "quote_interval": 1,
            "challenge_lifetime": CHALLENGE_SECONDS,
            "session_create_rate_limit_per_ip": 1000,
        }
        running.options["tenant"] = {"require_ek_cert": "False"}
        running.start_servers()
        yield running


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def kernel_of(node: PushNode) -> Kernel:
    assert node.kernel is not None
    return node.kernel


def started(site: Site, **options: object) -> PushNode:
    node = PushNode(site, site.add_tpm(), {**RSA, **options})
    for name in TOOLS:
        kernel_of(node).measure(name, digest(name))
    node.start({"RUST_LOG": "trace"})
    return node


def enrol(site: Site, agent_id: str, *arguments: str) -> str:
    return site.keylime_tenant("-c", "add", "--push-model", "-u", agent_id, *arguments)


def shown(site: Site, agent_id: str) -> dict[str, Any]:
    found: dict[str, Any] = last_json(site.keylime_tenant("-c", "cvstatus", "--push-model", "-u", agent_id))[agent_id]
    return found


def runtime_policy(folder: Path, *names: str) -> str:
    path = folder / "policy.json"
    path.write_text(json.dumps(policy_for(*TOOLS, *names)))
    return str(path)


# --- what nodes do ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RSA, ECC], ids=["rsa", "ecc"])
def test_a_node_attests_by_itself_changes_and_is_distrusted(site: Site, kind: dict[str, str]) -> None:
    node = started(site, **kind)
    enrol(site, node.id, "--tpm_policy", POLICY)
    view = site.reaches(node, "trusted", rounds=2)
    assert view["identity_only"] is False
    assert set(view["checks"]["required"]) <= set(view["checks"]["ran"])
    found = shown(site, node.id)
    assert found["attestation_status"] == "PASS"
    assert "operational_state" not in found

    node.tpm.extend(23, CHANGE)
    view = site.reaches(node, "distrusted")
    assert [finding["event_id"] for finding in view["findings"]] == ["pcr_validation.invalid_pcr_23"]
    assert shown(site, node.id)["attestation_status"] == "FAIL"

    # It is enrolled anew, with what it has become allowed: its session need not be a new one.
    site.keylime_tenant(
        *("-c", "update", "--push-model", "-u", node.id, "--tpm_policy", json.dumps({"23": [UNTOUCHED, CHANGED]}))
    )
    site.reaches(node, "trusted", rounds=1)
    assert shown(site, node.id)["attestation_status"] == "PASS"
    # trust: secret - neither side keeps a token, and neither says it, at whatever level
    assert node.said('authorization: "Bearer ********"') > 2
    node.stop()
    assert [path.name for path in site.written() if TOKEN.search(path.read_bytes())] == []


def test_a_node_enrolled_late_and_without_policies_proves_who_it_is_and_is_shown_so(site: Site) -> None:
    # trust: empty-is-not-valid
    node = started(site)
    node.says("Authentication failed with evaluation: fail")
    enrol(site, node.id)
    node.says(ACCEPTED)
    assert site.reaches(node, "trusted", rounds=2)["identity_only"] is True
    node.stop()


def test_a_growing_list_is_read_on_and_an_unlisted_file_is_named(site: Site, tmp_path: Path) -> None:
    node = started(site)
    enrol(site, node.id, "--runtime-policy", runtime_policy(tmp_path, "/usr/bin/later"))
    view = site.reaches(node, "trusted", rounds=2)
    assert "ima-log" in view["checks"]["ran"]
    kernel_of(node).measure("/usr/bin/later", digest("/usr/bin/later"))
    site.reaches(node, "trusted", rounds=view["attestation_count"] + 2)
    kernel_of(node).measure("/opt/evil", digest("/opt/evil"))
    since = time.monotonic()
    (finding,) = site.reaches(node, "distrusted")["findings"]
    assert time.monotonic() - since < 10
    assert (finding["event_id"], finding["context"]["path"]) == (NOT_LISTED, "/opt/evil")
    node.stop()


def test_a_node_that_started_again_comes_back_by_itself(site: Site, tmp_path: Path) -> None:
    # trust: clock-and-reset
    node = started(site)
    enrol(site, node.id, "--tpm_policy", POLICY, "--runtime-policy", runtime_policy(tmp_path))
    view = site.reaches(node, "trusted", rounds=1)
    for orderly in (True, False):
        node.stop()
        if orderly:
            command = ["tpm2_shutdown", "-c", "-T", node.tpm.tcti]
            subprocess.run(command, check=True, capture_output=True)
            # A clock without battery tells the same time of boot again, which is the other case.
            record = node.folder / "boot_time.json"
            kept = json.loads(record.read_text())
            record.write_text(json.dumps({**kept, "boot_time": kept["boot_time"] + 100}))
        node.tpm.reboot()
        kernel = node.kernel = Kernel(node.tpm, Path(str(node.options["ima_ml_path"])))
        for name in TOOLS[:2]:
            kernel.measure(name, digest(name))
        node.start()
        view = site.reaches(node, "trusted", 40, rounds=view["attestation_count"] + 1)
        assert view["findings"] == []
    node.stop()


def test_a_tpm_that_is_reset_beside_a_running_agent_is_found_again(site: Site) -> None:
    # trust: clock-and-reset
    node = started(site)
    enrol(site, node.id, "--tpm_policy", POLICY)
    view = site.reaches(node, "trusted", rounds=1)
    node.tpm.reboot()
    node.says("The TPM has lost the keys that were loaded, or its connection")
    count = (site.node_view(node.id) or view)["attestation_count"]
    assert site.reaches(node, "trusted", 40, rounds=count + 1)["findings"] == []
    node.stop()


def test_a_verifier_that_restarts_is_waited_for_and_a_silent_node_is_not_shown_green(site: Site) -> None:
    # trust: green-is-recent
    node = started(site)
    enrol(site, node.id, "--tpm_policy", POLICY)
    before = site.reaches(node, "trusted", rounds=1)
    assert site.verifier is not None
    site.verifier.kill()
    node.says("Network error")
    site.start_verifier()
    view = site.reaches(node, "trusted", 40, rounds=before["attestation_count"] + 2)
    assert view["findings"] == []
    assert node.said("Received 401") <= 1

    node.stop()
    site.reaches(node, "unreachable", 20)
    assert shown(site, node.id)["attestation_status"] == "TIMEOUT"
    node.start()
    site.reaches(node, "trusted", 20)
    assert shown(site, node.id)["attestation_status"] == "PASS"
    node.stop()


# --- what liars do ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def puppet(site: Site, *arguments: str, number: int = 0) -> AsyncIterator[tuple[Puppet, Session]]:
    """Return a node that is registered, enrolled and has a session."""
    context = ssl.create_default_context(cafile=str(site.authority / "cacert.crt"))
    context.check_hostname = False
    made = Puppet.make(str(uuid.uuid4()), f"https://127.0.0.1:{site.ports['verifier']}", context, number=number)
    try:
        await made.register(site.ports["registrar"])
        await asyncio.to_thread(enrol, site, made.agent_id, *(arguments or ("--tpm_policy", POLICY)))
        session = await made.session()
        assert session is not None
        yield made, session
    finally:
        await made.http.close()


async def condition(site: Site, made: Puppet, wanted: str, rounds: int = 0) -> dict[str, Any]:
    """Wait for the condition of a node."""
    view: dict[str, Any] | None = {}
    for _ in range(100):
        view = await asyncio.to_thread(site.node_view, made.agent_id)
        if view is not None and view["condition"] == wanted and view["attestation_count"] >= rounds:
            return view
        await asyncio.sleep(0.05)
    pytest.fail(f"not {wanted}: {view}")


async def refused(what: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        await what
    return caught.value


async def test_an_answer_that_comes_too_late_counts_for_nothing(site: Site) -> None:
    # trust: fresh
    async with puppet(site) as (made, session):
        begun = await made.begin(session)
        evidence = made.evidence(begun)
        await asyncio.sleep(CHALLENGE_SECONDS + 0.3)
        late = await refused(made.verifier.submit(begun, session, evidence))
        assert (late.status, late.code) == (403, "challenges_expired")
        assert (await asyncio.to_thread(site.node_view, made.agent_id) or {})["condition"] == "pending"
        # The session is not at fault.
        await made.attest(session)
        await condition(site, made, "trusted")


async def test_old_evidence_proves_nothing_and_the_same_again_changes_nothing(site: Site) -> None:
    # trust: fresh
    async with puppet(site) as (made, session):
        begun = await made.begin(session)
        old = made.evidence(begun)
        after = await made.verifier.submit(begun, session, old)
        await condition(site, made, "trusted", rounds=1)
        again = await made.verifier.submit(begun, session, old)
        assert again is not None
        assert after is not None
        assert again <= after
        await asyncio.sleep(1.1)
        view = await condition(site, made, "trusted")
        assert view["attestation_count"] == 1
        following = await made.begin(session)
        await made.verifier.submit(following, session, old)
        view = await condition(site, made, "distrusted")
        assert view["attestation_count"] == 1


async def test_a_stolen_token_speaks_for_nobody_else(site: Site) -> None:
    # trust: bound-identity
    async with puppet(site, number=1) as (thief, stolen), puppet(site, number=2) as (victim, own):
        begun = await victim.begin(own)
        assert (await refused(victim.begin(stolen))).status in {401, 403}
        assert (await refused(victim.verifier.submit(begun, stolen, victim.evidence(begun)))).status in {401, 403}
        assert (await refused(victim.begin(Session(own.token[:-1] + "!")))).status == 401
        assert (await asyncio.to_thread(site.node_view, victim.agent_id) or {})["condition"] == "pending"
        # Another TPM does not get a session in the victim's name, however often it registers there.
        opened = await victim.verifier.open_session()
        assert await victim.verifier.prove(opened, *thief.node.certify_itself(opened.challenge)) is None
        await thief.attest(stolen)
        await condition(site, thief, "trusted")


async def test_a_wrong_clock_of_the_node_costs_it_nothing_but_a_longer_list(site: Site, tmp_path: Path) -> None:
    # trust: clock-and-reset - what a node says of the time is not believed, and not held against it
    path = runtime_policy(tmp_path)
    async with puppet(site, "--runtime-policy", path) as (made, session):
        for name in TOOLS:
            made.kernel.measure(name)
        offsets = []
        for rounds, skew in enumerate((0, 0, 3600, -7200, -7200), start=1):
            made.boot_time = 1_700_000_000 + skew
            begun = await made.begin(session)
            offsets += [one.starting_offset for one in begun.requested if hasattr(one, "starting_offset")]
            await made.verifier.submit(begun, session, made.evidence(begun))
            await condition(site, made, "trusted", rounds=rounds)
            await asyncio.sleep(1.05)
        assert offsets == [0, len(TOOLS), 0, 0, len(TOOLS)]


async def test_a_list_that_lost_a_line_is_not_believed(site: Site, tmp_path: Path) -> None:
    # trust: replayed-before-believed
    async with puppet(site, "--runtime-policy", runtime_policy(tmp_path)) as (made, session):
        for name in TOOLS:
            made.kernel.measure(name)
        del made.kernel.lines[2]
        await made.attest(session)
        view = await condition(site, made, "distrusted")
        assert "ima.pcr_mismatch" in [finding["event_id"] for finding in view["findings"]]
