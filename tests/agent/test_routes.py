"""The agent's HTTP interface in process: every operation, every refusal, word for word."""

import asyncio
import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from limeguard.agent.bootstrap import Bootstrap, NoticeQueue
from limeguard.agent.keys import TransportKey
from limeguard.agent.logs import open_boot_log, open_ima_log
from limeguard.agent.notices import NoticeHandler, NoticeOptions
from limeguard.agent.routes import MAX_BODY, AgentApi, Node, QuoteFailed
from limeguard.agent.shares import KeyHalves
from limeguard.agent.templates import Algorithms
from limeguard.crypto.keys import spki_pem
from limeguard.crypto.keysplit import (
    bootstrap_auth_tag,
    challenge_hmac,
    encrypt_key_share,
    split,
)
from limeguard.web.app import BodyTimeout, BodyTooLarge, Incoming, Response
from limeguard.wire import agent_v2
from limeguard.wire.agent_v2 import Notice, QuoteAnswer, UKey

ID = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000"
VERSIONS = ("2.1", "2.2", "2.3", "2.4", "2.5", "2.6")
PRIVATE = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PEM = spki_pem(PRIVATE.public_key())
KEY, V = bytes(range(32)), b"\xaa" * 32
QUOTES = "URI not supported, only /identity and /integrity are supported for GET in /quotes/ interface"
IMA = "10 00 ima-ng sha256:00 boot_aggregate\n10 11 ima-ng sha256:11 /usr/bin/init\n"


@dataclass
class FakeQuoter:
    """Remembers what was asked, and fails when told to."""

    asked: list[tuple[bytes, int]] = field(default_factory=list)
    broken: bool = False
    key_number: int = 1078035599

    async def quote(self, nonce: bytes, mask: int) -> str:
        if self.broken:
            raise QuoteFailed
        self.asked.append((nonce, mask))
        return "rA:B:C"


