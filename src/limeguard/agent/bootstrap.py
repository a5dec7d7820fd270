"""The payload key from its halves to a processed payload, one payload after another; K is kept for the tenant's check.

Decides whether a payload may be processed at all. Which halves fit is `shares`, what is done with a payload `payload`.
"""

import asyncio

from limeguard.agent.notices import NoticeHandler
from limeguard.agent.payload import PayloadProcessor, PayloadRefused
from limeguard.agent.shares import Combined, HalfU, KeyHalves
from limeguard.telemetry import clean, get_logger

log = get_logger("keylime_agent.payloads")

MAX_QUEUED = 4
"""Payloads or notices that wait while another is worked on; more are dropped with a warning."""


class Bootstrap:
    """U and V in, K and a processed payload out. K lives in memory: a restarted agent has none."""

    def __init__(self, halves: KeyHalves, processor: PayloadProcessor | None, notices: NoticeHandler) -> None:
        """`processor` None: payloads are refused, because nobody proves who sends them."""
        self._halves = halves
        self._processor = processor
        self._notices = notices
        self._key: bytes | None = None
        self._queue: asyncio.Queue[Combined] = asyncio.Queue(MAX_QUEUED)

    @property
    def key(self) -> bytes | None:
        """Return K once a pair of halves was found right."""
        return self._key

    def take_u(self, half: HalfU) -> None:
        """Take the tenant's half."""
        self._taken(self._halves.add_u(half))

    def take_v(self, share: bytes) -> None:
        """Take the verifier's half."""
        self._taken(self._halves.add_v(share))

    def _taken(self, combined: Combined | None) -> None:
        if combined is None:
            u, v = self._halves.waiting
            if u and v:
                log.warning("No pair of the waiting halves of the payload key fits (%d U, %d V)", u, v)
            return
        log.info("Successfully derived the payload key")
        self._key = combined.key
        if combined.payload is None:
            return
        try:
            self._queue.put_nowait(combined)
        except asyncio.QueueFull:
            log.warning("A payload was dropped: %d others wait", MAX_QUEUED)

    async def work(self) -> None:
        """Process payloads for ever, one after another."""
        while True:
            await self._process(await self._queue.get())

    async def _process(self, combined: Combined) -> None:
        if self._processor is None:
            log.warning("A payload was refused: agent mTLS is off and enable_insecure_payload is not set")
            return
        try:
            await self._processor.process(combined)
        except (PayloadRefused, OSError) as problem:
            log.error("The payload was not processed (further): %s", clean(problem))  # noqa: TRY400 - a sentence, no traceback
        else:
            log.info("Payload processed")
        self._notices.learn_certificate()


class NoticeQueue:
    """Notices that wait to be acted on."""

    def __init__(self, handler: NoticeHandler) -> None:
        """Work off notices with `handler`."""
        self._handler = handler
        self._queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue(MAX_QUEUED)

    def take(self, message: str, signature: str) -> None:
        """Take one notice; it is judged later."""
        try:
            self._queue.put_nowait((message, signature))
        except asyncio.QueueFull:
            log.warning("A revocation notice was dropped: %d others wait", MAX_QUEUED)

    async def work(self) -> None:
        """Act on notices for ever, one after another."""
        while True:
            await self._handler.handle(*await self._queue.get())
