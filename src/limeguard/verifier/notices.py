"""Notices on their way out: taken from the outbox, delivered over each channel, tried again, given up in the end.

Delivery is at least once: a row goes when its notice has arrived. Nothing here changes what is known of a node.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from limeguard.clients.agent import AgentClient, AgentRefused
from limeguard.store.database import StoreUnavailable
from limeguard.store.notices import Notice, Waiting
from limeguard.telemetry import clean, get_logger
from limeguard.verifier.addressees import Addressee
from limeguard.web.answers import Requester, Unreachable
from limeguard.wire import agent_v2
from limeguard.wire.notice import NoticeKeyError, transport

log = get_logger("keylime.revocation_notifier")

AGENT: Final = "agent"
WEBHOOK: Final = "webhook"
ZEROMQ: Final = "zeromq"
OTHERS: Final = ""
"""The lane of notices whose channel is not enabled any more."""
BATCH: Final = 50
IDLE_SECONDS: Final = 5.0
"""Seconds between two looks at the outbox when nobody says that there is something in it."""
LOOK_SECONDS: Final = 0.25
"""Between two looks at the least: when many nodes fail one after the other, their notices are taken together."""
CLAIM_SECONDS: Final = 120.0
"""Nobody else delivers a notice for so long; a verifier that died in between leaves it to the next."""
FAN_OUT: Final = 32
"""Agents that are told at a time: one node that fails must not open a thousand connections at once."""
MOST_TOLD: Final = 500.0
LEAST_TOLD: Final = 50.0
TOLD_FOR_ROUNDS: Final = 0.5
"""Messages to agents in a second, and how many there may be for each round of the fleet within these bounds. When many
nodes fail, all others are to be told of each of them; at this pace that takes less CPU than the rounds do."""
FAN_OUT_SECONDS: Final = 60.0
"""How long telling all agents should take at that pace: it decides how many notices go out together."""
TELL_SECONDS: Final = 10.0
"""An agent that does not take a message for so long is left out."""
MAX_PAUSE: Final = 600.0
MAX_ATTEMPTS: Final = 30
"""After these a notice is given up and stays in the table for people to look at: with the pauses, about four hours."""
MAX_SHOWN: Final = 5
PACE_SECONDS: Final = 0.05
"""What was not sent in the last moments may be sent now: fewer wake-ups than one for each message."""
DONE: Final = frozenset({200, 202})
HEADERS: Final = {"Content-Type": "application/json"}


class NotDelivered(Exception):  # noqa: N818 - a fact about a try
    """A try that failed and may be repeated; the text says why."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many notices a channel takes together, and the seconds after which they are somebody else's again."""

    notices: int = BATCH
    seconds: float = CLAIM_SECONDS


class Channel(Protocol):
    """A way to tell others."""

    async def send(self, notice: Notice, body: bytes, /) -> None:
        """Deliver. Raises NotDelivered."""
        ...

    async def bounds(self) -> Bounds:
        """Return how much is to be sent at a time now."""
        return Bounds()


class Box(Protocol):
    """What the dispatcher needs of the outbox."""

    async def claim(
        self, now: float, until: float, limit: int, /, *, only: str = "", without: Sequence[str] = ()
    ) -> list[Waiting]:
        """Return notices that are due, of one channel or of all but some."""
        ...

    async def delivered(self, waiting: Sequence[Waiting], /) -> None:
        """Forget them."""
        ...

    async def depth(self) -> int:
        """Return how many there are."""
        ...

    async def failed(self, waiting: Waiting, next_at: float | None, /) -> None:
        """Note a failed try."""
        ...


class Webhook(Channel):
    """Posts notices to a URL."""

    def __init__(self, http: Requester, url: str) -> None:
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


@dataclass(slots=True, eq=False)
class _Gathered:
    """A notice that waits to go out with others."""

    notice: Notice
    body: bytes
    told: bool = False


class Agents(Channel):
    """Tells the agents of all other nodes, each once: a node that is away now hears of it no more.

    Notices that come while others go out are gathered, and each agent then gets them one after the other over one
    connection. Never are more than `FAN_OUT` agents told at a time, and messages go out at a pace, however many fail.
    """

    def __init__(
        self,
        agents: AgentClient,
        fleet: Callable[[], Awaitable[Sequence[Addressee]]],
        *,
        interval: float = 0.0,
        pace: float | None = None,
    ) -> None:
        """Tell those whom `fleet` returns, who are asked every `interval` seconds; `pace` is messages in a second."""
        self._agents, self._fleet, self._interval, self._fixed_pace = agents, fleet, interval, pace
        self._pace = pace or LEAST_TOLD
        self._gathered: list[_Gathered] = []
        self._lock = asyncio.Lock()
        self._free_at = 0.0

    async def bounds(self) -> Bounds:
        """Return as many notices as all agents can be told of in a minute. Raises StoreUnavailable."""
        fleet = max(len(await self._fleet()), 1)
        self._pace = self._fixed_pace or pace_for(fleet, self._interval)
        notices = max(1, min(BATCH, int(self._pace * FAN_OUT_SECONDS / fleet)))
        return Bounds(notices, max(CLAIM_SECONDS, 3 * notices * fleet / self._pace))

    async def send(self, notice: Notice, body: bytes) -> None:
        """Deliver to whom can be reached, together with all else that waits for it."""
        mine = _Gathered(notice, body)
        self._gathered.append(mine)
        await asyncio.sleep(0)
        async with self._lock:  # whoever comes first sends for all
            if mine in self._gathered:
                batch, self._gathered = self._gathered, []
                await self._tell_all([(one.notice, one.body) for one in batch])
                for one in batch:
                    one.told = True
        if not mine.told:
            raise NotDelivered("the attempt was given up")

    async def _tell_all(self, batch: list[tuple[Notice, bytes]]) -> None:
        try:
            recipients = await self._fleet()
        except StoreUnavailable as problem:
            raise NotDelivered(f"it is not known whom to tell: {clean(problem)}") from None
        left = iter(recipients)

        async def tell() -> None:
            for one in left:
                await self._tell(one, [body for notice, body in batch if notice.agent_id != one.agent_id])

        seconds = FAN_OUT_SECONDS + 2 * len(recipients) * len(batch) / self._pace
        try:
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
                for _ in range(FAN_OUT):
                    group.create_task(tell())
        except TimeoutError:
            about = ", ".join(clean(notice.agent_id) for notice, _ in batch[:MAX_SHOWN])
            log.warning("Not all agents could be told of %d notice(s) in time (%s)", len(batch), about)

    async def _tell(self, one: Addressee, bodies: list[bytes]) -> None:
        """Send one message after the other; an agent that does not take one gets no more of them."""
        try:
            for body in bodies:
                await self._turn()
                async with asyncio.timeout(TELL_SECONDS):
                    await self._agents.notify(one.address, one.version, body)
        except (Unreachable, AgentRefused, agent_v2.BadAnswer, TimeoutError) as problem:
            shown = clean(problem) or f"no answer within {TELL_SECONDS:.0f} s"
            log.warning("Agent %s was not told of a revocation: %s", clean(one.agent_id), shown)

    async def _turn(self) -> None:
        """Wait until the pace allows one more message."""
        now = asyncio.get_running_loop().time()
        at = max(self._free_at, now - PACE_SECONDS)
        self._free_at = at + 1.0 / self._pace
        if at > now:
            await asyncio.sleep(at - now)


