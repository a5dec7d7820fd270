"""Notices on their way out: taken from the outbox, delivered over each channel, tried again, given up in the end.

Delivery is at least once: a row goes when its notice has arrived. Nothing here changes what is known of a node.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from limeguard.clients.agent import AgentClient, AgentRefused
from limeguard.store.database import StoreUnavailable
from limeguard.store.notices import Notice, Waiting
from limeguard.telemetry import clean, get_logger
from limeguard.verifier.fleet import Node
from limeguard.web.client import HttpClient, Unreachable
from limeguard.wire import agent_v2
from limeguard.wire.notice import NoticeKeyError, transport

log = get_logger("keylime.revocation_notifier")

AGENT: Final = "agent"
WEBHOOK: Final = "webhook"
ZEROMQ: Final = "zeromq"
BATCH: Final = 50
IDLE_SECONDS: Final = 5.0
"""Seconds between two looks at the outbox when nobody says that there is something in it."""
CLAIM_SECONDS: Final = 120.0
"""Nobody else delivers a notice for so long; a verifier that died in between leaves it to the next."""
FAN_OUT: Final = 32
"""Agents that are told at a time: one node that fails must not open a thousand connections at once."""
FAN_OUT_SECONDS: Final = 60.0
MAX_PAUSE: Final = 600.0
MAX_ATTEMPTS: Final = 30
"""After these a notice is given up and stays in the table for people to look at: with the pauses, about four hours."""
DONE: Final = frozenset({200, 202})
HEADERS: Final = {"Content-Type": "application/json"}


class NotDelivered(Exception):  # noqa: N818 - a fact about a try
    """A try that failed and may be repeated; the text says why."""


class Channel(Protocol):
    """A way to tell others."""

    async def send(self, notice: Notice, body: bytes, /) -> None:
        """Deliver. Raises NotDelivered."""
        ...


class Box(Protocol):
    """What the dispatcher needs of the outbox."""

    async def claim(self, now: float, until: float, limit: int, /) -> list[Waiting]:
        """Return notices that are due."""
        ...

    async def delivered(self, waiting: Waiting, /) -> None:
        """Forget one."""
        ...

    async def failed(self, waiting: Waiting, next_at: float | None, /) -> None:
        """Note a failed try."""
        ...


class Webhook:
    """Posts notices to a URL."""

    def __init__(self, http: HttpClient, url: str) -> None:
        """Post to `url`."""
        self._http, self._url = http, url

    async def send(self, _notice: Notice, body: bytes) -> None:
        """Deliver. Raises NotDelivered."""
        log.info("Sending revocation event via webhook to %s ...", clean(self._url))
        try:
            answer = await self._http.request("POST", self._url, body=body, headers=HEADERS)
        except Unreachable as problem:
            raise NotDelivered(f"Error in webhook worker: {clean(problem.reason)}") from None
        if answer.status not in DONE:
            raise NotDelivered(f"The webhook answered {answer.status}")


class Agents:
    """Tells the agents of all other nodes, each once: a node that is away now hears of it no more."""

    def __init__(self, agents: AgentClient, fleet: Callable[[], Iterable[Node]]) -> None:
        """Tell those whom `fleet` returns."""
        self._agents, self._fleet = agents, fleet

    async def send(self, notice: Notice, body: bytes) -> None:
        """Deliver to whom can be reached within a minute."""
        others = iter([node for node in self._fleet() if _is_told(node, notice)])

        async def tell() -> None:
            for node in others:
                await self._tell(node, body)

        try:
            async with asyncio.timeout(FAN_OUT_SECONDS), asyncio.TaskGroup() as group:
                for _ in range(FAN_OUT):
                    group.create_task(tell())
        except TimeoutError:
            log.warning("Not all agents could be told of %s in time", clean(notice.agent_id))

    async def _tell(self, node: Node, body: bytes) -> None:
        try:
            await self._agents.notify(node.address, node.state.supported_version, body)
        except (Unreachable, AgentRefused, agent_v2.BadAnswer) as problem:
            log.warning("Agent %s was not told of a revocation: %s", clean(node.agent_id), clean(problem))


def _is_told(node: Node, notice: Notice) -> bool:
    """Say whether a node has an agent that listens, and another one than the notice is about."""
    return node.agent_id != notice.agent_id and not node.record.enrolled.push


class Dispatcher:
    """Delivers what is in the outbox until it is cancelled."""

    def __init__(
        self, box: Box, channels: dict[str, Channel], *, pause: float = 1.0, now: Callable[[], float] = time.time
    ) -> None:
        """Deliver over `channels`; `pause` is the first pause in seconds after a failed try, and doubles."""
        self._box, self._channels, self._pause, self._now = box, channels, pause, now
        self._wake = asyncio.Event()
        self._again_at: float | None = None
        self.delivered = 0
        self.failed = 0
        self.given_up = 0

    def wake(self) -> None:
        """Look now: something was put into the outbox."""
        self._wake.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            self._wake.clear()
            try:
                full = await self._round()
            except StoreUnavailable as problem:
                log.error("Notices cannot be read now: %s", clean(problem))  # noqa: TRY400
                full = False
            except Exception:
                log.exception("Error while delivering notices")
                full = False
            if not full:
                await self._wait()

    async def _wait(self) -> None:
        due = IDLE_SECONDS if self._again_at is None else self._again_at - self._now()
        self._again_at = None
        try:
            async with asyncio.timeout(min(max(due, 0.0), IDLE_SECONDS)):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _round(self) -> bool:
        """Deliver what is due; say whether there may be more."""
        now = self._now()
        due = await self._box.claim(now, now + CLAIM_SECONDS, BATCH)
        await asyncio.gather(*(self._deliver(waiting) for waiting in due))
        return len(due) == BATCH

    async def _deliver(self, waiting: Waiting) -> None:
        notice = waiting.notice
        channel = self._channels.get(notice.channel)
        if channel is None:
            await self._again(waiting, NotDelivered("the channel is not enabled any more"))
            return
        try:
            await channel.send(notice, await self._body(waiting))
        except NotDelivered as problem:
            await self._again(waiting, problem)
        else:
            self.delivered += 1
            await self._box.delivered(waiting)

    async def _body(self, waiting: Waiting) -> bytes:
        try:
            return await asyncio.to_thread(transport, waiting.notice.message, waiting.signing_key)
        except NoticeKeyError as problem:
            log.error("The notice about %s goes out unsigned: %s", clean(waiting.notice.agent_id), problem)  # noqa: TRY400
            return transport(waiting.notice.message, "")

    async def _again(self, waiting: Waiting, problem: NotDelivered) -> None:
        about, channel = clean(waiting.notice.agent_id), waiting.notice.channel
        self.failed += 1
        if waiting.attempts + 1 >= MAX_ATTEMPTS:
            self.given_up += 1
            log.error("The notice about %s over %s is given up: %s", about, channel, problem)
            await self._box.failed(waiting, None)
            return
        pause = min(self._pause * 2.0 ** min(waiting.attempts, 20), MAX_PAUSE)
        log.error("The notice about %s over %s is tried again in %.0f s: %s", about, channel, pause, problem)
        at = self._now() + pause
        self._again_at = at if self._again_at is None else min(at, self._again_at)
        await self._box.failed(waiting, at)
