"""Our tenant and Keylime's, side by side against Keylime's servers: the same calls, words and exit status."""

import asyncio
import io
import json
import re
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.fakes.keylime_peer import Ended, KeylimeSite, PeerAgent, keylime_site, peer_agent
from tests.fakes.pki import Authority

from limeguard.crypto import keysplit

pytestmark = [pytest.mark.peer, pytest.mark.asyncio(loop_scope="module")]

Tenant = Callable[..., Awaitable[Ended]]

NODE = "d432fbb3-d2f1-4a97-9ef7-75bd81c00001"
ZEROS = "0" * 64

HEAD = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} - ([a-z_.]+) - ([A-Z]+) - (.*)$")
SET_UP = (
    "The configuration upgrade templates",
    "Using default client_",
    "Using default UUID",
    "No value provided in client_key_password",
    "option overriden",
    "TPM PCR Mask",
)
"""What Keylime says while it starts, which is no answer to anything."""


def said(ended: Ended) -> list[str]:
    """Return what the tenant said, without time, without set-up, and without values that change from run to run."""
    lines = []
    for line in ended.out.splitlines():
        head = HEAD.match(line)
        if head is None:
            lines.append(line)
        elif head[1] == "keylime.tenant" and not head[3].startswith(SET_UP):
            lines.append(f"{head[2]} {head[3]}")
    return [steady(line) for line in lines if line]


