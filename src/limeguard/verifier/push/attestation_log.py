"""Completed attestations on their way into the database, and which of them are kept for people to look at.

Kept are the first that passed after each boot, those that failed, and at the end of this process the latest; until then
the latest is in memory, with its node. Nothing is decided by these records, and none is written while a node goes on
being as it was: what a crash loses of them is what was seen in the last seconds, never a verdict.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Final, Protocol

from limeguard.store.attestations import AttestationRow
from limeguard.store.database import Conflict, StoreUnavailable
from limeguard.telemetry import clean, get_logger
from limeguard.verifier.fleet import Node
from limeguard.verifier.push.attestation import Attestation
from limeguard.wire.attestation_v3 import encode_attributes
from limeguard.wire.verifier_v3 import PASS

log = get_logger("keylime.verifier")

GATHER_SECONDS: Final = 2.0
"""Records wait so long for company."""
MAX_WAITING: Final = 20_000
"""Records that wait while the database is away; the oldest are given up then."""
LOOK_EVERY: Final = 16
"""Records of one node after which it is looked whether too many of them are kept."""


class Rows(Protocol):
    """What is needed of the store. Every method may raise StoreUnavailable."""

    async def write(self, rows: list[AttestationRow], crowded: list[str], /) -> None:
        """Write rows, and forget the oldest of crowded nodes."""
        ...

    async def list(self, agent_id: str, /) -> list[AttestationRow]:
        """Return what is kept of a node."""
        ...


class AttestationLog:
    """The records of all nodes that push."""

    def __init__(self, rows: Rows) -> None:
        """Write to `rows`."""
        self._rows = rows
        self._waiting: dict[tuple[str, int], AttestationRow] = {}
        self._written: Counter[str] = Counter()
        self._lock = asyncio.Lock()

    def add(self, agent_id: str, done: Attestation, before: Attestation | None) -> None:
        """Take a completed attestation, unless it says only what the one before it said."""
        if before is not None and before.evaluation == PASS:
            if done.evaluation != PASS:
                self.keep(agent_id, before)  # the last that was good before something happened
            elif before.boot_time == done.boot_time:
                return
        self.keep(agent_id, done)

    def keep(self, agent_id: str, done: Attestation) -> None:
        """Have a completed attestation written."""
        if len(self._waiting) >= MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]
        attributes = encode_attributes(done.view).decode()
        row = AttestationRow(agent_id, done.number, done.evaluation == PASS, attributes, done.completed_at or 0.0)
        self._waiting[agent_id, done.number] = row

    def keep_latest(self, nodes: Iterable[Node]) -> None:
        """Have the latest attestation of each node written that has a verdict: this process gives the nodes up."""
        for node in nodes:
            latest = node.attestation
            if latest is not None and not latest.done:
                latest = latest.before
            if latest is not None:
                self.keep(node.agent_id, latest)

    async def of(self, agent_id: str) -> list[tuple[int, bytes]]:
        """Return number and attributes of what is kept of a node, oldest first. Raises StoreUnavailable."""
        found = {row.number: row.attributes.encode() for row in await self._rows.list(agent_id)}
        for (whose, number), row in self._waiting.items():
            if whose == agent_id:
                found[number] = row.attributes.encode()
        return sorted(found.items())

    async def forget(self, agent_id: str) -> None:
        """Write nothing more of a node; what was written goes with its row."""
        async with self._lock:
            for key in [key for key in self._waiting if key[0] == agent_id]:
                del self._waiting[key]
            self._written.pop(agent_id, None)

    async def run(self) -> None:
        """Write until cancelled; what cannot be written is tried again."""
        while True:
            await asyncio.sleep(GATHER_SECONDS)
            try:
                await self.flush()
            except (StoreUnavailable, Conflict) as problem:
                log.warning("Records of attestations cannot be written now: %s", clean(problem))
            except Exception:
                log.exception("Error while writing records of attestations")

    async def flush(self) -> None:
        """Write what waits. Raises StoreUnavailable; nothing is lost then."""
        async with self._lock:
            batch = dict(self._waiting)
            if not batch:
                return
            counts = self._written + Counter(agent_id for agent_id, _ in batch)
            crowded = [agent_id for agent_id, count in counts.items() if count >= LOOK_EVERY]
            await self._rows.write(list(batch.values()), crowded)
            self._written = Counter({name: count for name, count in counts.items() if count < LOOK_EVERY})
            for key, row in batch.items():
                if self._waiting.get(key) is row:
                    del self._waiting[key]
