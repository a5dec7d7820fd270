"""Sessions of nodes that push, over real connections: proofs, tokens, their theft and their end, and rate limits."""

import asyncio
import re
import sqlite3
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.pki import Authority
from tests.fakes.push_agent import PushAgent, enrolled, session
from tests.fakes.verifier_site import Answer, Site, running_verifier

from limeguard.simulator.softtpm import SoftNode

pytestmark = pytest.mark.services

PUSH = {"mode": "push", "quote_interval": 0.0, "trust_lifetime": 60.0}


@pytest.fixture
async def site(tmp_path: Path, authority: Authority) -> AsyncIterator[Site]:
    async with running_verifier(tmp_path, authority, **PUSH) as running:
        yield running


def refusal(answer: Answer) -> tuple[int, str, str]:
    (error,) = answer.json["errors"]
    assert set(error) == {"status", "title", "detail"}
    assert error["status"] == str(answer.status)
    return answer.status, error["title"], error["detail"]


async def challenge_of(agent: PushAgent) -> tuple[dict[str, Any], str]:
    data = await agent.open_session()
    return data, data["attributes"]["authentication_requested"][0]["chosen_parameters"]["challenge"]


# --- opening ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["application/vnd.api+json", "application/json", "application/json; charset=utf-8"])
async def test_anybody_may_ask_for_a_challenge_in_any_json(site: Site, kind: str) -> None:
    body = session("nobody-knows-me", authentication_supported=[{"authentication_type": "tpm_pop"}])
    for prefix in ("/v3", "/v3.0"):
        answer = await site.ask("POST", f"{prefix}/sessions", body, Content_Type=kind)
        assert answer.status == 200
        assert set(answer.json) == {"data"}


async def test_challenges_are_never_the_same(site: Site) -> None:
    # trust: fresh
    agent = PushAgent(site, "any", SoftNode.create("ecc256"))
    challenges = [(await challenge_of(agent))[1] for _ in range(10)]
    assert len(set(challenges)) == 10
    assert all(len(b64decode(one)) == 16 for one in challenges)


@pytest.mark.parametrize(
    ("body", "kind", "status", "detail"),
    [
        ({"data": {"type": "session", "attributes": {}}}, "application/json", 400, "agent_id is required"),
        ({"data": {"type": "session"}}, "application/json", 400, "agent_id is required"),
        (session("a b", authentication_supported=[]), "application/json", 400, "agent_id is not a valid identifier"),
        (session("a"), "text/plain", 400, "agent_id is required"),
        (b"", "application/json", 400, "agent_id is required"),
        (
            session("a", authentication_supported=[{"authentication_type": "password"}]),
            "application/json",
            400,
            "authentication_supported must include tpm_pop authentication type",
        ),
        (
            session("a"),
            "application/vnd.api+json",
            400,
            "authentication_supported must include tpm_pop authentication type",
        ),
    ],
)
async def test_a_request_that_says_too_little(site: Site, body: object, kind: str, status: int, detail: str) -> None:
    answer = await site.ask("POST", "/v3/sessions", body, Content_Type=kind)
    assert refusal(answer) == (status, "Bad Request", detail)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"null",
        b'{"data": null}',
        b'{"data": {"attributes": {"agent_id": "a"}}}',
        b'{"data": {"type": "attestation", "attributes": {"agent_id": "a"}}}',
        b'{"data": {"type": "session", "attributes": {"agent_id": 5}}}',
        b'{"data": {"type": "session", "attributes": {"agent_id": null}}}',
        b'{"data": {"type": "session", "attributes": {"agent_id": "a"}}, "extra": 1}',
        b'{"data": {"type": "session", "attributes": {"agent_id": "a"}, "extra": 1}}',
        b"[" * 50_000,
        b'{"data": {"type": "session", "attributes": {"agent_id": "\xff"}}}',
    ],
)
async def test_what_is_no_document_is_refused_bare(site: Site, body: bytes) -> None:
    for method, path in (("POST", "/v3/sessions"), ("PATCH", "/v3/sessions/x")):
        answer = await site.ask(method, path, body, Content_Type="application/vnd.api+json")
        assert (answer.status, answer.text) == (400, "")


