"""Sessions of agents that push: challenges that wait for their answer, and tokens, of which only a digest is kept.

One row is one session, on every worker and after every restart. Knows rows and SQL; must not know what a proof is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from limeguard.store.database import Database
from limeguard.store.group_insert import GroupInsert
from limeguard.store.group_write import GroupWrite
from limeguard.store.schema_verifier import sessions


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSession:
    """One row. Times are seconds since 1970.

    `challenge` is None once it was answered well; `token_sha256`, `enrolled_at` (of the node whose key was proven) and
    `reset_count` (of its TPM) are None before. `expires_at` is that of the challenge, later that of the token.
    """

    session_id: str
    agent_id: str
    created_at: float
    expires_at: float
    challenge: bytes | None = None
    token_sha256: bytes | None = field(default=None, repr=False)
    enrolled_at: float | None = None
    reset_count: int | None = None


class SessionRows:
    """The sessions of one verifier id. Every method may raise StoreUnavailable."""

    def __init__(self, database: Database, verifier_id: str) -> None:
        """Work on rows of `verifier_id`."""
        self._database = database
        self._verifier_id = verifier_id
        self._inserts = GroupInsert(database, sessions)
        self._writes = GroupWrite(database)

    async def add(self, session: StoredSession) -> None:
        """Insert a session that waits for its proof."""
        await self._inserts.add(
            {
                "session_id": session.session_id,
                "verifier_id": self._verifier_id,
                "agent_id": session.agent_id,
                "challenge": session.challenge,
                "created_at": session.created_at,
                "expires_at": session.expires_at,
            }
        )

    async def get(self, session_id: str) -> StoredSession | None:
        """Return one session."""
        query = sa.select(*_READ).where(*self._one(session_id))
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).mappings().first()
        return None if row is None else _session(row)

    async def activate(self, session: StoredSession) -> bool:
        """Exchange the challenge for the token, and drop the agent's other tokens; False when it was used already."""
        waiting = (*self._one(session.session_id), sessions.c.challenge.is_not(None))
        proven = sessions.update().where(*waiting)
        others = sessions.delete().where(
            sessions.c.verifier_id == self._verifier_id,
            sessions.c.agent_id == session.agent_id,
            sessions.c.session_id != session.session_id,
            sessions.c.challenge.is_(None),
        )
        values = {
            "challenge": None,
            "token_sha256": session.token_sha256,
            "enrolled_at": session.enrolled_at,
            "reset_count": session.reset_count,
            "expires_at": session.expires_at,
        }

        async def write(connection: AsyncConnection) -> bool:
            if (await connection.execute(proven.values(values))).rowcount != 1:
                return False
            await connection.execute(others)
            return True

        return await self._writes.run(write)

    async def drop(self, session_id: str) -> None:
        """Forget a session."""
        async with self._database.transaction() as connection:
            await connection.execute(sessions.delete().where(*self._one(session_id)))

    async def extend(self, until: Mapping[str, float]) -> frozenset[str]:
        """Let these tokens live until then; return the ids of sessions that are gone."""
        ids = list(until)
        async with self._database.transaction() as connection:
            query = sa.select(sessions.c.session_id).where(sessions.c.session_id.in_(ids)).order_by("session_id")
            found = list((await connection.execute(query.with_for_update())).scalars())
            if found:
                await connection.execute(_EXTEND, [{"b_session_id": one, "expires_at": until[one]} for one in found])
        return frozenset(ids) - frozenset(found)

    async def sweep(self, before: float) -> None:
        """Forget sessions that expired before then."""
        expired = (sessions.c.verifier_id == self._verifier_id, sessions.c.expires_at < before)
        async with self._database.transaction() as connection:
            await connection.execute(sessions.delete().where(*expired))

    def _one(self, session_id: str) -> Sequence[sa.ColumnElement[bool]]:
        return (sessions.c.session_id == session_id, sessions.c.verifier_id == self._verifier_id)


_EXTEND = (
    sessions.update()
    .where(sessions.c.session_id == sa.bindparam("b_session_id"), sessions.c.challenge.is_(None))
    .values(expires_at=sa.bindparam("expires_at"))
)
_READ = tuple(column for column in sessions.c if column.name != "verifier_id")


def _session(row: Mapping[Any, Any]) -> StoredSession:
    return StoredSession(**{column.name: row[column.name] for column in _READ})