class Site:
    """An agent's interface with everything around it faked."""

    def __init__(self, folder: Path, versions: tuple[str, ...] = VERSIONS, *, logs: bool = True) -> None:
        (folder / "ima").write_text(IMA)
        (folder / "boot").write_bytes(b"events")
        unzipped = folder / "unzipped"
        options = NoticeOptions(folder, unzipped, unzipped / "cert", (), folder, allow_payload_actions=True)
        self.notices = NoticeHandler(options)
        self.quoter = FakeQuoter()
        self.node = Node(
            agent_id=ID,
            versions=versions,
            algorithms=Algorithms("sha256", "rsa2048", "rsassa"),
            transport=TransportKey(PRIVATE, PEM),
            quoter=self.quoter,
            ima_log=open_ima_log(folder / "ima") if logs else None,
            boot_log=open_boot_log(folder / "boot") if logs else None,
            boot_time=1_700_000_000 if logs else None,
            bootstrap=Bootstrap(KeyHalves(ID), None, self.notices),
            notices=NoticeQueue(self.notices),
        )
        self.api = AgentApi(self.node)

    async def get(self, target: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> Response:
        return await self.api.answer(Incoming(method, target, headers or {}))

    async def post(self, target: str, body: bytes, content_type: str | None = "application/json") -> Response:
        async def read(limit: int) -> bytes:
            if len(body) > limit:
                raise BodyTooLarge
            return body

        headers = {} if content_type is None else {"Content-Type": content_type}
        return await self.api.answer(Incoming("POST", target, headers, read_body=read))

    def close(self) -> None:
        for log in (self.node.ima_log, self.node.boot_log):
            if log is not None:
                log.close()


@pytest.fixture
def site(tmp_path: Path) -> Any:
    made = Site(tmp_path)
    yield made
    made.close()


def results(response: Response) -> Any:
    assert response.status == 200, response.body
    assert response.content_type == "application/json"
    document = json.loads(response.body)
    assert (document["code"], document["status"]) == (200, "Success")
    return document["results"]


def refusal(response: Response) -> tuple[int, str]:
    document = json.loads(response.body)
    assert document["code"] == response.status
    assert document["results"] == {}
    return response.status, document["status"]


async def test_the_versions_are_told(site: Site) -> None:
    assert results(await site.get("/version")) == {
        "supported_version": "2.6",
        "supported_versions": ["2.1", "2.2", "2.3", "2.4", "2.5", "2.6"],
    }


async def test_an_agent_without_versions_says_so(tmp_path: Path) -> None:
    made = Site(tmp_path, versions=())
    assert refusal(await made.get("/version")) == (500, "Misconfigured API version")
    made.close()


@pytest.mark.parametrize(
    ("method", "target", "status", "text", "allow"),
    [
        ("GET", "/v9.9/keys/pubkey", 400, "API version not supported: v9.9", None),
        ("GET", "/v2.6/quotes/none", 400, QUOTES, None),
        ("PUT", "/v2.6/keys/none", 405, "Method is not supported in /keys interface", "GET, POST"),
    ],
)
async def test_refusals_come_in_the_envelope(
    site: Site, method: str, target: str, status: int, text: str, allow: str | None
) -> None:
    response = await site.get(target, method)
    assert refusal(response) == (status, text)
    assert response.headers.get("Allow") == allow


async def test_a_wrong_method_gets_an_empty_body(site: Site) -> None:
    response = await site.get("/v2.6/keys/pubkey", "PUT")
    assert (response.status, response.body, response.headers["Allow"]) == (405, b"", "GET")


async def test_the_request_id_comes_back_cleaned(site: Site) -> None:
    response = await site.get("/version", headers={"X-Request-ID": "ab\r\n12"})
    assert response.headers["X-Request-ID"] == "ab12"
    assert "X-Request-ID" not in (await site.get("/version")).headers


# --- keys -----------------------------------------------------------------------------------------------------------


async def test_the_transport_key_is_told(site: Site) -> None:
    assert results(await site.get("/v2.1/keys/pubkey")) == {"pubkey": PEM}


def ukey(**change: object) -> bytes:
    message = UKey(
        encrypted_share=encrypt_key_share(PEM, split(KEY, V)),
        auth_tag=bytes.fromhex(bootstrap_auth_tag(KEY, ID)),
        payload=None,
    )
    return json.dumps({**json.loads(agent_v2.encode_ukey(message)), **change}).encode()


async def test_the_key_is_known_when_both_halves_came(site: Site) -> None:
    target = "/v2.6/keys/verify?challenge=ABCDEFGHIJ0123456789"
    assert refusal(await site.get(target)) == (400, "Bootstrap key not yet available.")
    assert results(await site.post("/v2.6/keys/ukey", ukey())) is None
    assert refusal(await site.get(target)) == (400, "Bootstrap key not yet available.")
    assert results(await site.post("/v2.6/keys/vkey", agent_v2.encode_vkey(encrypt_key_share(PEM, V)))) is None
    assert results(await site.get(target)) == {"hmac": challenge_hmac(KEY, "ABCDEFGHIJ0123456789")}


async def test_halves_that_do_not_fit_are_taken_without_a_word(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    assert results(await site.post("/v2.6/keys/ukey", ukey(auth_tag="00" * 48))) is None
    assert results(await site.post("/v2.6/keys/vkey", agent_v2.encode_vkey(encrypt_key_share(PEM, V)))) is None
    assert "No pair of the waiting halves" in caplog.text
    assert site.node.bootstrap.key is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"encrypted_key": "!"}, "Invalid base64 encoding in encrypted_key: "),
        ({"encrypted_key": "AAAA"}, "Failed to decrypt encrypted_key: "),
        ({"auth_tag": "xy"}, "Invalid hex encoding in auth_tag: "),
        ({"auth_tag": "ab"}, "Invalid auth_tag: expected 48 bytes"),
        ({"payload": "!"}, "Invalid base64 encoding in payload: "),
    ],
)
async def test_a_bad_u_is_refused(site: Site, change: dict[str, object], text: str) -> None:
    status, said = refusal(await site.post("/v2.6/keys/ukey", ukey(**change)))
    assert status == 400
    assert said.startswith(text)


async def test_a_half_of_the_wrong_length_is_refused(site: Site) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    oaep = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)  # noqa: S303 - the protocol's
    short = base64.b64encode(PRIVATE.public_key().encrypt(b"short", oaep)).decode()
    status, text = refusal(await site.post("/v2.6/keys/ukey", ukey(encrypted_key=short)))
    assert (status, text.startswith("Invalid decrypted key: ")) == (400, True)
    status, text = refusal(await site.post("/v2.6/keys/vkey", json.dumps({"encrypted_key": short}).encode()))
    assert (status, text.startswith("Decrypted key is invalid: ")) == (400, True)


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/jsonp", "multipart/form-data"])
async def test_a_body_that_is_not_called_json_is_refused(site: Site, content_type: str | None) -> None:
    assert refusal(await site.post("/v2.6/keys/ukey", ukey(), content_type)) == (400, "Content type error")


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON", "application/x+json"])
async def test_every_spelling_of_json_is_taken(site: Site, content_type: str) -> None:
    assert results(await site.post("/v2.6/keys/ukey", ukey(), content_type)) is None