def pace_for(fleet: int, interval: float) -> float:
    """Return the messages in a second that a fleet of that size may take beside its rounds."""
    return min(MOST_TOLD, max(LEAST_TOLD, TOLD_FOR_ROUNDS * fleet / interval if interval else MOST_TOLD))


@dataclass(slots=True)
class _Lane:
    """What wakes the delivery over one channel, and when something is to be tried again there."""

    wake: asyncio.Event = field(default_factory=asyncio.Event)
    again_at: float | None = None


class Dispatcher:
    """Delivers what is in the outbox until it is cancelled."""

    def __init__(
        self, box: Box, channels: dict[str, Channel], *, pause: float = 1.0, now: Callable[[], float] = time.time
    ) -> None:
        """Deliver over `channels`; `pause` is the first pause in seconds after a failed try, and doubles."""
        self._box, self._channels, self._pause, self._now = box, channels, pause, now
        self._lanes = {name: _Lane() for name in (*channels, OTHERS)}
        self._counted_at = -IDLE_SECONDS
        self.waiting = 0
        self.delivered = 0
        self.failed = 0
        self.given_up = 0

    def wake(self) -> None:
        """Look now: something was put into the outbox."""
        for name, lane in self._lanes.items():
            if name != OTHERS:
                lane.wake.set()

    async def run(self) -> None:
        """Deliver until cancelled; no channel waits for another."""
        async with asyncio.TaskGroup() as group:
            for name, lane in self._lanes.items():
                group.create_task(self._run(name, lane))

    async def _run(self, name: str, lane: "_Lane") -> None:
        while True:
            lane.wake.clear()
            try:
                full = await self._round(name)
            except StoreUnavailable as problem:
                log.error("Notices cannot be read now: %s", clean(problem))  # noqa: TRY400
                full = False
            except Exception:
                log.exception("Error while delivering notices")
                full = False
            if not full:
                await asyncio.sleep(LOOK_SECONDS)
                await self._wait(lane)

    async def _wait(self, lane: "_Lane") -> None:
        due = IDLE_SECONDS if lane.again_at is None else lane.again_at - self._now()
        lane.again_at = None
        try:
            async with asyncio.timeout(min(max(due, 0.0), IDLE_SECONDS)):
                await lane.wake.wait()
        except TimeoutError:
            return

    async def _round(self, name: str) -> bool:
        """Deliver what is due over one channel; say whether there may be more."""
        now, channel = self._now(), self._channels.get(name)
        bounds = Bounds() if channel is None else await channel.bounds()
        only, without = ("", tuple(self._channels)) if channel is None else (name, ())
        due = await self._box.claim(now, now + bounds.seconds, bounds.notices, only=only, without=without)
        if channel is None and now >= self._counted_at + IDLE_SECONDS:
            self._counted_at = now
            self.waiting = await self._box.depth()
        bodies = await asyncio.gather(*(self._body(waiting) for waiting in due))
        arrived = await asyncio.gather(*map(self._deliver, due, bodies))
        gone = [waiting for waiting, there in zip(due, arrived, strict=True) if there]
        if gone:
            self.delivered += len(gone)
            await self._box.delivered(gone)
        return len(due) == bounds.notices

    async def _deliver(self, waiting: Waiting, body: bytes) -> bool:
        """Send one notice; say whether it arrived."""
        notice = waiting.notice
        channel = self._channels.get(notice.channel)
        if channel is None:
            await self._again(waiting, NotDelivered("the channel is not enabled any more"))
            return False
        try:
            await channel.send(notice, body)
        except NotDelivered as problem:
            await self._again(waiting, problem)
            return False
        return True

    async def _body(self, waiting: Waiting) -> bytes:
        if not waiting.signing_key:
            return transport(waiting.notice.message, "")
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
        at, lane = self._now() + pause, self._lanes[channel if channel in self._channels else OTHERS]
        lane.again_at = at if lane.again_at is None else min(at, lane.again_at)
        await self._box.failed(waiting, at)
