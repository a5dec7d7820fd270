"""Sockets for an `App`: listeners with and without TLS, bounds on slow and large peers, and an orderly stop."""

import asyncio
import socket
import ssl
import time
from typing import Final

from limeguard.telemetry import get_logger
from limeguard.web import connection
from limeguard.web.app import App
from limeguard.web.beat import Beat
from limeguard.web.channel import Channel
from limeguard.web.channels import Channels
from limeguard.web.connection import Answer, Connection, Patience

log = get_logger("keylime.web")

BACKLOG: Final = 1024
LOOK_SECONDS: Final = 1.0
"""How often connections are looked at whose time may be over."""
STOP_SECONDS: Final = 5.0
"""How long requests that are being answered may take when the listener stops."""


class Listener:
    """One port of a service."""

    def __init__(
        self,
        answer: App | Answer,
        host: str,
        port: int,
        context: ssl.SSLContext | None = None,
        *,
        reuse_port: bool = False,
        patience: Patience | None = None,
        rest: Beat | None = None,
    ) -> None:
        """Prepare; `context` None means plain HTTP, port 0 lets the system choose.

        With a `rest`, requests of agents that hold a token are looked at together, at its beats.

        `reuse_port` lets other processes of this user listen on the same port; the system shares connections out.
        """
        self._answer: Answer = answer.handle if isinstance(answer, App) else answer
        self._host, self._context, self._reuse_port = host, context, reuse_port
        self._patience, self._rest = patience, rest
        self._channels: Channels | None = None
        self._connections: set[Connection] = set()
        self._look_timer: asyncio.TimerHandle | None = None
        self.port = port

    async def start(self) -> None:
        """Bind and accept. Raises OSError when the address cannot be bound."""
        sockets = await self._bound()
        self._channels = Channels(self._context, rest=self._rest)
        for one in sockets:
            self._channels.listen(one, self._welcome)
        self._look()

    async def _bound(self) -> list[socket.socket]:
        """Return a socket for each address of the host, all with the same port."""
        found = await asyncio.get_running_loop().getaddrinfo(
            self._host or None, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        sockets: list[socket.socket] = []
        try:
            for family, address in dict.fromkeys((family, address) for family, *_, address in found):
                place = (address[0], self.port, *address[2:])
                sockets.append(_listening(family, place, reuse_port=self._reuse_port))
                self.port = int(sockets[0].getsockname()[1])
        except BaseException:
            for one in sockets:
                one.close()
            raise
        return sockets

    def _welcome(self, channel: Channel, peer: str) -> Connection:
        patience = self._patience or connection.PATIENCE
        one = Connection(channel, peer, self._answer, patience, self._connections.discard)
        self._connections.add(one)
        return one

    def _look(self) -> None:
        now = time.monotonic()
        for one in list(self._connections):
            one.look(now)
        self._look_timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    async def stop(self) -> None:
        """Stop accepting, let running requests end for a few seconds, close."""
        if self._channels is None:
            return
        self._channels.deafen()
        for one in list(self._connections):
            one.stop()
        end = time.monotonic() + STOP_SECONDS
        while any(one.is_busy for one in self._connections) and time.monotonic() < end:  # noqa: ASYNC110 - of many
            await asyncio.sleep(0.02)
        for one in list(self._connections):
            one.abort()
        if self._look_timer is not None:
            self._look_timer.cancel()
        self._channels.close()
        self._channels = None


def _listening(family: socket.AddressFamily, address: tuple[object, ...], *, reuse_port: bool) -> socket.socket:
    """Return a socket that listens. Raises OSError that names the address."""
    own = socket.socket(family, socket.SOCK_STREAM)
    try:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family is socket.AF_INET6:
            own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        own.bind(address)
        own.listen(BACKLOG)
    except OSError as problem:
        own.close()
        place = f"{address[0]} port {address[1]}"
        raise OSError(problem.errno, f"cannot listen on {place}: {problem.strerror}") from None
    except BaseException:
        own.close()
        raise
    return own