async def test_a_missing_member_is_named(site: Site) -> None:
    answer = await site.post("/v2.6/keys/vkey", b"{}")
    assert refusal(answer) == (400, "Json deserialize error: missing field `encrypted_key`")
    status, text = refusal(await site.post("/v2.6/keys/vkey", b"{"))
    assert (status, text.startswith("Json deserialize error: ")) == (400, True)


# trust: bounded
async def test_a_body_of_more_than_two_mebibytes_is_refused(site: Site) -> None:
    status, text = refusal(await site.post("/v2.6/keys/ukey", b" " * (MAX_BODY + 1)))
    assert (status, "larger than allowed" in text) == (400, True)


# trust: bounded
async def test_a_body_that_does_not_arrive_is_given_up(site: Site) -> None:
    async def never(_limit: int) -> bytes:
        raise BodyTimeout

    headers = {"Content-Type": "application/json"}
    response = await site.api.answer(Incoming("POST", "/v2.6/keys/ukey", headers, read_body=never))
    assert response.status == 408


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("", "Query deserialize error: missing field `challenge`"),
        ("?challenge=", "No challenge provided."),
        ("?challenge=a-b", "Parameters should be strictly alphanumeric: a-b"),
        ("?challenge=%C3%A4", "Parameters should be strictly alphanumeric: ä"),
    ],
)
async def test_a_bad_challenge_is_refused(site: Site, query: str, text: str) -> None:
    assert refusal(await site.get(f"/v2.6/keys/verify{query}")) == (400, text)


# --- quotes ---------------------------------------------------------------------------------------------------------


async def test_an_identity_quote_covers_pcr_16_only_and_brings_the_transport_key(site: Site) -> None:
    found = results(await site.get("/v2.6/quotes/identity?nonce=DGHFH6EQVYGKP7YHNVEA"))
    assert found == {
        "quote": "rA:B:C",
        "hash_alg": "sha256",
        "enc_alg": "rsa2048",
        "sign_alg": "rsassa",
        "pubkey": PEM,
        "boottime": 1_700_000_000,
    }
    assert site.quoter.asked == [(b"DGHFH6EQVYGKP7YHNVEA", 0)]


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("", "Query deserialize error: missing field `nonce`"),
        ("?nonce=", "Parameters should be strictly alphanumeric: "),
        ("?nonce=a%20b", "Parameters should be strictly alphanumeric: a b"),
        ("?nonce=" + "a" * 65, "Nonce is too long (max size 64): " + "a" * 65),
    ],
)
async def test_a_bad_nonce_for_identity_is_refused(site: Site, query: str, text: str) -> None:
    assert refusal(await site.get(f"/v2.6/quotes/identity{query}")) == (400, text)
    assert not site.quoter.asked


async def test_an_integrity_quote_brings_what_was_asked_for(site: Site) -> None:
    target = "/v2.4/quotes/integrity?nonce=abc&mask=0x401&partial=0&ima_ml_entry=1&vmask=0x0"
    answer = agent_v2.decode_quote((await site.get(target)).body)
    assert answer == QuoteAnswer(
        quote="rA:B:C",
        hash_alg="sha256",
        enc_alg="rsa",
        sign_alg="rsassa",
        pubkey=PEM,
        ima_measurement_list=IMA.splitlines(keepends=True)[1],
        ima_measurement_list_entry=1,
        mb_measurement_list=base64.b64encode(b"events").decode(),
        boottime=1_700_000_000,
    )
    assert site.quoter.asked == [(b"abc", 0x401)]


async def test_a_partial_quote_leaves_the_key_and_without_pcr_0_the_boot_log_out(site: Site) -> None:
    found = results(await site.get("/v2.6/quotes/integrity?nonce=abc&mask=400&partial=1"))
    assert "pubkey" not in found
    assert "mb_measurement_list" not in found
    assert (found["ima_measurement_list"], found["ima_measurement_list_entry"]) == (IMA, 0)


@pytest.mark.parametrize(
    ("entry", "first", "text"),
    [("2", 2, ""), ("3", 0, IMA), ("-1", 0, IMA), ("x", 0, IMA), ("", 0, IMA), ("9" * 30, 0, IMA)],
)
async def test_the_ima_log_starts_where_it_can(site: Site, entry: str, first: int, text: str) -> None:
    found = results(await site.get(f"/v2.6/quotes/integrity?nonce=abc&mask=0x400&partial=1&ima_ml_entry={entry}"))
    assert (found["ima_measurement_list"], found["ima_measurement_list_entry"]) == (text, first)