# --- proving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "hash_name"), [("rsa2048", "sha256"), ("ecc256", "sha256"), ("ecc384", "sha384"), ("ecc521", "sha512")]
)
async def test_the_holder_of_the_key_gets_a_token(site: Site, kind: str, hash_name: str) -> None:
    agent = await enrolled(site, node=SoftNode.create(kind, hash_name))
    token = await agent.log_in()
    status = await agent.ask("GET", f"/v2.6/agents/{agent.agent_id}")
    assert status.status == 200
    assert token not in (await agent.open_session())["id"]


async def test_a_challenge_is_answered_once(site: Site) -> None:
    # trust: fresh
    agent = await enrolled(site)
    data, challenge = await challenge_of(agent)
    proof = agent.proof(challenge)
    answers = await asyncio.gather(*(agent.send_proof(data, proof) for _ in range(5)))
    assert sorted(answer.status for answer in answers) == [200, 404, 404, 404, 404]
    again = await agent.send_proof(data, proof)
    assert refusal(again) == (404, "Not Found", "Session not found")


async def test_a_bad_proof_ends_the_session(site: Site) -> None:
    # trust: bound-identity, fresh
    agent = await enrolled(site)
    thief = SoftNode.create("ecc256", number=5)

    def another_challenge(_challenge: str) -> dict[str, Any]:
        return agent.proof(b64encode(bytes(16)).decode())

    def another_key(challenge: str) -> dict[str, Any]:
        message, signature = thief.ak.certify(thief.ak.area, b64decode(challenge))
        return {"message": b64encode(message).decode(), "signature": b64encode(signature).decode()}

    def another_signer(challenge: str) -> dict[str, Any]:
        message, signature = thief.ak.certify(agent.node.ak.area, b64decode(challenge))
        return {"message": b64encode(message).decode(), "signature": b64encode(signature).decode()}

    def a_quote(challenge: str) -> dict[str, Any]:
        message, signature, _ = agent.node.quote(b64decode(challenge), {0})[1:].split(":")
        return {"message": message, "signature": signature}

    def no_base64(_challenge: str) -> dict[str, Any]:
        return {"message": "***", "signature": "***"}

    def nothing(_challenge: str) -> dict[str, Any]:
        return {}

    for lie in (another_challenge, another_key, another_signer, a_quote, no_base64, nothing):
        data, challenge = await challenge_of(agent)
        answer = await agent.send_proof(data, lie(challenge))
        assert answer.status == 401
        attributes = agent.check_evaluated(answer, challenge)
        assert attributes["evaluation"] == "fail"
        assert not {"token", "token_expires_at"} & set(attributes)
        honest = await agent.send_proof(data, agent.proof(challenge))
        assert honest.status == 404


async def test_a_proof_for_another_agents_session(site: Site) -> None:
    # trust: bound-identity
    agent = await enrolled(site)
    other = await enrolled(site, "other", SoftNode.create("ecc256", number=3))
    data, challenge = await challenge_of(agent)
    answer = await other.send_proof(data, other.proof(challenge))
    assert refusal(answer) == (400, "Bad Request", "Agent ID mismatch")
    assert (await agent.send_proof(data, agent.proof(challenge))).status == 200  # the session was kept
    nameless = {"data": {"type": "session", "attributes": {}}}
    assert refusal(await agent.ask("PATCH", f"/v3/sessions/{data['id']}", nameless))[2] == "agent_id is required"


async def test_who_is_not_enrolled_gets_no_token(site: Site) -> None:
    agent = PushAgent(site, "unknown", SoftNode.create("ecc256"))
    data, challenge = await challenge_of(agent)
    answer = await agent.send_proof(data, agent.proof(challenge))
    assert answer.status == 200
    attributes = agent.check_evaluated(answer, challenge)
    assert attributes["evaluation"] == "fail"
    assert not {"token", "token_expires_at"} & set(attributes)
    assert (await agent.send_proof(data, agent.proof(challenge))).status == 404


