"""Measured boot policies as objects: stored, listed, shown, replaced, deleted, named at enrolment."""

import json
from pathlib import Path

import pytest
from tests.fakes.pki import Authority
from tests.fakes.verifier_site import Site, running_verifier

pytestmark = pytest.mark.services

PATH = "/v2.6/mbpolicies"
NODE = "/v2.6/agents/node-1"
TEXT = '{"has_secureboot": false}'


async def add(site: Site, name: str, text: str | None = TEXT) -> None:
    answer = await site.ask("POST", f"{PATH}/{name}", {"mb_policy": text})
    assert (answer.status, answer.json) == (201, {"code": 201, "status": "Created", "results": {}})


async def test_policies_are_stored_listed_shown_replaced_and_deleted(site: Site) -> None:
    await add(site, "fleet-a")
    again = await site.ask("POST", f"{PATH}/fleet-a", {"mb_policy": "{}"})
    assert (again.status, again.said) == (409, "Measured boot policy with name fleet-a already exists")
    assert (await site.ask("GET", f"{PATH}/")).json["results"] == {"mbpolicy names": ["fleet-a"]}
    shown = (await site.ask("GET", f"{PATH}/fleet-a")).json["results"]
    assert list(shown.items()) == [("name", "fleet-a"), ("mb_policy", TEXT)]
    assert (await site.ask("PUT", f"{PATH}/fleet-a", {"mb_policy": "{}"})).json["code"] == 201
    assert (await site.ask("GET", f"{PATH}/fleet-a")).json["results"]["mb_policy"] == "{}"
    absent = await site.ask("PUT", f"{PATH}/other", {"mb_policy": "{}"})
    assert (absent.status, absent.said) == (409, "Measured boot policy with name other does not already exist")
    gone = await site.ask("DELETE", f"{PATH}/fleet-a")
    assert (gone.status, gone.text) == (204, "")
    for method in ("GET", "DELETE"):
        missing = await site.ask(method, f"{PATH}/fleet-a")
        assert (missing.status, missing.said) == (404, "Measured boot policy fleet-a not found")


async def test_a_policy_may_be_null_and_says_so_of_its_nodes(site: Site) -> None:
    await add(site, "none", None)
    assert (await site.ask("GET", f"{PATH}/none")).json["results"] == {"name": "none", "mb_policy": None}
    agent = await site.add_agent()
    await site.enrol(agent, mb_policy_name="none")
    assert (await site.status(agent))["has_mb_refstate"] == 0
    assert (await site.ask("PUT", f"{PATH}/none", {"mb_policy": "{}"})).status == 201
    assert (await site.status(agent))["has_mb_refstate"] == 1


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"mb_policy": {}}', b'{"mb_policy": 1}'])
async def test_an_upload_that_is_none_is_refused(site: Site, body: bytes) -> None:
    # trust: empty-is-not-valid
    await add(site, "kept")
    for method, name in (("POST", "new"), ("PUT", "kept")):
        answer = await site.ask(method, f"{PATH}/{name}", body, Content_Type="application/octet-stream")
        assert answer.status == 400
        assert answer.said == "Expected non zero content length" if not body else "Exception error" in answer.said
    assert (await site.ask("GET", f"{PATH}/kept")).json["results"]["mb_policy"] == TEXT


@pytest.mark.parametrize("text", ["", "@@", "[]", "7", "[" * 100_000])
async def test_a_policy_that_cannot_be_used_is_refused_wherever_it_comes_in(site: Site, text: str) -> None:
    agent = await site.add_agent()
    uploads = [("POST", f"{PATH}/new", {"mb_policy": text})]
    if text:  # at enrolment an empty text is no policy
        uploads.append(("POST", NODE, agent.enrolment(mb_policy=text)))
    for method, path, body in uploads:
        answer = await site.ask(method, path, body)
        assert (answer.status, answer.said[:37]) == (400, "Measured boot policy cannot be used: ")
    assert (await site.ask("GET", PATH)).json["results"] == {"mbpolicy names": []}


