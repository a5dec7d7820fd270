"""Everything that is not a good message: one envelope or no body, nothing of our insides, nothing kept, clean logs."""

import asyncio
import gzip
import json
import logging
import re
import ssl
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fakes import pki
from tests.registrar.conftest import AGENT_ID, Site
from yarl import URL

from limeguard.registrar.identity import IdentityRules
from limeguard.registrar.routes import make_app
from limeguard.registrar.service import RegistrarService
from limeguard.simulator.softtpm import SoftAk, SoftNode
from limeguard.store.database import Database
from limeguard.store.registrations import Registrations
from limeguard.web import connection
from limeguard.web.app import App, Incoming
from limeguard.web.connection import Patience
from limeguard.wire.registrar_v2 import BAD_ID, INVALID, MAX_BODY

pytestmark = pytest.mark.services

PATH = f"/v2.6/agents/{AGENT_ID}"
JSON = "application/json"
INSIDES = re.compile(
    rb"Traceback|File \"|\.py\b|site-packages|/src/|/tmp/|limeguard\.|msgspec|sqlalchemy|aiohttp|asyncio|pyasn1"
    rb"|cryptography|[a-z]Error\b|Exception|<class|0x7f|object at|line \d+",
    re.IGNORECASE,
)
DEEP = 100_000


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    @property
    def said(self) -> str:
        """The status text of the envelope, "" without body."""
        return str(json.loads(self.body)["status"]) if self.body else ""


def checked(status: int, body: bytes) -> Answer:
    """Return an answer that is an envelope of its status, or a refusal of authority, or has no body."""
    assert status < 500 or status == 501, body
    assert INSIDES.search(body) is None, body
    if body:
        document = json.loads(body)
        assert "errors" in document or set(document) == {"code", "status", "results"}, body
        assert document.get("code", status) == status
        assert all(character.isprintable() for character in document.get("status", "")), body
    return Answer(status, body)


async def send(
    base: str, method: str, path: str, data: Any = None, tls: ssl.SSLContext | None = None, **headers: str
) -> Answer:
    named = {name.replace("_", "-"): value for name, value in ({"Content-Type": JSON} | headers).items()}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session,
        session.request(method, URL(base + path, encoded=True), data=data, headers=named, ssl=tls or False) as answer,
    ):
        assert answer.headers["Server"] == "limeguard"
        return checked(answer.status, await answer.read())


