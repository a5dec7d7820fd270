"""Many agents behind one port: HTTP/1.1 over TLS, as little of it as verifiers use, as cheaply as Python can.

Each machine has an address of its own in 127.0.0.0/8, so that a fleet needs one listening socket on the loopback
device. What deployed agents would refuse is counted as a complaint.
"""

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from typing import Final, cast
from urllib.parse import parse_qsl, urlsplit

from limeguard.simulator.machine import Machine
from limeguard.telemetry import clean
from limeguard.wire import agent_v2
from limeguard.wire.envelope import envelope

MAX_HEAD: Final = 16_384
MAX_BODY: Final = 1 << 20
MAX_KINDS: Final = 20
MAX_KIND: Final = 80
"""Complaints are counted by kind: so many kinds, each in so many characters."""
VERSIONS: Final = ("2.1", "2.2", "2.3", "2.4", "2.5", "2.6")
_BACKLOG: Final = 8_192
_BIND_TO_DEVICE: Final = getattr(socket, "SO_BINDTODEVICE", 25)

Asked = Callable[[Machine], float]
"""Notes that a machine was asked; returns the seconds by which its answer is to be late, below 0 for no answer."""


def address_of(number: int) -> str:
    """Return the address of machine `number`, below 127.1.0.0 on nothing is anybody else's."""
    return f"127.{1 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def loopback_socket() -> socket.socket:
    """Return a socket that is reached at every address of the loopback device, and at no other. Raises OSError."""
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, _BIND_TO_DEVICE, b"lo\0")
        found.bind(("0.0.0.0", 0))  # of the loopback device only, see above
    except OSError:
        found.close()
        raise
    return found


def free_socket(address: str) -> socket.socket:
    """Return a socket at a free port of one address. Raises OSError."""
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        found.bind((address, 0))
    except OSError:
        found.close()
        raise
    return found


class FleetServer:
    """Serves machines by the address that they are asked at."""

    def __init__(
        self, machines: dict[str, Machine], asked: Asked, clock: Callable[[], float], *, keep_alive: bool = True
    ) -> None:
        """Serve `machines` by address; without `keep_alive` each answer is the last of its connection."""
        self.keep_alive = keep_alive
        self.machines = machines
        self.asked = asked
        self.clock = clock
        self.complaints: Counter[str] = Counter()
        self.requests = 0
        self.notices = 0
        self.connections: set[asyncio.Transport] = set()
        self.connections_made = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(self, context: ssl.SSLContext, found: socket.socket | None = None) -> None:
        """Listen on a bound socket, or on a free port of the loopback device. Raises OSError."""
        found = found or loopback_socket()
        self.port = int(found.getsockname()[1])
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), sock=found, ssl=context, backlog=_BACKLOG, ssl_handshake_timeout=60
        )

    async def stop(self) -> None:
        """Listen no more, and cut all connections."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for transport in list(self.connections):
            transport.abort()
        await asyncio.sleep(0)


class _Connection(asyncio.Protocol):
    """One connection of a verifier."""

    def __init__(self, server: FleetServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._machine: Machine | None = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast("asyncio.Transport", transport)  # a stream server hands out no other
        self._transport = stream
        self._machine = self._server.machines.get(stream.get_extra_info("sockname")[0])
        self._server.connections.add(stream)
        self._server.connections_made += 1

    def connection_lost(self, _problem: Exception | None) -> None:
        if self._transport is not None:
            self._server.connections.discard(self._transport)
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._server.bytes_in += len(data)
        self._buffer += data
        while self._transport is not None and (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].decode("latin-1")
            size = _length(head)
            if size > MAX_BODY:
                self._refuse(413, "a body that is too long")
                return
            if len(self._buffer) < end + 4 + size:
                return
            self._buffer = self._buffer[end + 4 + size :]
            self._request(head)
        if len(self._buffer) > MAX_HEAD + MAX_BODY:
            self._refuse(431, "a head that is too long")

    def _request(self, head: str) -> None:
        server, machine = self._server, self._machine
        server.requests += 1
        method, _, rest = head.partition(" ")
        target = rest.partition(" ")[0]
        if machine is None:
            self._refuse(404, "nobody has this address")
            return
        if target == "/version":
            self._send(200, agent_v2.encode_version(VERSIONS))
            return
        parts = urlsplit(target)
        _, version, *path = parts.path.split("/")
        if method == "POST" and path in (["keys", "vkey"], ["notifications", "revocation"]):
            server.notices += path[0] == "notifications"
            self._send(200, agent_v2.encode_success())
            return
        if method != "GET" or path[:1] != ["quotes"] or version[1:] not in VERSIONS:
            self._refuse(404, f"{method} {parts.path}")
        elif path == ["quotes", "integrity"]:
            self._quote(machine, dict(parse_qsl(parts.query)), version[1:])
        elif path == ["quotes", "identity"]:
            nonce = dict(parse_qsl(parts.query)).get("nonce", "")
            self._send(200, envelope(200, "Success", machine.node.identity_answer(nonce, version[1:])))
        else:
            self._refuse(404, f"{method} {parts.path}")

    def _quote(self, machine: Machine, query: dict[str, str], version: str) -> None:
        late = self._server.asked(machine)
        if late < 0 or machine.behaviour.offline_until > self._server.clock():
            if self._transport is not None:
                self._transport.abort()
            return
        try:
            body = envelope(200, "Success", machine.answer(query, version))
        except (KeyError, ValueError):
            self._refuse(400, "a question that is none")
            return
        if late:
            asyncio.get_running_loop().call_later(late, self._send, 200, body)
        else:
            self._send(200, body)

    def _refuse(self, status: int, why: str) -> None:
        complaints, kind = self._server.complaints, f"{status} {clean(why, MAX_KIND)}"
        complaints[kind if kind in complaints or len(complaints) < MAX_KINDS else "others"] += 1
        self._send(status, agent_v2.encode_error(status, "refused by the simulator"))

    def _send(self, status: int, body: bytes) -> None:
        if self._transport is not None:
            last = "" if self._server.keep_alive else "Connection: close\r\n"
            length = f"Content-Length: {len(body)}\r\n{last}"
            head = f"HTTP/1.1 {status} OK\r\nContent-Type: application/json\r\n{length}\r\n"
            self._server.bytes_out += len(head) + len(body)
            self._transport.write(head.encode() + body)
            if last:
                self._transport.close()


def _length(head: str) -> int:
    place = head.lower().find("\r\ncontent-length:")
    if place < 0:
        return 0
    text = head[place + 17 :].partition("\r\n")[0].strip()
    return int(text) if text.isdecimal() else MAX_BODY + 1
