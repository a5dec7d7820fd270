"""HTTP as a server reads it: requests in whatever pieces, several at once, and callers that keep to no rule."""

import asyncio
import contextlib
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.pki import Identity, self_signed, server_context

from limeguard.web.app import BodyBroken, BodyTimeout, BodyTooLarge, Incoming, Response
from limeguard.web.beat import Beat
from limeguard.web.connection import BUFFERED, MAX_FIELDS, MAX_HEAD, MAX_WAITING, PIECE, Connection, Patience
from limeguard.web.serve import Listener
from limeguard.web.tls import agent_client_context

pytestmark = pytest.mark.services

SHORT = Patience(head=0.3, body=0.3, piece=0.3, between=0.3, linger=0.3)
LIMIT = 1_000_000
ENOUGH = 5.0
LARGE = bytes(range(256)) * 40_000


async def echo(incoming: Incoming) -> Response:
    """Answer with what was understood of the request."""
    try:
        body = await incoming.read_body(LIMIT)
    except BodyTooLarge:
        return Response(413)
    except BodyTimeout:
        return Response(408)
    except BodyBroken:
        return Response(400, b"broken")
    if incoming.target == "/large":
        return Response(200, LARGE)
    if incoming.target == "/nothing":
        return Response(204)
    if incoming.target == "/fault":
        raise RuntimeError("a fault of ours")
    text = f"{incoming.method} {incoming.target} {incoming.headers.get('x-Word', '')} ".encode() + body
    return Response(200, text, "text/plain", {"X-From": incoming.peer})


@asynccontextmanager
async def serving(
    answer: Callable[[Incoming], Awaitable[Response]] = echo,
    patience: Patience | None = None,
    rest: Beat | None = None,
) -> AsyncIterator[int]:
    listener = Listener(answer, "127.0.0.1", 0, patience=patience, rest=rest)
    await listener.start()
    try:
        yield listener.port
    finally:
        await listener.stop()


