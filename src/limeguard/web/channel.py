"""One byte stream, with TLS or without, as small in memory and as cheap in calls as it gets.

What comes in is decrypted in buffers that all channels share and handed on before the next channel is looked at, so an
idle channel holds nothing but its socket and the library's state. Decides nothing of what is said; whoever owns a
channel bounds it in time and size, and compares the peer's certificate before sending.
"""

import contextlib
import errno
import hashlib
import os
import select
import socket
import ssl
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, Protocol, cast

READ_BYTES: Final = 65_536
PLAIN_BYTES: Final = 16_384
"""What a TLS record holds at most (RFC 8446 §5.1)."""
READS_AT_ONCE: Final = 16
"""Reads of one channel until others have their turn."""
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

    def sent(self) -> None:
        """Take note that the system has taken what had to wait."""
        ...

    def lost(self, problem: Exception, /) -> None:
        """Take note that the channel is closed: `Ended`, or what went wrong."""
        ...


Welcome = Callable[["Channel", str], Owner]
"""Returns who owns the channel of a peer that has come; takes the channel and the peer's address."""


class _Phase(Enum):
    CONNECTING = "connecting"
    SHAKING_HANDS = "shaking hands"
    OPEN = "open"
    FINISHED = "nothing more is said, and nothing more is heard"
    CLOSED = "closed"


class Shared(Protocol):
    """What channels have in common: buffers, TLS, and somebody who watches their sockets."""

    cipher: memoryview
    plain: memoryview
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO

    def tls(self, *, server_side: bool) -> ssl.SSLObject:
        """Return TLS for one channel, over the shared buffers. Raises ValueError when there is no context."""
        ...

    def watch(self, channel: "Channel", events: int, /) -> None:
        """Watch a channel for the first time."""
        ...

    def change(self, channel: "Channel", events: int, /) -> None:
        """Watch for other events."""
        ...

    def forget(self, channel: "Channel", /, *, watched: bool) -> None:
        """Watch a channel no more."""
        ...

    def hurry(self) -> None:
        """Look again as soon as others had their turn: there is more to read."""
        ...

    def put_off(self, channel: "Channel", /) -> bool:
        """Say whether what is sent waits for the end of this turn of the loop, to go out together with others'."""
        ...


class Channel:
    """One byte stream. Closed channels stay closed. `patient`: its peer minds no delay of a beat."""

    __slots__ = (
        "_channels",
        "_events",
        "_noise",
        "_phase",
        "_reading",
        "_socket",
        "_tls",
        "_unsent",
        "number",
        "owner",
        "patient",
        "secure",
    )

    def __init__(self, channels: Shared, own: socket.socket, *, secure: bool) -> None:
        """Be made by `Channels` alone, which sets the owner before anything happens."""
        self._channels = channels
        self._socket = own
        self.number = own.fileno()
        self.owner: Owner
        self._reading = True
        self.patient = False
        self.secure = secure
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
        status = self._socket.connect_ex(address)
        if status not in {0, errno.EINPROGRESS}:
            raise OSError(status, os.strerror(status))
        self._watch_first(select.EPOLLOUT)

    def take(self) -> None:
        """Begin with a peer that has come."""
        try:
            self._watch_first(select.EPOLLIN)
            self._begin(server_side=True)
        except (OSError, ValueError) as problem:
            self.lose(problem)

    @property
    def waits(self) -> bool:
        """Whether something that was sent waits for the system to take it; the owner hears when it has."""
        return bool(self._unsent)

    def common_name(self) -> str | None:
        """Return the common name in the peer's verified certificate (the first of several), None without one."""
        for relative_name in ((self._tls and self._tls.getpeercert()) or {}).get("subject", ()):
            for key, value in cast("tuple[tuple[str, str], ...]", relative_name):
                if key == "commonName":
                    return value
        return None

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
            if self._unsent or self._channels.put_off(self):
                self._unsent += data
            else:
                self._put(data)
        except (OSError, ssl.SSLError) as problem:
            self.lose(problem)

    def pause(self) -> None:
        """Read nothing until `resume`; at most what was read already is still handed on."""
        self._reading = False
        self._watch()

    def resume(self) -> None:
        """Read again."""
        self._reading = True
        self._watch()

    def finish(self) -> None:
        """Say that nothing more will be sent. What the peer sends is read and dropped, until it ends or `close`."""
        if self._phase is not _Phase.OPEN:
            return
        self._phase, self._reading = _Phase.FINISHED, True
        try:
            if self._tls is not None:
                with contextlib.suppress(ssl.SSLError):  # it wants to hear the same from the peer
                    self._tls.unwrap()
                self._answer()
            if not self._unsent:
                self._socket.shutdown(socket.SHUT_WR)
            self._watch()
        except OSError as problem:
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
            self.owner.lost(problem)

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
            self._watch()

    def _watch_first(self, events: int) -> None:
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._channels.watch(self, events)
        self._events = events

    def _watch(self) -> None:
        """Watch for what is to be done."""
        events = (select.EPOLLIN if self._reading else 0) | (select.EPOLLOUT if self._unsent else 0)
        if events != self._events and self._phase is not _Phase.CLOSED:
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
                self._flush()
            if self._reading and events & ~select.EPOLLOUT:
                self._read()
            elif events & (select.EPOLLHUP | select.EPOLLERR):
                raise ConnectionResetError(errno.ECONNRESET, "the peer is gone")
        except (OSError, ssl.SSLError) as problem:
            self.lose(problem)

    def _flush(self) -> None:
        data, self._unsent = self._unsent, b""
        self._put(data)
        if self._unsent:
            return
        self._watch()
        if self._phase is _Phase.FINISHED:
            self._socket.shutdown(socket.SHUT_WR)
        else:
            self.owner.sent()

    def _connected(self) -> None:
        status = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if status:
            raise OSError(status, os.strerror(status))
        self._watch()
        self._begin(server_side=False)

    def _begin(self, *, server_side: bool) -> None:
        """Shake hands over a connection that stands, or go on without."""
        if not self.secure:
            self._phase = _Phase.OPEN
            self.owner.opened()
            return
        self._phase, self._tls = _Phase.SHAKING_HANDS, self._channels.tls(server_side=server_side)
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
        self.owner.opened()

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
            if self._phase is not _Phase.FINISHED:
                if self.secure:
                    self._decrypt(size)
                else:
                    self.owner.received(channels.cipher[:size])
            if size < READ_BYTES or self._phase is _Phase.CLOSED or not self._reading:
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
                self.owner.received(channels.plain[:size])
                tls = self._tls if self._phase is _Phase.OPEN else None  # the owner may have closed
        except ssl.SSLWantReadError:
            return
        finally:
            self._leave_clean()

    def _leave_clean(self) -> None:
        if self._phase is _Phase.CLOSED:
            self._channels.outgoing.read()
        else:
            self._answer()
