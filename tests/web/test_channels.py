"""Channels with hostile peers: what one of them sends, in whatever pieces, changes nothing for the others."""

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.pki import Identity, self_signed, server_context

from limeguard.web.answers import Unreachable, make_pin
from limeguard.web.beat import Beat
from limeguard.web.channel import MAX_NOISE
from limeguard.web.channels import Channels
from limeguard.web.pinned import PinnedHttp
from limeguard.web.tls import agent_client_context

pytestmark = pytest.mark.services

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BODY = bytes(range(256)) * 256
LARGE = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Identity, Identity]:
    folder = tmp_path_factory.mktemp("keys")
    return self_signed(folder / "agent", "agent"), self_signed(folder / "client", "client")


Script = Callable[[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO, socket.socket], None]


class Peer(threading.Thread):
    """A TLS server that sends records as a script cuts them, on its own thread."""

    def __init__(self, context: ssl.SSLContext, script: Script) -> None:
        super().__init__(daemon=True)
        self._context, self._script = context, script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.heard = b""

    def run(self) -> None:
        with self._listener:
            while True:
                try:
                    talk, _ = self._listener.accept()
                except OSError:
                    return
                threading.Thread(target=self._serve, args=(talk,), daemon=True).start()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self.join(5)

    def _serve(self, talk: socket.socket) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self._context.wrap_bio(incoming, outgoing, server_side=True)
        with talk:
            try:
                shake(tls, incoming, outgoing, talk)
                while True:
                    self.heard += hear(tls, incoming, talk)
                    self._script(tls, incoming, outgoing, talk)
            except (OSError, ssl.SSLError, EOFError):
                return


def shake(tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, talk: socket.socket) -> None:
    shaken = False
    while not shaken:
        try:
            tls.do_handshake()
            shaken = True
        except ssl.SSLWantReadError:
            shaken = False
        talk.sendall(outgoing.read())
        if shaken:
            return
        data = talk.recv(65_536)
        if not data:
            raise EOFError
        incoming.write(data)


def hear(tls: ssl.SSLObject, incoming: ssl.MemoryBIO, talk: socket.socket) -> bytes:
    while True:
        try:
            return tls.read(65_536)
        except ssl.SSLWantReadError:
            data = talk.recv(65_536)
            if not data:
                raise EOFError from None
            incoming.write(data)


def in_pieces(answer: bytes, size: int) -> Script:
    """Send the records of an answer in pieces of `size` bytes, each in a packet of its own."""

    def script(tls: ssl.SSLObject, _in: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, talk: socket.socket) -> None:
        talk.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls.write(answer)
        data = outgoing.read()
        for start in range(0, len(data), size):
            talk.sendall(data[start : start + size])

    return script


def spoilt(change: Callable[[bytes], bytes]) -> Script:
    """Send an answer whose record was changed on the way."""

    def script(tls: ssl.SSLObject, _in: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, talk: socket.socket) -> None:
        tls.write(OK)
        talk.sendall(change(outgoing.read()))

    return script


def closing(tls: ssl.SSLObject, _in: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, talk: socket.socket) -> None:
    """Say half of an answer, then that nothing follows."""
    tls.write(OK[:-1])
    with suppress(ssl.SSLWantReadError):
        tls.unwrap()
    talk.sendall(outgoing.read())


def empty_records(tls: ssl.SSLObject, _in: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, talk: socket.socket) -> None:
    """Never stop to begin a record that never ends: its head says 16 KiB, its bytes come one by one."""
    del tls, outgoing
    talk.sendall(b"\x17\x03\x03\x40\x00")
    while True:
        talk.sendall(b"\0")


@contextmanager
def serving(keys: tuple[Identity, Identity], script: Script, **options: ssl.TLSVersion) -> Iterator[Peer]:
    context = server_context(keys[0], keys[1].certificate, required=True)
    context.maximum_version = options.get("version", ssl.TLSVersion.TLSv1_3)
    peer = Peer(context, script)
    peer.start()
    try:
        yield peer
    finally:
        peer.stop()


@asynccontextmanager
async def client(
    keys: tuple[Identity, Identity], beat: float | None = None, timeout: float = 5.0
) -> AsyncIterator[PinnedHttp]:
    context = agent_client_context(keys[1].certificate, keys[1].key, "")
    made = None if beat is None else Beat(beat)
    http = PinnedHttp(context, timeout=timeout, max_answer=100_000, beat=made)
    try:
        yield http
    finally:
        await http.close()


