"""Byte streams to thousands of peers, with TLS or without, as small in memory and as cheap in calls as they get.

All channels share one set of buffers: what comes in for one is decrypted and handed on before the next is looked at, so
an idle channel holds nothing but its socket and the library's state. Decides nothing of what is said; whoever owns a
channel bounds it in time and size, and compares the peer's certificate before sending.
"""

import asyncio
import errno
import hashlib
import os
import select
import socket
import ssl
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, Protocol, cast

from limeguard.telemetry import get_logger
from limeguard.web.beat import Beat

log = get_logger("keylime.http")

READ_BYTES: Final = 65_536
PLAIN_BYTES: Final = 16_384
"""What a TLS record holds at most (RFC 8446 §5.1)."""
READS_AT_ONCE: Final = 16
"""Reads of one channel until others have their turn."""
EVENTS_AT_ONCE: Final = 32
"""Channels that are looked at until other work of the loop has its turn."""
MAX_NOISE: Final = 262_144
"""Bytes of TLS in a row that may carry nothing: twice what the library takes of a handshake."""


class Ended(Exception):  # noqa: N818 - a fact about the peer
    """The peer closed the channel in order."""


class Owner(Protocol):
    """Who hears what a channel has to say. Must not touch other channels while it listens."""

    def opened(self) -> None:
        """Take note that the connection stands, TLS included."""
        ...

    def received(self, data: memoryview, /) -> None:
        """Take these bytes; they are gone when this returns."""
        ...

    def lost(self, problem: Exception, /) -> None:
        """Take note that the channel is closed: `Ended`, or what went wrong."""
        ...


class _Phase(Enum):
    CONNECTING = "connecting"
    SHAKING_HANDS = "shaking hands"
    OPEN = "open"
    CLOSED = "closed"


class Channels:
    """Watches channels. Made inside a running loop; `close` it.

    With a beat, sockets are looked at only at its beats: answers of many peers for one wake-up, each a moment later.
    """

    def __init__(
        self, context: ssl.SSLContext | None, beat: Beat | None = None, waiting: Callable[[], bool] = lambda: True
    ) -> None:
        """Speak TLS by `context`. With a beat, sockets are looked at while somebody is `waiting`."""
        self._context = context
        self._waiting = waiting
        self._beat = beat
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._open: dict[int, Channel] = {}
        self.cipher = memoryview(bytearray(READ_BYTES))
        self.plain = memoryview(bytearray(PLAIN_BYTES))
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._eager = False
        self._again: asyncio.Handle | None = None
        if beat is None:
            self._loop.add_reader(self._epoll.fileno(), self._look)

    def connect(self, family: int, address: Any, owner: Owner, *, secure: bool) -> "Channel":
        """Begin to connect; the owner hears how it ends. Raises OSError, ValueError."""
        channel = Channel(self, socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK), owner, secure=secure)
        self._open[channel.number] = channel
        try:
            channel.start(address)
        except BaseException:
            channel.close()
            raise
        return channel

    def close(self) -> None:
        """Close every channel, without a word to the owners."""
        for channel in list(self._open.values()):
            channel.close()
        if self._beat is None:
            self._loop.remove_reader(self._epoll.fileno())
        else:
            self._beat.cancel(self._look)
        if self._again is not None:
            self._again.cancel()
        self._epoll.close()

    # --- for channels ------------------------------------------------------------------------------------------------

    def expect(self) -> None:
        """Look at the sockets with the next beat: somebody begins to wait."""
        if self._beat is not None:
            self._beat.call_after(0.0, self._look)

    def hurry(self) -> None:
        """Look again as soon as others had their turn: there is more to read."""
        self._eager = True

    def tls(self) -> ssl.SSLObject:
        """Return TLS for one channel, over the shared buffers. Raises ValueError when there is no context."""
        if self._context is None:
            raise ValueError("no TLS context")
        return self._context.wrap_bio(self.incoming, self.outgoing)

    def watch(self, channel: "Channel", events: int) -> None:
        """Watch a channel for the first time."""
        self._epoll.register(channel.number, events)

    def change(self, channel: "Channel", events: int) -> None:
        """Watch for other events."""
        self._epoll.modify(channel.number, events)

    def forget(self, channel: "Channel", *, watched: bool) -> None:
        """Watch a channel no more."""
        if self._open.pop(channel.number, None) is not None and watched:
            self._epoll.unregister(channel.number)

    # --- the loop's side ---------------------------------------------------------------------------------------------

    def _look(self) -> None:
        self._again, self._eager = None, False
        if self._epoll.closed:
            return
        found = self._epoll.poll(0, EVENTS_AT_ONCE)
        for number, events in found:
            channel = self._open.get(number)
            if channel is not None:
                self._tell(channel, events)
        if self._eager or len(found) == EVENTS_AT_ONCE:
            self._again = self._loop.call_soon(self._look)
        elif self._waiting():
            self.expect()

    def _tell(self, channel: "Channel", events: int) -> None:
        try:
            channel.happened(events)
        except Exception as fault:  # of ours: one channel ends for it, the others have their turn
            log.exception("Error while reading what a peer sent")
            channel.lose(fault)


