"""The client for thousands of pinned peers: keeps connections, and takes nothing from a peer that lies."""

import asyncio
import os
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.pki import self_signed, server_context

from limeguard.web.answers import NoRoom, Unreachable, make_pin
from limeguard.web.pinned import PinnedHttp, room_for_peers
from limeguard.web.tls import agent_client_context

pytestmark = pytest.mark.services

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Peer:
    """A peer that says what it is told to, byte for byte, to each request."""

    def __init__(self, *answers: bytes, close: bool = False) -> None:
        self.answers, self.close = list(answers), close
        self.connections = 0
        self.requests: list[bytes] = []
        self.port = 0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.requests.append(head)
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                writer.write(answer)
                await writer.drain()
                if self.close:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()


@asynccontextmanager
async def served(peer: Peer, **options: float) -> AsyncIterator[tuple[PinnedHttp, str]]:
    server = await asyncio.start_server(peer.talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    http = PinnedHttp(
        None, timeout=options.get("timeout", 5.0), max_answer=1_000, keepalive=options.get("keepalive", 30)
    )
    try:
        yield http, f"http://127.0.0.1:{port}/path?a=1"
    finally:
        await http.close()
        server.close()
        await asyncio.sleep(0.01)


async def test_a_connection_serves_one_request_after_another() -> None:
    peer = Peer(OK)
    async with served(peer) as (http, url):
        for _ in range(3):
            answer = await http.request("GET", url, headers={"Content-Type": "application/json"})
            assert (answer.status, answer.body) == (200, b"ok")
        assert http.idle == 1
    assert peer.connections == 1
    assert peer.requests[0].startswith(b"GET /path?a=1 HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nContent-Type: application/json\r\n" in peer.requests[0]


async def test_two_requests_at_once_have_two_connections() -> None:
    peer = Peer(OK)
    async with served(peer) as (http, url):
        await asyncio.gather(http.request("GET", url), http.request("GET", url))
        assert http.idle == 2
    assert peer.connections == 2


async def test_a_connection_that_the_peer_closed_is_replaced() -> None:
    peer = Peer(OK, close=True)
    async with served(peer) as (http, url):
        for _ in range(3):
            assert (await http.request("GET", url)).body == b"ok"
            await asyncio.sleep(0.02)
    assert peer.connections == 3


async def test_an_idle_connection_is_closed_in_the_end() -> None:
    peer = Peer(OK)
    async with served(peer, keepalive=0.05) as (http, url):
        await http.request("GET", url)
        await asyncio.sleep(0.15)
        await http.request("GET", url)
    assert peer.connections == 2


@asynccontextmanager
async def many(count: int, most: int) -> AsyncIterator[tuple[PinnedHttp, list[Peer], list[str]]]:
    """Serve several peers, and a client that may have `most` connections."""
    peers = [Peer(OK) for _ in range(count)]
    servers = [await asyncio.start_server(peer.talk, "127.0.0.1", 0) for peer in peers]
    http = PinnedHttp(None, timeout=5.0, max_answer=1_000, most=most)
    try:
        yield http, peers, [f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/" for server in servers]
    finally:
        await http.close()
        for server in servers:
            server.close()
        await asyncio.sleep(0.01)


async def test_with_more_peers_than_connections_most_peers_keep_theirs(caplog: pytest.LogCaptureFixture) -> None:
    # trust: bounded
    async with many(10, most=8) as (http, peers, urls):
        for _ in range(5):
            for url in urls:
                assert (await http.request("GET", url)).body == b"ok"
                assert http.idle <= 8
    new = sum(peer.connections for peer in peers)
    assert new <= 10 + 4 * (10 - 8), "in each turn as many are connected to anew as there are too many"
    assert [record.levelname for record in caplog.records if "open files" in record.message] == ["WARNING"]


@contextmanager
def no_more_files() -> Iterator[None]:
    """Let this process open none beside those that it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    with Path(os.devnull).open() as highest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest.fileno() + 1, hard))
    try:
        with suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in held:
            os.close(one)


async def test_without_files_an_idle_connection_makes_room_and_else_it_is_said_that_the_fault_is_ours() -> None:
    # trust: bounded
    async with many(2, most=100) as (http, peers, urls):
        with no_more_files(), pytest.raises(NoRoom):
            await http.request("GET", urls[0])
        await http.request("GET", urls[0])
        with no_more_files():
            asking = asyncio.create_task(http.request("GET", urls[1]))
            await asyncio.sleep(0.05)  # the peer, in this process as well, has no file for it yet
            assert http.idle == 0
        assert (await asking).body == b"ok"
        assert [peer.connections for peer in peers] == [1, 1]


@given(st.integers(1, 2_000_000))
def test_there_is_room_for_peers_and_for_all_else(files: int) -> None:
    assert 0 <= room_for_peers(files) < files
    assert files < 1024 or room_for_peers(files) >= files * 7 // 8


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n1\r\n!\r\n0\r\n\r\n", b"ok!"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"ok"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno", b"no"),
    ],
)
async def test_every_form_of_an_answer_is_read(answer: bytes, body: bytes) -> None:
    async with served(Peer(answer)) as (http, url):
        for _ in range(2):
            assert (await http.request("GET", url)).body == body


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n", "too_large"),
        (CHUNKED + (b"200\r\n" + b"x" * 512 + b"\r\n") * 2, "too_large"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: " + b"x" * 70_000 + b"\r\n\r\n", "protocol"),
        (b"SSH-2.0-OpenSSH\r\n", "protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nContent-Length: 2\r\n\r\nok", "protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok", "protocol"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n", "protocol"),
    ],
)
async def test_an_answer_that_is_none_is_refused(answer: bytes, kind: str) -> None:
    # trust: bounded
    async with served(Peer(answer)) as (http, url):
        with pytest.raises(Unreachable) as refused:
            await http.request("GET", url)
        assert refused.value.kind == kind
        assert http.idle == 0


# trust: bounded
@pytest.mark.parametrize(
    "beginning",
    [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX: "],
    ids=["head", "trailer"],
)
async def test_a_field_without_end_is_given_up_before_it_fills_memory(beginning: bytes) -> None:
    sent = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(beginning)
        try:
            while sent < 100_000_000:
                writer.write(b"x" * 65_536)
                await writer.drain()
                sent += 65_536
        except ConnectionError:
            pass
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    http = PinnedHttp(None, timeout=20.0, max_answer=1_000)
    with pytest.raises(Unreachable) as refused:
        await http.request("GET", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    assert refused.value.kind == "protocol"
    await http.close()
    server.close()
    await asyncio.sleep(0.05)
    assert sent < 30_000_000


async def test_an_answer_that_stops_half_way_is_none() -> None:
    async with served(Peer(OK[:-1], close=True)) as (http, url):
        with pytest.raises(Unreachable, match="within the answer"):
            await http.request("GET", url)
    async with served(Peer(OK[:-1]), timeout=0.2) as (http, url):
        with pytest.raises(Unreachable) as late:
            await http.request("GET", url)
        assert late.value.kind == "timeout"


# trust: bound-identity
async def test_what_a_peer_says_unasked_answers_nothing() -> None:
    async with served(Peer(OK + OK.replace(b"ok", b"no"), OK)) as (http, url):
        assert (await http.request("GET", url)).body == b"ok"
        await asyncio.sleep(0.02)
        assert (await http.request("GET", url)).body == b"ok"


async def test_nobody_there_is_said_with_the_reason() -> None:
    http = PinnedHttp(None, timeout=1.0, max_answer=10)
    with pytest.raises(Unreachable, match="Cannot connect") as refused:
        await http.request("GET", "http://127.0.0.1:9/")
    assert refused.value.kind == "connect"
    await http.close()


# trust: bound-identity
async def test_another_certificate_than_the_pinned_one_gets_no_request(tmp_path: Path) -> None:
    own, other, client = (self_signed(tmp_path / name, name) for name in ("own", "other", "client"))
    peer = Peer(OK)
    context = server_context(own, client.certificate, required=True)
    server = await asyncio.start_server(peer.talk, "127.0.0.1", 0, ssl=context)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    http = PinnedHttp(agent_client_context(client.certificate, client.key, ""), timeout=5.0, max_answer=100)
    assert (await http.request("GET", url, pin=make_pin(own.der))).body == b"ok"
    asked = len(peer.requests)
    with pytest.raises(Unreachable) as refused:
        await http.request("GET", url, pin=make_pin(other.der))
    assert refused.value.kind == "certificate"
    assert len(peer.requests) == asked
    await http.close()
    server.close()
    await asyncio.sleep(0.05)


@given(st.binary(max_size=200), st.booleans())
@settings(max_examples=60, deadline=None)
def test_noise_is_an_answer_or_a_refusal(noise: bytes, after_head: bool) -> None:
    async def ask() -> None:
        answer = (b"HTTP/1.1 200 OK\r\n" if after_head else b"") + noise
        async with served(Peer(answer, close=True), timeout=1.0) as (http, url):
            try:
                assert len((await http.request("GET", url)).body) <= 1_000
            except Unreachable:
                return

    asyncio.run(ask())
