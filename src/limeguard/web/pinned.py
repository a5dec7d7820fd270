"""HTTP/1.1 to thousands of pinned peers, one small request at a time on connections that stay open.

For the verifier's rounds, which ask every node every few seconds: a general client costs more than the judgement. Keeps
the promises of `HttpClient`: a peer is compared with its pin before a byte is sent, every call has a total time and a
bound for the answer, nothing is followed, kept or unpacked. Answers are read by llhttp (RFC 9112).
"""

import asyncio
import errno
import ipaddress
import socket
import ssl
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import httptools

from limeguard.telemetry import clean, get_logger
from limeguard.web.answers import Answer, NoRoom, Pin, Unreachable
from limeguard.web.beat import Beat
from limeguard.web.channel import Channel, Ended
from limeguard.web.channels import Channels

log = get_logger("keylime.http")

MAX_HEAD: Final = 65_536
"""Bytes of names and values of an answer's headers."""
KEEPALIVE_SECONDS: Final = 30.0
FULL: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""What the system says when this process or machine can have no more sockets."""
OTHER_FILES: Final = 128
OTHER_PART: Final = 16
"""Of the open files that there may be: what is kept for callers, the database and the log, at least and as a part."""
SWEEPS: Final = 4
"""Looks at idle connections in the time for which they are kept."""
_FIXED: Final = "User-Agent: limeguard\r\nAccept: */*\r\nAccept-Encoding: identity\r\n"

_Key = tuple[str, str, bytes | None]
"""Scheme, host and port as they stand in the URL, fingerprint of the pin."""


class PinnedHttp:
    """Connections to many peers over one TLS context. Made inside a running loop; `close` it."""

    def __init__(
        self,
        context: ssl.SSLContext | None,
        *,
        timeout: float,
        max_answer: int,
        keepalive: float = KEEPALIVE_SECONDS,
        most: int = 1 << 30,
        beat: Beat | None = None,
    ) -> None:
        """Bound each call to `timeout` seconds in all and `max_answer` bytes of body.

        Of `most` connections that are open some are closed for each other one. With `beat`, answers are looked at when
        it beats, many at once.
        """
        self._most, self._said_full = most, False
        self._timeout = timeout
        self._max_answer = max_answer
        self._keepalive = keepalive
        self._idle: dict[_Key, list[_Connection]] = {}
        self._busy: set[_Connection] = set()
        self._loop = asyncio.get_running_loop()
        self._channels = Channels(context, beat, lambda: bool(self._busy))
        self._deadline: asyncio.TimerHandle | None = None
        self._deadline_at = 0.0
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> int:
        """How many connections are open and wait for their next request."""
        return sum(map(len, self._idle.values()))

    async def request(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        pin: Pin | None = None,
    ) -> Answer:
        """Send one request and return its whole answer. `url` has a port. Raises Unreachable."""
        scheme, _, rest = url.partition("://")
        place, _, target = rest.partition("/")
        key = (scheme, place, None if pin is None else pin.sha256)
        given = "".join([f"{name}: {value}\r\n" for name, value in (headers or {}).items()])
        length = "" if body is None else f"Content-Length: {len(body)}\r\n"
        head = f"{method} /{target} HTTP/1.1\r\nHost: {place}\r\n{_FIXED}{given}{length}\r\n".encode()
        data = head if body is None else head + body
        answer = await self._sent(key, data, self._loop.time() + self._timeout, again=method == "GET")
        size = len(answer.body)
        log.debug('%s://%s "%s /%s HTTP/1.1" %d %d', scheme, place, method, target, answer.status, size)
        return answer

    async def _sent(self, key: _Key, data: bytes, end: float, *, again: bool) -> Answer:
        while (connection := self._take(key)) is not None:
            try:
                return await self._exchange(key, connection, data, end)
            except _StaleError:
                # The peer closed it while it was idle: nothing was answered, so a question may be asked again.
                if not again:
                    raise Unreachable("protocol", "the peer closed the connection") from None
        try:
            return await self._exchange(key, await self._connect(key, end), data, end)
        except _StaleError:
            raise Unreachable("protocol", "the peer closed the connection without an answer") from None

    def _take(self, key: _Key) -> "_Connection | None":
        idle = self._idle.get(key)
        while idle:
            connection = idle.pop()
            if not idle:
                del self._idle[key]
            if connection.usable:
                return connection
        return None

    async def _connect(self, key: _Key, end: float) -> "_Connection":
        scheme, place, pin = key
        problem: OSError | ValueError = OSError("the name has no address")
        try:
            async with asyncio.timeout_at(end):
                places = await self._resolved(place)
        except TimeoutError as late:
            raise Unreachable("timeout", "the name was not resolved in time") from late
        except (OSError, ValueError) as unknown:  # a name that is none is a ValueError
            places, problem = [], unknown
        for family, address in places:
            connection = _Connection(self._max_answer)
            try:
                opened = self._open(connection, family, address, secure=scheme == "https")
                await self._within(end, connection, opened)
            except ssl.SSLError as refused:
                raise Unreachable("tls", clean(refused)) from refused
            except Ended as ended:
                raise Unreachable("tls", "the peer closed the connection in the handshake") from ended
            except (OSError, ValueError) as failed:
                problem = failed
                continue
            if pin is not None and connection.fingerprint() != pin:
                connection.abort()
                raise Unreachable("certificate", "the peer's certificate is not the registered one")
            return connection
        raise Unreachable("connect", clean(f"Cannot connect: {problem}")) from problem

    def _open(self, connection: "_Connection", family: int, address: Any, *, secure: bool) -> "asyncio.Future[None]":
        """Begin to connect, in place of others where there is no room. Raises NoRoom, OSError, ValueError."""
        while self._channels.count >= self._most and self._close_one():
            pass
        while True:
            try:
                return connection.open(self._channels, family, address, secure=secure)
            except OSError as problem:
                if problem.errno not in FULL:
                    raise
                if not self._close_one():
                    raise NoRoom(clean(f"Cannot connect: {problem}")) from problem

    def _close_one(self) -> bool:
        """Close the idle connection that was used last; False when there is none.

        Peers are asked in turn, so those that wait longest are needed next: if these were closed, no peer would have a
        connection when its turn comes, however few there are too many.
        """
        if not self._idle:
            return False
        if not self._said_full:
            self._said_full = True
            log.warning(
                "No more than %d connections to peers can stay open, some are made anew each time; "
                "a higher limit of open files (LimitNOFILE) ends that",
                self._channels.count,
            )
        key, connections = self._idle.popitem()
        connections.pop().abort()
        if connections:
            self._idle[key] = connections
        return True

    async def _resolved(self, place: str) -> list[tuple[int, Any]]:
        """Return the addresses of host and port. Raises OSError, ValueError."""
        host, _, port = place.rpartition(":")
        host, number = host.strip("[]"), int(port)
        try:
            version = ipaddress.ip_address(host).version
        except ValueError:
            found = await self._loop.getaddrinfo(host, number, type=socket.SOCK_STREAM)
            return [(family, address) for family, _, _, _, address in found]
        if not 0 < number < 65_536:
            raise ValueError(f"{number} is no port")
        return [(socket.AF_INET if version == 4 else socket.AF_INET6, (host, number))]

    async def _within(self, end: float, connection: "_Connection", wanted: "asyncio.Future[Any]") -> Any:
        """Wait for what the connection brings, until `end` at most; it is closed when that fails."""
        connection.end = end
        self._busy.add(connection)
        self._watch(end)
        self._channels.expect()
        try:
            return await wanted
        except BaseException:
            connection.abort()
            raise
        finally:
            self._busy.discard(connection)

    async def _exchange(self, key: _Key, connection: "_Connection", data: bytes, end: float) -> Answer:
        answer: Answer = await self._within(end, connection, connection.send(data, self._loop))
        if connection.usable:
            connection.end = self._loop.time() + self._keepalive
            self._idle.setdefault(key, []).append(connection)
            if self._sweeper is None:
                self._sweeper = self._loop.call_later(self._keepalive / SWEEPS, self._sweep)
        return answer

    # --- time --------------------------------------------------------------------------------------------------------

    def _watch(self, end: float) -> None:
        """See that nothing takes longer than allowed: one timer of the loop, for the earliest of all ends."""
        if self._deadline is not None:
            if self._deadline_at <= end:
                return
            self._deadline.cancel()
        self._deadline_at = end
        self._deadline = self._loop.call_at(end, self._look)

    def _look(self) -> None:
        self._deadline = None
        now = self._loop.time()
        for connection in [connection for connection in self._busy if connection.end <= now]:
            connection.give_up()
        ends = [connection.end for connection in self._busy if connection.end > now]
        if ends:
            self._watch(min(ends))

    def _sweep(self) -> None:
        """Close and forget connections that nobody needed for so long, also those that their peers closed before."""
        self._sweeper = None
        now = self._loop.time()
        for key, connections in list(self._idle.items()):
            kept = [connection for connection in connections if connection.usable and connection.end > now]
            for connection in connections:
                if connection not in kept:
                    connection.abort()
            if kept:
                self._idle[key] = kept
            else:
                del self._idle[key]
        if self._idle:
            self._sweeper = self._loop.call_later(self._keepalive / SWEEPS, self._sweep)

    async def close(self) -> None:
        """Close all connections."""
        for timer in (self._deadline, self._sweeper):
            if timer is not None:
                timer.cancel()
        for connections in self._idle.values():
            for connection in connections:
                connection.abort()
        self._idle.clear()
        self._channels.close()
        for connection in list(self._busy):
            connection.lost(Ended())
        await asyncio.sleep(0)


def room_for_peers(files: int) -> int:
    """Return how many connections to peers fit into a limit of open files and leave a part for all else."""
    return files - max(OTHER_FILES, files // OTHER_PART) if files > 2 * OTHER_FILES else files // 2


class _StaleError(Exception):
    """The peer closed the connection before it answered a byte."""


class _Connection:
    """One connection: a request goes out, its answer comes in, never two at once. llhttp calls the `on_` methods.

    `end` is when the running request must be over, or until when an idle connection is kept. What only a running
    request needs is gone with it: most connections are idle.
    """

    __slots__ = (
        "_began",
        "_body",
        "_channel",
        "_head",
        "_headers",
        "_max_answer",
        "_parser",
        "_size",
        "_unread",
        "_wanted",
        "end",
        "usable",
    )

    def __init__(self, max_answer: int) -> None:
        self._max_answer = max_answer
        self._channel: Channel | None = None
        self._wanted: asyncio.Future[Any] | None = None
        self.end = 0.0
        self.usable = False
        self._rest()

    def _rest(self) -> None:
        self._parser: Any = None
        self._headers: dict[str, str] = _NONE
        self._body: list[bytes] = _NOTHING
        self._began = False
        self._head = self._size = self._unread = 0

    # --- what the pool does ------------------------------------------------------------------------------------------

    def open(self, channels: Channels, family: int, address: Any, *, secure: bool) -> "asyncio.Future[None]":
        """Begin to connect; the future says when that is done. Raises OSError, ValueError."""
        self._wanted = opened = asyncio.get_running_loop().create_future()
        self._channel = channels.connect(family, address, self, secure=secure)
        return opened

    def fingerprint(self) -> bytes | None:
        """Return SHA-256 of the peer's certificate."""
        return None if self._channel is None else self._channel.fingerprint()

    def send(self, data: bytes, loop: asyncio.AbstractEventLoop) -> "asyncio.Future[Answer]":
        """Send a request; the future has its answer."""
        answered: asyncio.Future[Answer] = loop.create_future()
        if self._channel is None or not self._channel.is_open:
            answered.set_exception(_StaleError())
            return answered
        self._headers, self._body = {}, []
        self._wanted, self.usable = answered, False
        self._parser = httptools.HttpResponseParser(self)
        self._channel.send(data)
        return answered

    def abort(self) -> None:
        """Close at once."""
        self.usable = False
        self._parser = None  # it knows this object, which knows it
        if self._channel is not None:
            self._channel.close()

    def give_up(self) -> None:
        """Say that the time is over."""
        self._fail(Unreachable("timeout", "no complete answer in time"))

    def _fail(self, problem: Exception) -> None:
        wanted, self._wanted = self._wanted, None
        self.abort()
        if wanted is not None and not wanted.done():
            wanted.set_exception(problem)

    # --- what the channel says ---------------------------------------------------------------------------------------

    def opened(self) -> None:
        """Take note that the connection stands."""
        self.usable = True
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_result(None)
        self._wanted = None

    def sent(self) -> None:
        """Take note that the whole request is on its way."""

    def lost(self, problem: Exception) -> None:
        """Take note that the connection is closed."""
        if self._parser is None:
            self._fail(problem)  # it was being opened, or nobody waits
        elif self._began or not isinstance(problem, Ended):
            text = "the connection ended within the answer" if isinstance(problem, Ended) else clean(problem)
            self._fail(Unreachable("protocol", text))
        else:
            self._fail(_StaleError())

    def received(self, data: memoryview) -> None:
        """Read a part of the answer."""
        if self._parser is None:
            self._fail(_StaleError())  # nothing was asked: whatever it is, it is no answer of ours
            return
        self._began = True
        if self._unread > MAX_HEAD:  # llhttp keeps what it was given of a header until that ends
            self._fail(Unreachable("protocol", f"the answer's headers are larger than {MAX_HEAD} bytes"))
            return
        self._unread += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as problem:
            reason = problem.__context__
            known = isinstance(reason, Unreachable)
            self._fail(reason if known and isinstance(reason, Unreachable) else Unreachable("protocol", "not HTTP"))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as problem:
            self._fail(Unreachable("protocol", clean(f"not HTTP: {problem}")))
        if self._wanted is None:
            self._rest()

    # --- what llhttp says --------------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head += len(name) + len(value)
        if self._head > MAX_HEAD:
            raise Unreachable("protocol", f"the answer's headers are larger than {MAX_HEAD} bytes")
        self._headers[name.decode("latin-1").title()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._unread = 0
        announced = self._headers.get("Content-Length", "")
        if announced.isdecimal() and int(announced) > self._max_answer:
            raise Unreachable("too_large", f"the answer announces more than {self._max_answer} bytes")

    def on_body(self, part: bytes) -> None:
        self._unread = 0
        self._size += len(part)
        if self._size > self._max_answer:
            raise Unreachable("too_large", f"the answer is larger than {self._max_answer} bytes")
        self._body.append(part)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            self._headers, self._body, self._head, self._size, self._unread = {}, [], 0, 0, 0
            return
        answered, self._wanted = self._wanted, None
        # A second answer to one question: whatever it answers, it is nothing that was asked.
        self.usable = answered is not None and bool(self._parser.should_keep_alive())
        if answered is not None and not answered.done():
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            answered.set_result(Answer(status, body, MappingProxyType(self._headers)))
        if not self.usable and self._channel is not None:
            self._channel.close()


_NONE: Final[dict[str, str]] = {}
_NOTHING: Final[list[bytes]] = []
