"""Add and update: what is asked in which order, what is delivered, and nothing before the node proved itself."""

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.pki import Authority, self_signed
from tests.fakes.tenant_site import NODE, Answer, Call, Site, SoftAgent, failure, running_site
from tests.tenant.conftest import Tenant

from limeguard.crypto import keysplit
from limeguard.simulator.softtpm import SoftAk
from limeguard.tenant.payload import CertificatePackage

pytestmark = pytest.mark.services

ZEROS = "0" * 64
QUOTE = "agent GET /quotes/identity"
UKEY = "agent POST /keys/ukey"
ENROL = f"verifier POST /agents/{NODE}"
LOOK = f"verifier GET /agents/{NODE}"
REGISTRATION = f"registrar GET /agents/{NODE}"
DELETE = f"verifier DELETE /agents/{NODE}"


@pytest.fixture
def secret_file(tmp_path: Path) -> str:
    path = tmp_path / "payload.txt"
    path.write_bytes(b"the payload")
    return str(path)


async def test_add_asks_in_the_order_of_the_protocol(site: Site, tenant: Tenant, secret_file: str) -> None:
    assert await tenant("add", file=secret_file, verify=True) == 0
    assert site.lines() == [REGISTRATION, QUOTE, UKEY, ENROL, LOOK, "agent GET /keys/verify"]
    assert [call.who for call in site.calls if call.path == "/version"] == ["registrar", "agent", "verifier"]


async def test_add_without_payload_delivers_no_key(site: Site, tenant: Tenant) -> None:
    assert await tenant("add") == 0
    assert site.lines() == [REGISTRATION, QUOTE, ENROL, LOOK]
    assert site.to("verifier", "POST")[0].json["v"] is None


async def test_the_words_of_add(site: Site, tenant: Tenant) -> None:
    assert await tenant("add") == 0
    agent, verifier = site.ports["agent"], site.ports["verifier"]
    for text in (
        "Using API version 2.6 for registrar communication",
        f"Negotiated API version 2.6 with agent {NODE} (agent: ['2.1', ",
        "Using API version 2.6 for agent communication",
        f"Quote from Agent {NODE} (127.0.0.1:{agent}) validated",
        "Using API version 2.6 for verifier communication",
        f"Agent {NODE} (127.0.0.1:{agent}) added to Verifier (127.0.0.1:{verifier}) after 0 tries",
    ):
        assert text in tenant.heard.text
    assert tenant.heard.titles == [f"Agent Info from Verifier (127.0.0.1:{verifier}):"]
    assert tenant.heard.echoes[0]["results"]["hash_alg"] == "sha256"


async def test_the_enrolment_has_every_member(site: Site, tenant: Tenant, secret_file: str) -> None:
    assert (
        await tenant("add", file=secret_file, tpm_policy=json.dumps({"23": ZEROS}), verifier_agent_host="n.test") == 0
    )
    body = site.to("verifier", "POST")[0].json
    v = base64.b64decode(body.pop("v"))
    assert len(v) == 32
    assert json.loads(body.pop("tpm_policy")) == {"23": [ZEROS], "mask": "0x800000"}
    assert body == {
        "cloudagent_ip": "n.test",
        "cloudagent_port": site.ports["agent"],
        "verifier_ip": "127.0.0.1",
        "verifier_port": site.ports["verifier"],
        "runtime_policy": "",
        "runtime_policy_name": "",
        "runtime_policy_key": "",
        "mb_policy": None,
        "mb_policy_name": "",
        "ima_sign_verification_keys": "",
        "metadata": "{}",
        "revocation_key": "",
        "accept_tpm_hash_algs": ["sha512", "sha384", "sha256"],
        "accept_tpm_encryption_algs": ["ecc", "rsa"],
        "accept_tpm_signing_algs": ["ecschnorr", "rsassa"],
        "ak_tpm": base64.b64encode(site.agent.ak.public_2b).decode(),
        "mtls_cert": site.agent.identity.pem,
        "supported_version": "2.6",
    }


async def test_the_payload_opens_at_the_node_with_both_halves(site: Site, tenant: Tenant, secret_file: str) -> None:
    assert await tenant("add", file=secret_file) == 0
    payload = base64.b64decode(site.to("agent", "POST")[0].json["payload"])
    assert site.agent.payload_key is not None
    assert keysplit.decrypt_payload(site.agent.payload_key, payload) == b"the payload"


