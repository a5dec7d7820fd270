"""HTTP/1.1 to thousands of pinned peers, one small request at a time on connections that stay open.

For the verifier's rounds, which ask every node every few seconds: a general client costs more than the judgement. Keeps
the promises of `HttpClient`: a peer is compared with its pin before a byte is sent, every call has a total time and a
bound for the answer, nothing is followed, kept or unpacked. Answers are read by llhttp (RFC 9112).
"""

import asyncio
import hashlib
import ssl
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

import httptools
from aiohttp import Fingerprint

from limeguard.telemetry import clean, get_logger
from limeguard.web.client import Answer, Pin, Unreachable

log = get_logger("keylime.http")

MAX_HEAD: Final = 65_536
"""Bytes of names and values of an answer's headers."""
KEEPALIVE_SECONDS: Final = 30.0
_FIXED: Final = "User-Agent: limeguard\r\nAccept: */*\r\nAccept-Encoding: identity\r\n"

_Key = tuple[str, int, bytes | None]


class PinnedHttp:
    """Connections to many peers over one TLS context. Made inside a running loop; `close` it."""

    def __init__(
        self, context: ssl.SSLContext | None, *, timeout: float, max_answer: int, keepalive: float = KEEPALIVE_SECONDS
    ) -> None:
        """Bound each call to `timeout` seconds in all and `max_answer` bytes of body."""
        self._context = context
        self._timeout = timeout
        self._max_answer = max_answer
        self._keepalive = keepalive
        self._idle: dict[_Key, list[_Connection]] = {}
        self._loop = asyncio.get_running_loop()

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
        """Send one request and return its whole answer. Raises Unreachable."""
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 0
        target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        key = (host, port, pin.fingerprint if isinstance(pin, Fingerprint) else None)
        given = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        length = "" if body is None else f"Content-Length: {len(body)}\r\n"
        head = f"{method} {target} HTTP/1.1\r\nHost: {parts.netloc}\r\n{_FIXED}{given}{length}\r\n".encode()
        data = head if body is None else head + body
        end = self._loop.time() + self._timeout
        answer = await self._sent(key, data, end, secure=parts.scheme == "https", again=method == "GET")
        size = len(answer.body)
        log.debug('%s://%s "%s %s HTTP/1.1" %d %d', parts.scheme, parts.netloc, method, target, answer.status, size)
        return answer

    async def _sent(self, key: _Key, data: bytes, end: float, *, secure: bool, again: bool) -> Answer:
        while (connection := self._take(key)) is not None:
            try:
                return await self._exchange(key, connection, data, end)
            except _StaleError:
                # The peer closed it while it was idle: nothing was answered, so a question may be asked again.
                if not again:
                    raise Unreachable("protocol", "the peer closed the connection") from None
        try:
            return await self._exchange(key, await self._connect(key, end, secure=secure), data, end)
        except _StaleError:
            raise Unreachable("protocol", "the peer closed the connection without an answer") from None

    def _take(self, key: _Key) -> "_Connection | None":
        idle = self._idle.get(key)
        while idle:
            connection = idle.pop()
            if not idle:
                del self._idle[key]
            if connection.usable:
                connection.rest()
                return connection
        return None

    async def _connect(self, key: _Key, end: float, *, secure: bool) -> "_Connection":
        host, port, pin = key
        try:
            async with asyncio.timeout_at(end):
                _, connection = await self._loop.create_connection(
                    lambda: _Connection(self._max_answer), host, port, ssl=self._context if secure else None
                )
        except TimeoutError as late:
            raise Unreachable("timeout", "no complete answer in time") from late
        except ssl.SSLError as problem:
            raise Unreachable("tls", clean(problem)) from problem
        except (OSError, ValueError) as problem:  # a name that is none is a ValueError
            raise Unreachable("connect", clean(f"Cannot connect: {problem}")) from problem
        if pin is not None and connection.fingerprint() != pin:
            connection.abort()
            raise Unreachable("certificate", "the peer's certificate is not the registered one")
        return connection

    async def _exchange(self, key: _Key, connection: "_Connection", data: bytes, end: float) -> Answer:
        answered = connection.send(data)
        late = self._loop.call_at(end, connection.give_up)
        try:
            answer = await answered
        except BaseException:
            connection.abort()
            raise
        finally:
            late.cancel()
        if connection.usable:
            self._idle.setdefault(key, []).append(connection)
            connection.resting = self._loop.call_later(self._keepalive, self._expire, key, connection)
        return answer

    def _expire(self, key: _Key, connection: "_Connection") -> None:
        """Close and forget a connection that nobody needed for so long, also when its peer closed it before."""
        idle = self._idle.get(key, [])
        if connection in idle:
            idle.remove(connection)
        if not idle:
            self._idle.pop(key, None)
        connection.abort()

    async def close(self) -> None:
        """Close all connections."""
        for connections in self._idle.values():
            for connection in connections:
                connection.abort()
        self._idle.clear()
        await asyncio.sleep(0)


