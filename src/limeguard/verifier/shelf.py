"""Policies of one kind by name: stored as texts, shared by nodes, and compiled once for each text.

Decides which compiled policy a name stands for now. Must not know what a policy says, nor whether an upload may be
stored.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final, Generic, Protocol, TypeVar

from limeguard.policy.errors import PolicyError
from limeguard.store.database import Conflict, StoreUnavailable
from limeguard.telemetry import clean, get_logger

log = get_logger("keylime.verifier")

REFRESH_SECONDS: Final = 30.0
"""How often texts and table are compared, should it ever have been missed that another process replaced one."""


class StoredText(Protocol):
    """One row: a name, and the checksum of the text under it."""

    @property
    def name(self) -> str:
        """The policy's name."""
        ...

    @property
    def checksum(self) -> str:
        """SHA-256 of its text, hex."""
        ...


RowT = TypeVar("RowT", bound=StoredText)
CompiledT = TypeVar("CompiledT")


class PolicyRows(Protocol[RowT]):
    """What a shelf needs of the store."""

    async def names(self) -> tuple[str, ...]:
        """Return all names."""
        ...

    async def checksums(self) -> dict[str, str]:
        """Return the checksum of each text by name."""
        ...

    async def get(self, name: str, /) -> RowT | None:
        """Return one row."""
        ...

    async def add(self, policy: RowT, /) -> None:
        """Insert. Raises Conflict."""
        ...

    async def replace(self, policy: RowT, /) -> bool:
        """Replace; False when there is none."""
        ...

    async def delete(self, name: str, /) -> str | bool:
        """Delete: True, False when there is none, the id of a node that uses it."""
        ...


class Shelf(Generic[RowT, CompiledT]):
    """Compiled policies by name. Nodes with the same text share one object, however many names it has."""

    def __init__(self, rows: PolicyRows[RowT], compile_row: Callable[[RowT], CompiledT], kind: str) -> None:
        """Keep what `rows` hold. `compile_row` raises PolicyError; `kind` is what the log calls such a policy."""
        self._rows = rows
        self._compile = compile_row
        self._kind = kind
        self._checksums: dict[str, str] = {}
        self._compiled: dict[str, CompiledT] = {}
        self._missing: frozenset[str] = frozenset()
        self.changed: Callable[[str], object] = lambda _name: None
        """Hears the name of each policy that somebody else has replaced."""

    def current(self, name: str) -> CompiledT | None:
        """Return what the name stands for now; None when it cannot be used, which no node may pass with."""
        return self._compiled.get(self._checksums.get(name, ""))

    async def names(self) -> tuple[str, ...]:
        """Return the names of all stored policies."""
        return await self._rows.names()

    async def get(self, name: str) -> RowT | None:
        """Return one stored policy."""
        return await self._rows.get(name)

    async def add_row(self, row: RowT, policy: CompiledT) -> None:
        """Store a new policy. Raises Conflict."""
        await self._rows.add(row)
        self._put(row, policy)

    async def replace_row(self, row: RowT, policy: CompiledT) -> bool:
        """Replace a policy; nodes are judged by the new one from their next answer on. False when there is none."""
        if not await self._rows.replace(row):
            return False
        self._put(row, policy)
        return True

    async def put_row(self, row: RowT, policy: CompiledT) -> None:
        """Store a policy whether or not the name is taken."""
        if not await self.replace_row(row, policy):
            try:
                await self.add_row(row, policy)
            except Conflict:  # stored by somebody else in between
                await self.replace_row(row, policy)

    async def delete(self, name: str) -> str | bool:
        """Delete a policy that no node uses; see PolicyRows."""
        outcome = await self._rows.delete(name)
        if outcome is True:
            self._checksums.pop(name, None)
            self._sweep()
        return outcome

    async def load(self, names: Iterable[str]) -> None:
        """Have these policies ready. One that cannot be used is named in the log."""
        for name in names:
            if name not in self._checksums:
                await self._load(name)

    async def fetch(self, name: str) -> RowT | None:
        """Return one stored policy as it is now, and have it ready."""
        return await self._load(name)

    async def run(self) -> None:
        """Follow changes that other processes make, until cancelled."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await self.refresh()
            except StoreUnavailable as problem:
                log.debug("Policies cannot be refreshed: %s", clean(problem))

    async def refresh(self) -> None:
        """Read policies again whose text changed in the table, and forget those that are gone from it."""
        if not self._checksums:
            return  # nothing is held that could have changed
        stored = await self._rows.checksums()
        for name in [name for name, checksum in self._checksums.items() if stored.get(name, checksum) != checksum]:
            await self._load(name)
            self.changed(name)
        # Missing twice in a row: one that was stored while the table was being read is only missing once.
        missing = frozenset(self._checksums.keys() - stored.keys())
        for name in missing & self._missing:
            self._checksums.pop(name, None)
        self._missing = missing
        self._sweep()

    async def _load(self, name: str) -> RowT | None:
        row = await self._rows.get(name)
        if row is None:
            return None
        try:
            policy = self._compiled.get(row.checksum)
            if policy is None:
                policy = await asyncio.to_thread(self._compile, row)
        except PolicyError as problem:
            log.error("%s %s cannot be used: %s", self._kind, clean(name), clean(problem))  # noqa: TRY400
            self._checksums.pop(name, None)
            return row
        self._put(row, policy)
        return row

    def _put(self, row: RowT, policy: CompiledT) -> None:
        self._missing -= {row.name}
        self._checksums[row.name] = row.checksum
        self._compiled.setdefault(row.checksum, policy)
        self._sweep()

    def _sweep(self) -> None:
        used = set(self._checksums.values())
        self._compiled = {checksum: policy for checksum, policy in self._compiled.items() if checksum in used}
