"""The outbox: notices that are to be delivered, as rows that were committed with the change of trust they tell of."""

import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from limeguard.store.database import Database
from limeguard.store.schema_verifier import nodes, notices


@dataclass(frozen=True, slots=True)
class Notice:
    """What is to be told of a node: JSON text, over a channel."""

    channel: str
    agent_id: str
    message: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """A row: a notice, how often its delivery was tried, and the PEM key that signs it (empty for none)."""

    id: int
    notice: Notice
    attempts: int
    signing_key: str = field(repr=False)


# Made once: to build such a statement takes longer than to execute it.
_KEY: Final = sa.select(nodes.c.revocation_key).where(nodes.c.agent_id == sa.bindparam("agent_id")).scalar_subquery()
_INSERT: Final = notices.insert().values(
    verifier_id=sa.bindparam("verifier_id"),
    channel=sa.bindparam("channel"),
    agent_id=sa.bindparam("agent_id"),
    message=sa.bindparam("message"),
    signing_key=sa.func.coalesce(_KEY, ""),
    attempts=0,
    next_at=0.0,
    created_at=sa.bindparam("created_at"),
)
_THESE: Final = notices.c.id.in_(sa.bindparam("ids", expanding=True))
_CLAIM: Final = notices.update().where(_THESE).values(next_at=sa.bindparam("until"))
_FORGET: Final = notices.delete().where(_THESE)


async def insert_notices(connection: AsyncConnection, verifier_id: str, batch: Sequence[Notice]) -> None:
    """Add notices in a running transaction; each keeps the key of its node, which may be deleted before delivery."""
    about = {"verifier_id": verifier_id, "created_at": time.time()}
    await connection.execute(_INSERT, [{**asdict(one), **about} for one in batch])


class Outbox:
    """The notices of one verifier. Every method may raise StoreUnavailable."""

    def __init__(self, database: Database, verifier_id: str, channels: Collection[str] | None = None) -> None:
        """Work on the rows of `verifier_id`, or on those for `channels` alone."""
        self._channels = channels
        self._database = database
        self._verifier_id = verifier_id

    async def claim(
        self, now: float, until: float, limit: int, *, only: str = "", without: Sequence[str] = ()
    ) -> list[Waiting]:
        """Return notices that are due, oldest first; nobody else gets them before `until`.

        Those of the channel `only`, if one is named, and none of the channels `without`.
        """
        table = notices.c
        query = (
            sa.select(table.id, table.channel, table.agent_id, table.message, table.attempts, table.signing_key)
            .where(table.verifier_id == self._verifier_id, table.next_at <= now)
            .where(table.channel == only if only else table.channel.not_in(without))
            .order_by(table.id)
            .limit(limit)
        )
        if self._channels is not None:
            query = query.where(table.channel.in_(sorted(self._channels)))
        async with self._database.reading() as connection:
            if (await connection.execute(query.limit(1))).first() is None:
                return []
        async with self._database.transaction() as connection:
            rows = (await connection.execute(query.with_for_update(skip_locked=True))).all()
            if rows:
                await connection.execute(_CLAIM, {"ids": [row.id for row in rows], "until": until})
        return [
            Waiting(row.id, Notice(row.channel, row.agent_id, row.message), row.attempts, row.signing_key)
            for row in rows
        ]

    async def delivered(self, waiting: Sequence[Waiting]) -> None:
        """Forget notices."""
        async with self._database.transaction() as connection:
            await connection.execute(_FORGET, {"ids": [one.id for one in waiting]})

    async def depth(self) -> int:
        """Return how many notices there are that will be tried again."""
        count = sa.select(sa.func.count()).select_from(notices)
        mine = count.where(notices.c.verifier_id == self._verifier_id, notices.c.next_at.is_not(None))
        async with self._database.reading() as connection:
            return int((await connection.execute(mine)).scalar_one())

    async def failed(self, waiting: Waiting, next_at: float | None) -> None:
        """Note a try that failed; without another one the row stays for people to look at."""
        changed = notices.update().where(notices.c.id == waiting.id)
        async with self._database.transaction() as connection:
            await connection.execute(changed.values(attempts=waiting.attempts + 1, next_at=next_at))