async def test_a_late_answer_gets_no_token(tmp_path: Path, authority: Authority) -> None:
    # trust: fresh
    async with running_verifier(tmp_path, authority, **PUSH, nonce_lifetime=0.0) as site:
        agent = await enrolled(site)
        body = session(agent.agent_id, authentication_supported=[{"authentication_type": "tpm_pop"}])
        data = (await agent.ask("POST", "/v3.0/sessions", body)).json["data"]
        challenge = data["attributes"]["authentication_requested"][0]["chosen_parameters"]["challenge"]
        answer = await agent.send_proof(data, agent.proof(challenge))
        assert answer.status == 200
        attributes = agent.check_evaluated(answer, challenge)
        assert (attributes["evaluation"], attributes["token_expires_at"]) == ("fail", None)


async def test_a_scheme_that_is_not_accepted_gets_no_token(site: Site) -> None:
    # trust: downgrade
    for name, accepted in (("accept_tpm_signing_algs", "rsassa"), ("accept_tpm_hash_algs", "sha512")):
        changed: dict[str, Any] = {name: [accepted]}
        agent = await enrolled(site, f"node-{name}", **changed)
        data, challenge = await challenge_of(agent)
        assert (await agent.send_proof(data, agent.proof(challenge))).status == 401


# --- tokens -----------------------------------------------------------------------------------------------------------


async def test_a_token_of_another_node_opens_nothing(site: Site) -> None:
    # trust: bound-identity
    agent = await enrolled(site)
    thief = await enrolled(site, "thief", SoftNode.create("ecc256", number=4))
    await agent.log_in()
    location, requested = await agent.negotiate()
    evidence = agent.evidence(requested)
    await thief.log_in()
    detail = "Agent thief cannot access resource pusher (ownership required)"
    for answer in (
        await thief.ask("POST", agent.path, agent.offer()),
        await thief.ask("PATCH", location, evidence),
        await thief.ask("GET", f"/v2.6/agents/{agent.agent_id}"),
    ):
        assert refusal(answer) == (403, "Forbidden", detail)


async def test_a_stolen_token_does_not_make_a_good_quote(site: Site) -> None:
    # trust: bound-identity
    agent = await enrolled(site)
    token = await agent.log_in()
    thief = PushAgent(site, agent.agent_id, SoftNode.create("ecc256", number=6), token=token)
    await thief.attest()
    assert (await agent.evaluated())["evaluation"] == "fail"
    await agent.reaches("distrusted")


async def test_a_new_token_takes_the_place_of_the_old_one(site: Site) -> None:
    agent = await enrolled(site)
    first = await agent.log_in()
    await agent.open_session()
    agent.token = first
    assert (await agent.send_offer()).status == 201  # another challenge alone changes nothing
    second = await agent.log_in()
    agent.token = first
    assert refusal(await agent.send_offer()) == (401, "Unauthorized", "Invalid authentication token")
    agent.token = second
    assert (await agent.send_offer()).status == 201


async def test_tokens_that_are_none(site: Site) -> None:
    agent = await enrolled(site)
    token = await agent.log_in()
    waiting = (await challenge_of(agent))[0]["id"]
    sid, secret = token.split(".")
    for text, detail in {
        f"{sid}.{'A' * 43}": "Invalid authentication token",
        f"{sid}.{secret[:-1]}": "Invalid authentication token",
        f"{token}A": "Invalid authentication token",
        secret: "Invalid authentication token",
        f"{waiting}.{secret}": "Authentication session not active",
        f"00000000-0000-4000-8000-000000000000.{secret}": "Invalid authentication token",
    }.items():
        agent.token = text
        assert refusal(await agent.send_offer()) == (401, "Unauthorized", detail)


async def test_a_token_lives_on_with_good_evidence_and_ends_without(tmp_path: Path, authority: Authority) -> None:
    async with running_verifier(tmp_path, authority, **PUSH, session_lifetime=1.0) as site:
        agent = await enrolled(site)
        await agent.log_in()
        for _ in range(4):
            await asyncio.sleep(0.4)
            assert (await agent.judged())["evaluation"] == "pass"
        await asyncio.sleep(1.1)
        assert refusal(await agent.send_offer()) == (401, "Unauthorized", "Authentication token expired")