class Talk:
    """A caller that sends what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def hear(self, *, head: bool = False) -> tuple[int, dict[str, str], bytes]:
        """Return one answer; after HEAD it has no body."""
        async with asyncio.timeout(ENOUGH):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:-2])}
            body = b"" if head else await self.reader.readexactly(int(fields.get("content-length", "0")))
            return int(lines[0].split()[1]), fields, body

    async def rest(self) -> bytes:
        """Return all that comes until the server closes."""
        return await asyncio.wait_for(self.reader.read(), ENOUGH)


@asynccontextmanager
async def talking(port: int) -> AsyncIterator[Talk]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Talk(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def post(body: bytes, *fields: str, target: str = "/echo") -> bytes:
    lines = [f"POST {target} HTTP/1.1", "Host: here", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def test_one_connection_serves_many_requests() -> None:
    async with serving() as port, talking(port) as talk:
        for number in range(3):
            talk.say(post(b"body %d" % number, "X-Word:  two words \t"))
            status, fields, body = await talk.hear()
            assert (status, body) == (200, b"POST /echo two words body %d" % number)
            assert fields["content-type"] == "text/plain"
            assert fields["server"] == "limeguard"
            assert fields["x-from"] == "127.0.0.1"
            assert "connection" not in fields
            parsedate_to_datetime(fields["date"])


async def test_requests_that_come_at_once_are_answered_in_their_order() -> None:
    async with serving() as port, talking(port) as talk:
        talk.say(b"".join(post(b"%d" % number) for number in range(MAX_WAITING)))
        for number in range(MAX_WAITING):
            assert (await talk.hear())[2].endswith(b" %d" % number)


async def test_too_many_requests_at_once_are_none() -> None:
    async with serving() as port, talking(port) as talk:
        talk.say(b"GET / HTTP/1.1\r\n\r\n" * 1000)
        heard = await talk.rest()
        assert heard.count(b"HTTP/1.1") <= MAX_WAITING


MESSAGES = (
    (post(b"12345"), b"POST /echo  12345"),
    (b"GET /a?b=c HTTP/1.1\r\nHost: here\r\nX-Word: w\r\n\r\n", b"GET /a?b=c w "),
    (
        b"PUT /chunks HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%s"
        % b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nX-Word: late\r\n\r\n",
        b"PUT /chunks  abcdefg",
    ),
    (b"\r\nDELETE /gone HTTP/1.1\r\n\r\n", b"DELETE /gone  "),
)


@given(
    st.lists(st.sampled_from(MESSAGES), min_size=1, max_size=5),
    st.lists(st.integers(min_value=0, max_value=400), max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_however_requests_are_cut_they_are_the_same(messages: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    async def play() -> None:
        stream = b"".join(sent for sent, _ in messages)
        places = sorted({0, *(cut for cut in cuts if cut < len(stream)), len(stream)})
        async with serving() as port, talking(port) as talk:
            for begin, end in pairwise(places):
                talk.say(stream[begin:end])
                await talk.writer.drain()
                await asyncio.sleep(0.001)
            for _, expected in messages:
                assert (await talk.hear())[::2] == (200, expected)

    asyncio.run(play())


@pytest.mark.parametrize(
    ("request_head", "keeps"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n", False),
    ],
)
async def test_a_connection_is_kept_or_closed_as_was_asked(request_head: bytes, *, keeps: bool) -> None:
    async with serving() as port, talking(port) as talk:
        talk.say(request_head)
        status, fields, _ = await talk.hear()
        assert status == 200
        assert fields.get("connection") == (
            {True: None, False: "close"}[keeps]
            if b"/1.1" in request_head
            else {True: "keep-alive", False: "close"}[keeps]
        )
        if keeps:
            talk.say(request_head)
            assert (await talk.hear())[0] == 200
        else:
            assert await talk.rest() == b""


async def test_head_and_an_answer_without_content_have_no_body() -> None:
    async with serving() as port, talking(port) as talk:
        talk.say(b"HEAD /x HTTP/1.1\r\n\r\n")
        status, fields, _ = await talk.hear(head=True)
        assert (status, fields["content-length"]) == (200, str(len("HEAD /x  ")))
        talk.say(b"GET /nothing HTTP/1.1\r\n\r\n")
        status, fields, body = await talk.hear()
        assert (status, body) == (204, b"")
        assert "content-length" not in fields
        talk.say(b"GET /x HTTP/1.1\r\n\r\n")
        assert (await talk.hear())[0] == 200


async def test_leave_to_send_a_body_is_given_when_it_is_wanted() -> None:
    async def only_posts(incoming: Incoming) -> Response:
        return await echo(incoming) if incoming.target == "/echo" else Response(403)

    async with serving(only_posts) as port:
        head = b"POST /%s HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
        async with talking(port) as talk:
            talk.say(head % b"echo")
            assert (
                await asyncio.wait_for(talk.reader.readuntil(b"\r\n\r\n"), ENOUGH) == b"HTTP/1.1 100 Continue\r\n\r\n"
            )
            talk.say(b"body")
            assert (await talk.hear())[2] == b"POST /echo  body"
        async with talking(port) as talk:
            talk.say(head % b"other")
            status, fields, _ = await talk.hear()
            assert (status, fields["connection"]) == (403, "close")


AMBIGUOUS = (
    b"POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
    b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 0x4\r\n\r\nabcd",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\nabcd",
    b"GET / HTTP/1.1\r\nX : a\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: a\r\n folded\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: a\0b\r\n\r\n",
    b"GET / HTTP/3.7\r\n\r\n",
    b"GET /\r\n\r\n",
    b"\x16\x03\x01\x00\x10",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (MAX_FIELDS + 1) + b"\r\n",
    b"GET / HTTP/1.1\r\nX: " + b"y" * (2 * MAX_HEAD) + b"\r\n\r\n",
    b"GET /" + b"y" * (2 * MAX_HEAD) + b" HTTP/1.1\r\n\r\n",
)


# trust: bounded
@pytest.mark.parametrize("request_bytes", AMBIGUOUS, ids=lambda text: repr(text[:40]))
async def test_what_can_be_read_in_two_ways_or_none_is_refused(request_bytes: bytes) -> None:
    seen: list[str] = []

    async def note(incoming: Incoming) -> Response:
        await incoming.read_body(LIMIT)
        seen.append(incoming.target)
        return Response(200)

    async with serving(note) as port, talking(port) as talk:
        talk.say(request_bytes + b"GET /smuggled HTTP/1.1\r\n\r\n")
        heard = await talk.rest()
        assert heard.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert heard.count(b"HTTP/1.1") == 1
        assert not seen


@pytest.mark.parametrize("broken", [b"zz\r\n", b"5\r\nabcdefgh\r\n0\r\n\r\n"])
async def test_a_body_that_breaks_off_is_told_to_whoever_reads_it(broken: bytes) -> None:
    async with serving() as port, talking(port) as talk:
        talk.say(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await asyncio.sleep(0.05)
        talk.say(broken)
        status, fields, body = await talk.hear()
        assert (status, body, fields["connection"]) == (400, b"broken", "close")


async def test_what_is_no_request_does_not_take_the_answer_of_the_one_before_it() -> None:
    async def slow(incoming: Incoming) -> Response:
        await asyncio.sleep(0.1)
        return await echo(incoming)

    async with serving(slow) as port, talking(port) as talk:
        talk.say(post(b"first") + b"\x00nonsense")
        status, fields, body = await talk.hear()
        assert (status, body) == (200, b"POST /echo  first")
        assert fields["connection"] == "close"
        assert await talk.rest() == b""


# trust: bounded
async def test_an_endless_trailer_is_cut() -> None:
    async with serving() as port, talking(port) as talk:
        talk.say(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Word: ")
        with contextlib.suppress(OSError):
            for _ in range(200):
                talk.say(b"y" * MAX_HEAD)
                await talk.writer.drain()
        assert (await talk.rest()).startswith(b"HTTP/1.1 400")


# trust: bounded
async def test_a_body_nobody_asks_for_waits_at_its_sender() -> None:
    asked = asyncio.Event()

    async def later(incoming: Incoming) -> Response:
        await asked.wait()
        return Response(200, str(len(await incoming.read_body(100 * LIMIT))).encode())

    async with serving(later) as port, talking(port) as talk:
        body = bytes(40_000_000)
        talk.say(post(body))
        await asyncio.sleep(0.5)
        transport = talk.writer.transport
        # Systems hold some megabytes of a loopback connection; the rest has not left.
        assert transport.get_write_buffer_size() > len(body) // 2 > BUFFERED
        asked.set()
        assert (await talk.hear())[2] == b"40000000"


async def test_who_sends_too_much_gets_to_see_the_refusal() -> None:
    async with serving() as port:
        for announced in (True, False):
            async with talking(port) as talk:
                kind = b"Content-Length: 5000000" if announced else b"Transfer-Encoding: chunked"
                talk.say(b"POST / HTTP/1.1\r\n" + kind + b"\r\n\r\n")
                talk.say(bytes(5_000_000) if announced else b"4c4b40\r\n" + bytes(5_000_000) + b"\r\n0\r\n\r\n")
                status, fields, _ = await talk.hear()
                assert (status, fields["connection"]) == (413, "close")


async def test_a_body_that_is_not_read_is_dropped_and_the_connection_goes_on() -> None:
    async def unread(incoming: Incoming) -> Response:
        return Response(404) if incoming.target == "/no" else await echo(incoming)

    async with serving(unread) as port, talking(port) as talk:
        talk.say(b"POST /no HTTP/1.1\r\nContent-Length: 600000\r\n\r\n")
        assert (await talk.hear())[0] == 404
        talk.say(bytes(600_000) + post(b"next"))
        assert (await talk.hear())[2] == b"POST /echo  next"


# trust: bounded
@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"", b""),
        (b"GET / HTTP/1.1\r\nX: ", b""),
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 200"),
        (b"GET / HTTP/1.1\r\n\r\nGET / HTT", b"HTTP/1.1 200"),
        (b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc", b"HTTP/1.1 408"),
    ],
)
async def test_a_caller_that_stops_in_the_middle_is_let_go(sent: bytes, expected: bytes) -> None:
    async with serving(patience=SHORT) as port, talking(port) as talk:
        talk.say(sent)
        heard = await talk.rest()
        assert heard.startswith(expected)
        assert heard.count(b"HTTP/1.1") == bool(expected)


# trust: bounded
async def test_a_large_answer_waits_for_its_reader_and_not_for_ever() -> None:
    async with serving(patience=SHORT) as port:
        async with talking(port) as talk:
            talk.say(b"GET /large HTTP/1.1\r\n\r\nGET /x HTTP/1.1\r\n\r\n")
            assert (await talk.hear())[2] == LARGE
            assert (await talk.hear())[2] == b"GET /x  "
        with socket.create_connection(("127.0.0.1", port)) as deaf:
            deaf.sendall(b"GET /large HTTP/1.1\r\n\r\n" * 4)
            await asyncio.sleep(2.0)
            heard = await asyncio.to_thread(drained, deaf)
            assert PIECE < heard < 3 * len(LARGE)  # what systems hold of a connection, and then it was cut off


def drained(deaf: socket.socket) -> int:
    deaf.settimeout(ENOUGH)
    size = 0
    with contextlib.suppress(ConnectionError):
        while part := deaf.recv(1 << 20):
            size += len(part)
    return size


async def test_a_fault_of_ours_is_a_bare_500_and_the_connection_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as port, talking(port) as talk:
        talk.say(b"GET /fault HTTP/1.1\r\n\r\nGET /x HTTP/1.1\r\n\r\n")
        assert (await talk.hear())[::2] == (500, b"")
        assert (await talk.hear())[0] == 200
    assert "a fault of ours" in caplog.text


async def test_a_fault_of_ours_while_reading_is_told_and_ends_one_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_self: object) -> None:
        raise RuntimeError("a fault of ours")

    async with serving() as port:
        with monkeypatch.context() as patched:
            patched.setattr(Connection, "on_headers_complete", broken)
            async with talking(port) as talk:
                talk.say(b"GET /x HTTP/1.1\r\n\r\n")
                assert await talk.rest() == b""
        async with talking(port) as talk:
            talk.say(b"GET /x HTTP/1.1\r\n\r\n")
            assert (await talk.hear())[0] == 200
    assert "a fault of ours" in caplog.text


async def test_no_value_makes_a_line_of_its_own() -> None:
    async def careless(_incoming: Incoming) -> Response:
        return Response(200, headers={"Location": "/a\r\nSet-Cookie: b=c"})

    async with serving(careless) as port, talking(port) as talk:
        talk.say(b"GET / HTTP/1.1\r\n\r\n")
        _, fields, _ = await talk.hear()
        assert "set-cookie" not in fields
        assert "Set-Cookie" in fields["location"]


async def test_stopping_lets_a_running_request_have_its_answer() -> None:
    begun, finish = asyncio.Event(), asyncio.Event()

    async def slow(incoming: Incoming) -> Response:
        begun.set()
        await finish.wait()
        return await echo(incoming)

    listener = Listener(slow, "127.0.0.1", 0)
    await listener.start()
    async with talking(listener.port) as talk, talking(listener.port) as idle:
        talk.say(b"GET /x HTTP/1.1\r\n\r\n")
        await begun.wait()
        stopping = asyncio.create_task(listener.stop())
        assert await idle.rest() == b""
        with pytest.raises(OSError, match="Connect call failed"):
            await asyncio.open_connection("127.0.0.1", listener.port)
        assert not stopping.done()
        finish.set()
        status, fields, _ = await talk.hear()
        assert (status, fields["connection"]) == (200, "close")
        await asyncio.wait_for(stopping, ENOUGH)


async def test_a_caller_that_leaves_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    finish = asyncio.Event()
    ended: list[str] = []

    async def slow(incoming: Incoming) -> Response:
        if incoming.target == "/wait":
            await finish.wait()
            ended.append("wait")
        return await echo(incoming)

    async with serving(slow) as port:
        for sent in (b"GET /wait HTTP/1.1\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc"):
            async with talking(port) as talk:
                talk.say(sent)
                await asyncio.sleep(0.05)
        finish.set()
        async with talking(port) as talk:
            talk.say(b"GET /x HTTP/1.1\r\n\r\n")
            assert (await talk.hear())[0] == 200
        assert ended == ["wait"]  # what was begun is done, as with any service that the caller cannot wait for
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_without_room_for_one_more_those_inside_go_on() -> None:
    # trust: bounded
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with serving() as port, talking(port) as talk:
        talk.say(b"GET /x HTTP/1.1\r\n\r\n")
        await talk.hear()
        outside = socket.socket()
        outside.setblocking(False)
        held: list[socket.socket] = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (outside.fileno() + 1, hard))
        try:
            with contextlib.suppress(OSError):
                while True:
                    held.append(socket.socket())
            outside.connect_ex(("127.0.0.1", port))
            await asyncio.sleep(0.1)
            talk.say(b"GET /x HTTP/1.1\r\n\r\n")
            assert (await talk.hear())[0] == 200
        finally:
            for one in held:
                one.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(outside, b"GET /x HTTP/1.1\r\n\r\n")
        assert (await asyncio.wait_for(loop.sock_recv(outside, 64), ENOUGH)).startswith(b"HTTP/1.1 200")
        outside.close()


async def test_agents_may_be_kept_for_a_beat_and_others_not() -> None:
    loop = asyncio.get_running_loop()
    rest = Beat(0.5)
    async with serving(rest=rest) as port, talking(port) as agent, talking(port) as operator:
        waited: list[float] = []
        for _ in range(3):
            began = loop.time()
            agent.say(b"GET /x HTTP/1.1\r\nAuthorization: Bearer t\r\n\r\n")
            assert (await agent.hear())[0] == 200
            waited.append(loop.time() - began)
        assert max(waited) > 0.2  # the first came while nobody rested
        await asyncio.sleep(0.6)
        for _ in range(20):
            began = loop.time()
            operator.say(b"GET /x HTTP/1.1\r\n\r\n")
            assert (await operator.hear())[0] == 200
            assert loop.time() - began < 0.4


async def test_tls_from_end_to_end(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("tls")
    server: Identity = self_signed(folder / "server", "server")
    client: Identity = self_signed(folder / "client", "client")
    listener = Listener(echo, "localhost", 0, server_context(server, client.certificate))
    await listener.start()
    try:
        context = agent_client_context(client.certificate, client.key, "")
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port, ssl=context)
        talk = Talk(reader, writer)
        talk.say(post(b"x" * 300_000) + b"GET /large HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert len((await talk.hear())[2]) == 300_000 + len("POST /echo  ")
        assert (await talk.hear())[2] == LARGE
        assert await talk.rest() == b""  # closed in order: without it, this would be an error of TLS
        writer.close()
        # What is no TLS gets nothing of HTTP.
        async with talking(listener.port) as plain:
            plain.say(b"GET / HTTP/1.1\r\n\r\n")
            assert b"HTTP" not in await plain.rest()
    finally:
        await listener.stop()