async def raw(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """Send bytes as they are and return all that comes back until the other side closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(15):
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause)
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def split(answer: bytes) -> Answer:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert INSIDES.search(head) is None, head
    assert b"Python" not in head
    return checked(int(head.split()[1]), body)


async def ids(site: Site) -> list[str]:
    return await Registrations(site.database).ids()


# ---------------------------------------------------------------- bodies

NOT_JSON = {
    "nothing": b" ",
    "half": b"{",
    "half a text": b'{"aik_tpm": "',
    "single quotes": b"{'aik_tpm': 1}",
    "comment": b"{} // x",
    "two": b"{}{}",
    "nan": b'{"port": NaN}',
    "infinity": b'{"port": Infinity}',
    "control character": b'{"ip": "\x01"}',
    "not utf-8": b'{"ip": "\xff\xfe"}',
    "not utf-8 in a name": b'{"\xff": 1}',
    "half a surrogate": b'{"ip": "\\ud800"}',
    "utf-16": '{"ip": ""}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "nul": b"\0",
    "binary": bytes(range(256)),
    "form": b"aik_tpm=AAAA",
    "markup": b"<x/>",
    "gzip": gzip.compress(b"{}"),
    "deep lists": b'{"x": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep and open": b"[" * DEEP,
}


# trust: safe-parsing
@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
async def test_what_is_not_json_is_refused_without_a_word(site: Site, body: bytes) -> None:
    for method, path in (("POST", PATH), ("POST", "/v2.6/agents"), ("PUT", PATH), ("POST", PATH + "/activate")):
        answer = await send(site.plain, method, path, body)
        assert answer.status == 400, (method, path)
        assert answer.said in {"", INVALID}, (method, path)
    assert await ids(site) == []


OTHER_JSON = [b"[]", b"1", b'"x"', b"null", b"true", b'[{"auth_tag": "x"}]', b"-0", b"1e400", b"1" * 5000]


# trust: safe-parsing
@pytest.mark.parametrize("body", OTHER_JSON, ids=lambda body: body[:20].decode())
async def test_a_body_that_is_no_object_is_refused(site: Site, body: bytes) -> None:
    assert (await send(site.plain, "POST", PATH, body)).said in {"", INVALID}
    answer = await send(site.plain, "PUT", PATH, body)
    assert (answer.status, answer.body) == (400, b"")
    assert await ids(site) == []


BAD_PROOFS = [{}, {"auth_tag": None}, {"auth_tag": 5}, {"auth_tag": []}, {"auth_tag": {}}, {"AUTH_TAG": "x"}]


@pytest.mark.parametrize("body", BAD_PROOFS, ids=str)
async def test_an_activation_without_proof_costs_nobody_the_registration(site: Site, body: object) -> None:
    agent = site.agent()
    proof = agent.answer(await agent.register())
    answer = await send(site.plain, "PUT", PATH, json.dumps(body))
    assert (answer.status, answer.body) == (400, b"")
    await agent.activate(proof)


async def test_a_body_of_another_type_has_no_members(site: Site) -> None:
    body = json.dumps(site.agent().node.registration_fields())
    for kind in ("text/plain", "", "application/x-www-form-urlencoded", "multipart/form-data", "text/json", "json"):
        answer = await send(site.plain, "POST", PATH, body, Content_Type=kind)
        assert (answer.status, answer.said) == (400, INVALID), kind
        assert (await send(site.plain, "PUT", PATH, b'{"auth_tag": "x"}', Content_Type=kind)).body == b""
    assert await ids(site) == []
    for kind in ("application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.api+json"):
        assert (await send(site.plain, "POST", PATH, body, Content_Type=kind)).status == 200, kind


async def test_members_that_appear_twice_or_are_unknown_do_no_harm(site: Site) -> None:
    fields = json.dumps(site.agent().node.registration_fields())[1:]
    junk = json.dumps({"__class__": "os.system", "$ref": "#", "agent_id": "somebody", "version": 7, "active": True})[
        :-1
    ]
    answer = await send(site.plain, "POST", PATH, f'{junk}, "active": true, "proven": true, {fields}')
    assert answer.status == 200
    stored = await Registrations(site.database).get(AGENT_ID)
    assert stored is not None
    assert (stored.active, stored.proven, stored.regcount) == (False, False, 1)
    assert await ids(site) == [AGENT_ID]


# ---------------------------------------------------------------- sizes and time

BIG = MAX_BODY + 1


# trust: bounded
async def test_a_body_that_is_too_large_is_not_read_to_its_end(site: Site) -> None:
    chunks = [b"10000\r\n" + b" " * 0x10000 + b"\r\n"] * (BIG // 0x10000 + 2)
    requests = []
    for path in (PATH, "/v3/agents", PATH + "/activate"):
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {JSON}\r\n"
        announced, chunked = f"{head}Content-Length: {2**40}\r\n\r\n", f"{head}Transfer-Encoding: chunked\r\n\r\n"
        requests += [raw(site.server.port, announced.encode()), raw(site.server.port, chunked.encode(), *chunks)]
    for received in await asyncio.gather(*requests):
        answer = split(received)
        assert (answer.status, answer.said) == (413, f"Request body is larger than {MAX_BODY} bytes")


# trust: bounded
async def test_the_largest_body_is_read(site: Site) -> None:
    assert (await send(site.plain, "POST", PATH, BytesIO(b" " * MAX_BODY))).status == 400
    proof = b'{"auth_tag": "' + b"x" * (MAX_BODY - 16) + b'"}'
    assert (await send(site.plain, "PUT", PATH, BytesIO(proof))).status == 404


# trust: bounded
async def test_a_compressed_body_is_not_unpacked(site: Site) -> None:
    bomb = gzip.compress(b" " * (64 * MAX_BODY))
    for coding in ("gzip", "deflate", "br", "zstd"):
        answer = await send(site.plain, "POST", PATH, bomb, Content_Encoding=coding)
        assert (answer.status, answer.body) == (400, b""), coding


# trust: bounded
async def test_slow_bodies_are_given_up_and_hold_nobody_else(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PATIENCE", Patience(body=0.5))
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: {JSON}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    slow = [
        asyncio.create_task(raw(site.server.port, head, *[b"1\r\n \r\n"] * 40, pause=0.02)),
        asyncio.create_task(raw(site.server.port, head.replace(b"Transfer-Encoding: chunked", b"Content-Length: 9"))),
        *(asyncio.create_task(raw(site.server.port, head)) for _ in range(50)),
    ]
    await asyncio.sleep(0.1)
    await site.agent().enrol()
    for answer in await asyncio.gather(*slow):
        refused = split(answer)
        assert (refused.status, refused.said) == (408, "Request body did not arrive in time")


# trust: bounded
async def test_silent_connections_are_closed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PATIENCE", Patience(head=0.3))
    silent = [b"", b"P", b"POST / HTTP/1.1\r\nHost: x\r\n", b"\r\n\r\n"]
    started = asyncio.get_running_loop().time()
    for answer in await asyncio.gather(*(raw(site.server.port, part) for part in silent)):
        assert answer == b""
    assert asyncio.get_running_loop().time() - started < 5


# ---------------------------------------------------------------- requests that are none

UNREADABLE = {
    "no http": b"hello\r\n\r\n",
    "tls on the http port": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n",
    "odd version": b"GET /version HTTP/9.9\r\nHost: x\r\n\r\n",
    "negative length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "length twice": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "length and chunked": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a header without name": b"GET /version HTTP/1.1\r\n: x\r\n\r\n",
    "a header with NUL": b"GET /version HTTP/1.1\r\nX: a\0b\r\n\r\n",
    "a long target": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a long header": b"GET /version HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    "many headers": b"GET /version HTTP/1.1\r\n" + b"X: a\r\n" * 100_000 + b"\r\n",
    "control characters": b"GET /\x1b[31m HTTP/1.1\r\nHost: x\r\n\r\n",
}


# trust: bounded
# trust: safe-parsing
@pytest.mark.parametrize("sent", UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_what_is_not_http_gets_a_bare_400(site: Site, sent: bytes) -> None:
    answer = await raw(site.server.port, sent)
    if answer:  # one that sends on after the refusal may see nothing of it
        assert split(answer).body == b""
        assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))
    assert (await send(site.plain, "GET", "/version")).status == 200


PATHS = {
    "//": 404,
    "//version": 404,
    "/v2.6//agents": 404,
    "/v2.6/agents//activate": 404,
    "/version/x": 404,
    "/v2.6": 404,
    "/v2.6/agents/a/b": 404,
    "/../version": 404,
    "/v2.6/../version": 404,
    "/%76ersion": 404,
    "/v2.6/%61gents": 404,
    "/v2.6/agents/a%20b": 400,
    "/v2.6/agents/%00": 400,
    "/v2.6/agents/%0a": 400,
    "/v2.6/agents/%2e%2e%2fversion": 400,
    "/v2.6/agents/a;b": 400,
    "/v2.6/agents/<script>": 400,
    "/v2.6/agents/a'--": 400,
    "/v2.6/agents/" + "a" * 81: 400,
    "/v2.6/agents/" + "a" * 8000: 400,
    "/v2.6/agents/a" + "?x=1" * 3: 400,
    "/v2.6/agents?" + "a=1&" * 1000: 400,
    "/v2.6/agents?agent_id=a": 400,
}


# trust: hygiene
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[:30])
async def test_odd_paths_and_ids_are_refused(site: Site, path: str, caplog: pytest.LogCaptureFixture) -> None:
    body = json.dumps(site.agent().node.registration_fields(ekcert="x"))
    for method in ("POST", "PUT"):
        answer = await send(site.plain, method, path, body)
        assert answer.status in {PATHS[path], 405}
    assert await ids(site) == []
    clean_lines(caplog)


async def test_an_id_that_is_none_is_refused_everywhere(site: Site) -> None:
    # trust: hygiene
    fields = site.agent().node.registration_fields()
    for bad in ("a b", "a\n", "\x1b[31m", "é", "a/b", "a" * 81, "\0", "a%20b"):
        answer = await send(site.plain, "POST", "/v2.6/agents", json.dumps({**fields, "agent_id": bad}))
        assert (answer.status, answer.said) == (400, BAD_ID), bad
    for empty in ("", None):
        answer = await send(site.plain, "POST", "/v3/agents", json.dumps({**fields, "agent_id": empty}))
        assert (answer.status, answer.body) == (400, b"")
    for wrong in (5, ["a"], {"a": 1}, True):
        answer = await send(site.plain, "POST", "/v3.0/agents", json.dumps({**fields, "agent_id": wrong}))
        assert (answer.status, answer.said) == (400, INVALID)
    for method in ("GET", "DELETE"):
        answer = await send(site.secure, method, "/v2.6/agents/a%20b", tls=site.admin_tls)
        assert (answer.status, answer.said) == (400, BAD_ID)
    assert await ids(site) == []


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PROPFIND", "get", "X" * 50])
async def test_unknown_methods_are_not_implemented(site: Site, method: str) -> None:
    answer = await raw(site.server.port, f"{method} /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert split(answer).status in {400, 404, 501}
    assert split(answer).body == b""


# ---------------------------------------------------------------- logs


def clean_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Every line is one line of printable text of sane length, and none is about a fault of ours."""
    for record in caplog.records:
        line = record.getMessage()
        if not record.name.startswith("keylime"):
            continue
        assert line.isprintable(), repr(line)
        assert len(line) < 2500, len(line)
        assert record.exc_info is None, line
        assert record.levelno <= logging.WARNING, line


# trust: hygiene
@pytest.mark.parametrize(
    "text", ["\n2026-01-01 - keylime - INFO - all is well", "\x1b[2J", "\u202e\u2028", "x" * 70_000]
)
async def test_what_a_peer_sends_does_not_shape_the_log(
    site: Site, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "keylime")
    agent = site.agent()
    await agent.register()
    body = json.dumps({"auth_tag": text})
    answer = await send(site.plain, "PUT", PATH, body)
    assert answer.status == 400
    for member in ("ip", "ekcert", "mtls_cert", "aik_tpm", "iak_tpm", "agent_id", "port"):
        fields = {**agent.node.registration_fields(), member: text}
        await send(site.plain, "POST", PATH, json.dumps(fields))
        await send(site.plain, "POST", "/v2.6/agents", json.dumps(fields))
    caplog.clear()
    await raw(site.server.port, b"GET /\xff\xfe\xc2\x9b31m HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    await raw(
        site.server.port, b"GET /version HTTP/1.1\r\nHost: x\r\nX-Request-ID: \x80\xff<b>\r\nConnection: close\r\n\r\n"
    )
    clean_lines(caplog)


# ---------------------------------------------------------------- structures


@cache
def full_fields(number: int = 1) -> dict[str, Any]:
    """Return a registration with every member: certificates for EK, IAK and IDevID, and the proof about the AK."""
    node = SoftNode.create("ecc256", number=number)
    iak, idevid = SoftAk.generate("ecc256", number=10 + number), SoftAk.generate("rsa2048", number=20 + number)
    attest, signature = iak.certify(node.ak.area, AGENT_ID.encode())
    fields = node.registration_fields(ekcert=certificate(node.ek.key))
    for name, key in (("iak", iak), ("idevid", idevid)):
        fields[f"{name}_tpm"] = b64encode(key.public_2b).decode()
        fields[f"{name}_cert"] = certificate(key.key)
    fields["iak_attest"], fields["iak_sign"] = b64encode(attest).decode(), b64encode(signature).decode()
    fields["mtls_cert"] = certificate(iak.key)
    return fields


def certificate(key: Any) -> str:
    """Return base64 of a self-signed certificate for a key."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "TPM")])
    built = x509.CertificateBuilder(name, name, key.public_key(), 7, pki.START, pki.END).sign(key, hashes.SHA256())
    return b64encode(built.public_bytes(Encoding.DER)).decode()


DEVICE = ["iak_tpm", "iak_cert", "idevid_tpm", "idevid_cert"]
BINARY = ["ek_tpm", "aik_tpm", "ekcert", *DEVICE, "iak_attest", "iak_sign", "mtls_cert"]


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    """Return a registrar without sockets, for what is about many messages."""
    database = Database(f"sqlite:///{tmp_path / 'fuzz.sqlite'}")
    await database.migrate("registrar")
    yield make_app(RegistrarService(Registrations(database), IdentityRules()), MAX_BODY)
    await database.close()


async def give(body: bytes, _limit: int) -> bytes:
    return body


async def post(app: App, body: bytes, method: str = "POST", path: str = PATH) -> Answer:
    response = await app.handle(Incoming(method, path, {"Content-Type": JSON}, read_body=partial(give, body)))
    return checked(response.status, response.body)


LAX = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


async def test_a_full_registration_is_good(app: App) -> None:
    assert (await post(app, json.dumps(full_fields()).encode())).status == 200


# trust: bound-identity
async def test_the_parts_of_two_machines_do_not_mix(app: App) -> None:
    mine, other = full_fields(), full_fields(2)
    for member in BINARY:
        if member != "mtls_cert":  # it is of the agent, and replaced with each start
            answer = await post(app, json.dumps({**mine, member: other[member]}).encode())
            assert (answer.status, answer.said) == (400, INVALID), member
    for absent in (*DEVICE, "iak_attest", "iak_sign"):
        for nothing in ({absent: None}, {absent: ""}):
            answer = await post(app, json.dumps({**mine, **nothing}).encode())
            assert (answer.status, answer.said) == (400, INVALID), absent
    answer = await post(app, json.dumps(mine).encode(), path="/v2.6/agents/another")
    assert (answer.status, answer.said) == (400, INVALID)


# trust: safe-parsing
# trust: bound-identity
@LAX
@given(member=st.sampled_from(BINARY), place=st.integers(0, 5000), value=st.integers(0, 255), cut=st.integers(0, 9))
async def test_a_changed_byte_is_refused_or_changes_nothing_that_was_proved(
    app: App, member: str, place: int, value: int, cut: int
) -> None:
    good = b64decode(full_fields()[member])
    place %= len(good)
    changed = good[:place] + bytes([value]) + good[place + 1 :]
    changed = changed[: len(changed) - cut] if cut < 3 else changed
    answer = await post(app, json.dumps({**full_fields(), member: b64encode(changed).decode()}).encode())
    assert answer.status in {200, 400, 403}
    if member in {"iak_attest", "iak_sign"} and changed != good:
        # nothing signs the bytes of the certificates here, and some bits of a public area may be free
        assert (answer.status, answer.said) == (400, INVALID)
    await app_delete(app)


async def app_delete(app: App) -> None:
    response = await app.handle(Incoming("DELETE", PATH, {}, certificate_name="operator"))
    assert response.status in {200, 404}


# trust: safe-parsing
@LAX
@given(member=st.sampled_from(BINARY), data=st.binary(max_size=600))
async def test_random_structures_are_refused(app: App, member: str, data: bytes) -> None:
    answer = await post(app, json.dumps({**full_fields(), member: b64encode(data).decode()}).encode())
    # what is empty is not there
    assert answer.status == 400 or (member in {"ekcert", "mtls_cert"} and not data)
    await app_delete(app)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


# trust: safe-parsing
@LAX
@given(changes=st.dictionaries(st.sampled_from([*BINARY, "ip", "port", "agent_id"]), JSON_VALUES, max_size=4))
async def test_members_of_any_type_are_taken_or_refused(app: App, changes: dict[str, Any]) -> None:
    answer = await post(app, json.dumps({**full_fields(), **changes}).encode())
    assert answer.status in {200, 400}
    await post(app, json.dumps(changes).encode(), "PUT")
    await app_delete(app)


# trust: safe-parsing
@LAX
@given(method=st.sampled_from(["POST", "PUT"]), body=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
async def test_random_bodies_are_refused(app: App, method: str, body: bytes) -> None:
    assert (await post(app, body, method)).status in {400, 404}


# trust: hygiene
@LAX
@given(
    target=st.text(st.characters(codec="utf-8", max_codepoint=0xFF), max_size=60),
    method=st.sampled_from(["GET", "PUT", "\n"]),
)
async def test_random_targets_reach_nothing(
    app: App, target: str, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    for path in (target, "/" + target, "/v2.6/agents/" + target):
        await post(app, b"{}", method, path)
    clean_lines(caplog)
