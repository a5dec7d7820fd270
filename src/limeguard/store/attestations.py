"""Attestations of nodes that push, as they are kept for people to look at. What decides is in the node's own row."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from limeguard.store.database import Database
from limeguard.store.schema_verifier import attestations, nodes

MAX_KEPT = 64
"""Failed attestations that are kept of a node, and as many passed ones: the newest, and up to a few more."""
_CHUNK = 200


@dataclass(frozen=True, slots=True)
class AttestationRow:
    """One completed attestation. `attributes` is JSON text as answers show it."""

    agent_id: str
    number: int
    passed: bool
    attributes: str
    completed_at: float


class Attestations:
    """The table of attestations. Every method may raise StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        """Work on this database."""
        self._database = database

    async def write(self, rows: Sequence[AttestationRow], crowded: Sequence[str] = ()) -> None:
        """Write rows, in the place of those with the same number, and forget the oldest of `crowded` nodes.

        Rows of nodes that are gone are left out: another worker may have deleted one a moment ago.
        """
        async with self._database.transaction() as connection:
            there = await _kept_nodes(connection, {row.agent_id for row in rows})
            wanted = [row for row in rows if row.agent_id in there]
            for start in range(0, len(wanted), _CHUNK):
                chunk = wanted[start : start + _CHUNK]
                await connection.execute(_DELETE, [_key(row.agent_id, row.number) for row in chunk])
                await connection.execute(_INSERT, [_values(row) for row in chunk])
            for agent_id in crowded:
                for passed in (True, False):
                    await _keep_newest(connection, agent_id, passed=passed)

    async def list(self, agent_id: str) -> list[AttestationRow]:
        """Return what is kept of a node, oldest first."""
        query = sa.select(*attestations.c).where(attestations.c.agent_id == agent_id).order_by(attestations.c.number)
        async with self._database.reading() as connection:
            return [AttestationRow(*row) for row in await connection.execute(query)]

    async def get(self, agent_id: str, number: int) -> AttestationRow | None:
        """Return one attestation of a node."""
        query = sa.select(*attestations.c).where(attestations.c.agent_id == agent_id, attestations.c.number == number)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else AttestationRow(*row)

    async def latest(self, agent_id: str) -> AttestationRow | None:
        """Return the newest attestation of a node."""
        query = sa.select(*attestations.c).where(attestations.c.agent_id == agent_id)
        async with self._database.reading() as connection:
            row = (await connection.execute(query.order_by(attestations.c.number.desc()).limit(1))).first()
        return None if row is None else AttestationRow(*row)


_DELETE = attestations.delete().where(
    attestations.c.agent_id == sa.bindparam("b_agent_id"), attestations.c.number == sa.bindparam("b_number")
)
_INSERT = attestations.insert()


async def _kept_nodes(connection: AsyncConnection, agent_ids: Collection[str]) -> frozenset[str]:
    """Return those of the nodes that there are, and keep them so until the transaction ends."""
    found: set[str] = set()
    ids = sorted(agent_ids)
    for start in range(0, len(ids), _CHUNK):
        query = sa.select(nodes.c.agent_id).where(nodes.c.agent_id.in_(ids[start : start + _CHUNK]))
        found.update((await connection.execute(query.order_by("agent_id").with_for_update(read=True))).scalars())
    return frozenset(found)


def _key(agent_id: str, number: int) -> dict[str, object]:
    return {"b_agent_id": agent_id, "b_number": number}


def _values(row: AttestationRow) -> dict[str, object]:
    return {
        "agent_id": row.agent_id,
        "number": row.number,
        "passed": row.passed,
        "attributes": row.attributes,
        "completed_at": row.completed_at,
    }


async def _keep_newest(connection: AsyncConnection, agent_id: str, *, passed: bool) -> None:
    """Forget what is more than MAX_KEPT attestations old, of those that passed or of those that failed."""
    theirs = (attestations.c.agent_id == agent_id, attestations.c.passed == passed)
    query = sa.select(attestations.c.number).where(*theirs).order_by(attestations.c.number.desc())
    oldest = (await connection.execute(query.offset(MAX_KEPT).limit(1))).scalar()
    if oldest is not None:
        await connection.execute(attestations.delete().where(*theirs, attestations.c.number <= oldest))