class _StaleError(Exception):
    """The peer closed the connection before it answered a byte."""


class _Connection(asyncio.Protocol):
    """One connection: a request goes out, its answer comes in, never two at once. llhttp calls the `on_` methods."""

    def __init__(self, max_answer: int) -> None:
        self._max_answer = max_answer
        self._transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[Answer] | None = None
        self._parser: Any = None
        self.resting: asyncio.TimerHandle | None = None
        self._reset()
        self.usable = False

    def _reset(self) -> None:
        self._began = False
        self._head = 0
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._size = 0

    # --- what the pool does ------------------------------------------------------------------------------------------

    def fingerprint(self) -> bytes | None:
        """Return SHA-256 of the peer's certificate."""
        secure = None if self._transport is None else self._transport.get_extra_info("ssl_object")
        certificate = None if secure is None else secure.getpeercert(binary_form=True)
        return None if certificate is None else hashlib.sha256(certificate).digest()

    def send(self, data: bytes) -> "asyncio.Future[Answer]":
        """Send a request; the future has its answer."""
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        if self._transport is None:
            answered.set_exception(_StaleError())
            return answered
        self._reset()
        self._answered, self.usable = answered, False
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(data)
        return answered

    def rest(self) -> None:
        """Rest no more: somebody needs the connection."""
        if self.resting is not None:
            self.resting.cancel()
            self.resting = None

    def abort(self) -> None:
        """Close at once."""
        self.usable = False
        self.rest()
        if self._transport is not None:
            self._transport.abort()

    def give_up(self) -> None:
        """Say that the time is over."""
        self._fail(Unreachable("timeout", "no complete answer in time"))

    def _fail(self, problem: Exception) -> None:
        self.usable = False
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(problem)
        self._answered = None
        if self._transport is not None:
            self._transport.abort()

    # --- what the loop does ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream connection has no other
        self.usable = True

    def connection_lost(self, problem: Exception | None) -> None:
        self._transport = None
        if self._began or problem is not None:
            reason = "the connection ended within the answer" if problem is None else clean(problem)
            self._fail(Unreachable("protocol", reason))
        else:
            self._fail(_StaleError())

    def data_received(self, data: bytes) -> None:
        if self._answered is None:
            self._fail(_StaleError())  # nothing was asked: whatever it is, it is no answer of ours
            return
        self._began = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as problem:
            reason = problem.__context__
            known = isinstance(reason, Unreachable)
            self._fail(reason if known and isinstance(reason, Unreachable) else Unreachable("protocol", "not HTTP"))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as problem:
            self._fail(Unreachable("protocol", clean(f"not HTTP: {problem}")))

    # --- what llhttp says --------------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head += len(name) + len(value)
        if self._head > MAX_HEAD:
            raise Unreachable("protocol", f"the answer's headers are larger than {MAX_HEAD} bytes")
        self._headers[name.decode("latin-1").title()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        announced = self._headers.get("Content-Length", "")
        if announced.isdecimal() and int(announced) > self._max_answer:
            raise Unreachable("too_large", f"the answer announces more than {self._max_answer} bytes")

    def on_body(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._max_answer:
            raise Unreachable("too_large", f"the answer is larger than {self._max_answer} bytes")
        self._body.append(part)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            self._reset()
            self._began = True
            return
        answered, self._answered = self._answered, None
        # A second answer to one question: whatever it answers, it is nothing that was asked.
        self.usable = answered is not None and bool(self._parser.should_keep_alive())
        if answered is not None and not answered.done():
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            answered.set_result(Answer(status, body, MappingProxyType(self._headers)))
        if not self.usable and self._transport is not None:
            self._transport.close()
