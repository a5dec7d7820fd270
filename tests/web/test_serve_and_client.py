"""Sockets: TLS with optional client certificates, bounds on slow and large peers, and the pinned client."""

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from limeguard.web.answers import Unreachable, make_pin
from limeguard.web.app import App, Incoming, Request, Response, Route
from limeguard.web.auth import Authorizer, Rule
from limeguard.web.client import HttpClient
from limeguard.web.connection import Patience
from limeguard.web.serve import Listener

pytestmark = pytest.mark.services


@dataclass(frozen=True)
class Identity:
    certificate: Path
    key: Path
    der: bytes


def make_identity(folder: Path, name: str) -> Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=36500))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = Identity(
        folder / f"{name}.crt", folder / f"{name}.pem", certificate.public_bytes(serialization.Encoding.DER)
    )
    files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


@pytest.fixture(scope="module")
def server_identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return make_identity(tmp_path_factory.mktemp("tls"), "server")


@pytest.fixture(scope="module")
def client_identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return make_identity(tmp_path_factory.mktemp("tls"), "operator")


def server_side(server: Identity, client: Identity) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.certificate, server.key)
    context.load_verify_locations(client.certificate)
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def client_side(identity: Identity | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if identity is not None:
        context.load_cert_chain(identity.certificate, identity.key)
    return context


async def who(request: Request) -> Response:
    return Response(200, f"{request.caller.kind.value} {request.caller.name} {len(request.body)}".encode())


def make_app(max_body: int = 1000) -> App:
    routes = [Route("GET", "/who", "read", who, plain_http=True), Route("POST", "/who", "read", who, plain_http=True)]
    return App(routes, Authorizer({"read": Rule.PUBLIC}), max_body=max_body)


Serve = Callable[[Listener], Awaitable[int]]


@pytest.fixture
async def served() -> AsyncIterator[Serve]:
    started: list[Listener] = []

    async def start(listener: Listener) -> int:
        await listener.start()
        started.append(listener)
        return listener.port

    yield start
    for listener in started:
        await listener.stop()


def client(context: ssl.SSLContext | None, timeout: float = 5.0, max_answer: int = 10_000) -> HttpClient:
    return HttpClient(context, timeout=timeout, max_answer=max_answer)


async def test_the_common_name_of_a_verified_certificate_is_the_caller(
    served: Serve, server_identity: Identity, client_identity: Identity
) -> None:
    port = await served(Listener(make_app(), "127.0.0.1", 0, server_side(server_identity, client_identity)))
    for identity, expected in ((client_identity, b"admin operator 0"), (None, b"anonymous  0")):
        http = client(client_side(identity))
        assert (await http.request("GET", f"https://127.0.0.1:{port}/who")).body == expected
        await http.close()


async def test_a_certificate_of_another_authority_fails_the_handshake(
    served: Serve, server_identity: Identity, client_identity: Identity, tmp_path: Path
) -> None:
    port = await served(Listener(make_app(), "127.0.0.1", 0, server_side(server_identity, client_identity)))
    http = client(client_side(make_identity(tmp_path, "stranger")))
    with pytest.raises(Unreachable):
        await http.request("GET", f"https://127.0.0.1:{port}/who")
    await http.close()


# trust: bound-identity
async def test_a_pinned_peer_is_compared_before_anything_is_sent(
    served: Serve, server_identity: Identity, client_identity: Identity
) -> None:
    seen: list[str] = []

    async def answer(incoming: Incoming) -> Response:
        seen.append(incoming.certificate_name or "")
        return Response(200, b"ok")

    port = await served(Listener(answer, "127.0.0.1", 0, server_side(server_identity, client_identity)))
    http = client(client_side(client_identity))
    good, wrong = make_pin(server_identity.der), make_pin(client_identity.der)
    with pytest.raises(Unreachable) as refused:
        await http.request("GET", f"https://127.0.0.1:{port}/", pin=wrong)
    assert refused.value.kind == "certificate"
    assert not seen
    assert (await http.request("GET", f"https://127.0.0.1:{port}/", pin=good)).body == b"ok"
    assert seen == ["operator"]  # the shared context, with its client certificate, was used
    await http.close()


# trust: bounded
async def test_a_large_body_is_refused_before_it_is_read(served: Serve) -> None:
    port = await served(Listener(make_app(max_body=1000), "127.0.0.1", 0))
    http = client(None)
    assert (await http.request("POST", f"http://127.0.0.1:{port}/who", body=b"x" * 1000)).body.endswith(b"1000")
    assert (await http.request("POST", f"http://127.0.0.1:{port}/who", body=b"x" * 1001)).status == 413
    await http.close()


# trust: bounded
async def test_a_connection_that_never_sends_a_request_is_closed(served: Serve) -> None:
    port = await served(Listener(make_app(), "127.0.0.1", 0, patience=Patience(head=0.2)))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /who HTTP/1.1\r\nX-Slow: ")
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_what_is_not_http_gets_a_bare_400(served: Serve) -> None:
    port = await served(Listener(make_app(), "127.0.0.1", 0))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"\x16\x03\x01 nonsense\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))
    assert b"Traceback" not in answer
    assert b"aiohttp" not in answer
    writer.close()


Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def hostile(behaviour: Peer) -> AsyncIterator[int]:
    """Serve a behaviour on a free port; end its connections with it."""
    tasks: set[asyncio.Task[None]] = set()

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await behaviour(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.ensure_future(run(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")
        await writer.drain()


async def announces_a_gigabyte(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
    await asyncio.sleep(60)


async def one_byte_at_a_time(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"x" * 100:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.05)


async def resets(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def billion_headers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-A: b\r\n" * 1000)
        await writer.drain()


# trust: bounded
@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (endless, "too_large"),
        (announces_a_gigabyte, "too_large"),
        (one_byte_at_a_time, "timeout"),
        (resets, "protocol"),
        (billion_headers, "protocol"),
    ],
)
async def test_a_hostile_peer_costs_bounded_time_and_memory(behaviour: Peer, kind: str) -> None:
    async with hostile(behaviour) as port:
        http = client(None, timeout=1.0)
        with pytest.raises(Unreachable) as problem:
            await asyncio.wait_for(http.request("GET", f"http://127.0.0.1:{port}/"), 5)
        await http.close()
    assert problem.value.kind == kind


async def test_nobody_listening_is_unreachable(unused_tcp_port: int) -> None:
    http = client(None)
    with pytest.raises(Unreachable) as problem:
        await http.request("GET", f"http://127.0.0.1:{unused_tcp_port}/")
    assert problem.value.kind == "connect"
    await http.close()