async def test_verify_asks_with_a_fresh_challenge_until_the_key_is_there(
    site: Site, tenant: Tenant, secret_file: str
) -> None:
    asked: list[str] = []

    def first_time_not_yet(call: Call) -> Answer | None:
        if call.path.endswith("/keys/verify"):
            asked.append(call.query["challenge"])
            return failure(400, "Bootstrap key not yet available.") if len(asked) == 1 else None
        return None

    site.overrides.append(first_time_not_yet)
    assert await tenant("add", file=secret_file, verify=True) == 0
    assert len(set(asked)) == 2
    assert "at try 1/3 (expected length 96, received length 0) trying again in" in tenant.heard.text
    assert f"Successful key derivation for Agent {NODE}" in tenant.heard.text


async def test_a_node_that_never_confirms_is_stopped(site: Site, tenant: Tenant, secret_file: str) -> None:
    site.delivers_v = False
    assert await tenant("add", file=secret_file, verify=True) == 1
    assert site.lines()[-4:] == ["agent GET /keys/verify"] * 3 + [f"verifier PUT /agents/{NODE}/stop"]
    assert site.nodes[NODE]["operational_state"] == 10


async def test_a_wrong_confirmation_is_none(site: Site, tenant: Tenant, secret_file: str) -> None:
    site.overrides.append(
        lambda call: (200, {"code": 200, "results": {"hmac": "0" * 96}}) if call.path.endswith("/verify") else None
    )
    assert await tenant("add", file=secret_file, verify=True) == 1
    assert site.nodes[NODE]["operational_state"] == 10


async def test_keys_made_beforehand_are_delivered(site: Site, tenant: Tenant, tmp_path: Path) -> None:
    key, v = os.urandom(32), os.urandom(32)
    keys, payload = tmp_path / "content_keys.txt", tmp_path / "content_payload.txt"
    parts = (key, v, keysplit.split(key, v))
    keys.write_text("".join(base64.b64encode(part).decode() + "\n" for part in parts))
    payload.write_bytes(base64.b64encode(keysplit.encrypt_payload(key, os.urandom(16), b"x")))
    assert await tenant("add", key=str(keys), payload=str(payload), verify=True) == 0
    assert site.agent.payload_key == key


