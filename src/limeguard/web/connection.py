"""One HTTP/1.1 connection of a caller: requests out of bytes, answers into bytes, one after the other (RFC 9112).

Bounds what a caller may hold: time, bytes of a head, bytes of a body before somebody asks for it. What a request means
is for whoever answers it. Bytes are read by llhttp (httptools), whose rules are strict: what could be read in two ways
is no request.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Final

import httptools
from multidict import CIMultiDict

from limeguard.telemetry import clean, get_logger
from limeguard.web.app import BodyBroken, BodyTimeout, BodyTooLarge, Incoming, Response
from limeguard.web.channel import Channel, Ended

log = get_logger("keylime.web")

MAX_HEAD: Final = 64 * 1024
"""Bytes of a request line and its header fields; larger ones are refused."""
MAX_FIELDS: Final = 128
BUFFERED: Final = 256 * 1024
"""Bytes of a body that are taken before somebody asks for it."""
MAX_WAITING: Final = 16
"""Requests that may have come while one before them is answered."""
PIECE: Final = 256 * 1024
"""Bytes of an answer that are handed to the system at a time: the next when it has taken them."""

Answer = Callable[[Incoming], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How many seconds a caller may take: for a head, for a body, for a piece of an answer, between two requests.

    `linger` is how long the rest of a refused body is read and dropped, so that its sender gets to see the refusal.
    """

    head: float = 20.0
    body: float = 60.0
    piece: float = 60.0
    between: float = 75.0
    linger: float = 2.0


PATIENCE: Final = Patience()
"""What callers of all services get."""