@pytest.mark.parametrize("beat", [None, 0.005])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(("answer", "size"), [(OK, 1), (OK, 10_000), (LARGE, 777), (LARGE, 100_000)])
async def test_an_answer_is_read_however_it_is_cut(
    keys: tuple[Identity, Identity], version: ssl.TLSVersion, answer: bytes, size: int, beat: float | None
) -> None:
    with serving(keys, in_pieces(answer, size), version=version) as peer:
        async with client(keys, beat) as http:
            for _ in range(2):
                found = await http.request("GET", f"https://127.0.0.1:{peer.port}/a", pin=make_pin(keys[0].der))
                assert found.body == answer.partition(b"\r\n\r\n")[2]
            assert http.idle == 1


async def test_many_peers_share_the_buffers_and_nobody_hears_another(keys: tuple[Identity, Identity]) -> None:
    # trust: bound-identity
    def named(number: int) -> Script:
        body = f"{number}".encode() * 9_000
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        return in_pieces(head + body, 1_000 + number)

    with serving(keys, named(1)) as one, serving(keys, named(2)) as two, serving(keys, empty_records) as liar:
        async with client(keys, 0.002, timeout=1.0) as http:

            async def ask(peer: Peer) -> bytes:
                answer = await http.request("GET", f"https://127.0.0.1:{peer.port}/", pin=make_pin(keys[0].der))
                return answer.body

            found = await asyncio.gather(ask(one), ask(two), ask(liar), ask(one), ask(two), return_exceptions=True)
    assert [len(body) for body in found if isinstance(body, bytes)] == [9_000] * 4
    assert [found[0], found[1]] == [b"1" * 9_000, b"2" * 9_000]
    assert isinstance(found[2], Unreachable)


@pytest.mark.parametrize(
    "script",
    [
        spoilt(lambda record: record[:-1] + bytes([record[-1] ^ 1])),
        spoilt(lambda record: b"\x15" + record[1:]),
        spoilt(lambda record: record[:3] + b"\xff\xff" + record[5:] + bytes(70_000)),
        spoilt(lambda record: b"HTTP/1.1 200 OK\r\n\r\n" + record),
        spoilt(lambda record: record + record),
        closing,
        empty_records,
    ],
    ids=["changed", "other type", "too long", "no record", "replayed", "closed half way", "endless"],
)
async def test_records_that_are_none_end_the_call_and_only_it(keys: tuple[Identity, Identity], script: Script) -> None:
    # trust: fail-closed, bounded
    with serving(keys, script) as liar, serving(keys, in_pieces(OK, 30)) as honest:
        async with client(keys, timeout=1.0) as http:
            for _ in range(2):
                await refused_or_right(http, liar, keys)
                url = f"https://127.0.0.1:{honest.port}/"
                assert (await http.request("GET", url, pin=make_pin(keys[0].der))).body == b"ok"


async def refused_or_right(http: PinnedHttp, peer: Peer, keys: tuple[Identity, Identity]) -> None:
    try:
        found = await http.request("GET", f"https://127.0.0.1:{peer.port}/", pin=make_pin(keys[0].der))
    except Unreachable:
        return
    assert found.body == b"ok"  # of a record that was good, before the one that was not


async def test_a_peer_that_shakes_hands_for_ever_is_given_up(keys: tuple[Identity, Identity]) -> None:
    # trust: bounded
    listener = socket.create_server(("127.0.0.1", 0))

    def mumble() -> None:
        talk, _ = listener.accept()
        with talk:
            try:
                talk.sendall(b"\x16\x03\x03\x40\x00" + bytes(100))
                talk.sendall((b"\x16\x03\x03\x00\x04\x00\x00\x00\x00" * MAX_NOISE)[:MAX_NOISE])
                while talk.recv(65_536):
                    pass
            except OSError:
                return

    thread = threading.Thread(target=mumble, daemon=True)
    thread.start()
    async with client(keys, timeout=2.0) as http:
        with pytest.raises(Unreachable) as refused:
            await http.request("GET", f"https://127.0.0.1:{listener.getsockname()[1]}/", pin=make_pin(keys[0].der))
    assert refused.value.kind in {"tls", "timeout"}
    listener.close()
    thread.join(5)


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=5))
@settings(max_examples=25, deadline=None)
def test_noise_instead_of_tls_is_refused(keys: tuple[Identity, Identity], noise: list[bytes]) -> None:
    # trust: fail-closed
    async def ask() -> None:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(10)
            for part in noise:
                writer.write(part)
            writer.close()

        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        async with client(keys, timeout=2.0) as http:
            with pytest.raises(Unreachable):
                port = server.sockets[0].getsockname()[1]
                await http.request("GET", f"https://127.0.0.1:{port}/", pin=make_pin(keys[0].der))
        server.close()
        await asyncio.sleep(0.01)

    asyncio.run(ask())