async def test_names_of_enrolment_follow_the_contract(site: Site) -> None:
    agent = await site.add_agent()
    unknown = await site.ask("POST", NODE, agent.enrolment(mb_policy_name="nobody"))
    assert (unknown.status, unknown.said) == (404, "Could not find mb_policy with name nobody!")
    await add(site, "web")
    taken = await site.ask("POST", NODE, agent.enrolment(mb_policy_name="web", mb_policy="{}"))
    said = (
        "mb_policy with name web already exists. Please use a different name or delete the mb_policy from the verifier."
    )
    assert (taken.status, taken.said) == (409, said)
    await add(site, "node-1")
    taken = await site.ask("POST", NODE, agent.enrolment(mb_policy="{}"))
    assert (taken.status, taken.said) == (409, said.replace("web", "node-1"))
    assert (await site.ask("GET", NODE)).status == 404
    await site.enrol(agent, mb_policy_name="own", mb_policy="{}")
    assert (await site.ask("GET", PATH)).json["results"] == {"mbpolicy names": ["node-1", "own", "web"]}
    in_use = await site.ask("DELETE", f"{PATH}/own")
    assert (in_use.status, in_use.said) == (409, "Can't delete mb_policy as it's currently in use by agent node-1")


async def test_a_policy_that_came_with_a_node_is_stored_under_its_id_and_goes_with_it(
    tmp_path: Path, authority: Authority
) -> None:
    async with running_verifier(tmp_path, authority) as site:
        agent = await site.add_agent()
        for _ in range(2):  # a tenant's update deletes and enrols
            await site.enrol(agent, mb_policy="{}")
            assert (await site.status(agent))["has_mb_refstate"] == 1
            assert (await site.ask("GET", f"{PATH}/node-1")).json["results"]["mb_policy"] == "{}"
            assert (await site.ask("PUT", f"{NODE}/stop", b"")).status == 200
            await site.shows(agent, lambda view: view["condition"] == "paused")
            assert (await site.ask("DELETE", NODE)).status in {200, 202}
            while (await site.ask("GET", NODE)).status == 200:
                pass
            assert (await site.ask("GET", PATH)).json["results"] == {"mbpolicy names": []}


async def test_a_name_stands_for_what_is_stored_now_whoever_stored_it(tmp_path: Path, authority: Authority) -> None:
    # trust: fail-closed
    async with (
        running_verifier(tmp_path, authority) as site,
        running_verifier(tmp_path, authority, uuid="two") as second,
    ):
        await add(site, "web", "{}")
        await second.ask("DELETE", f"{PATH}/web")
        await add(second, "web", None)
        agent = await site.add_agent()
        await site.enrol(agent, mb_policy_name="web")
        assert (await site.status(agent))["has_mb_refstate"] == 0
        assert (await site.ask("GET", f"{PATH}/web")).json["results"]["mb_policy"] is None


async def test_a_node_without_policy_has_none(site: Site) -> None:
    agent = await site.add_agent()
    await site.enrol(agent)
    assert (await site.status(agent))["has_mb_refstate"] == 0
    assert (await site.ask("GET", PATH)).json["results"] == {"mbpolicy names": []}


async def test_names_are_bounded(site: Site) -> None:
    # trust: bounded
    agent = await site.add_agent()
    for name in ("x" * 256, "a\0b"):
        answer = await site.ask("POST", NODE, agent.enrolment(mb_policy_name=name))
        assert (answer.status, "mb_policy_name" in answer.said) == (400, True)
    assert (await site.ask("POST", f"{PATH}/{'x' * 256}", {"mb_policy": "{}"})).status == 400


async def test_nodes_that_are_enrolled_with_a_policy_quote_the_boot_s_pcrs(site: Site) -> None:
    agent = await site.add_agent()
    await add(site, "web", "{}")
    await site.enrol(agent, tpm_policy=json.dumps({"mask": "0x0"}), mb_policy_name="web")
    await site.shows(agent, lambda _view: agent.quotes > 0)
    assert all("mask=0xfbff" in path for _, path in agent.requests if "/quotes/integrity" in path)