class _Call:
    """A request on its way in: `size` bytes of its fields, then of its body. `keep`: another one may follow."""

    __slots__ = ("body", "broken", "complete", "expects", "fields", "keep", "method", "more", "size", "target", "ten")

    def __init__(self) -> None:
        self.method = ""
        self.target = b""
        self.fields: CIMultiDict[str] = CIMultiDict()
        self.body: list[bytes] = []
        self.size = 0
        self.complete = self.broken = self.keep = self.expects = self.ten = False
        self.more: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Wake whoever reads the body."""
        if self.more is not None and not self.more.done():
            self.more.set_result(None)

    def end_early(self) -> None:
        """Take note that nothing more of it will come."""
        self.broken, self.keep = True, False
        self.wake()


class Connection:
    """The server's side of one channel. llhttp calls the `on_` methods.

    Requests that have come wait in a queue. The first is answered by a task; then its answer goes out, in pieces, and
    what is missing of the request is dropped; then the next has its turn. `end` is when the caller has used up its time
    for what it is to do now, by the monotonic clock.
    """

    __slots__ = (
        "_answer",
        "_channel",
        "_left",
        "_name",
        "_on_close",
        "_parser",
        "_patience",
        "_peer",
        "_queue",
        "_reading",
        "_sending",
        "_stopping",
        "_task",
        "_unread",
        "end",
    )

    def __init__(
        self, channel: Channel, peer: str, answer: Answer, patience: Patience, on_close: Callable[["Connection"], None]
    ) -> None:
        """Serve what comes over a channel from the address `peer`."""
        self._channel, self._peer, self._answer, self._patience = channel, peer, answer, patience
        self._on_close = on_close
        self.end = time.monotonic() + patience.head
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._name: str | None = None
        self._reading: _Call | None = None
        self._queue: list[_Call] = []
        self._task: asyncio.Task[None] | None = None
        self._sending: _Call | None = None
        self._left = memoryview(b"")
        self._unread = 0
        self._stopping = False

    # --- what the server does ----------------------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether a request is answered, or its answer is on the way."""
        return self._task is not None or self._sending is not None

    def look(self, now: float) -> None:
        """End the connection when the caller's time is over; one that only waits, in order."""
        if now < self.end:
            return
        if self.is_busy or self._parser is None:
            self.abort()
        else:
            self._finish(now)

    def stop(self) -> None:
        """Close, when the request that is being answered has its answer."""
        self._stopping = True
        if not self.is_busy:
            self._finish(time.monotonic())

    def _finish(self, now: float) -> None:
        """Say that nothing more will be answered, and give the caller a moment to take note."""
        if not self._channel.is_open:  # within the handshake, or closed
            self.abort()
            return
        self._parser = None
        self.end = now + self._patience.linger
        self._channel.finish()

    def abort(self) -> None:
        """Close at once, whatever is under way."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._channel.close()
        self._ended()

    def _ended(self) -> None:
        self._parser = None  # it knows this object, which knows it
        for call in self._queue:
            call.end_early()
        self._queue.clear()
        self._reading = self._sending = None
        self._left = memoryview(b"")
        if self._task is None:
            self._on_close(self)

    # --- what the channel says ---------------------------------------------------------------------------------------

    def opened(self) -> None:
        """Take note that the connection stands, TLS included."""
        self._name = self._channel.common_name()

    def lost(self, problem: Exception) -> None:
        """Take note that the caller is gone."""
        if not isinstance(problem, Ended):
            log.debug("Connection with %s ended: %s", clean(self._peer), clean(problem))
        self._ended()

    def sent(self) -> None:
        """Go on with an answer that did not go out at once."""
        self._advance()

    def received(self, data: memoryview) -> None:
        """Read a part of a request."""
        if self._parser is None:
            return
        if self._unread > MAX_HEAD:  # llhttp keeps what it was given of a field until that ends
            self._refuse("a head is too large")
            return
        self._unread += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._parser = None  # the request is answered in this protocol, and what follows is in another
        except httptools.HttpParserCallbackError as problem:
            reason = problem.__context__
            if not isinstance(reason, ValueError):
                raise  # a fault of ours, which is told aloud
            self._refuse(str(reason))
        except httptools.HttpParserError as problem:
            self._refuse(str(problem))

    def _refuse(self, why: str) -> None:
        """Read nothing more, for what came is no request; close when what came before it is answered."""
        log.debug("Unreadable request from %s: %s", clean(self._peer), clean(why))
        self._parser, self._stopping = None, True
        broken, self._reading = self._reading, None
        if broken is not None:
            broken.end_early()
        if self._sending is not None:
            self._advance()
        elif self._task is None:
            self._send(_Call(), Response(400))

    # --- what llhttp says --------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin with a request."""
        self._reading = _Call()
        self._channel.patient = False
        if not self.is_busy:
            self.end = time.monotonic() + self._patience.head

    def on_url(self, part: bytes) -> None:
        """Take a part of the target."""
        call = self._reading
        if call is not None:
            call.target += part
            if len(call.target) > MAX_HEAD:
                raise ValueError("a target is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field."""
        call = self._reading
        if call is None or call.method:
            return  # a field behind the body says nothing here
        call.size += len(name) + len(value)
        if call.size > MAX_HEAD or len(call.fields) >= MAX_FIELDS:
            raise ValueError("a head is too large")
        call.fields.add(name.decode("latin-1"), value.strip(b" \t").decode("utf-8", "surrogateescape"))

    def on_headers_complete(self) -> None:
        """Have the request answered; its body is read when somebody asks for it."""
        call, parser = self._reading, self._parser
        if call is None or parser is None:
            return
        self._unread = call.size = 0
        call.method = parser.get_method().decode("latin-1")
        call.ten = parser.get_http_version() == "1.0"
        if not call.ten and parser.get_http_version() != "1.1":
            raise ValueError("another version of HTTP")
        if call.fields.get("Transfer-Encoding", "chunked").lower() != "chunked":
            raise ValueError("a body in an encoding that does not say where it ends")
        call.keep = bool(parser.should_keep_alive()) and not parser.should_upgrade()
        call.expects = not call.ten and call.fields.get("Expect", "").lower() == "100-continue"
        if len(self._queue) >= MAX_WAITING:
            raise ValueError("too many requests at once")
        self._queue.append(call)
        self._begin()

    def on_body(self, part: bytes) -> None:
        """Take a part of the body."""
        self._unread = 0
        call = self._reading
        if call is None or call is self._sending:
            return  # what its sender had still to say of an answered request
        call.body.append(part)
        call.size += len(part)
        if call.more is not None:
            call.wake()
        elif call.size > BUFFERED:
            self._channel.pause()

    def on_message_complete(self) -> None:
        """Take note that nothing more of the request follows."""
        call, self._reading, self._unread = self._reading, None, 0
        if call is None:
            return
        call.complete = True
        call.wake()
        # Agents come with a token, by the thousand and in their own rhythm; people and their tools with a certificate.
        self._channel.patient = "Authorization" in call.fields
        if call is self._sending:
            self._advance()
        elif len(self._queue) > 1:
            self._channel.pause()

    # --- answering ---------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Have the next request answered, when it is its turn."""
        if self._queue and not self.is_busy:
            self.end = math.inf
            self._task = asyncio.get_running_loop().create_task(self._serve(self._queue[0]))

    async def _serve(self, call: _Call) -> None:
        try:
            response = await self._answer(
                Incoming(
                    method=call.method,
                    target=call.target.decode("utf-8", "surrogateescape"),
                    headers=call.fields,
                    read_body=partial(self._body, call),
                    certificate_name=self._name,
                    secure=self._channel.secure,
                    peer=self._peer,
                )
            )
        except Exception:
            log.exception("Error while answering %s", clean(call.method))
            response = Response(500)
        self._task = None
        if self._channel.is_open:
            self._queue.pop(0)
            self._send(call, response)
        else:
            self._on_close(self)

    async def _body(self, call: _Call, limit: int) -> bytes:
        """Return the whole body of a request. Raises BodyTooLarge, BodyTimeout, BodyBroken."""
        announced = call.fields.get("Content-Length", "0")
        if call.size > limit or (announced.isdecimal() and int(announced) > limit):
            raise BodyTooLarge
        if not call.complete:
            try:
                async with asyncio.timeout(self._patience.body):
                    await self._rest_of(call, limit)
            except TimeoutError:
                raise BodyTimeout from None
        return call.body[0] if len(call.body) == 1 else b"".join(call.body)

    async def _rest_of(self, call: _Call, limit: int) -> None:
        loop = asyncio.get_running_loop()
        while not call.complete:
            if call.broken:
                raise BodyBroken
            if call.expects:
                call.expects = False
                self._channel.send(_CONTINUE)
                continue
            call.more = loop.create_future()
            self._channel.resume()
            await call.more
            if call.size > limit:
                raise BodyTooLarge

    def _send(self, call: _Call, response: Response) -> None:
        """Begin to send an answer."""
        refused = response.status in {408, 413} or response.headers.get("Connection") == "close"
        # A caller that waits for leave to send its body may send it all the same, or not: nothing can be read after it.
        silent = call.expects and not call.complete
        call.keep = call.keep and not refused and not silent and not self._stopping
        call.body.clear()
        self._sending = call
        head, body = head_of(response, call), b"" if call.method == "HEAD" else response.body
        if len(body) <= PIECE:
            self._channel.send(head + body)
        else:
            self._left = memoryview(body)
            self._channel.send(head)
        self._advance()

    def _advance(self) -> None:
        """Send the next piece; then drop the rest of the request; then have the next one answered, or close."""
        call, channel = self._sending, self._channel
        while self._left and channel.is_open and not channel.waits:
            piece, self._left = self._left[:PIECE], self._left[PIECE:]
            channel.send(bytes(piece))
        if call is None or not channel.is_open:
            return
        now, patience = time.monotonic(), self._patience
        if self._left or channel.waits:
            self.end = now + patience.piece
        elif not call.keep or self._stopping:
            self._sending = None
            self._finish(now)
        elif not call.complete:
            self.end = now + patience.linger
            channel.resume()
        else:
            self._sending = None
            self.end = now + (patience.between if self._reading is None else patience.head)
            if len(self._queue) <= 1:
                channel.resume()
            self._begin()


_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


def head_of(response: Response, call: _Call) -> bytes:
    """Return the head of an answer, the empty line included."""
    fields = {"Server": "limeguard", "Date": _date(int(time.time())), **response.headers}
    if response.status != HTTPStatus.NO_CONTENT:
        fields["Content-Type"] = response.content_type
        fields["Content-Length"] = str(len(response.body))
    if not call.keep:
        fields["Connection"] = "close"
    elif call.ten:
        fields["Connection"] = "keep-alive"
    text = "".join([f"{name}: {_one_line(value)}\r\n" for name, value in fields.items()])
    return f"{_status_line(response.status)}{text}\r\n".encode("utf-8", "surrogateescape")


def _one_line(value: str) -> str:
    return value if value.replace("\t", " ").isprintable() else clean(value)


@lru_cache
def _status_line(status: int) -> str:
    phrase = ""
    with contextlib.suppress(ValueError):
        phrase = HTTPStatus(status).phrase
    return f"HTTP/1.1 {status} {phrase}\r\n"


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
