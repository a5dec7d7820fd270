"""Requests of nodes that attest by themselves, handed to the worker that supervises the node: over a private socket.

A connection of such a node stays with the worker that the system gave it to; its attestations are in its owner's
memory. Whoever took the request has looked at the credentials, and the owner does again. It alone knows whether the
node is still enrolled as it was when a token was given out, so whatever agents may do goes to it. Only for the name in
a client certificate it goes by the word of its sibling, who alone may enter the folder of the sockets. What cannot be
handed on is refused with a time to come again, and nothing has changed then. Must not know what requests mean.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

import msgspec

from limeguard.store.node_record import partition_of
from limeguard.telemetry import clean, get_logger
from limeguard.web.app import BodyTooLarge, Handler, Incoming, Request, Response, with_header
from limeguard.web.auth import CallerKind

log = get_logger("keylime.verifier")

RELAY_SECONDS: Final = 4.0
"""A request and its answer; agents give up after five."""
OWNERS_SECONDS: Final = 1.0
"""How long a look at the table of leases serves: an owner that is none any more says so."""
TAKEN_UP_SECONDS: Final = 1.0
TAKEN_UP_PAUSE: Final = 0.05
MAX_RELAYED: Final = 64
"""Requests that are handed on at a time; others wait for their turn as long as they may take."""
MAX_TAKEN: Final = 1024
"""Requests that are taken from all siblings at a time."""
MAX_HEAD: Final = 64 * 1024
MAX_ANSWER: Final = 64 * 1024 * 1024
ENDS_ROUND: Final = "PATCH"
"""After evidence that was handed on the connection ends: the next one may come to the owner, and then stay there."""
PASSED_ON: Final = ("Authorization", "Content-Type", "X-Request-ID")
_LENGTH: Final = 4
_TROUBLE: Final = (OSError, EOFError, TimeoutError, ValueError, msgspec.MsgspecError)


class _Asked(msgspec.Struct, frozen=True):
    """The head of a request; `body` is how many bytes follow it."""

    method: str
    path: str
    headers: dict[str, str]
    certificate_name: str | None
    peer: str
    body: int


class _Answered(msgspec.Struct, frozen=True):
    """The head of an answer; `body` is how many bytes follow it."""

    status: int
    content_type: str
    headers: dict[str, str]
    body: int


class Kept(Protocol):
    """Which nodes are in this worker's memory."""

    def keeps(self, agent_id: str, /) -> bool:
        """Say whether a node would be in memory if it was enrolled."""
        ...

    def call(self) -> None:
        """Look soon for what has changed."""
        ...


Owners = Callable[[], Awaitable[Mapping[int, str]]]
"""Returns the worker that holds each partition; may raise StoreUnavailable."""
IsEnrolled = Callable[[str], Awaitable[object | None]]
"""Returns None when no such node is enrolled with this verifier; may raise StoreUnavailable."""
Answer = Callable[[Incoming], Awaitable[Response]]


class NotHereError(Exception):
    """Nobody can be found just now who answers for the node: ask again in a moment."""


