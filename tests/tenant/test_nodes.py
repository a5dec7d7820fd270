"""Status, lists, delete and reactivate against real servers: the calls, the words, the exit status."""

import json
from typing import Any

import pytest
from tests.fakes.tenant_site import NODE, Answer, Call, Site
from tests.tenant.conftest import Tenant

pytestmark = pytest.mark.services


async def test_reglist_shows_flat_ids(site: Site, tenant: Tenant) -> None:
    assert await tenant("reglist", agent_id=None) == 0
    assert tenant.heard.documents == {"agents": {"uuids": [NODE]}}
    assert tenant.heard.details[0].startswith(f"From registrar 127.0.0.1 port {site.ports['registrar']} retrieved {{")
    assert [call.path for call in site.to("registrar", "GET")] == ["/version", "/v2.6/agents/"]


async def test_cvlist_shows_ids_in_lists_and_passes_the_filter_on(site: Site, tenant: Tenant) -> None:
    site.enrol()
    assert await tenant("cvlist", agent_id=None, verifier_id="a b&c") == 0
    assert tenant.heard.documents == {"agents": {"uuids": [[NODE]]}}
    assert site.to("verifier", "GET")[-1].query == {"verifier": "a b&c"}
    assert f"'uuids': [['{NODE}']]" in tenant.heard.details[0]


@pytest.mark.parametrize("status", [404, 503, 504])
async def test_cvlist_of_a_verifier_that_is_not_ready_is_no_failure(site: Site, tenant: Tenant, status: int) -> None:
    site.overrides.append(lambda call: (status, None) if call.path.endswith("/agents/") else None)
    assert await tenant("cvlist", agent_id=None) == 0


async def test_bulkinfo_names_states(site: Site, tenant: Tenant) -> None:
    site.enrol()
    site.nodes["push"] = {**site.nodes[NODE], "operational_state": None}
    assert await tenant("bulkinfo", agent_id=None) == 0
    fleet = tenant.heard.documents["agents"]
    assert fleet[NODE]["operational_state"] == "Get Quote"
    assert fleet["push"]["operational_state"] == "Not applicable (Push Mode)"
    assert tenant.heard.titles == ["Bulk Agent Info:"]
    assert site.to("verifier", "GET")[-1].query["bulk"] == "True"


async def test_bulkinfo_fails_on_any_other_answer(site: Site, tenant: Tenant) -> None:
    site.overrides.append(lambda call: (500, None) if "bulk" in call.query else None)
    assert await tenant("bulkinfo", agent_id=None) == 1


async def test_regstatus_shows_the_registration(site: Site, tenant: Tenant) -> None:
    assert await tenant("regstatus") == 0
    shown = tenant.heard.documents["registrar"][NODE]
    assert shown["operational_state"] == "Registered"
    assert shown["ekcert"] is None
    port = site.ports["registrar"]
    repeated = json.loads(tenant.heard.details[1])
    assert repeated["status"] == f"Agent {NODE} exists on registrar 127.0.0.1 port {port}."
    assert list(repeated["results"]) == [NODE]


async def test_regstatus_of_an_unknown_node_fails(site: Site, tenant: Tenant) -> None:
    assert await tenant("regstatus", agent_id="other") == 1
    port = site.ports["registrar"]
    assert json.loads(tenant.heard.details[0]) == {
        "code": 404,
        "status": f"Agent other does not exist on registrar 127.0.0.1 port {port}.",
        "results": {},
    }
    assert tenant.heard.errors[0].startswith(f"Agent other does not exist on Registrar (127.0.0.1:{port}).")


async def test_an_unreachable_registrar_is_not_an_unknown_node(site: Site, tenant: Tenant) -> None:
    assert await tenant("regstatus", site.settings(registrar_port=1)) == 1
    assert "does not exist on Registrar" not in tenant.heard.text
    assert "No answer from registrar" in tenant.heard.text


async def test_cvstatus_shows_the_record_with_its_state_by_name(site: Site, tenant: Tenant) -> None:
    site.enrol(9)
    assert await tenant("cvstatus") == 0
    assert next(iter(tenant.heard.documents["verifier"][NODE].items())) == ("operational_state", "Invalid Quote")


async def test_cvstatus_of_a_push_node_has_no_state(site: Site, tenant: Tenant) -> None:
    site.enrol()
    assert await tenant("cvstatus", push_model=True) == 0
    assert "operational_state" not in tenant.heard.documents["verifier"][NODE]


