"""Evidence that anybody brings, verified once: what passes, what does not and why, and how much is taken on."""

import asyncio
import io
import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.fakes.brought import FILE, REFERENCE, ZEROS, Bringer, missing_members, tee
from tests.fakes.pki import Authority
from tests.fakes.soft_ima import policy_for
from tests.fakes.verifier_site import Answer, Site, running_verifier

from limeguard.policy.runtime import EMPTY_POLICY_TEXT
from limeguard.verifier import onetime
from limeguard.verifier.onetime import BusyError, OneTime

pytestmark = pytest.mark.services

PATH = "/v2.6/verify/evidence"


async def asked(site: Site, data: object, kind: str = "tpm") -> Answer:
    """Ask as somebody without a certificate, who does not say that the body is JSON."""
    body = json.dumps({"type": kind, "data": data}).encode()
    return await site.ask("POST", PATH, body, tls=site.tls(certificate=False), Content_Type="text/plain")


async def failures(site: Site, data: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return what is wrong with evidence that is not valid."""
    answer = await asked(site, data)
    assert (answer.status, answer.json["status"]) == (200, "Success"), answer.text
    results = answer.json["results"]
    assert list(results) == ["valid", "claims", "failures"]
    assert (results["valid"], results["claims"]) == (False, {})
    return [(one["type"], one["context"]) for one in results["failures"]]


async def passes(site: Site, data: dict[str, Any]) -> None:
    answer = await asked(site, data)
    assert answer.status == 200, answer.text
    assert answer.json["results"] == {"valid": True, "claims": data, "failures": []}


@pytest.mark.parametrize("kind", ["rsa2048", "ecc256"])
async def test_good_evidence_is_valid_and_comes_back_as_claims(site: Site, kind: str) -> None:
    machine = Bringer(kind)
    await passes(site, machine.data())
    await passes(site, machine.data(tpm_policy={"15": ZEROS}, other=[{"members": None}]))
    await passes(site, machine.data(nonce=b64encode(b"abc").decode()))
    await passes(site, machine.ima(FILE))
    await passes(site, machine.boot())
    all_of_it = machine.ima(FILE) | machine.boot() | machine.data(0xFFFF)
    all_of_it.update(tpm_policy=json.dumps({"23": ZEROS}), **machine.data(0x80FFFF, tpm_policy=None))
    await passes(site, all_of_it)


async def test_a_pcr_that_is_not_as_listed_is_told_in_the_words_of_the_wire(site: Site) -> None:
    machine = Bringer()
    (failure,) = await failures(site, machine.data(tpm_policy=json.dumps({"15": ["01" * 32]})))
    said = {"context": "PCR value is not in allowlist", "got": ZEROS, "expected": ["01" * 32]}
    assert failure == ("pcr_validation.invalid_pcr_15", said)
    (failure,) = await failures(site, machine.data(tpm_policy=json.dumps({"14": [ZEROS]})))
    assert failure == ("pcr_validation.missing_pcrs", {"context": "PCRs are missing in quote", "data": [14]})


@pytest.mark.parametrize(
    ("changes", "event"),
    [
        ({"nonce": "abd"}, "qoute_validation.quote_validation"),
        ({"quote": "rAAAA:AAAA:AAAA"}, "qoute_validation.quote_validation"),
        ({"quote": "x"}, "qoute_validation.quote_validation"),
        ({"hash_alg": "sha1"}, "qoute_validation.quote_validation"),
        ({"hash_alg": "md5"}, "qoute_validation.invalid_hash_alg"),
        ({"tpm_ak": "AAAA"}, "qoute_validation.invalid_quote"),
        ({"tpm_ak": "@"}, "qoute_validation.invalid_quote"),
        ({"mb_policy": "@@"}, "pcr_validation.invalid_mb_policy"),
        ({"mb_policy": "null"}, "pcr_validation.invalid_mb_policy"),
    ],
    ids=str,
)
async def test_a_quote_that_proves_nothing_is_not_valid(site: Site, changes: dict[str, str], event: str) -> None:
    # trust: fail-closed
    ((found, context),) = await failures(site, Bringer().data(**changes))
    assert found == event
    if event == "qoute_validation.quote_validation":
        assert set(context) == {"message", "error"}


async def test_another_machine_s_key_proves_nothing(site: Site) -> None:
    # trust: bound-identity
    other = b64encode(Bringer("ecc256").node.ak.public_2b).decode()
    ((found, _),) = await failures(site, Bringer().data(tpm_ak=other))
    assert found.startswith("qoute_validation.")


async def test_files_that_are_not_allowed_are_named(site: Site) -> None:
    machine = Bringer()
    ((event, context),) = await failures(site, machine.ima("/usr/bin/other"))
    assert (event, context["message"]) == (
        "ima.validation.ima-ng.not_in_allowlist",
        f"File not found in allowlist: {FILE}",
    )
    document = policy_for(FILE)
    document["digests"][FILE] = ["ab" * 32]
    ((event, context),) = await failures(site, machine.ima(runtime_policy=json.dumps(document)))
    assert (event, context["message"]) == (
        "ima.validation.ima-ng.runtime_policy_hash",
        "Hash not found in runtime policy",
    )


@pytest.mark.parametrize(
    ("changes", "event"),
    [
        ({"ima_measurement_list": None}, "pcr_validation.unused_pcr_10"),
        ({"ima_measurement_list": "nonsense\n"}, "ima.parser.entry"),
        ({"mask": 0x8000}, "pcr_validation.unused_pcr_10"),
        ({"runtime_policy": EMPTY_POLICY_TEXT}, "ima.validation.ima-ng.not_in_allowlist"),
    ],
    ids=str,
)
async def test_a_runtime_policy_is_never_satisfied_by_silence(site: Site, changes: dict[str, Any], event: str) -> None:
    # trust: empty-is-not-valid
    (found, _), *_ = await failures(site, Bringer().ima(FILE, **changes))
    assert found == event


@pytest.mark.parametrize(
    ("changes", "events"),
    [
        ({"mb_log": None}, [f"pcr_validation.unused_pcr_{pcr}" for pcr in range(16) if pcr != 10]),
        ({"mb_log": "@@@"}, ["measured_boot.parser.log.base64decode"]),
        ({"mb_log": "AAAA"}, ["measured_boot.parser.tpm2_eventlog.error"]),
        ({"mask": 0xFBFE}, ["measured_boot.missing_pcrs"]),
    ],
    ids=str,
)
async def test_a_boot_policy_is_never_satisfied_by_silence(
    site: Site, changes: dict[str, Any], events: list[str]
) -> None:
    # trust: empty-is-not-valid
    assert [found for found, _ in await failures(site, Bringer().boot(**changes))] == events


async def test_a_boot_log_from_which_something_was_taken_is_found(site: Site) -> None:
    # trust: replayed-before-believed
    assert [event for event, _ in await failures(site, Bringer().tampered_boot())] == ["measured_boot.invalid_pcr_9"]


@pytest.mark.parametrize("evaluate", ["once", "always"])
async def test_the_boot_policy_is_always_asked(tmp_path: Path, authority: Authority, evaluate: str) -> None:
    # trust: fail-closed - Keylime never asks it here under `once`
    changed = {"measured_boot_policy_name": "reject-all", "measured_boot_evaluate": evaluate}
    async with running_verifier(tmp_path, authority, **changed) as site:
        for _ in range(2):
            (failure,) = await failures(site, Bringer().boot())
            assert failure[0] == "measured_boot.policy_reject-all"


@pytest.mark.parametrize(
    "policies",
    [
        {},
        {"tpm_policy": "", "runtime_policy": "", "mb_policy": ""},
        {"tpm_policy": "{}"},
        {"tpm_policy": {}},
        {"tpm_policy": '{"mask": "0x8000"}'},
        {"mb_policy": "{}"},
        {"mb_policy": {}},
    ],
    ids=str,
)
async def test_evidence_by_no_policy_is_never_valid(site: Site, policies: dict[str, Any]) -> None:
    # trust: empty-is-not-valid - Keylime calls it valid when a policy is there and asks for nothing
    answer = await asked(site, Bringer().data(**{"tpm_policy": None, **policies}))
    assert (answer.status, answer.json["status"]) == (400, "Bad Request")
    said = {"message": "at least one policy (tpm_policy, runtime_policy, or mb_policy) must be provided"}
    failure = {"type": "default.missing_policy", "context": said}
    assert answer.json["results"] == {"valid": False, "claims": {}, "failures": [failure]}


async def test_what_is_missing_is_named(site: Site) -> None:
    for name, request in missing_members():
        answer = await asked(site, request["data"], request["type"])
        assert (answer.status, answer.json["status"]) == (400, "Bad Request")
        event = {"tpm": "default.missing_param", "tee": "tee_attestation.missing_param"}[request["type"]]
        failure = {"type": event, "context": {"message": f'missing parameter "{name}"'}}
        assert answer.json["results"] == {"valid": False, "claims": {}, "failures": [failure]}


async def test_no_evidence_of_a_tee_is_valid_yet(site: Site) -> None:
    # trust: fail-closed
    answer = await asked(site, tee(), "tee")
    assert answer.status == 200
    assert answer.json["results"]["valid"] is False
    assert [one["type"] for one in answer.json["results"]["failures"]] == ["tee_attestation.invalid.tee"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "Exception error: "),
        (b"{", "Exception error: "),
        (b"7", "Exception error: "),
        (b"[]", "Exception error: "),
        (b"\xff", "Exception error: "),
        (b"[" * 100_000, "Exception error: "),
        (b'{"type": "tpm", "data": ' + b'{"a": ' * 5000 + b"1" + b"}" * 5001, "Exception error: "),
        (b'{"data": {}}', "missing parameter 'type'"),
        (b'{"type": "tpm"}', "missing parameter 'data'"),
        (b'{"type": "x", "data": {}}', "invalid evidence type"),
        (b'{"type": [], "data": {}}', "invalid evidence type"),
        (b'{"type": "tpm", "data": []}', "Exception error: data is not an object"),
        (b'{"type": "tpm", "data": null}', "Exception error: data is not an object"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_is_no_request_is_refused(site: Site, body: bytes, said: str) -> None:
    # trust: safe-parsing
    answer = await site.ask("POST", PATH, body, Content_Type="text/plain")
    assert (answer.status, answer.said.startswith(said)) == (400, True), answer.text


@pytest.mark.parametrize(
    "changes",
    [
        {"quote": 7},
        {"ima_measurement_list": []},
        {"tpm_policy": "@@"},
        {"tpm_policy": "[]"},
        {"tpm_policy": json.dumps({"99": [ZEROS]})},
        {"runtime_policy": "@@"},
        {"runtime_policy": "{}"},
        {"runtime_policy": json.dumps(policy_for(excludes=["("]))},
    ],
    ids=str,
)
async def test_members_that_cannot_be_used_are_refused_with_a_reason(site: Site, changes: dict[str, Any]) -> None:
    answer = await asked(site, Bringer().data(**changes))
    assert (answer.status, len(answer.said) > 20) == (400, True)


async def test_nothing_is_stored(site: Site) -> None:
    before = {path.name: path.read_bytes() for path in site.folder.iterdir() if "sqlite" in path.name}
    await passes(site, Bringer().boot(mb_policy=REFERENCE))
    assert {path.name: path.read_bytes() for path in site.folder.iterdir() if "sqlite" in path.name} == before


async def test_a_request_that_is_too_large_is_refused_before_it_is_judged(site: Site) -> None:
    # trust: bounded
    body = io.BytesIO(b"x" * (onetime.MAX_EVIDENCE + 1))
    tls = site.tls(certificate=False)
    async with aiohttp.ClientSession() as session, session.post(f"{site.base}{PATH}", data=body, ssl=tls) as answer:
        said = f"Request body is larger than {onetime.MAX_EVIDENCE} bytes"
        assert (answer.status, (await answer.json())["status"]) == (413, said)


async def test_only_so_many_requests_wait_for_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    # trust: bounded
    verifier = OneTime("accept-all", violations_found=True)
    running = most = 0
    gate = asyncio.Event()

    async def slow(*_arguments: object) -> tuple[int, bytes]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1
        return 200, b""

    monkeypatch.setattr("limeguard.verifier.onetime.asyncio.to_thread", slow)
    tasks = [asyncio.create_task(verifier.verify(b"")) for _ in range(onetime.MAX_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(BusyError):
        await verifier.verify(b"")
    gate.set()
    await asyncio.gather(*tasks)
    assert most == onetime.AT_ONCE
    assert await verifier.verify(b"") == (200, b"")


async def test_our_own_fault_is_neither_valid_nor_invalid(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    # trust: fail-closed
    def broken(*_arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("limeguard.verifier.onetime.appraise_brought", broken)
    answer = await asked(site, Bringer().data())
    assert (answer.status, answer.said) == (500, "Internal Server Error: Failed to process attestation data")