async def test_a_node_without_logs_sends_none(tmp_path: Path) -> None:
    made = Site(tmp_path, logs=False)
    found = results(await made.get("/v2.6/quotes/integrity?nonce=abc&mask=0x401&partial=1"))
    assert set(found) == {"quote", "hash_alg", "enc_alg", "sign_alg"}


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("mask=0x1&partial=0", "Query deserialize error: missing field `nonce`"),
        ("nonce=a&partial=0", "Query deserialize error: missing field `mask`"),
        ("nonce=a&mask=0x1", "Query deserialize error: missing field `partial`"),
        ("nonce=a*&mask=0x1&partial=0", "nonce should be strictly alphanumeric: a*"),
        ("nonce=a&mask=0x-1&partial=0", "mask should be strictly alphanumeric: 0x-1"),
        ("nonce=a&mask=xyz&partial=0", "mask should be a hex encoded 32-bit integer: xyz"),
        ("nonce=a&mask=0x&partial=0", "mask should be a hex encoded 32-bit integer: 0x"),
        ("nonce=a&mask=0x123456789&partial=0", "mask should be a hex encoded 32-bit integer: 0x123456789"),
        ("nonce=" + "a" * 65 + "&mask=0x1&partial=0", "Nonce is too long (max size: 64): 65"),
        ("nonce=a&mask=0x1&partial=2", "uri must contain key 'partial' and value '0' or '1'"),
        ("nonce=a&mask=0x1&partial=", "uri must contain key 'partial' and value '0' or '1'"),
    ],
)
async def test_a_bad_integrity_query_is_refused(site: Site, query: str, text: str) -> None:
    assert refusal(await site.get(f"/v2.6/quotes/integrity?{query}")) == (400, text)
    assert not site.quoter.asked


async def test_pcrs_above_23_and_a_failing_tpm_are_500(site: Site) -> None:
    target = "/v2.6/quotes/integrity?nonce=abc&mask=0x1000000&partial=0"
    assert refusal(await site.get(target)) == (500, "Unable to retrieve quote")
    site.quoter.broken = True
    assert refusal(await site.get("/v2.6/quotes/identity?nonce=abc")) == (500, "Unable to retrieve quote")


# trust: bounded
async def test_a_query_of_a_thousand_fields_is_refused(site: Site) -> None:
    status, _ = refusal(await site.get("/v2.6/quotes/identity?" + "&".join(f"a{i}=1" for i in range(1000))))
    assert status == 400


# trust: fail-closed
async def test_a_fault_of_ours_is_a_500_that_tells_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fault(_nonce: bytes, _mask: int) -> str:
        raise KeyError("secret detail")

    monkeypatch.setattr(site.quoter, "quote", fault)
    response = await site.get("/v2.6/quotes/identity?nonce=abc")
    assert refusal(response) == (500, "Internal error")
    assert b"secret" not in response.body


# --- the rest -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "spelled"), [("2.2", "rsa"), ("2.5", "rsa2048")])
async def test_the_agent_tells_of_itself(site: Site, version: str, spelled: str) -> None:
    assert results(await site.get(f"/v{version}/agent/info")) == {
        "agent_uuid": ID,
        "tpm_hash_alg": "sha256",
        "tpm_enc_alg": spelled,
        "tpm_sign_alg": "rsassa",
        "ak_handle": 1078035599,
    }


async def test_a_notice_is_taken_at_once_whatever_it_says(site: Site) -> None:
    body = agent_v2.encode_notice(Notice(msg="{}", signature="nonsense"))
    assert results(await site.post("/v2.6/notifications/revocation", body)) is None
    answer = await site.post("/v2.6/notifications/revocation", b'{"msg": "{}"}')
    assert refusal(answer) == (400, "Json deserialize error: missing field `signature`")


# trust: bounded
async def test_notices_beyond_the_queue_are_dropped_and_not_an_error(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    body = agent_v2.encode_notice(Notice(msg="{}", signature=""))
    for _ in range(20):
        assert results(await site.post("/v2.6/notifications/revocation", body)) is None
    assert "was dropped" in caplog.text


# trust: bounded
async def test_many_requests_at_once_are_each_answered(site: Site) -> None:
    target = "/v2.6/quotes/integrity?nonce=abc&mask=0x401&partial=0"
    answers = await asyncio.gather(*(site.get(target) for _ in range(50)))
    assert {answer.status for answer in answers} == {200}