async def test_cvstatus_of_an_unknown_node_fails(site: Site, tenant: Tenant) -> None:
    assert await tenant("cvstatus") == 1
    port = site.ports["verifier"]
    assert f"Verifier at 127.0.0.1 with Port {port} does not have agent {NODE}." in tenant.heard.text
    assert tenant.heard.errors == [f"Agent {NODE} does not exist on Verifier (127.0.0.1:{port})."]


async def test_status_needs_both_sides(site: Site, tenant: Tenant) -> None:
    assert await tenant("status") == 1
    site.enrol()
    assert await tenant("status") == 0
    assert list(tenant.heard.documents) == ["registrar", "verifier"]
    site.records.clear()
    assert await tenant("status") == 1
    assert "verifier" not in tenant.heard.documents


async def test_regdelete_of_an_absent_node_warns_and_succeeds(site: Site, tenant: Tenant) -> None:
    assert await tenant("regdelete") == 0
    assert not site.records
    assert await tenant("regdelete") == 0
    assert "404" in tenant.heard.text


async def test_delete_asks_first_and_then_deletes(site: Site, tenant: Tenant) -> None:
    site.enrol()
    assert await tenant("delete") == 0
    assert site.lines() == [f"verifier GET /agents/{NODE}", f"verifier DELETE /agents/{NODE}"]
    assert f"Agent {NODE} deleted from the CV" in tenant.heard.text


async def test_delete_of_an_absent_node_succeeds(site: Site, tenant: Tenant) -> None:
    assert await tenant("delete") == 0
    assert f"The Agent {NODE} is deleted from Verifier (127.0.0.1:" in tenant.heard.text
    assert site.to("verifier", "DELETE") == []


async def test_delete_without_check_of_an_absent_node_succeeds(site: Site, tenant: Tenant) -> None:
    assert await tenant("delete", verifier_check=False) == 0
    assert site.lines() == [f"verifier DELETE /agents/{NODE}"]
    assert f"Agent {NODE} is already absent from the CV" in tenant.heard.text


def accepting(site: Site, rounds: int) -> None:
    """Let the verifier finish some rounds before it lets go of a node."""
    state: dict[str, Any] = {"left": rounds, "asked": False}

    def override(call: Call) -> Answer | None:
        if call.method == "DELETE":
            state["asked"] = True
            return 202, {"code": 202, "status": "Accepted", "results": {}}
        if state["asked"] and call.who == "verifier":
            state["left"] -= 1
            if state["left"] < 0:
                site.nodes.clear()
        return None

    site.overrides.append(override)


async def test_delete_waits_until_the_verifier_let_go(site: Site, tenant: Tenant) -> None:
    site.enrol()
    accepting(site, 1)
    assert await tenant("delete") == 0
    assert "still not deleted from Verifier default" in tenant.heard.text
    assert "was deleted from Verifier default" in tenant.heard.text
    assert f"Agent {NODE} deleted from the CV" in tenant.heard.text


async def test_delete_gives_up_after_the_tries_allowed(site: Site, tenant: Tenant) -> None:
    site.enrol()
    accepting(site, 99)
    assert await tenant("delete") == 1
    assert tenant.heard.errors[-1].endswith("after 3 tries")


async def test_delete_that_is_refused_fails(site: Site, tenant: Tenant) -> None:
    site.enrol()
    site.overrides.append(lambda call: (500, None) if call.method == "DELETE" else None)
    assert await tenant("delete") == 1


async def test_a_record_leads_to_the_verifier_that_supervises(site: Site, tenant: Tenant) -> None:
    site.enrol()
    site.nodes[NODE]["verifier_ip"] = "localhost"
    assert await tenant("delete") == 0
    assert f"Agent {NODE} deleted from the CV" in tenant.heard.text
    assert [call.headers["Host"].split(":")[0] for call in site.to("verifier", "DELETE")] == ["localhost"]


@pytest.mark.parametrize("anywhere", ["0.0.0.0", "::", "[::]"])
async def test_a_record_that_names_every_interface_leads_nowhere_else(
    site: Site, tenant: Tenant, anywhere: str
) -> None:
    site.enrol()
    site.nodes[NODE]["verifier_ip"] = anywhere
    assert await tenant("delete") == 0
    assert [call.headers["Host"].split(":")[0] for call in site.to("verifier", "DELETE")] == ["127.0.0.1"]


# trust: hygiene
async def test_a_record_cannot_lead_to_another_path(site: Site, tenant: Tenant) -> None:
    site.enrol()
    site.nodes[NODE]["verifier_ip"] = "127.0.0.1/evil?"
    assert await tenant("delete") == 1
    assert "is no host name or address" in tenant.heard.text
    assert site.to("verifier", "DELETE") == []


