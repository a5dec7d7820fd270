"""Stored policies: the requests, and the answers shown as they came."""

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.tenant_site import Site
from tests.tenant.conftest import Tenant

from limeguard.web.app import Incoming, Response
from limeguard.web.serve import Listener

pytestmark = pytest.mark.services

CREATED = {"code": 201, "status": "Created", "results": {}}
RUNTIME = {"meta": {"version": 1, "generator": 2}, "digests": {}}


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    path = tmp_path / "runtime.json"
    path.write_text(json.dumps(RUNTIME))
    return path


@pytest.fixture
def boot(tmp_path: Path) -> Path:
    path = tmp_path / "mb.json"
    path.write_text("{}\n")
    return path


async def test_the_life_of_a_runtime_policy(site: Site, tenant: Tenant, runtime: Path) -> None:
    named: dict[str, Any] = {"runtime_policy": str(runtime), "runtime_policy_name": "list1"}
    assert await tenant("addruntimepolicy", **named) == 0
    assert tenant.heard.answers == [("", CREATED)]
    body = site.to("verifier", "POST")[0]
    assert body.path == "/v2.6/allowlists/list1"
    assert base64.b64decode(body.json["runtime_policy"]) == runtime.read_bytes()
    assert body.json["runtime_policy_key"] == ""
    assert json.loads(body.json["tpm_policy"]) == {"mask": "0x400"}
    assert await tenant("addruntimepolicy", **named) == 1
    conflict = {"code": 409, "status": "Runtime policy with name list1 already exists", "results": {}}
    assert tenant.heard.answers == [("", conflict)]
    assert tenant.heard.errors == [repr(conflict)]
    assert await tenant("updateruntimepolicy", **named) == 0
    assert await tenant("showruntimepolicy", runtime_policy_name="list1") == 0
    heading, shown = tenant.heard.answers[0]
    assert heading == "Show allowlist command response: 200."
    assert repr(shown).startswith("{'code': 200, 'status': 'Success', 'results': {'name': 'list1'")
    assert await tenant("listruntimepolicy") == 0
    assert tenant.heard.answers[0][1]["results"] == {"runtimepolicy names": ["list1"]}
    assert site.to("verifier", "GET")[-1].path == "/v2.6/allowlists/"
    assert await tenant("deleteruntimepolicy", runtime_policy_name="list1") == 0
    assert tenant.heard.answers == [("", {})]
    assert await tenant("showruntimepolicy", runtime_policy_name="list1") == 1
    assert tenant.heard.answers[0][0] == "Show allowlist command response: 404."


async def test_the_life_of_a_boot_policy(site: Site, tenant: Tenant, boot: Path) -> None:
    assert await tenant("addmbpolicy", mb_policy=str(boot), mb_policy_name="mypolicy") == 0
    assert tenant.heard.answers == [("", CREATED)]
    assert site.to("verifier", "POST")[0].json == {"mb_policy": "{}"}
    assert await tenant("addmbpolicy", mb_policy=str(boot), mb_policy_name="mypolicy") == 1
    assert tenant.heard.answers[0][1]["status"] == "Measured boot policy with name mypolicy already exists"
    assert await tenant("showmbpolicy", mb_policy_name="mypolicy") == 0
    assert tenant.heard.answers == [
        (
            "showmbpolicy command response: 200.",
            {"code": 200, "status": "Success", "results": {"name": "mypolicy", "mb_policy": "{}"}},
        )
    ]
    assert await tenant("updatembpolicy", mb_policy=str(boot), mb_policy_name="mypolicy") == 0
    assert await tenant("listmbpolicy") == 0
    assert tenant.heard.answers[0][0] == "listmbpolicy command response: 200."
    assert await tenant("deletembpolicy", mb_policy_name="mypolicy") == 0
    assert await tenant("deletembpolicy", mb_policy_name="mypolicy") == 1