class Channel:
    """One byte stream. Closed channels stay closed."""

    __slots__ = (
        "_channels",
        "_events",
        "_noise",
        "_owner",
        "_phase",
        "_secure",
        "_socket",
        "_tls",
        "_unsent",
        "number",
    )

    def __init__(self, channels: Channels, own: socket.socket, owner: Owner, *, secure: bool) -> None:
        self._channels = channels
        self._socket = own
        self.number = own.fileno()
        self._owner = owner
        self._secure = secure
        self._tls: ssl.SSLObject | None = None
        self._unsent = b""
        self._events = 0
        self._noise = 0
        self._phase = _Phase.CONNECTING

    @property
    def is_open(self) -> bool:
        """Whether bytes can be sent."""
        return self._phase is _Phase.OPEN

    def start(self, address: Any) -> None:
        """Begin to connect. Raises OSError, ValueError."""
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        status = self._socket.connect_ex(address)
        if status not in {0, errno.EINPROGRESS}:
            raise OSError(status, os.strerror(status))
        self._channels.watch(self, select.EPOLLOUT)
        self._events = select.EPOLLOUT

    def fingerprint(self) -> bytes | None:
        """Return SHA-256 of the peer's certificate, None without one."""
        certificate = None if self._tls is None else self._tls.getpeercert(binary_form=True)
        return None if certificate is None else hashlib.sha256(certificate).digest()

    def send(self, data: bytes) -> None:
        """Send; what the system does not take now goes out when it can. The owner hears of failures."""
        if self._phase is not _Phase.OPEN:
            raise ValueError("the channel is not open")
        self._noise = 0
        try:
            if self._tls is not None:
                self._tls.write(data)
                data = self._channels.outgoing.read()
            self._put(data)
        except (OSError, ssl.SSLError) as problem:
            self.lose(problem)

    def close(self) -> None:
        """Close at once, without a word to the owner."""
        if self._phase is _Phase.CLOSED:
            return
        self._phase, self._tls, self._unsent = _Phase.CLOSED, None, b""
        self._channels.forget(self, watched=bool(self._events))
        self._socket.close()

    def lose(self, problem: Exception) -> None:
        """Close, and tell the owner why."""
        if self._phase is not _Phase.CLOSED:
            self.close()
            self._owner.lost(problem)

    def _put(self, data: bytes) -> None:
        """Give bytes to the system, after those that wait. Raises OSError."""
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent < len(data):
            self._unsent = data[sent:]
            self._want(select.EPOLLIN | select.EPOLLOUT)

    def _want(self, events: int) -> None:
        if events != self._events:
            self._events = events
            self._channels.change(self, events)

    # --- what happens on the socket ----------------------------------------------------------------------------------

    def happened(self, events: int) -> None:
        """Do what the socket is ready for."""
        try:
            if self._phase is _Phase.CONNECTING:
                self._connected()
                return
            if events & select.EPOLLOUT and self._unsent:
                data, self._unsent = self._unsent, b""
                self._put(data)
                if not self._unsent:
                    self._want(select.EPOLLIN)
            if events & ~select.EPOLLOUT:
                self._read()
        except (OSError, ssl.SSLError) as problem:
            self.lose(problem)

    def _connected(self) -> None:
        status = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if status:
            raise OSError(status, os.strerror(status))
        self._want(select.EPOLLIN)
        if not self._secure:
            self._phase = _Phase.OPEN
            self._owner.opened()
            return
        self._phase = _Phase.SHAKING_HANDS
        self._tls = self._channels.tls()
        self._shake_hands()

    def _shake_hands(self) -> None:
        assert self._tls is not None  # noqa: S101 - made before this phase began
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        finally:
            self._answer()
        self._phase = _Phase.OPEN
        self._owner.opened()

    def _answer(self) -> None:
        """Send what the library has to say by itself: handshakes, alerts. Nothing stays in the shared buffer."""
        if self._channels.outgoing.pending:
            self._put(self._channels.outgoing.read())

    def _read(self) -> None:
        channels = self._channels
        for _ in range(READS_AT_ONCE):
            try:
                size = self._socket.recv_into(channels.cipher)
            except (BlockingIOError, InterruptedError):
                return
            if size == 0:
                self.lose(Ended())
                return
            if self._secure:
                self._decrypt(size)
            else:
                self._owner.received(channels.cipher[:size])
            if size < READ_BYTES or self._phase is _Phase.CLOSED:
                return
        channels.hurry()

    def _decrypt(self, size: int) -> None:
        """Hand on what is in the bytes that came. Whatever happens, nothing of them stays for the next channel."""
        self._noise += size
        if self._noise > MAX_NOISE:
            raise ssl.SSLError(errno.EPROTO, "the peer sends much that says nothing")
        incoming = self._channels.incoming
        incoming.write(self._channels.cipher[:size])
        try:
            if self._phase is _Phase.SHAKING_HANDS:
                self._shake_hands()
            if self._phase is _Phase.OPEN:
                self._hand_on()
        finally:
            if incoming.pending:
                incoming.read()

    def _hand_on(self) -> None:
        channels, tls = self._channels, self._tls
        try:
            while tls is not None and (channels.incoming.pending or tls.pending()):
                size = cast("int", tls.read(PLAIN_BYTES, channels.plain))  # with a buffer, a number comes back
                if size == 0:
                    self.lose(Ended())
                    return
                self._noise = 0
                self._owner.received(channels.plain[:size])
                tls = self._tls  # None when the owner closed
        except ssl.SSLWantReadError:
            return
        finally:
            self._leave_clean()

    def _leave_clean(self) -> None:
        if self._phase is _Phase.CLOSED:
            self._channels.outgoing.read()
        else:
            self._answer()
