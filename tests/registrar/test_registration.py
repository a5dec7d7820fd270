"""Registration and activation over real HTTP, by a client as strict as deployed agents, with real credentials."""

from base64 import b64encode
from typing import Any

import pytest
from tests.fakes.pki import self_signed
from tests.fakes.strict_agent import VERSIONS, Refusal, StrictAgent
from tests.registrar.conftest import AGENT_ID, Site, Start

from limeguard.simulator.softtpm import AK_ATTRIBUTES, SoftAk, SoftNode
from limeguard.wire.registrar_v2 import INVALID, OTHER_IDENTITY

pytestmark = pytest.mark.services


async def shown(site: Site, agent_id: str = AGENT_ID) -> dict[str, Any]:
    results = (await site.admin(agent_id).ask("GET", f"/v2.6/agents/{agent_id}"))["results"]
    assert isinstance(results, dict)
    return results


async def ids(site: Site) -> list[str]:
    listed = (await site.admin().ask("GET", "/v2.6/agents/"))["results"]["uuids"]
    assert isinstance(listed, list)
    return listed


async def test_a_registrar_starts_empty(site: Site) -> None:
    assert await ids(site) == []


@pytest.mark.parametrize("kind", ["rsa2048", "rsa3072", "ecc256", "ecc384", "ecc521"])
async def test_an_agent_with_any_supported_ek_enrols(site: Site, kind: str) -> None:
    agent = site.agent(kind=kind)
    await agent.enrol(mtls_cert=None)
    record = await shown(site)
    fields = agent.node.registration_fields()
    assert record == {
        "agent_id": AGENT_ID,
        "ek_tpm": fields["ek_tpm"],
        "ekcert": None,
        "aik_tpm": fields["aik_tpm"],
        "mtls_cert": None,
        "ip": "127.0.0.1",
        "port": 9002,
        "regcount": 1,
    }


@pytest.mark.parametrize("version", ["2", "2.0", *VERSIONS])
async def test_every_version_of_the_interface_is_served(site: Site, version: str) -> None:
    agent = site.agent()
    agent.version = version
    await agent.activate(agent.answer(await agent.register()))
    assert (await shown(site))["regcount"] == 1


async def test_the_other_spellings_of_the_routes_work(site: Site) -> None:
    agent = site.agent()
    fields = {**agent.node.registration_fields(), "agent_id": AGENT_ID}
    for count, (register, method, activate) in enumerate(
        [
            ("/v2.6/agents", "PUT", f"/v2.6/agents/{AGENT_ID}/activate"),
            ("/v2.6/agents/", "POST", f"/v2.6/agents/{AGENT_ID}/activate/"),
            ("/v3.0/agents", "POST", f"/v3.0/agents/{AGENT_ID}/activate"),
            ("/v3/agents", "POST", f"/v3/agents/{AGENT_ID}/activate"),
        ],
        start=1,
    ):
        from base64 import b64decode

        blob = b64decode((await agent.ask("POST", register, fields))["results"]["blob"])
        answer = await agent.ask(method, activate, {"auth_tag": agent.answer(blob)})
        assert answer == {"code": 200, "status": "Success", "results": {}}
        assert (await shown(site))["regcount"] == count
    admin = site.admin()
    assert (await admin.ask("GET", f"/v3.0/agents/{AGENT_ID}"))["results"] == await shown(site)
    assert (await admin.ask("GET", "/v3/"))["results"] == {}
    await admin.ask("DELETE", f"/v3/agents/{AGENT_ID}")
    assert (await admin.ask("GET", "/v3/agents"))["results"] == {"uuids": []}


async def test_registration_works_over_https_without_certificate(site: Site) -> None:
    agent = StrictAgent(site.secure, AGENT_ID, SoftNode.create("ecc256"), site.anonymous_tls)
    await agent.enrol()
    assert (await shown(site))["mtls_cert"] == "disabled"


