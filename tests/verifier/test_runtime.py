"""Runtime integrity over real connections: a growing measurement list, its policy as an object, ways to lie."""

import asyncio
import hashlib
import json
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.fakes.pki import Authority
from tests.fakes.soft_agent import SoftAgent
from tests.fakes.soft_ima import SoftKernel, field, policy_for, signature
from tests.fakes.verifier_site import Site, running_verifier

from limeguard.policy import dsse
from limeguard.policy.keyring import key_id_of, keyring_text
from limeguard.policy.runtime import empty_policy_document
from limeguard.simulator.machine import digest_of

pytestmark = pytest.mark.services

NOT_LISTED = "ima.validation.ima-ng.not_in_allowlist"
TOOLS = tuple(f"/usr/bin/tool{number}" for number in range(5))


def encoded(document: object) -> str:
    text = document if isinstance(document, str) else json.dumps(document)
    return b64encode(text.encode()).decode()


async def measured(site: Site, document: object, **changes: Any) -> tuple[SoftAgent, SoftKernel]:
    """Enrol a node that measured its tools, under a policy."""
    agent = await site.add_agent()
    kernel = SoftKernel(agent.node)
    for name in TOOLS:
        kernel.measure(name)
    agent.alter = kernel.alter
    await site.enrol(agent, tpm_policy='{"mask": "0x400"}', runtime_policy=encoded(document), **changes)
    return agent, kernel


async def reenrolled(site: Site, agent: SoftAgent) -> None:
    answer = await site.ask("PUT", f"/v2.6/agents/{agent.agent_id}/reactivate")
    assert answer.status == 200


async def test_a_listed_node_is_trusted_and_its_list_is_read_on(site: Site) -> None:
    agent, kernel = await measured(site, policy_for(*TOOLS, "/usr/bin/later"))
    view = await site.reaches(agent, "trusted", rounds=2)
    assert "ima-log" in view["checks"]["ran"]
    assert not view["identity_only"]
    assert (await site.status(agent))["has_runtime_policy"] == 1
    kernel.measure("/usr/bin/later")
    await site.reaches(agent, "trusted", rounds=view["attestation_count"] + 2)
    assert kernel.asked[0] == 0
    assert kernel.asked[-1] == len(kernel.lines)


async def test_a_long_list_is_judged_beside_the_loop(site: Site) -> None:
    names = tuple(f"/usr/lib/something/{number}" for number in range(4_000))
    agent = await site.add_agent()
    kernel = SoftKernel(agent.node)
    for name in names:
        kernel.measure(name)
    agent.alter = kernel.alter
    await site.enrol(agent, tpm_policy='{"mask": "0x400"}', runtime_policy=encoded(policy_for(*names)))
    await site.reaches(agent, "trusted", rounds=2)
    assert kernel.asked[-1] == 4_000


async def test_a_file_that_is_not_listed_is_named(site: Site) -> None:
    agent, kernel = await measured(site, policy_for(*TOOLS))
    await site.reaches(agent, "trusted", rounds=1)
    kernel.measure("/tmp/evil")
    view = await site.reaches(agent, "distrusted")
    (finding,) = view["findings"]
    assert finding["event_id"] == NOT_LISTED
    assert finding["context"]["path"] == "/tmp/evil"
    assert finding["context"]["digest"] == digest_of("/tmp/evil")
    assert finding["context"]["entry"] == len(TOOLS)
    assert finding["context"]["message"] == "File not found in allowlist: /tmp/evil"
    assert (await site.status(agent))["last_event_id"] == NOT_LISTED


async def test_a_changed_file_is_named_with_what_was_allowed(site: Site) -> None:
    agent, kernel = await measured(site, policy_for(*TOOLS))
    await site.reaches(agent, "trusted", rounds=1)
    kernel.measure(TOOLS[0], "ab" * 32)
    (finding,) = (await site.reaches(agent, "distrusted"))["findings"]
    assert finding["event_id"] == "ima.validation.ima-ng.runtime_policy_hash"
    assert (finding["context"]["got"], finding["context"]["expected"]) == ("ab" * 32, [digest_of(TOOLS[0])])


