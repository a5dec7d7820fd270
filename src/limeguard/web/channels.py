"""Many byte streams to and from peers: one look at all sockets that something happened on.

All channels share one set of buffers, which is why their owners hear of things one after the other.
"""

import asyncio
import select
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

from limeguard.telemetry import get_logger
from limeguard.web.beat import Beat
from limeguard.web.channel import PLAIN_BYTES, READ_BYTES, Channel, Owner, Welcome

log = get_logger("keylime.http")

EVENTS_AT_ONCE: Final = 32
"""Channels that are looked at until other work of the loop has its turn."""
PAUSE_SECONDS: Final = 1.0
"""How long nobody is let in when the system has no room for one more."""


class Channels:
    """Watches channels. Made inside a running loop; `close` it.

    With a beat, sockets are looked at only at its beats: answers of many peers for one wake-up, each a moment later.
    Without one they are looked at when something happens; but with a `rest`, after peers that are all patient only at
    the next beat of that.
    """

    def __init__(
        self,
        context: ssl.SSLContext | None,
        beat: Beat | None = None,
        waiting: Callable[[], bool] = lambda: True,
        *,
        rest: Beat | None = None,
    ) -> None:
        """Speak TLS by `context`. With a beat, sockets are looked at while somebody is `waiting`."""
        self._context = context
        self._waiting = waiting
        self._beat, self._rest = beat, rest
        self._alert = beat is None
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._open: dict[int, Channel] = {}
        self.cipher = memoryview(bytearray(READ_BYTES))
        self.plain = memoryview(bytearray(PLAIN_BYTES))
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._doors: dict[int, tuple[socket.socket, Welcome]] = {}
        self._put_off: list[Channel] = []
        self._eager = False
        self._again: asyncio.Handle | None = None
        if beat is None:
            self._loop.add_reader(self._epoll.fileno(), self._look)

    @property
    def count(self) -> int:
        """How many channels are open, or being opened."""
        return len(self._open)

    def connect(self, family: int, address: Any, owner: Owner, *, secure: bool) -> "Channel":
        """Begin to connect; the owner hears how it ends. Raises OSError, ValueError."""
        channel = Channel(self, socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK), secure=secure)
        channel.owner = owner
        self._open[channel.number] = channel
        try:
            channel.start(address)
        except BaseException:
            channel.close()
            raise
        return channel

    def listen(self, listening: socket.socket, welcome: Welcome) -> None:
        """Let peers in that come to a listening socket, until `deafen`. The context has to be one for servers."""
        listening.setblocking(False)
        self._doors[listening.fileno()] = (listening, welcome)
        self._epoll.register(listening.fileno(), select.EPOLLIN)

    def deafen(self) -> None:
        """Let nobody in any more, and close the sockets for it."""
        for listening, _ in self._doors.values():
            listening.close()  # which ends the watch as well
        self._doors.clear()

    def close(self) -> None:
        """Close every channel, without a word to the owners."""
        self.deafen()
        for channel in list(self._open.values()):
            channel.close()
        if self._beat is None:
            self._loop.remove_reader(self._epoll.fileno())
        else:
            self._beat.cancel(self._look)
        if self._rest is not None:
            self._rest.cancel(self._look)
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

    def put_off(self, channel: Channel) -> bool:
        """Have what a server answers go out at the end of this turn of the loop.

        The first byte to a peer that sleeps wakes its processor, which on virtual machines takes longer than all else
        of sending; those that follow at once find it awake.
        """
        if not self._doors:
            return False
        if not self._put_off:
            self._loop.call_soon(self._send_all)
        self._put_off.append(channel)
        return True

    def _send_all(self) -> None:
        channels, self._put_off = self._put_off, []
        for channel in channels:
            self._tell(channel, select.EPOLLOUT)

    def tls(self, *, server_side: bool) -> ssl.SSLObject:
        """Return TLS for one channel, over the shared buffers. Raises ValueError when there is no context."""
        if self._context is None:
            raise ValueError("no TLS context")
        return self._context.wrap_bio(self.incoming, self.outgoing, server_side=server_side)

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
        if self._again is not None:
            self._again.cancel()  # one look in a turn of the loop, however many wishes there were
        self._again, self._eager = None, False
        if self._epoll.closed:
            return
        found = self._epoll.poll(0, EVENTS_AT_ONCE)
        hurried = not found
        for number, events in found:
            channel = self._open.get(number)
            if channel is not None:
                self._tell(channel, events)
                hurried = hurried or not channel.patient
            elif number in self._doors:
                self._let_in(*self._doors[number])
                hurried = True
        if self._eager or len(found) == EVENTS_AT_ONCE:
            self._again = self._loop.call_soon(self._look)
        elif self._rest is not None:
            self._be_alert(hurried)
        elif self._waiting():
            self.expect()

    def _be_alert(self, alert: bool) -> None:
        """Look when something happens, or else at the next beat."""
        if alert is not self._alert:
            self._alert = alert
            if alert:
                self._loop.add_reader(self._epoll.fileno(), self._look)
            else:
                self._loop.remove_reader(self._epoll.fileno())
        if not alert and self._rest is not None:
            self._rest.call_after(0.0, self._look)

    def _let_in(self, listening: socket.socket, welcome: Welcome) -> None:
        for _ in range(EVENTS_AT_ONCE):
            try:
                own, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as full:  # of descriptors, or of memory: whoever is connected goes on
                log.error("Nobody can be let in for %g s: %s", PAUSE_SECONDS, full)  # noqa: TRY400
                self._epoll.modify(listening.fileno(), 0)
                self._loop.call_later(PAUSE_SECONDS, self._listen_again, listening)
                return
            own.setblocking(False)
            channel = Channel(self, own, secure=self._context is not None)
            channel.owner = welcome(channel, str(address[0]))
            self._open[channel.number] = channel
            channel.take()

    def _listen_again(self, listening: socket.socket) -> None:
        if listening.fileno() in self._doors:
            self._epoll.modify(listening.fileno(), select.EPOLLIN)

    def _tell(self, channel: "Channel", events: int) -> None:
        try:
            channel.happened(events)
        except Exception as fault:  # of ours: one channel ends for it, the others have their turn
            log.exception("Error while reading what a peer sent")
            channel.lose(fault)