async def test_without_the_pinned_certificate_nothing_is_sent(keys: tuple[Identity, Identity]) -> None:
    # trust: bound-identity
    with serving(keys, in_pieces(OK, 100)) as peer:
        async with client(keys, 0.005) as http:
            with pytest.raises(Unreachable) as refused:
                await http.request("GET", f"https://127.0.0.1:{peer.port}/", pin=make_pin(keys[1].der))
            assert refused.value.kind == "certificate"
            await asyncio.sleep(0.05)
    assert peer.heard == b""


async def test_what_the_system_does_not_take_at_once_goes_out_later(keys: tuple[Identity, Identity]) -> None:
    body = bytes(8_000_000)
    got = bytearray()

    def slow(tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, talk: socket.socket) -> None:
        while len(got) < len(body) // 2:
            got.extend(hear(tls, incoming, talk))
        while len(got) < len(body) - 20_000:
            got.extend(hear(tls, incoming, talk))
        tls.write(OK)
        talk.sendall(outgoing.read())
        raise EOFError

    with serving(keys, slow) as peer:
        async with client(keys, 0.002) as http:
            url = f"https://127.0.0.1:{peer.port}/"
            answer = await http.request("POST", url, body=body, pin=make_pin(keys[0].der))
            assert answer.body == b"ok"


async def test_a_beat_calls_once_and_at_one_time() -> None:
    beat = Beat(0.05)
    loop = asyncio.get_running_loop()
    seen: list[tuple[str, float]] = []
    done = asyncio.Event()

    def first() -> None:
        seen.append(("first", loop.time()))

    def second() -> None:
        seen.append(("second", loop.time()))
        done.set()

    beat.call_after(0.001, first)
    beat.call_after(0.0, first)
    beat.call_after(0.0, second)
    await asyncio.wait_for(done.wait(), 2)
    await asyncio.sleep(0.12)
    assert [name for name, _ in seen] == ["first", "second"]
    assert seen[1][1] - seen[0][1] < 0.02


async def test_a_fault_in_a_timed_call_stops_no_other() -> None:
    # trust: fail-closed
    beat, done = Beat(0.005), asyncio.Event()

    def fault() -> None:
        raise RuntimeError("a fault")

    beat.call_after(0.0, fault)
    beat.call_after(0.02, done.set)
    await asyncio.wait_for(done.wait(), 2)


async def test_a_beat_forgets_what_was_called_off() -> None:
    beat = Beat(0.005)
    seen: list[int] = []
    beat.call_after(0.0, lambda: seen.append(1))

    def never() -> None:
        seen.append(2)

    beat.call_after(0.0, never)
    beat.cancel(never)
    await asyncio.sleep(0.05)
    assert seen == [1]


class _Busy:
    """Sockets on which something happens all the time, as far as a look can tell."""

    closed = False

    def __init__(self) -> None:
        self.looks = 0

    def poll(self, _timeout: float, most: int) -> list[tuple[int, int]]:
        self.looks += 1
        return [(-1, 0)] * most

    def close(self) -> None:
        self.closed = True


async def test_however_many_wish_for_a_look_there_is_one_in_a_turn_of_the_loop() -> None:
    # trust: bounded
    channels, busy = Channels(None, Beat(0.01)), _Busy()
    channels._epoll.close()
    channels._epoll = busy  # type: ignore[assignment]
    for _ in range(50):  # beats that come while there is always more to look at
        channels._look()
    busy.looks = 0
    for _ in range(20):
        await asyncio.sleep(0)
    assert 0 < busy.looks <= 21
    channels.close()