class Relay:
    """The one way of requests about attestations to whoever answers for the node."""

    def __init__(
        self,
        folder: Path | None,
        worker: str,
        kept: Kept,
        owners: Owners,
        in_memory: Callable[[str], object | None],
        is_enrolled: IsEnrolled,
        *,
        max_body: int,
    ) -> None:
        """Be `worker` among those who have sockets in `folder`; None for a worker that is alone on its machine."""
        self._folder, self._worker = folder, worker
        self._kept, self._owners, self._in_memory, self._is_enrolled = kept, owners, in_memory, is_enrolled
        self._max_body = max_body
        self._known: tuple[float, Mapping[int, str]] = (float("-inf"), {})
        self._sending, self._taking = asyncio.Semaphore(MAX_RELAYED), 0
        self._server: asyncio.AbstractServer | None = None

    # --- who answers --------------------------------------------------------------------------------------------------

    def at_owner(self, handler: Handler) -> Handler:
        """Return the handler of a path with an agent's id as it is where the node is not ours.

        Raises NotHereError, StoreUnavailable.
        """

        async def handle(request: Request) -> Response:
            agent_id = request.params["agent_id"]
            if await self._is_here(agent_id):
                return await handler(request)
            if request.relayed:
                raise NotHereError(agent_id)  # no request goes in circles
            return await self._hand_on(agent_id, request)

        return handle

    async def _is_here(self, agent_id: str) -> bool:
        """Say whether this worker answers for a node, be it that there is none. Raises NotHereError."""
        if not self._kept.keeps(agent_id):
            return False
        if self._in_memory(agent_id) is None and await self._is_enrolled(agent_id) is not None:
            await self._taken_up(agent_id)
        return self._kept.keeps(agent_id)

    async def _taken_up(self, agent_id: str) -> None:
        """Wait a little for a node that was enrolled a moment ago, with another worker. Raises NotHereError."""
        for _ in range(round(TAKEN_UP_SECONDS / TAKEN_UP_PAUSE)):
            self._kept.call()
            await asyncio.sleep(TAKEN_UP_PAUSE)
            if self._in_memory(agent_id) is not None:
                return
        raise NotHereError(agent_id)

    async def _hand_on(self, agent_id: str, request: Request) -> Response:
        owner = await self._owner(agent_id)
        if self._folder is None or owner is None or owner == self._worker:
            raise NotHereError(agent_id)
        try:
            async with asyncio.timeout(RELAY_SECONDS), self._sending:
                answer = await _asked(_socket(self._folder, owner), request)
        except _TROUBLE as problem:
            self._known = (float("-inf"), {})
            log.info("The owner of agent %s does not answer: %s", clean(agent_id), clean(problem) or "too late")
            raise NotHereError(agent_id) from None
        if request.method != ENDS_ROUND:
            return answer
        return with_header(answer, "Connection", "close")

    async def _owner(self, agent_id: str) -> str | None:
        now = asyncio.get_running_loop().time()
        if now > self._known[0] + OWNERS_SECONDS:
            self._known = (now, await self._owners())
        return self._known[1].get(partition_of(agent_id))

    # --- what siblings hand on ----------------------------------------------------------------------------------------

    async def serve(self, answer: Answer) -> None:
        """Answer siblings as callers would be."""
        if self._folder is None:
            return

        async def taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if self._taking >= MAX_TAKEN:
                writer.close()
                return
            self._taking += 1
            try:
                with contextlib.suppress(*_TROUBLE):
                    async with asyncio.timeout(RELAY_SECONDS):
                        await _answer(reader, writer, answer, self._max_body)
            finally:
                self._taking -= 1
                writer.close()

        self._server = await asyncio.start_unix_server(taken, _socket(self._folder, self._worker))

    async def stop(self) -> None:
        """Take nothing more."""
        if self._server is not None and self._folder is not None:
            self._server.close()
            _socket(self._folder, self._worker).unlink(missing_ok=True)


def _socket(folder: Path, worker: str) -> Path:
    return folder / f"{worker}.relay"


async def _asked(path: Path, request: Request) -> Response:
    """Have a sibling answer. Raises OSError, EOFError, ValueError."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        head = _Asked(
            method=request.method,
            path=request.path,
            headers={name: request.headers[name] for name in PASSED_ON if name in request.headers},
            certificate_name=request.caller.name if request.caller.kind is CallerKind.ADMIN else None,
            peer=request.peer,
            body=len(request.body),
        )
        await _send(writer, msgspec.json.encode(head), request.body)
        answered = msgspec.json.decode(await _head(reader), type=_Answered)
        if answered.body > MAX_ANSWER:
            raise ValueError("the answer is too long to be handed on")
        body = await reader.readexactly(answered.body)
        return Response(answered.status, body, answered.content_type, answered.headers)
    finally:
        writer.close()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer, max_body: int) -> None:
    asked = msgspec.json.decode(await _head(reader), type=_Asked)
    if not 0 <= asked.body <= max_body:
        raise ValueError("the request is too long to be taken")
    body = await reader.readexactly(asked.body)

    async def read_body(limit: int) -> bytes:
        if len(body) > limit:
            raise BodyTooLarge
        return body

    response = await answer(
        Incoming(
            method=asked.method,
            target=asked.path,
            headers=asked.headers,
            read_body=read_body,
            certificate_name=asked.certificate_name,
            peer=asked.peer,
            relayed=True,
        )
    )
    head = _Answered(response.status, response.content_type, dict(response.headers), len(response.body))
    await _send(writer, msgspec.json.encode(head), response.body)


async def _head(reader: asyncio.StreamReader) -> bytes:
    length = int.from_bytes(await reader.readexactly(_LENGTH), "big")
    if length > MAX_HEAD:
        raise ValueError("the head is too long")
    return await reader.readexactly(length)


async def _send(writer: asyncio.StreamWriter, head: bytes, body: bytes) -> None:
    writer.write(len(head).to_bytes(_LENGTH, "big") + head)
    writer.write(body)
    await writer.drain()