async def test_a_failed_round_does_not_let_a_token_live_on(tmp_path: Path, authority: Authority) -> None:
    async with running_verifier(tmp_path, authority, **PUSH, session_lifetime=1.0) as site:
        agent = await enrolled(site, tpm_policy='{"23": ["' + "11" * 32 + '"], "mask": "0x800000"}')
        await agent.log_in()
        await asyncio.sleep(0.6)
        assert (await agent.judged())["evaluation"] == "fail"
        await asyncio.sleep(0.6)
        assert (await agent.send_offer()).status == 401


async def test_tokens_hold_over_a_restart_and_are_nowhere_in_the_clear(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    # trust: secret
    caplog.set_level("DEBUG")
    async with running_verifier(tmp_path, authority, **PUSH) as site:
        agent = await enrolled(site)
        token = await agent.start()
        await agent.reaches("trusted")
    async with running_verifier(tmp_path, authority, **PUSH) as site:
        agent.site, agent.tls = site, None
        assert (await agent.judged())["evaluation"] == "pass"
    secret = agent.token.partition(".")[2]
    assert token
    assert len(secret) == 43
    assert secret not in "".join(record.getMessage() for record in caplog.records)
    for path in tmp_path.glob("*sqlite*"):
        assert secret.encode() not in path.read_bytes(), path
    with sqlite3.connect(next(tmp_path.glob("*.sqlite"))) as database:
        (count,) = database.execute("SELECT count(*) FROM limeguard_sessions WHERE token_sha256 IS NOT NULL").fetchone()
    database.close()
    assert count == 1


async def test_a_token_does_not_open_the_share_of_the_payload_key(site: Site) -> None:
    # trust: secret, enrolment-order
    polled = await site.add_agent("polled", SoftNode.create("rsa2048"))
    polled.node.extend(23, bytes(32))
    share = b64encode(b"s" * 32).decode()
    policy = '{"23": ["' + "00" * 32 + '"], "mask": "0x800000"}'
    await site.enrol(polled, v=share, tpm_policy=policy)
    await site.reaches(polled, "distrusted")
    agent = PushAgent(site, "polled", polled.node)
    await agent.log_in()
    answer = await agent.ask("GET", "/v2.6/agents/polled")
    assert (answer.status, answer.json["results"]["v"]) == (200, None)
    assert share not in answer.text
    assert (await site.status(polled))["v"] == share  # an operator sees what was enrolled


async def test_strangers_cannot_fill_the_memory(site: Site) -> None:
    # trust: bounded
    text = b'{"data": {"type": "session", "attributes": {"agent_id": "' + b"a" * 100_000 + b'"}}}'
    for method, path in (("POST", "/v3/sessions"), ("PATCH", "/v3/sessions/x")):
        assert (await site.ask(method, path, text)).status == 413


# --- rate limits ------------------------------------------------------------------------------------------------------


async def test_an_agent_that_asks_too_often_is_blocked_and_others_are_not(site: Site) -> None:
    # trust: bounded
    agent = PushAgent(site, "eager", SoftNode.create("ecc256"))
    for _ in range(15):
        await agent.open_session()
    body = session("eager", authentication_supported=[{"authentication_type": "tpm_pop"}])
    for _ in range(2):
        answer = await site.ask("POST", "/v3/sessions", body)
        title, detail = "Too Many Requests", "Rate limit exceeded for this agent. Please try again later."
        assert refusal(answer) == (429, title, detail)
        assert 58 <= int(answer.headers["Retry-After"]) <= 60
    await PushAgent(site, "patient", SoftNode.create("ecc256")).open_session()


async def test_an_address_that_asks_too_often_is_blocked_before_it_is_read(site: Site) -> None:
    # trust: bounded
    for _ in range(50):
        assert (await site.ask("POST", "/v3/sessions", b"", Content_Type="text/plain")).status == 400
    answer = await site.ask("POST", "/v3/sessions", b"{", Content_Type="application/vnd.api+json")
    assert refusal(answer) == (429, "Too Many Requests", "Rate limit exceeded. Please try again later.")
    assert re.fullmatch(r"\d+", answer.headers["Retry-After"])