async def test_a_node_is_listed_at_once_and_readable_when_active(site: Site) -> None:
    agent = site.agent()
    blob = await agent.register()
    assert await ids(site) == [AGENT_ID]
    with pytest.raises(Refusal) as caught:
        await shown(site)
    assert (caught.value.status, caught.value.said) == (404, f"Agent with ID '{AGENT_ID}' has not been activated")
    await agent.activate(agent.answer(blob))
    assert (await shown(site))["agent_id"] == AGENT_ID


async def test_what_is_not_there_is_404_with_its_text(site: Site) -> None:
    admin = site.admin()
    for method, body in (("GET", None), ("DELETE", None), ("PUT", {"auth_tag": "00"})):
        with pytest.raises(Refusal) as caught:
            await admin.ask(method, "/v2.6/agents/nobody", body)
        assert (caught.value.status, caught.value.said) == (404, "Agent with ID 'nobody' not found")


async def test_a_deleted_node_can_register_again_with_another_tpm(site: Site) -> None:
    await site.agent(1).enrol()
    await site.admin().ask("DELETE", f"/v2.6/agents/{AGENT_ID}")
    assert await ids(site) == []
    await site.agent(2).enrol()
    assert (await shown(site))["regcount"] == 1


async def test_a_restarted_agent_registers_again_and_is_counted(site: Site) -> None:
    agent = site.agent()
    await agent.enrol()
    blob = await agent.register()
    with pytest.raises(Refusal, match="has not been activated"):
        await shown(site)
    await agent.activate(agent.answer(blob))
    assert (await shown(site))["regcount"] == 2


async def test_a_certificate_comes_back_as_pem(site: Site, tmp_path: Any) -> None:
    own = self_signed(tmp_path, "agent")
    await site.agent().enrol(mtls_cert=own.pem)
    assert (await shown(site))["mtls_cert"] == own.pem
    await site.agent().enrol(mtls_cert=b64encode(own.der).decode())
    assert (await shown(site))["mtls_cert"] == own.pem


async def test_members_that_are_absent_keep_their_values(site: Site) -> None:
    agent = site.agent()
    await agent.enrol()
    before = await shown(site)
    await agent.ask("POST", agent.path, {})
    assert await shown(site) == before
    await agent.ask("POST", agent.path, {"aik_tpm": agent.node.registration_fields()["aik_tpm"]})
    with pytest.raises(Refusal, match="has not been activated"):
        await shown(site)


@pytest.mark.parametrize("change", [{"ip": "192.0.2.66"}, {"port": 9}, {"mtls_cert": None}])
async def test_where_a_node_is_reached_changes_only_with_a_proof(site: Site, change: dict[str, Any]) -> None:
    # trust: bound-identity - contact and certificate belong to the TPM that answered for them
    agent = site.agent()
    await agent.enrol()
    await agent.ask("POST", agent.path, change)
    with pytest.raises(Refusal, match="has not been activated"):
        await shown(site)


async def test_hex_keys_and_numeric_ports_are_taken(site: Site) -> None:
    agent = site.agent()
    ek, ak = agent.node.ek.public_2b, agent.node.ak.public_2b
    await agent.enrol(ek_tpm="0x" + ek.hex(), aik_tpm=b64encode(ak).decode(), port="9002")
    assert (await shown(site))["ek_tpm"] == b64encode(ek).decode()
    assert (await shown(site))["port"] == 9002


def truncated(node: SoftNode) -> str:
    return b64encode(node.ak.public_2b[:-9]).decode()


