"""Evidence verified on request, by Keylime's verifier and by ours: the same outcome and the same event ids."""

import json
from base64 import b64encode
from collections.abc import AsyncIterator
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from tests.fakes.brought import FILE, ZEROS, Bringer, missing_members, tee
from tests.fakes.keylime_peer import keylime_site
from tests.fakes.pki import Authority, client_context
from tests.fakes.soft_ima import policy_for
from tests.fakes.verifier_site import running_verifier

pytestmark = [pytest.mark.peer, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


class Both:
    """Keylime's verifier and ours, asked the same."""

    def __init__(self, theirs: str, ours: str, ca: Path, session: aiohttp.ClientSession) -> None:
        self._urls = [f"{base}/v2.6/verify/evidence" for base in (theirs, ours)]
        self._contexts = [False, client_context(None, ca)]
        self._session = session

    async def ask(self, request: object) -> tuple[tuple[int, Any], tuple[int, Any]]:
        """Return what each says: status, and outcome with event ids or the status text."""
        theirs, ours = [
            await self._ask(url, context, request) for url, context in zip(self._urls, self._contexts, strict=True)
        ]
        return theirs, ours

    async def _ask(self, url: str, context: Any, request: object) -> tuple[int, Any]:
        async with self._session.post(url, data=json.dumps(request).encode(), ssl=context) as answer:
            said = json.loads(await answer.read())
        results = said["results"]
        if not results:
            return answer.status, said["status"]
        assert bool(results["claims"]) == results["valid"]
        return answer.status, (results["valid"], [failure["type"] for failure in results["failures"]])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Both]:
    if find_library("efivar") is None:
        pytest.skip("Keylime's reading of boot logs needs libefivar (Debian and Ubuntu: libefivar1)")
    folder = tmp_path_factory.mktemp("ours")
    authority = Authority(tmp_path_factory.mktemp("ca"))
    async with (
        keylime_site(tmp_path_factory.mktemp("keylime"), "verifier.measured_boot_evaluate=always") as peer,
        running_verifier(folder, authority) as site,
        aiohttp.ClientSession() as session,
    ):
        theirs = f"https://127.0.0.1:{peer.ports['verifier']}"
        yield Both(theirs, site.base, authority.identity.certificate, session)


def requests() -> list[tuple[str, dict[str, Any]]]:
    """Return requests about which both say the same."""
    machine = Bringer()
    data, ima, boot = machine.data, machine.ima, machine.boot
    wrong = policy_for(FILE)
    wrong["digests"][FILE] = ["ab" * 32]
    cases = {
        "good": data(),
        "policy as object": data(tpm_policy={"15": [ZEROS]}),
        "nonce in base64": data(nonce=b64encode(b"abc").decode()),
        "another PCR value": data(tpm_policy=json.dumps({"15": ["01" * 32]})),
        "a PCR that is not quoted": data(tpm_policy=json.dumps({"14": [ZEROS]})),
        "another nonce": data(nonce="abd"),
        "another hash": data(hash_alg="sha1"),
        "an unknown hash": data(hash_alg="md5"),
        "a quote that cannot be read": data(quote="rAAAA:AAAA:AAAA"),
        "a key that cannot be read": data(tpm_ak="AAAA"),
        "no policy": data(tpm_policy=None),
        "empty policies": data(tpm_policy="", runtime_policy="", mb_policy=""),
        "a good list": ima(FILE),
        "an unlisted file": ima("/usr/bin/b"),
        "another digest": ima(runtime_policy=json.dumps(wrong)),
        "a good boot log": boot(),
        "an empty boot policy beside another": boot(mb_policy="{}", tpm_policy=json.dumps({"15": [ZEROS]})),
        "no boot log": boot(mb_log=None),
        "a boot policy that is none": boot(mb_policy="@@"),
        "a boot policy that is null": boot(mb_policy="null"),
        "a boot log that cannot be read": boot(mb_log="AAAA"),
        "a boot log that something was taken from": machine.tampered_boot(),
    }
    told: list[tuple[str, dict[str, Any]]] = [(name, {"type": "tpm", "data": case}) for name, case in cases.items()]
    told += [(f"without {name}", request) for name, request in missing_members()]
    told += [
        ("no type", {"data": {}}),
        ("no data", {"type": "tpm"}),
        ("an unknown type", {"type": "x", "data": {}}),
        ("an unknown environment", {"type": "tee", "data": tee(**{"tee-evidence": {"tee": "tdx", "evidence": {}}})}),
    ]
    return told


async def test_the_same_evidence_has_the_same_outcome(both: Both) -> None:
    different = {}
    for name, request in requests():
        theirs, ours = await both.ask(request)
        if theirs != ours:
            different[name] = (theirs, ours)
    assert different == {}


async def test_what_differs_on_purpose(both: Both) -> None:
    # trust: empty-is-not-valid
    machine = Bringer()
    valid: tuple[int, Any] = (200, (True, []))
    for data, found in (
        (machine.data(tpm_policy="{}"), (400, (False, ["default.missing_policy"]))),
        (machine.boot(mb_policy="{}"), (400, (False, ["default.missing_policy"]))),
        (machine.ima(FILE, mask=0x8000), (200, (False, ["pcr_validation.unused_pcr_10"]))),
    ):
        assert await both.ask({"type": "tpm", "data": data}) == (valid, found)