async def test_reactivate_shows_the_node_and_says_so_twice(site: Site, tenant: Tenant) -> None:
    site.enrol(7)
    assert await tenant("reactivate") == 0
    put = site.to("verifier", "PUT")[0]
    assert put.path == f"/v2.6/agents/{NODE}/reactivate"
    assert put.body == b""
    assert "json" not in put.headers.get("Content-Type", "")
    assert tenant.heard.lines[-1][1] == f"Agent {NODE} re-activated"
    assert tenant.heard.details == [f"Agent {NODE} re-activated"]


async def test_reactivate_of_an_unknown_node_fails(site: Site, tenant: Tenant) -> None:
    assert await tenant("reactivate") == 1
    assert site.to("verifier", "PUT") == []
    site.overrides.append(lambda call: (400, None) if call.method == "PUT" else None)
    assert await tenant("reactivate", verifier_check=False) == 1


async def test_versions_are_asked_once_for_each_server(site: Site, tenant: Tenant) -> None:
    site.enrol()
    assert await tenant("status") == 0
    assert [call.who for call in site.calls if call.path == "/version"] == ["registrar", "verifier"]
    assert "Using API version 2.6 for registrar communication" in tenant.heard.text
    assert "Using API version 2.6 for verifier communication" in tenant.heard.text


async def test_the_highest_common_version_is_spoken(site: Site, tenant: Tenant) -> None:
    site.versions = ["2.1", "2.3", "3.0"]
    assert await tenant("reglist") == 0
    assert site.to("registrar", "GET")[-1].path == "/v2.3/agents/"


# trust: downgrade
async def test_servers_with_nothing_in_common_are_not_spoken_to(site: Site, tenant: Tenant) -> None:
    site.versions = ["3.0", "9.9"]
    assert await tenant("cvlist") == 1
    assert "No compatible API version with verifier. Tenant supports: [" in tenant.heard.text
    assert site.lines() == []


@pytest.mark.parametrize("answer", [(410, None), (500, None), (200, []), (200, {"results": {}}), (200, b"{")])
async def test_unreadable_versions_fall_back(site: Site, tenant: Tenant, answer: Answer) -> None:
    site.overrides.append(lambda call: answer if call.path == "/version" else None)
    assert await tenant("reglist") == 0
    assert site.to("registrar", "GET")[-1].path == "/v2.6/agents/"


async def test_version_shows_ours_and_what_is_spoken(site: Site, tenant: Tenant) -> None:
    assert await tenant("version", agent_id=None) == 0
    found = tenant.heard.documents["version"]
    assert found["verifier"] == {"address": f"127.0.0.1:{site.ports['verifier']}", "api_version": "2.6"}
    assert "limeguard" in found


async def test_version_says_when_a_server_does_not_answer(site: Site, tenant: Tenant) -> None:
    assert await tenant("version", site.settings(verifier_port=1)) == 0
    assert tenant.heard.documents["version"]["verifier"]["api_version"] is None


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"code": 200}', b'{"code": 200, "results": {}}', b"\xff"])
@pytest.mark.parametrize("command", ["regstatus", "cvstatus", "status", "delete", "reactivate", "bulkinfo", "add"])
async def test_nonsense_from_servers_is_one_error(site: Site, tenant: Tenant, command: str, body: bytes) -> None:
    site.overrides.append(lambda call: (200, body) if call.method == "GET" and call.path != "/version" else None)
    status = await tenant(command)
    if (command, body) == ("bulkinfo", b'{"code": 200, "results": {}}'):
        assert status == 0
        return
    assert status == 1
    assert len(tenant.heard.errors) == 1


# trust: hygiene
async def test_texts_of_servers_cannot_forge_lines(site: Site, tenant: Tenant) -> None:
    evil = 'x\n{"n": {"operational_state": "Get Quote"}}\n\x1b[2J'
    site.overrides.append(
        lambda call: (500, {"code": 500, "status": evil, "results": {}}) if call.path != "/version" else None
    )
    for command in ("regstatus", "cvstatus", "delete", "reactivate", "bulkinfo", "regdelete", "add"):
        assert await tenant(command) == 1
        for _, text in tenant.heard.lines:
            assert "\n" not in text
            assert "\x1b" not in text


async def test_a_missing_id_is_the_default_with_a_warning_where_it_matters(site: Site, tenant: Tenant) -> None:
    assert await tenant("cvstatus", agent_id=None) == 1
    assert "Using default UUID d432fbb3-d2f1-4a97-9ef7-75bd81c00000" in tenant.heard.text
    assert await tenant("cvlist", agent_id=None) == 0
    assert "default UUID" not in tenant.heard.text