class PackageMaker:
    """An authority that counts what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def package_for(self, agent_id: str) -> CertificatePackage:
        self.asked.append(agent_id)
        return CertificatePackage({"cacert.crt": b"ca"}, 3, f"CN={agent_id}", "REVOCATION KEY", b"notifier")


async def test_a_certificate_package_goes_to_the_node_and_its_key_to_the_verifier(
    site: Site, tenant: Tenant, tmp_path: Path
) -> None:
    maker = PackageMaker()
    tenant.authority = lambda _: maker
    included = tmp_path / "include"
    included.mkdir()
    (included / "autorun.sh").write_text("#!/bin/sh\n")
    assert await tenant("add", cert="default", include=str(included)) == 0
    assert maker.asked == [NODE]
    body = site.to("verifier", "POST")[0].json
    assert body["revocation_key"] == "REVOCATION KEY"
    assert json.loads(body["metadata"]) == {"cert_serial": 3, "subject": f"CN={NODE}"}
    assert b"REVOCATION" not in base64.b64decode(site.to("agent", "POST")[0].json["payload"])


async def test_update_proves_first_and_replaces_then(site: Site, tenant: Tenant, secret_file: str) -> None:
    site.enrol(7)
    assert await tenant("update", file=secret_file) == 0
    assert site.lines() == [REGISTRATION, QUOTE, LOOK, DELETE, UKEY, ENROL, LOOK]
    assert site.nodes[NODE]["operational_state"] == 1
    assert tenant.heard.titles[-1].startswith("Agent Info from Verifier default (")


async def test_update_of_an_absent_node_adds_it(site: Site, tenant: Tenant) -> None:
    assert await tenant("update") == 0
    assert NODE in site.nodes


async def test_a_node_that_fails_its_proof_keeps_the_supervision_it_has(site: Site, tenant: Tenant) -> None:
    site.enrol(3)
    site.agent.bind = "another key"
    assert await tenant("update") == 1
    assert site.nodes[NODE]["operational_state"] == 3
    assert DELETE not in site.lines()


async def test_add_of_a_supervised_node_says_what_to_do(site: Site, tenant: Tenant) -> None:
    site.enrol()
    assert await tenant("add") == 1
    assert 'Run "delete" or "update" first.' in tenant.heard.errors[0]


async def test_add_of_an_unregistered_node_fails(site: Site, tenant: Tenant) -> None:
    site.records.clear()
    assert await tenant("add") == 1
    assert tenant.heard.errors == [f"Agent ${NODE} data not found in the Registrar."]


async def test_what_the_verifier_refuses_is_shown_as_json(site: Site, tenant: Tenant) -> None:
    text = "Could not find mb_policy with name non_existing_policy!"
    site.overrides.append(lambda call: failure(404, text) if (call.who, call.method) == ("verifier", "POST") else None)
    assert await tenant("add", mb_policy_name="non_existing_policy") == 1
    shown = tenant.heard.errors[0].replace(", ", ",").replace(": ", ":")
    assert f'{{"code":404,"status":"{text}","results":{{}}}}' in shown
    assert tenant.heard.errors[0].startswith("POST command response: 404 Unexpected response from Verifier (")


async def test_a_push_node_is_enrolled_without_being_asked(site: Site, tenant: Tenant) -> None:
    site.register(mtls_cert=None, ip=None, port=None)
    assert await tenant("add", push_model=True) == 0
    assert site.lines() == [REGISTRATION, ENROL, LOOK]
    body = site.to("verifier", "POST")[0].json
    assert body["v"] is None
    assert body["revocation_key"] == ""
    assert "operational_state" not in tenant.heard.documents["verifier"][NODE]


@pytest.mark.parametrize("command", ["add", "update"])
@pytest.mark.parametrize("more", [{"file": "f"}, {"cert": "default"}, {"key": "k", "payload": "p"}, {"verify": True}])
async def test_a_payload_for_a_push_node_is_refused_before_anything_is_asked(
    site: Site, tenant: Tenant, command: str, more: dict[str, Any]
) -> None:
    assert await tenant(command, push_model=True, **more) == 1
    assert "the push model has no way to hand a payload to a node" in tenant.heard.errors[0]
    assert site.calls == []


async def test_update_of_a_push_node_replaces_it(site: Site, tenant: Tenant) -> None:
    site.enrol()
    assert await tenant("update", push_model=True) == 0
    assert site.lines() == [REGISTRATION, LOOK, DELETE, ENROL, LOOK]


async def test_the_address_of_the_options_wins(site: Site, tenant: Tenant) -> None:
    site.register(ip="192.0.2.1", port=9)
    assert await tenant("add", agent_host="127.0.0.1", agent_port=site.ports["agent"]) == 0


async def test_a_version_named_by_the_operator_is_spoken(site: Site, tenant: Tenant) -> None:
    assert await tenant("add", agent_api_version="2.3") == 0
    assert site.to("agent", "GET")[0].path == "/v2.3/quotes/identity"
    assert site.to("verifier", "POST")[0].json["supported_version"] == "2.3"


async def test_an_agent_of_an_older_version_is_spoken_to_in_it(site: Site, tenant: Tenant) -> None:
    site.agent.versions = ["2.1", "2.2"]
    site.agent.enc_alg = "rsa"
    assert await tenant("add") == 0
    assert site.to("agent", "GET")[-1].path == "/v2.2/quotes/identity"


# trust: downgrade
@pytest.mark.parametrize("versions", [["1.0"], ["3.0"], ["0.1", "1.0", "9.9"]])
async def test_an_agent_without_a_common_version_is_refused(site: Site, tenant: Tenant, versions: list[str]) -> None:
    site.agent.versions = versions
    assert await tenant("add") == 1
    assert "has no compatible API version. Agent supports: [" in tenant.heard.text
    assert site.to("agent", "GET")[-1].path == "/version"


async def test_an_agent_that_does_not_tell_its_versions_is_spoken_to_in_the_current_one(
    site: Site, tenant: Tenant
) -> None:
    site.overrides.append(lambda call: (500, None) if (call.who, call.path) == ("agent", "/version") else None)
    assert await tenant("add") == 0
    assert "Could not detect supported API version" in tenant.heard.text


async def test_an_agent_that_is_busy_is_asked_again(site: Site, tenant: Tenant) -> None:
    busy = [(503, None), (504, None)]
    site.overrides.append(lambda call: busy.pop(0) if call.path.endswith("/identity") and busy else None)
    assert await tenant("add") == 0


async def test_an_agent_that_is_not_there_is_given_up_after_the_tries_allowed(site: Site, tenant: Tenant) -> None:
    assert await tenant("add", agent_port=1) == 1
    assert f"Tenant cannot establish connection to Agent {NODE} (127.0.0.1:1)" in tenant.heard.errors[0]


async def test_an_agent_that_does_not_trust_us_leads_to_its_settings(tmp_path: Path) -> None:
    other = Authority(tmp_path / "other", "Other CA").identity.certificate
    async with running_site(tmp_path, SoftAgent(tmp_path, NODE), other) as site:
        site.register()
        tenant = Tenant(site)
        assert await tenant("add") == 1
    assert "trusted_client_ca of the agent" in tenant.heard.errors[0]
    assert "SSLError" in tenant.heard.errors[0]


async def test_a_server_that_does_not_trust_us_leads_to_its_settings(
    site: Site, tenant: Tenant, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "other", "Other CA").issue("client")
    settings = site.settings(client_cert=str(stranger.certificate), client_key=str(stranger.key))
    assert await tenant("add", settings) == 1
    assert "trusted_client_ca of the server" in tenant.heard.errors[0]
    assert "SSLError" in tenant.heard.errors[0]


# --- nothing secret leaves before the node proved itself -------------------------------------------------------------


def another_key(site: Site) -> None:
    site.agent.bind = "-----BEGIN PUBLIC KEY-----\nanother\n-----END PUBLIC KEY-----\n"


def another_ak(site: Site) -> None:
    site.agent.ak = SoftAk.generate("rsa2048", number=7)


def old_nonce(site: Site) -> None:
    site.agent.nonce = b"A" * 20


def another_certificate(site: Site) -> None:
    site.register(mtls_cert=self_signed(site.folder, "impostor").pem)


def no_quote(site: Site) -> None:
    site.overrides.append(lambda call: failure(500, "Unable to retrieve quote") if "identity" in call.path else None)


def quote_of_nothing(site: Site) -> None:
    site.overrides.append(lambda call: (200, {"code": 200, "results": {}}) if "identity" in call.path else None)


def garbage_quote(site: Site) -> None:
    results = {
        "quote": "r::",
        "hash_alg": "sha256",
        "enc_alg": "rsa",
        "sign_alg": "rsassa",
        "pubkey": site.agent.transport_key,
    }
    site.overrides.append(lambda call: (200, {"code": 200, "results": results}) if "identity" in call.path else None)


def without_transport_key(site: Site) -> None:
    def strip(call: Call) -> Answer | None:
        if "identity" not in call.path:
            return None
        quote = site.agent.quote(call.query["nonce"])
        results = {"quote": quote, "hash_alg": "sha256", "enc_alg": "rsa", "sign_alg": "rsassa"}
        return 200, {"code": 200, "results": results}

    site.overrides.append(strip)


def not_activated(site: Site) -> None:
    site.records.clear()


def no_certificate_registered(site: Site) -> None:
    site.register(mtls_cert=None)


def tls_disabled(site: Site) -> None:
    site.register(mtls_cert="disabled")


def broken_ak(site: Site) -> None:
    site.register(aik_tpm=base64.b64encode(b"\0\1\2").decode())


def said_other_hash(site: Site) -> None:
    site.agent.hash_alg = "sha512"


Attack = Callable[[Site], None]


# trust: secret
# trust: bound-identity
@pytest.mark.parametrize(
    "attack",
    [
        another_key,
        another_ak,
        old_nonce,
        another_certificate,
        no_quote,
        quote_of_nothing,
        garbage_quote,
        without_transport_key,
        not_activated,
        no_certificate_registered,
        tls_disabled,
        broken_ak,
        said_other_hash,
    ],
)
@pytest.mark.parametrize("command", ["add", "update"])
async def test_no_secret_leaves_for_a_node_that_does_not_prove_itself(
    site: Site, tenant: Tenant, secret_file: str, attack: Attack, command: str
) -> None:
    attack(site)
    assert await tenant(command, file=secret_file, verify=True) == 1
    assert site.to("agent", "POST") == []
    assert site.to("verifier", "POST") == []
    assert site.to("verifier", "DELETE") == []
    assert len(tenant.heard.errors) >= 1


# trust: downgrade
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"accept_tpm_hash_algs": ("sha512",)}, "is using an unaccepted hash algorithm: sha256"),
        ({"accept_tpm_encryption_algs": ("ecc",)}, "is using an unaccepted encryption algorithm: rsa2048"),
        ({"accept_tpm_signing_algs": ("rsapss",)}, "is using an unaccepted signing algorithm: rsassa"),
    ],
)
async def test_no_secret_leaves_for_an_algorithm_that_is_not_accepted(
    site: Site, tenant: Tenant, secret_file: str, changes: dict[str, Any], text: str
) -> None:
    assert await tenant("add", site.settings(**changes), file=secret_file) == 1
    assert text in tenant.heard.errors[0]
    assert tenant.heard.errors[0].startswith(f"TPM Quote from Agent {NODE} (127.0.0.1:")
    assert site.to("agent", "POST") == []
    assert site.to("verifier", "POST") == []


# trust: bound-identity
async def test_no_secret_leaves_when_the_ek_is_not_accepted(site: Site, tenant: Tenant, secret_file: str) -> None:
    assert await tenant("add", site.settings(require_ek_cert=True), file=secret_file) == 1
    assert "No EK cert provided" in tenant.heard.text
    nonce = site.to("agent", "GET")[-1].query["nonce"]
    assert tenant.heard.errors == [
        f"TPM Quote from Agent {NODE} (127.0.0.1:{site.ports['agent']}) is invalid for nonce: {nonce}"
    ]
    assert site.to("agent", "POST") == []
    assert site.to("verifier", "POST") == []


async def test_several_registrations_are_pointed_out_when_the_proof_fails(site: Site, tenant: Tenant) -> None:
    site.register(regcount=2)
    site.agent.bind = "another key"
    assert await tenant("add") == 1
    assert "has registered 2 times" in tenant.heard.errors[0]
    assert "is invalid for nonce" in tenant.heard.errors[1]


async def test_no_certificates_are_made_for_a_node_that_does_not_prove_itself(site: Site, tenant: Tenant) -> None:
    maker = PackageMaker()
    tenant.authority = lambda _: maker
    site.agent.bind = "another key"
    assert await tenant("add", cert="default") == 1
    assert maker.asked == []


async def test_an_agent_that_refuses_its_half_is_not_enrolled(site: Site, tenant: Tenant, secret_file: str) -> None:
    site.overrides.append(lambda call: failure(500, "no") if call.path.endswith("/ukey") else None)
    assert await tenant("add", file=secret_file) == 1
    assert site.to("verifier", "POST") == []


# trust: fresh
async def test_every_quote_has_a_nonce_of_its_own(site: Site, tenant: Tenant) -> None:
    for _ in range(5):
        site.nodes.clear()
        assert await tenant("add") == 0
    nonces = [call.query["nonce"] for call in site.to("agent", "GET") if "nonce" in call.query]
    assert len(set(nonces)) == 5
    assert all(len(nonce) == 20 and nonce.isalnum() and nonce.isascii() for nonce in nonces)


# trust: empty-is-not-valid
@pytest.mark.parametrize("policy", ["", "   ", "[]", "null", '{"15": 5}', "zz", '{"16": "00"}', '{"10": "00"}'])
async def test_a_pcr_policy_that_says_nothing_is_refused_before_anything_is_asked(
    site: Site, tenant: Tenant, policy: str
) -> None:
    assert await tenant("add", tpm_policy=policy) == 1
    assert site.calls == []
    assert "--tpm_policy" in tenant.heard.errors[0]


# trust: secret
async def test_nothing_that_is_said_has_a_secret_in_it(site: Site, tenant: Tenant, secret_file: str) -> None:
    assert await tenant("add", file=secret_file, verify=True) == 0
    said = tenant.heard.text + "".join(tenant.heard.details) + repr(tenant.heard.echoes)
    v = site.to("verifier", "POST")[0].json["v"]
    assert site.agent.payload_key is not None
    for secret in (v, base64.b64encode(site.agent.payload_key).decode(), site.agent.payload_key.hex(), "the payload"):
        assert secret not in said


# trust: bounded
async def test_an_agent_that_answers_without_end_is_given_up(site: Site, tenant: Tenant) -> None:
    site.overrides.append(lambda call: (200, b"x" * 10_000_000) if "identity" in call.path else None)
    assert await tenant("add") == 1
    assert "more than 262144 bytes" in tenant.heard.errors[0]


async def test_an_agent_without_tls_is_spoken_to_when_the_operator_allows_it(site: Site, tenant: Tenant) -> None:
    site.register(mtls_cert="disabled", port=1)
    assert await tenant("add", site.settings(enable_agent_mtls=False)) == 1
    assert "http://127.0.0.1:1" in tenant.heard.text
    assert "has no TLS" in tenant.heard.text