async def test_the_boot_policy_of_the_settings_is_called_default(site: Site, tenant: Tenant, boot: Path) -> None:
    named = site.settings(mb_refstate=str(boot))
    assert await tenant("addmbpolicy", settings=named, mb_policy="default", mb_policy_name="mypolicy") == 0
    assert site.to("verifier", "POST")[0].json == {"mb_policy": "{}"}
    assert await tenant("add", settings=named, mb_policy="default") == 0
    (enrolled,) = [call for call in site.to("verifier", "POST") if "/agents/" in call.path]
    assert (enrolled.json["mb_policy"], enrolled.json["mb_policy_name"]) == ("{}", "")
    assert json.loads(enrolled.json["tpm_policy"])["mask"] == "0xfbff"


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("addruntimepolicy", "runtime_policy_name is required to add a runtime policy"),
        ("updateruntimepolicy", "runtime_policy_name is required to add a runtime policy"),
        ("showruntimepolicy", "--allowlist_name or --runtime_policy_name is required to show a runtime policy"),
        ("deleteruntimepolicy", "--allowlist_name or --runtime_policy_name is required to delete a runtime policy"),
        ("addmbpolicy", "mb_policy_name is required to add measure boot policy"),
        ("showmbpolicy", "--mb_policy_name is required to show a runtime policy"),
        ("deletembpolicy", "--mb_policy_name is required to delete a runtime policy"),
    ],
)
async def test_a_missing_name_is_said_before_anything_is_asked(
    site: Site, tenant: Tenant, command: str, text: str
) -> None:
    assert await tenant(command, runtime_policy="x", mb_policy="x") == 1
    assert tenant.heard.errors == [text]
    assert site.calls == []


async def test_a_missing_policy_is_said_before_anything_is_asked(site: Site, tenant: Tenant) -> None:
    assert await tenant("updateruntimepolicy", runtime_policy_name="x") == 1
    assert await tenant("addmbpolicy", mb_policy_name="x") == 1
    assert site.calls == []


async def test_older_commands_warn_and_the_older_name_wins(site: Site, tenant: Tenant) -> None:
    assert await tenant("showallowlist", allowlist_name="a", runtime_policy_name="b") == 1
    assert "-c showallowlist is deprecated" in tenant.heard.text
    assert site.to("verifier", "GET")[-1].path == "/v2.6/allowlists/a"


async def test_names_are_one_segment_of_the_path(site: Site, tenant: Tenant) -> None:
    assert await tenant("deleteruntimepolicy", runtime_policy_name="../agents/x?y") == 1
    assert site.to("verifier", "DELETE")[0].path == "/v2.6/allowlists/..%2Fagents%2Fx%3Fy"


@pytest.fixture
async def web() -> AsyncIterator[tuple[str, dict[str, Response]]]:
    pages: dict[str, Response] = {}

    async def answer(incoming: Incoming) -> Response:
        return pages.get(incoming.target, Response(404))

    listener = Listener(answer, "127.0.0.1", 0)
    await listener.start()
    yield f"http://127.0.0.1:{listener.port}", pages
    await listener.stop()


async def test_a_policy_is_downloaded_and_proven_by_its_checksum(
    site: Site, tenant: Tenant, web: tuple[str, dict[str, Response]]
) -> None:
    base, pages = web
    content = json.dumps(RUNTIME).encode()
    pages["/policy"] = Response(200, content)
    options: dict[str, Any] = {"runtime_policy_url": f"{base}/policy", "runtime_policy_name": "p"}
    good = hashlib.sha256(content).hexdigest()
    assert await tenant("addruntimepolicy", runtime_policy_checksum=good, **options) == 0
    assert base64.b64decode(site.policies["allowlists"]["p"]["runtime_policy"]) == content
    assert await tenant("updateruntimepolicy", runtime_policy_checksum="00", **options) == 1
    assert "Checksum of runtime policy does not match!" in tenant.heard.errors[0]
    assert len(site.to("verifier", "PUT")) == 0


async def test_no_redirect_is_followed_and_only_200_is_a_policy(
    site: Site, tenant: Tenant, web: tuple[str, dict[str, Response]]
) -> None:
    base, pages = web
    pages["/moved"] = Response(302, headers={"Location": "/policy"})
    pages["/policy"] = Response(200, json.dumps(RUNTIME).encode())
    for path in ("/moved", "/absent"):
        options: dict[str, Any] = {"runtime_policy_url": f"{base}{path}", "runtime_policy_checksum": "00"}
        assert await tenant("add", **options) == 1
        assert "cannot be downloaded: status" in tenant.heard.errors[0]
    assert await tenant("add", runtime_policy_url="file:///etc/passwd", runtime_policy_checksum="00") == 1
    assert site.calls == []