def steady(line: str) -> str:
    for member in ("last_received_quote", "last_successful_attestation", "attestation_count"):
        line = re.sub(rf'"{member}": \d+', f'"{member}": N', line)
    line = re.sub(r'"v": "[^"]*"', '"v": "V"', line)
    line = re.sub(r'"operational_state": "(Start|Get Quote|Provide V|Terminated)"', '"operational_state": "S"', line)
    line = re.sub(r'"attestation_status": "(PASS|PENDING)"', '"attestation_status": "A"', line)
    line = re.sub(r'"(hash|enc|sign)_alg": "[a-z0-9]*"', r'"\1_alg": "X"', line)
    line = re.sub(r"'quote': '[^']*'", "'quote': 'Q'", line)
    line = re.sub(r"(Negotiated API version 2.6 with agent .*) tenant: .*", r"\1", line)
    # The rest of these sentences is advice, which each says in its own words.
    line = re.sub(r"(does not exist on Registrar \([^)]*\)\.).*", r"\1", line)
    line = re.sub(r"(DANGER: EK cert checking is disabled).*", r"\1", line)
    return re.sub(r"(responded indicating a conflict for agent [^:]*:?\d*\)).*(Run .*)", r"\1 \2", line)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KeylimeSite]:
    async with keylime_site(tmp_path_factory.mktemp("keylime")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent(site: KeylimeSite) -> AsyncIterator[PeerAgent]:
    async with peer_agent(site.folder, NODE, site.ca) as running:
        await running.register(site.ports["registrar"])
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def enrolled(site: KeylimeSite, agent: PeerAgent) -> AsyncIterator[PeerAgent]:
    ended = await site.our_tenant("-c", "add", "-u", NODE)
    assert ended.status == 0, ended.out
    yield agent
    await away(site)


async def away(site: KeylimeSite) -> None:
    """Delete the node, and let a round end that Keylime has under way with it."""
    ended = await site.our_tenant("-c", "delete", "-u", NODE)
    assert ended.status == 0, ended.out
    await asyncio.sleep(1.0)


async def both(site: KeylimeSite, *argv: str) -> tuple[Ended, Ended]:
    """Run Keylime's tenant and then ours."""
    return await site.keylime_tenant(*argv), await site.our_tenant(*argv)


@pytest.mark.parametrize("command", ["reglist", "cvlist", "bulkinfo"])
async def test_lists_without_nodes_are_told_alike(site: KeylimeSite, command: str) -> None:
    theirs, ours = await both(site, "-c", command)
    assert said(ours) == said(theirs)
    assert ours.status == theirs.status == 0


@pytest.mark.parametrize("command", ["regstatus", "cvstatus", "status", "delete", "reactivate", "regdelete", "add"])
async def test_an_unknown_node_is_told_alike(site: KeylimeSite, command: str) -> None:
    theirs, ours = await both(site, "-c", command, "-u", "unknown")
    if command != "regdelete":  # Keylime's warning has another logger and another sentence
        assert said(ours) == said(theirs)
    assert ours.status == theirs.status


@pytest.mark.parametrize("command", ["reglist", "regstatus", "cvlist", "cvstatus", "status", "bulkinfo"])
async def test_a_supervised_node_is_told_alike(site: KeylimeSite, enrolled: PeerAgent, command: str) -> None:
    theirs, ours = await both(site, "-c", command, "-u", NODE)
    assert said(ours) == said(theirs)
    assert ours.status == theirs.status == 0
    assert [list(json.loads(line)) for line in ours.documents] == [list(json.loads(line)) for line in theirs.documents]


async def test_filters_and_push_mode_are_told_alike(site: KeylimeSite, enrolled: PeerAgent) -> None:
    for argv in (["-c", "cvlist", "-vi", "default"], ["-c", "cvlist", "-vi", "x"], ["-c", "cvstatus", "--push-model"]):
        theirs, ours = await both(site, *argv, "-u", NODE)
        assert said(ours) == said(theirs)
        assert ours.status == theirs.status == 0


async def test_reactivate_is_told_alike(site: KeylimeSite, enrolled: PeerAgent) -> None:
    for more in ([], ["-nvc"]):
        theirs, ours = await both(site, "-c", "reactivate", "-u", NODE, *more)
        assert said(ours) == said(theirs)
        assert ours.status == theirs.status == 0


async def test_adding_twice_is_told_alike(site: KeylimeSite, enrolled: PeerAgent) -> None:
    theirs, ours = await both(site, "-c", "add", "-u", NODE)
    assert said(ours) == said(theirs)
    assert ours.status == theirs.status == 1


@pytest.mark.parametrize("command", ["add", "update"])
async def test_add_and_update_are_told_alike(site: KeylimeSite, agent: PeerAgent, command: str) -> None:
    told: dict[str, set[str]] = {}
    for name, run in (("theirs", site.keylime_tenant), ("ours", site.our_tenant)):
        told[name] = set(said(await enrolled_with_policy(site, run, command)))
    assert told["ours"] == told["theirs"]


async def enrolled_with_policy(site: KeylimeSite, run: Tenant, command: str) -> Ended:
    """Enrol the node with a policy of PCR 23, see that it is judged by it, and delete it.

    A round of Keylime's that was under way when a node was deleted writes what it knew over the node that was enrolled
    under the same id since. That is its own race: such a node is enrolled again.
    """
    stored: dict[str, Any] = {}
    for _ in range(3):
        ended = await run("-c", command, "-u", NODE, "--tpm_policy", json.dumps({"23": ZEROS}))
        try:
            assert ended.status == 0, ended.out
            stored = json.loads((await attested(site))["tpm_policy"])
        finally:
            await away(site)
        if stored.get("23") == [ZEROS]:
            return ended
    pytest.fail(f"enrolled with another policy: {stored}")


async def attested(site: KeylimeSite) -> dict[str, Any]:
    """Wait until the verifier has seen good evidence."""
    record: dict[str, Any] = {}
    for _ in range(60):
        ended = await site.our_tenant("-c", "cvstatus", "-u", NODE)
        record = json.loads(ended.documents[-1])[NODE]
        if record["attestation_count"] > 1:
            return record
        await asyncio.sleep(0.5)
    pytest.fail(f"not attested: {record}")


async def test_deleting_is_told_alike(site: KeylimeSite, agent: PeerAgent) -> None:
    told = {}
    for name, run in (("theirs", site.keylime_tenant), ("ours", site.our_tenant)):
        assert (await site.our_tenant("-c", "add", "-u", NODE)).status == 0
        ended = await run("-c", "delete", "-u", NODE)
        assert ended.status == 0
        # How often the verifier is asked depends on the round in hand.
        told[name] = (said(ended)[0], said(ended)[-1])
    assert told["ours"] == told["theirs"]


async def test_a_payload_of_ours_is_delivered_through_their_verifier(site: KeylimeSite, agent: PeerAgent) -> None:
    (site.folder / "payload.txt").write_bytes(b"hello")
    ended = await site.our_tenant("-c", "add", "-u", NODE, "-f", "payload.txt", "--verify")
    try:
        assert ended.status == 0, ended.out
        assert "Successful key derivation" in ended.out
        assert agent.payload_key is not None
        assert agent.payload is not None
        assert keysplit.decrypt_payload(agent.payload_key, agent.payload) == b"hello"
    finally:
        await away(site)


async def test_a_node_that_never_confirms_its_key_is_stopped(site: KeylimeSite, agent: PeerAgent) -> None:
    (site.folder / "payload.txt").write_bytes(b"hello")
    agent.deaf = True
    try:
        environment = {"KEYLIME_TENANT_MAX_RETRIES": "2", "KEYLIME_TENANT_RETRY_INTERVAL": "0.1"}
        ended = await site.our_tenant("-c", "add", "-u", NODE, "-f", "payload.txt", "--verify", **environment)
        assert ended.status == 1, ended.out
        record = json.loads((await site.our_tenant("-c", "cvstatus", "-u", NODE)).documents[-1])[NODE]
        assert record["operational_state"] == "Tenant Quote Failed"
    finally:
        agent.deaf = False
        await away(site)


async def test_a_foreign_client_certificate_is_refused(site: KeylimeSite) -> None:
    stranger = Authority(site.folder / "stranger", "Another CA").issue("client")
    ended = await site.our_tenant(
        *("-c", "reglist"),
        KEYLIME_TENANT_CLIENT_CERT=str(stranger.certificate),
        KEYLIME_TENANT_CLIENT_KEY=str(stranger.key),
    )
    assert ended.status == 1
    assert "TLSV1_ALERT_UNKNOWN_CA" in ended.out
    assert "trusted_client_ca of the server" in ended.out


async def test_a_certificate_package_of_ours_is_as_theirs(site: KeylimeSite, agent: PeerAgent) -> None:
    include = site.folder / "include"
    include.mkdir()
    (include / "autorun.sh").write_text("#!/bin/sh\n")
    contents, records = {}, {}
    for name, run in (("theirs", site.keylime_tenant), ("ours", site.our_tenant)):
        ended = await run(
            *("-c", "add", "-u", NODE, "--cert", f"{site.folder}/ca-{name}", "--include", str(include), "--verify"),
            KEYLIME_CA_PASSWORD="x",
        )
        assert ended.status == 0, ended.out + ended.err
        assert agent.payload_key is not None
        assert agent.payload is not None
        archive = zipfile.ZipFile(io.BytesIO(keysplit.decrypt_payload(agent.payload_key, agent.payload)))
        contents[name] = {member.filename: member.compress_type for member in archive.infolist()}
        records[name] = json.loads((await attested(site))["meta_data"])
        await away(site)
    assert contents["ours"] == contents["theirs"]
    assert records["ours"] == records["theirs"]
    for path in (site.folder / "ca-ours").iterdir():
        assert path.stat().st_mode & 0o007 == 0, path


async def test_keys_of_their_tool_are_delivered_by_our_tenant(site: KeylimeSite, agent: PeerAgent) -> None:
    (site.folder / "plain.txt").write_bytes(b"made beforehand")
    process = await asyncio.create_subprocess_exec(
        str(site.venv / "bin" / "keylime_userdata_encrypt"), "plain.txt", cwd=site.folder, stdout=-3, stderr=-3
    )
    assert await process.wait() == 0
    ended = await site.our_tenant(
        *("-c", "add", "-u", NODE, "-k", "content_keys.txt", "-p", "content_payload.txt", "--verify")
    )
    try:
        assert ended.status == 0, ended.out
        assert agent.payload_key is not None
        assert agent.payload is not None
        assert keysplit.decrypt_payload(agent.payload_key, agent.payload) == b"made beforehand"
    finally:
        await away(site)


async def test_ek_rules_are_told_alike(site: KeylimeSite, agent: PeerAgent) -> None:
    script = site.folder / "ek.sh"
    script.write_text(
        '#!/bin/sh\nenv | grep -E "^(AGENT_UUID|EK_TPM|EK_CERT|PROVKEYS|TPM_CERT_STORE)=" | sort\nexit $WANTED\n'
    )
    script.chmod(0o755)
    configuration = Path(site.environment["KEYLIME_TENANT_CONFIG"])
    for change, wanted, status in (
        (("ek_check_script = ", "ek_check_script = ek.sh"), "0", 0),
        (("ek_check_script = ", "ek_check_script = ek.sh"), "3", 1),
        (("require_ek_cert = False", "require_ek_cert = True"), "0", 1),
    ):
        changed = site.folder / "changed.conf"
        changed.write_text(configuration.read_text().replace(*change))
        told = {}
        for name, run in (("theirs", site.keylime_tenant), ("ours", site.our_tenant)):
            ended = await run("-c", "add", "-u", NODE, KEYLIME_TENANT_CONFIG=str(changed), WANTED=wanted)
            assert ended.status == status, ended.out
            told[name] = {line for line in ended.out.splitlines() if line.startswith(("AGENT", "EK", "PROV", "TPM_"))}
            await away(site)
        assert told["ours"] == told["theirs"]


RUNTIME = {
    "meta": {"version": 1, "generator": 2},
    "release": 0,
    "digests": {},
    "excludes": [],
    "keyrings": {},
    "ima": {"ignored_keyrings": [], "log_hash_alg": "sha1", "dm_policy": None},
    "ima-buf": {},
    "verification-keys": "",
}


async def test_stored_policies_are_told_alike(site: KeylimeSite) -> None:
    (site.folder / "rp.json").write_text(json.dumps(RUNTIME))
    (site.folder / "bad.json").write_text("{}")
    runtime, boot = ["--runtime-policy", "rp.json"], ["--mb-policy", "bad.json"]
    steps = [
        ["addruntimepolicy", *runtime, "--runtime-policy-name", "p1"],
        ["addruntimepolicy", *runtime, "--runtime-policy-name", "p1"],
        ["addruntimepolicy", *runtime],
        ["addruntimepolicy", "--runtime-policy", "bad.json", "--runtime-policy-name", "p2"],
        ["updateruntimepolicy", *runtime, "--runtime-policy-name", "p1"],
        ["updateruntimepolicy", *runtime, "--runtime-policy-name", "p9"],
        ["showruntimepolicy", "--runtime-policy-name", "p1"],
        ["showruntimepolicy", "--runtime-policy-name", "p9"],
        ["showruntimepolicy"],
        ["listruntimepolicy"],
        ["deleteruntimepolicy", "--runtime-policy-name", "p1"],
        ["deleteruntimepolicy", "--runtime-policy-name", "p1"],
        ["addmbpolicy", *boot, "--mb-policy-name", "m1"],
        ["addmbpolicy", *boot, "--mb-policy-name", "m1"],
        ["addmbpolicy", *boot],
        ["addmbpolicy", "--mb-policy", "default", "--mb-policy-name", "m2"],
        ["updatembpolicy", *boot, "--mb-policy-name", "m1"],
        ["updatembpolicy", *boot, "--mb-policy-name", "m9"],
        ["showmbpolicy", "--mb-policy-name", "m1"],
        ["showmbpolicy"],
        ["listmbpolicy"],
        ["deletembpolicy"],
        ["deletembpolicy", "--mb-policy-name", "m2"],
        ["deletembpolicy", "--mb-policy-name", "m1"],
        ["deletembpolicy", "--mb-policy-name", "m1"],
    ]
    told: dict[str, list[tuple[int, list[str]]]] = {"theirs": [], "ours": []}
    for name, run in (("theirs", site.keylime_tenant), ("ours", site.our_tenant)):
        for step in steps:
            ended = await run("-c", *step, KEYLIME_TENANT_MB_REFSTATE="bad.json")
            told[name].append((ended.status, said(ended)))
    for step, theirs, ours in zip(steps, told["theirs"], told["ours"], strict=True):
        assert ours == theirs, step


async def test_unacceptable_algorithms_are_told_alike(site: KeylimeSite, agent: PeerAgent) -> None:
    for option, value in (
        ("HASH", "['sha512']"),
        ("SIGNING", "['ecdsa']"),
        ("ENCRYPTION", "['ecc']"),
    ):
        environment = {f"KEYLIME_TENANT_ACCEPT_TPM_{option}_ALGS": value}
        theirs = await site.keylime_tenant("-c", "add", "-u", NODE, **environment)
        ours = await site.our_tenant("-c", "add", "-u", NODE, **environment)
        assert ours.status == theirs.status == 1
        assert said(ours)[-1] == said(theirs)[-1]
        assert "unaccepted" in said(ours)[-1]


@pytest.mark.parametrize("kind", ["ecc256", "ecc384"])
async def test_nodes_with_other_keys_are_added(site: KeylimeSite, kind: str) -> None:
    async with peer_agent(site.folder, f"node-{kind}", site.ca, kind) as other:
        await other.register(site.ports["registrar"])
        environment = {"KEYLIME_TENANT_ACCEPT_TPM_ENCRYPTION_ALGS": "['ecc', 'ecc384']"}
        ended = await site.our_tenant("-c", "add", "-u", other.node, **environment)
        assert ended.status == 0, ended.out
        assert (await site.our_tenant("-c", "delete", "-u", other.node)).status == 0