@pytest.mark.parametrize(
    "bad",
    [
        {"aik_tpm": None},
        {"aik_tpm": ""},
        {"aik_tpm": "!"},
        {"aik_tpm": "AAAA"},
        {"aik_tpm": 5},
        {"ek_tpm": None},
        {"ek_tpm": "AAAA"},
        {"ekcert": "x"},
        {"ekcert": "AAAA"},
        {"ekcert": "-----BEGIN CERTIFICATE-----"},
        {"ekcert": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
        {"mtls_cert": "enabled"},
        {"mtls_cert": "AAAA"},
        {"port": 0},
        {"port": 65536},
        {"port": -1},
        {"port": "x"},
        {"port": "9" * 4000},
        {"port": True},
        {"port": 1.5},
        {"ip": "a b"},
        {"ip": "host\n"},
        {"ip": "\x1b[31m"},
        {"ip": "<script>"},
        {"ip": "h" * 256},
        {"ip": ["127.0.0.1"]},
        {"iak_tpm": "AAAA"},
        {"iak_cert": "AAAA"},
        {"aik_tpm": "A" * 100_000},
        {"ekcert": "A" * 1_000_000},
    ],
    ids=lambda bad: str(bad)[:40],
)
async def test_what_is_not_valid_is_refused_and_leaves_nothing(site: Site, bad: dict[str, Any]) -> None:
    # trust: bounded - sizes and characters of every member
    with pytest.raises(Refusal) as caught:
        await site.agent().register(**bad)
    assert (caught.value.status, caught.value.said) == (400, INVALID)
    assert await ids(site) == []


async def test_a_truncated_key_is_refused(site: Site) -> None:
    agent = site.agent(kind="rsa2048")
    with pytest.raises(Refusal, match=INVALID):
        await agent.register(aik_tpm=truncated(agent.node))


@pytest.mark.parametrize("attributes", [AK_ATTRIBUTES & ~(1 << 16), AK_ATTRIBUTES & ~2, AK_ATTRIBUTES | 1 << 17])
async def test_only_a_restricted_signing_key_fixed_to_its_tpm_can_attest(site: Site, attributes: int) -> None:
    # trust: bound-identity - any other key would sign a quote that no TPM made
    ak = SoftAk.generate("ecc256", attributes=attributes)
    with pytest.raises(Refusal, match=INVALID):
        await site.agent().register(aik_tpm=b64encode(ak.public_2b).decode())


async def test_an_attestation_key_is_no_endorsement_key(site: Site) -> None:
    agent = site.agent()
    with pytest.raises(Refusal, match=INVALID):
        await agent.register(ek_tpm=agent.node.registration_fields()["aik_tpm"])


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("member", ["ek_tpm", "aik_tpm", "both"])
@pytest.mark.parametrize("active", [True, False])
async def test_a_second_tpm_does_not_get_the_id(
    site: Site, number: int, member: str, active: bool, caplog: pytest.LogCaptureFixture
) -> None:
    # trust: bound-identity
    agent = site.agent(1)
    blob = await agent.register()
    if active:
        await agent.activate(agent.answer(blob))
    other = SoftNode.create("ecc256", number=number).registration_fields()
    changed = {name: other[name] for name in ("ek_tpm", "aik_tpm") if member in {name, "both"}}
    with pytest.raises(Refusal) as caught:
        await agent.register(**changed)
    assert (caught.value.status, caught.value.said) == (403, OTHER_IDENTITY)
    assert "SECURITY: Rejected attempt to re-register agent" in caplog.text
    if not active:
        await agent.activate(agent.answer(blob))
    assert (await shown(site))["regcount"] == 1


@pytest.mark.parametrize("empty", ["", None])
@pytest.mark.parametrize("member", ["ek_tpm", "aik_tpm"])
async def test_an_identity_cannot_be_emptied(site: Site, member: str, empty: str | None) -> None:
    # trust: bound-identity
    agent = site.agent()
    await agent.enrol()
    with pytest.raises(Refusal, match=OTHER_IDENTITY):
        await agent.register(**{member: empty})
    assert (await shown(site))["regcount"] == 1


async def test_an_operator_may_allow_another_tpm(start: Start) -> None:
    site = await start(allow_reregistration_with_new_tpm=True)
    await site.agent(1).enrol()
    agent = site.agent(2)
    await agent.enrol()
    record = await shown(site)
    assert record["ek_tpm"] == agent.node.registration_fields()["ek_tpm"]
    assert record["regcount"] == 2