async def test_the_log_says_which_files_failed_as_test_suites_expect(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    agent, kernel = await measured(site, policy_for(*TOOLS))
    kernel.measure("/opt/evil script")
    kernel.measure("/opt/forged", sig=signature(key, bytes.fromhex(digest_of("/opt/forged"))))
    await site.reaches(agent, "distrusted")
    said = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
    assert ("keylime.ima", "WARNING", "File not found in allowlist: /opt/evil script") in said
    assert ("keylime.ima", "WARNING", "signature for file /opt/forged is not valid") in said
    errors = [text for name, level, text in said if (name, level) == ("keylime.ima", "ERROR")]
    modes = "Number of failures in modes: ImaNg 1 ImaSig 1."
    assert errors == [f"IMA ERRORS: Some entries couldn't be validated. {modes}"]


async def test_an_excluded_file_is_passed_over(site: Site) -> None:
    agent, kernel = await measured(site, policy_for(*TOOLS, excludes=["/tmp/.*"]))
    await site.reaches(agent, "trusted", rounds=1)
    kernel.measure("/tmp/anything")
    view = await site.view(agent)
    await site.reaches(agent, "trusted", rounds=view["attestation_count"] + 2)


async def test_a_good_signature_stands_for_a_digest(site: Site) -> None:
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    keys = keyring_text([(key.public_key(), key_id_of(key.public_key()))])
    agent, kernel = await measured(site, policy_for(*TOOLS, verification_keys=keys))
    kernel.measure("/opt/signed", sig=signature(key, bytes.fromhex(digest_of("/opt/signed"))))
    view = await site.reaches(agent, "trusted", rounds=2)
    kernel.measure("/opt/forged", sig=signature(other, bytes.fromhex(digest_of("/opt/forged"))))
    view = await site.reaches(agent, "distrusted")
    assert [finding["context"]["path"] for finding in view["findings"]] == ["/opt/forged"]


async def test_a_key_that_the_policy_lists_is_learned_and_outlives_a_restart(
    tmp_path: Path, authority: Authority
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    listed = {".ima": [hashlib.sha256(der).hexdigest()]}
    async with running_verifier(tmp_path, authority) as site:
        agent, kernel = await measured(site, policy_for(*TOOLS, keyrings=listed))
        kernel.load_key(".ima", der)
        await site.reaches(agent, "trusted", rounds=2)
        asked, node = len(kernel.asked), agent.node
        port = agent.port
        await agent.stop()
    async with running_verifier(tmp_path, authority) as site:
        await agent.start(port)
        kernel.measure("/opt/signed", sig=signature(key, bytes.fromhex(digest_of("/opt/signed"))))
        view = await site.reaches(agent, "trusted", rounds=3)
        assert view["findings"] == []
        assert all(entry > 0 for entry in kernel.asked[asked:])
        assert node is agent.node
        await agent.stop()


async def test_a_key_on_an_excluded_keyring_verifies_nothing(site: Site) -> None:
    # trust: default-deny
    key = ec.generate_private_key(ec.SECP256R1())
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    agent, kernel = await measured(site, policy_for(*TOOLS, excludes=[r"\.ima"]))
    kernel.load_key(".ima", der)
    await site.reaches(agent, "trusted", rounds=1)
    kernel.measure("/opt/signed", sig=signature(key, bytes.fromhex(digest_of("/opt/signed"))))
    view = await site.reaches(agent, "distrusted")
    assert [finding["context"]["path"] for finding in view["findings"]] == ["/opt/signed"]


async def test_an_updated_policy_revives_a_node_without_enrolling_it_again(site: Site) -> None:
    assert (
        await site.ask("POST", "/v2.6/allowlists/web", {"runtime_policy": encoded(policy_for(*TOOLS))})
    ).status == 201
    agent = await site.add_agent()
    kernel = SoftKernel(agent.node)
    for name in (*TOOLS, "/usr/bin/new"):
        kernel.measure(name)
    agent.alter = kernel.alter
    await site.enrol(agent, tpm_policy='{"mask": "0x400"}', runtime_policy_name="web")
    await site.reaches(agent, "distrusted")
    update = {"runtime_policy": encoded(policy_for(*TOOLS, "/usr/bin/new"))}
    assert (await site.ask("PUT", "/v2.6/allowlists/web", update)).status == 201
    await reenrolled(site, agent)
    await site.reaches(agent, "trusted", rounds=2)
    in_use = await site.ask("DELETE", "/v2.6/allowlists/web")
    assert (in_use.status, in_use.said) == (409, "Can't delete allowlist as it's currently in use by agent node-1")


async def test_a_node_says_whether_its_policy_allows_anything_after_an_update_too(
    tmp_path: Path, authority: Authority
) -> None:
    async with running_verifier(tmp_path, authority) as site:
        empty = empty_policy_document()
        agent, _ = await measured(site, empty, runtime_policy_name="web")
        assert (await site.status(agent))["has_runtime_policy"] == 0
        update = {"runtime_policy": encoded(policy_for(*TOOLS))}
        assert (await site.ask("PUT", "/v2.6/allowlists/web", update)).status == 201
        assert (await site.status(agent))["has_runtime_policy"] == 1
    async with running_verifier(tmp_path, authority) as site:
        assert (await site.status(agent))["has_runtime_policy"] == 1


async def test_another_verifier_s_node_keeps_its_policy(tmp_path: Path, authority: Authority) -> None:
    # trust: default-deny
    async with running_verifier(tmp_path, authority) as first:
        agent, _ = await measured(first, policy_for(*TOOLS))
        async with running_verifier(tmp_path, authority, uuid="other") as second:
            answer = await second.ask("POST", f"/v2.6/agents/{agent.agent_id}", agent.enrolment())
            assert answer.status == 409
        stored = await first.ask("GET", f"/v2.6/allowlists/{agent.agent_id}")
        assert json.loads(stored.json["results"]["runtime_policy"])["digests"] == policy_for(*TOOLS)["digests"]


async def test_an_update_counts_for_the_answer_that_comes_after_it(site: Site) -> None:
    agent, kernel = await measured(site, policy_for(*TOOLS), runtime_policy_name="web")
    await site.reaches(agent, "trusted", rounds=1)
    update = {"runtime_policy": encoded(policy_for(*TOOLS, "/usr/bin/new"))}
    assert (await site.ask("PUT", "/v2.6/allowlists/web", update)).status == 201
    kernel.measure("/usr/bin/new")  # while the request under the old policy may still be waiting
    rounds = (await site.view(agent))["attestation_count"]
    assert (await site.reaches(agent, "trusted", rounds=rounds + 3))["findings"] == []


async def test_a_reboot_begins_the_list_anew_and_is_no_failure(site: Site) -> None:
    # trust: clock-and-reset
    agent, kernel = await measured(site, policy_for(*TOOLS))
    await site.reaches(agent, "trusted", rounds=2)
    kernel.reboot()
    for name in TOOLS[:4]:
        kernel.measure(name)
    view = await site.view(agent)
    view = await site.reaches(agent, "trusted", rounds=view["attestation_count"] + 3)
    assert view["findings"] == []
    assert kernel.asked[-1] == 4


async def test_a_reboot_into_a_longer_list_is_asked_for_again_at_once(site: Site) -> None:
    agent, kernel = await measured(site, policy_for(*TOOLS, "/a", "/b"))
    await site.reaches(agent, "trusted", rounds=2)
    kernel.reboot()
    for name in (*TOOLS, "/a", "/b"):
        kernel.measure(name)
    view = await site.view(agent)
    assert (await site.reaches(agent, "trusted", rounds=view["attestation_count"] + 3))["findings"] == []
    assert kernel.asked[-1] == 7


Lie = Callable[[SoftKernel], None]


def hidden(kernel: SoftKernel) -> None:
    data = field(b"sha256:\0" + bytes.fromhex(digest_of("/tmp/evil"))) + field(b"/tmp/evil\0")
    kernel.append("ima-ng", data, f"sha256:{digest_of('/tmp/evil')} /tmp/evil", column="f" * 40)


def called_violation(kernel: SoftKernel) -> None:
    data = field(b"sha256:\0" + bytes.fromhex(digest_of("/tmp/evil"))) + field(b"/tmp/evil\0")
    kernel.append("ima-ng", data, f"sha256:{digest_of('/tmp/evil')} /tmp/evil", column="0" * 40)


def left_out(kernel: SoftKernel) -> None:
    kernel.measure("/tmp/evil")
    kernel.lines.pop()


def renamed(kernel: SoftKernel) -> None:
    kernel.measure("/tmp/evil")
    kernel.lines[-1] = kernel.lines[-1].replace("/tmp/evil", TOOLS[0])


def swapped(kernel: SoftKernel) -> None:
    kernel.measure("/usr/bin/a")
    kernel.measure(TOOLS[1])
    kernel.lines[-2:] = reversed(kernel.lines[-2:])


def unreadable(kernel: SoftKernel) -> None:
    kernel.measure(TOOLS[1])
    kernel.lines.append("nobody can read this")


def violated(kernel: SoftKernel) -> None:
    kernel.node.extend(10, b"\xff" * kernel.node.ak.hash_alg.size)
    kernel.lines.append(f"10 {'0' * 40} ima-ng sha256:{'0' * 64} /var/log/open")


def for_other_pcr(kernel: SoftKernel) -> None:
    kernel.measure(TOOLS[1])
    kernel.lines[-1] = "11" + kernel.lines[-1][2:]


@pytest.mark.parametrize(
    ("lie", "event"),
    [
        (hidden, "ima.validation.ima_hash"),
        (called_violation, "ima.pcr_mismatch"),
        (left_out, "ima.pcr_mismatch"),
        (renamed, "ima.validation.ima_hash"),
        (swapped, "ima.pcr_mismatch"),
        (unreadable, "ima.parser.entry"),
        (violated, "ima.validation.tomtou"),
        (for_other_pcr, "ima.validation.ima_pcr"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_a_lie_about_the_list_is_found(site: Site, lie: Lie, event: str) -> None:
    # trust: fail-closed, default-deny
    agent, kernel = await measured(site, policy_for(*TOOLS, "/usr/bin/a"))
    await site.reaches(agent, "trusted", rounds=1)
    lie(kernel)
    assert event in site.event_ids(await site.reaches(agent, "distrusted"))


async def test_an_entry_number_that_nobody_asked_for_is_found(site: Site) -> None:
    agent, kernel = await measured(site, policy_for(*TOOLS))
    await site.reaches(agent, "trusted", rounds=1)
    honest = agent.alter
    agent.alter = lambda request, results: {**honest(request, results), "ima_measurement_list_entry": 2}
    view = await site.reaches(agent, "distrusted")
    assert site.event_ids(view) == ["qoute_validation.invalid_ima_entry_nb"]
    assert kernel.lines


@pytest.mark.parametrize("log", ["", None])
async def test_a_node_without_any_measurement_is_not_trusted(site: Site, log: str | None) -> None:
    # trust: empty-is-not-valid
    agent = await site.add_agent()
    given: dict[str, Any] = {} if log is None else {"ima_measurement_list": log, "ima_measurement_list_entry": 0}
    agent.alter = lambda _request, results: {**results, **given}
    await site.enrol(agent, tpm_policy='{"mask": "0x400"}', runtime_policy=encoded(policy_for(*TOOLS)))
    assert site.event_ids(await site.reaches(agent, "distrusted")) == ["pcr_validation.unused_pcr_10"]


async def test_pcr_10_without_a_policy_allows_nothing(site: Site) -> None:
    # trust: default-deny
    agent = await site.add_agent()
    kernel = SoftKernel(agent.node)
    kernel.measure("/usr/bin/anything")
    agent.alter = kernel.alter
    await site.enrol(agent, tpm_policy='{"mask": "0x400"}')
    assert site.event_ids(await site.reaches(agent, "distrusted")) == [NOT_LISTED]


async def test_a_policy_is_enforced_also_when_the_mask_forgets_pcr_10(site: Site) -> None:
    # trust: fail-closed
    agent = await site.add_agent()
    kernel = SoftKernel(agent.node)
    kernel.measure("/tmp/evil")
    agent.alter = kernel.alter
    await site.enrol(agent, tpm_policy='{"mask": "0x0"}', runtime_policy=encoded(policy_for(*TOOLS)))
    assert site.event_ids(await site.reaches(agent, "distrusted")) == [NOT_LISTED]


@pytest.mark.parametrize("generator", [0, 1, 2, 3])
async def test_a_policy_is_enforced_whatever_its_generator(site: Site, generator: int) -> None:
    # trust: fail-closed
    document = policy_for(*TOOLS, meta={"version": 1, "generator": generator})
    agent, kernel = await measured(site, document)
    await site.reaches(agent, "trusted", rounds=1)
    kernel.measure("/tmp/evil")
    assert site.event_ids(await site.reaches(agent, "distrusted")) == [NOT_LISTED]


async def test_violations_are_passed_over_when_the_operator_says_so(tmp_path: Path, authority: Authority) -> None:
    async with running_verifier(tmp_path, authority, ignore_tomtou_errors=True) as site:
        agent, kernel = await measured(site, policy_for(*TOOLS))
        violated(kernel)
        await site.reaches(agent, "trusted", rounds=2)


async def test_nodes_do_not_share_what_only_one_of_them_proved(site: Site) -> None:
    # trust: bound-identity
    agent, kernel = await measured(site, policy_for(*TOOLS), runtime_policy_name="web")
    await site.reaches(agent, "trusted", rounds=1)
    other = await site.add_agent("node-2")
    other.alter = kernel.alter  # the other node's list, over its own PCR 10
    await site.enrol(other, tpm_policy='{"mask": "0x400"}', runtime_policy_name="web")
    assert site.event_ids(await site.reaches(other, "distrusted")) == ["pcr_validation.unused_pcr_10"]
    other.node.extend(10, b"another life")
    await reenrolled(site, other)
    assert "ima.pcr_mismatch" in site.event_ids(
        await site.shows(
            other,
            lambda view: (
                view["findings"]
                and view["condition"] == "distrusted"
                and view["findings"][0]["event_id"] == "ima.pcr_mismatch"
            ),
        )
    )
    assert (await site.view(agent))["condition"] == "trusted"


# --- policies as objects ---------------------------------------------------------------------------------------------


async def test_policies_are_stored_listed_shown_replaced_and_deleted(site: Site) -> None:
    text = json.dumps(policy_for(*TOOLS))
    body = {"runtime_policy": encoded(text), "runtime_policy_key": ""}
    made = await site.ask("POST", "/v2.6/allowlists/web", body)
    assert (made.status, made.json) == (201, {"code": 201, "status": "Created", "results": {}})
    again = await site.ask("POST", "/v2.6/allowlists/web", body)
    assert (again.status, again.said) == (409, "Runtime policy with name web already exists")
    assert (await site.ask("GET", "/v2.6/allowlists/")).json["results"] == {"runtimepolicy names": ["web"]}
    shown = (await site.ask("GET", "/v2.6/allowlists/web")).json["results"]
    assert shown == {"name": "web", "tmp_policy": None, "runtime_policy": text}
    assert (await site.ask("PUT", "/v2.6/allowlists/web", body)).status == 201
    absent = await site.ask("PUT", "/v2.6/allowlists/other", body)
    said = "Runtime policy with name other does not already exist, use POST to create"
    assert (absent.status, absent.said) == (404, said)
    gone = await site.ask("DELETE", "/v2.6/allowlists/web")
    assert (gone.status, gone.text) == (204, "")
    for method in ("GET", "DELETE"):
        missing = await site.ask(method, "/v2.6/allowlists/web")
        assert (missing.status, missing.said) == (404, "Runtime policy web not found")


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("{}", "Runtime policy is malformatted: 'meta' is a required property"),
        ("not json", "Runtime policy is not valid JSON!"),
        ('{"payload": "e30=", "payloadType": 1}', "payloadType of the envelope is not a string"),
        (policy_for(excludes=["("]), "Exclude list regex is misformatted. Please correct the issue and try again."),
        (policy_for(excludes=[r"(a)\1"]), "Exclude list regex is misformatted."),
        (policy_for(digests={"/a": ["xyz"], "/b": []}), "[] should be non-empty (digests, '/b')"),
        (policy_for(digests={"/a": ["xyz"], "/b": []}), "'xyz' does not match '^[0-9a-f]{40,128}$' (digests, '/a')"),
        (policy_for(verification_keys="[1]"), "the keyring is not an object with pubkeys and keyids"),
    ],
)
async def test_a_policy_that_cannot_be_used_is_refused_with_every_reason(
    site: Site, document: object, said: str
) -> None:
    for path, body in (
        ("/v2.6/allowlists/web", {"runtime_policy": encoded(document)}),
        ("/v2.6/agents/node-1", (await site.add_agent()).enrolment(runtime_policy=encoded(document))),
    ):
        answer = await site.ask("POST", path, body)
        assert answer.status == 400
        assert said in answer.said
    assert (await site.ask("GET", "/v2.6/allowlists/")).json["results"] == {"runtimepolicy names": []}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"runtime_policy": "@@@"}', b'{"runtime_policy": 1}'])
async def test_an_upload_that_is_none_is_refused(site: Site, body: bytes) -> None:
    assert (await site.ask("POST", "/v2.6/allowlists/web", body)).status == 400


async def test_names_of_enrolment_follow_the_contract(site: Site) -> None:
    agent = await site.add_agent()
    path = "/v2.6/agents/node-1"
    unknown = await site.ask("POST", path, agent.enrolment(runtime_policy_name="nobody"))
    assert (unknown.status, unknown.said) == (404, "Could not find IMA policy with name nobody!")
    await site.ask("POST", "/v2.6/allowlists/web", {"runtime_policy": encoded(policy_for(*TOOLS))})
    body = agent.enrolment(runtime_policy_name="web", runtime_policy=encoded(policy_for(*TOOLS)))
    taken = await site.ask("POST", path, body)
    assert (taken.status, taken.said.startswith("IMA policy with name web already exists.")) == (409, True)


# --- signed policies -------------------------------------------------------------------------------------------------


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


async def test_required_signatures_are_required(tmp_path: Path, authority: Authority) -> None:
    # trust: fail-closed
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())
    plain = json.dumps(policy_for(*TOOLS))
    signed = dsse.sign(plain.encode(), key)
    forged = json.loads(signed)
    forged["payload"] = encoded(policy_for("/tmp/evil"))
    async with running_verifier(tmp_path, authority, require_allow_list_signatures=True) as site:

        async def uploaded(document: object, signer: ec.EllipticCurvePrivateKey | None) -> tuple[int, str]:
            body = {
                "runtime_policy": encoded(document),
                "runtime_policy_key": signer and b64encode(pem(signer)).decode(),
            }
            answer = await site.ask("POST", "/v2.6/allowlists/web", body)
            return answer.status, answer.json["status"]

        assert await uploaded(plain, key) == (400, "Runtime policy is not signed!")
        no_key = "Runtime policy signature verification required but no key was given!"
        assert await uploaded(signed, None) == (401, no_key)
        bad = "Runtime policy failed DSSE signature verification!"
        assert await uploaded(signed, other) == (401, bad)
        assert await uploaded(forged, key) == (401, bad)
        assert await uploaded(signed, key) == (201, "Created")
        assert (await site.ask("GET", "/v2.6/allowlists/web")).json["results"]["runtime_policy"] == signed


async def test_a_pinned_signer_makes_the_key_of_a_request_worthless(tmp_path: Path, authority: Authority) -> None:
    # trust: bound-identity
    pinned, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "signer.pem").write_bytes(pem(pinned))
    text = json.dumps(policy_for(*TOOLS)).encode()
    signers = (str(tmp_path / "signer.pem"),)
    async with running_verifier(tmp_path, authority, policy_signing_keys=signers) as site:
        own_key = b64encode(pem(own)).decode()
        body = {"runtime_policy": encoded(dsse.sign(text, own)), "runtime_policy_key": own_key}
        assert (await site.ask("POST", "/v2.6/allowlists/web", body)).status == 401
        agent, kernel = await measured(site, dsse.sign(text, pinned))
        await site.reaches(agent, "trusted", rounds=1)
        kernel.measure("/tmp/evil")
        await site.reaches(agent, "distrusted")


async def test_a_policy_that_another_process_replaced_is_followed(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limeguard.verifier.shelf.REFRESH_SECONDS", 0.05)
    async with (
        running_verifier(tmp_path, authority) as site,
        running_verifier(tmp_path, authority, uuid="two") as second,
    ):
        agent, _ = await measured(site, policy_for(*TOOLS), runtime_policy_name="web")
        await site.reaches(agent, "trusted", rounds=1)
        update = {"runtime_policy": encoded(policy_for(*TOOLS, "/usr/bin/new"))}
        assert (await second.ask("PUT", "/v2.6/allowlists/web", update)).status == 201
        await asyncio.sleep(0.5)
        agent2, kernel2 = agent, SoftKernel(agent.node)
        assert agent2.node is kernel2.node
        await site.reaches(agent, "trusted", rounds=(await site.view(agent))["attestation_count"] + 1)
