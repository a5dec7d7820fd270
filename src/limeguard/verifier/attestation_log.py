"""Completed attestations on their way into the database, and which of them are kept for people to look at.

Kept are the latest, the first that passed after each boot, and those that failed. Nothing is decided by these records:
what a crash loses of them is what was seen in the last seconds, never a verdict.
"""

import asyncio
from typing import Final, Protocol

from limeguard.store.attestations import AttestationRow
from limeguard.store.database import Conflict, StoreUnavailable
from limeguard.telemetry import clean, get_logger
from limeguard.verifier.attestation import Attestation
from limeguard.verifier.fleet import Node
from limeguard.wire.attestation_v3 import encode_attributes
from limeguard.wire.verifier_v3 import PASS

log = get_logger("keylime.verifier")

GATHER_SECONDS: Final = 5.0
"""Records wait so long for company: most passed ones are replaced by the next and never written."""
MAX_WAITING: Final = 20_000
"""Records that wait while the database is away; the oldest are given up then."""


class Rows(Protocol):
    """What is needed of the store. Every method may raise StoreUnavailable."""

    async def write(self, rows: list[AttestationRow], dropped: list[tuple[str, int]], /) -> None:
        """Write rows and forget others."""
        ...

    async def list(self, agent_id: str, /) -> list[AttestationRow]:
        """Return what is kept of a node."""
        ...


Key = tuple[str, int]


class AttestationLog:
    """The records of all nodes that push."""

    def __init__(self, rows: Rows) -> None:
        """Write to `rows`."""
        self._rows = rows
        self._waiting: dict[Key, AttestationRow] = {}
        self._dropped: list[Key] = []
        self._lock = asyncio.Lock()

    def add(self, node: Node, done: Attestation, before: Attestation | None) -> None:
        """Keep a completed attestation; forget the one `before` it when that only said the same."""
        agent_id = node.agent_id
        both_passed = before is not None and before.evaluation == done.evaluation == PASS
        done.first_of_boot = not both_passed or before is None or before.boot_time != done.boot_time
        if before is not None and both_passed and not before.first_of_boot:
            self._drop((agent_id, before.number))
        attributes = encode_attributes(done.view).decode()
        row = AttestationRow(agent_id, done.number, done.evaluation == PASS, attributes, done.completed_at or 0.0)
        if len(self._waiting) >= MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]
        self._waiting[agent_id, done.number] = row

    def _drop(self, key: Key) -> None:
        if self._waiting.pop(key, None) is None or self._lock.locked():
            self._dropped.append(key)  # it is written, or just being written

    async def of(self, agent_id: str) -> list[tuple[int, bytes]]:
        """Return number and attributes of what is kept of a node, oldest first. Raises StoreUnavailable."""
        found = {row.number: row.attributes.encode() for row in await self._rows.list(agent_id)}
        for (whose, number), row in self._waiting.items():
            if whose == agent_id:
                found[number] = row.attributes.encode()
        for whose, number in self._dropped:
            if whose == agent_id:
                found.pop(number, None)
        return sorted(found.items())

    async def forget(self, agent_id: str) -> None:
        """Write nothing more of a node; what was written goes with its row."""
        async with self._lock:
            for key in [key for key in self._waiting if key[0] == agent_id]:
                del self._waiting[key]
            self._dropped = [key for key in self._dropped if key[0] != agent_id]

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
            batch, dropped = dict(self._waiting), self._dropped
            if not batch and not dropped:
                return
            self._dropped = []
            try:
                await self._rows.write(list(batch.values()), dropped)
            except BaseException:
                self._dropped = dropped + self._dropped
                raise
            for key, waiting in batch.items():
                if self._waiting.get(key) is waiting:
                    del self._waiting[key]
