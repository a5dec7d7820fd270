"""Enrolled nodes in the database: what was enrolled, what supervision learned, and who may write it.

Every row carries the number of its last write; a write says which number it builds on and is refused when another one
came first. Results of rounds are written under a lease of the node's partition (`store.leases`): the transaction that
writes them holds the lease fast and compares it, so that a worker which lost it writes nothing. Operators' words need
no lease: they move the number on, and the owner hears of it. Knows rows and SQL; must not know what the states mean.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from limeguard.appraisal.verdict import Reachability
from limeguard.store.changes import announce, insert_change
from limeguard.store.database import Database, uncancelled
from limeguard.store.group_insert import GroupInsert
from limeguard.store.node_record import Address, NodeRecord, NodeState, partition_of
from limeguard.store.node_rows import READ, UPDATE, enrolled_row, readable, record_of, state_row, update_row
from limeguard.store.notices import Notice, insert_notices
from limeguard.store.schema_verifier import (
    PARTITIONS,
    attestations,
    boot_policies,
    changes,
    leases,
    nodes,
    runtime_policies,
    sessions,
)

COMPONENT = "verifier"
_CHUNK = 500
"""Ids in one IN list: below the parameter limits of every database."""


class Nodes:
    """The nodes of one verifier id."""

    def __init__(self, database: Database, verifier_id: str, *, worker: str | None = None) -> None:
        """Work on rows of `verifier_id`; results of rounds are written under the leases of `worker`.

        None writes without leases: for tools that are alone with the database.
        """
        self._database = database
        self._verifier_id = verifier_id
        self._worker = worker
        self._inserts = GroupInsert(database, nodes, lambda connection: announce(connection, verifier_id))

    async def load_all(self) -> list[NodeRecord]:
        """Return every node of this verifier."""
        return await self.list_nodes(self._verifier_id)

    async def list_nodes(self, verifier_id: str | None = None) -> list[NodeRecord]:
        """Return the nodes of one verifier id, or of all when None.

        A row that cannot be read is left out and named in the log: it must not hide the others.
        """
        query = sa.select(*READ).order_by(nodes.c.agent_id)
        if verifier_id is not None:
            query = query.where(nodes.c.verifier_id == verifier_id)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [record for row in rows if (record := readable(row)) is not None]

    async def load(self, epochs: Mapping[int, int]) -> list[NodeRecord]:
        """Return the nodes of this verifier in these partitions, each under the epoch of its partition's lease."""
        query = self._of_partitions(epochs, *READ)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).mappings().all()
        found = [record for row in rows if (record := readable(row)) is not None]
        return [msgspec.structs.replace(one, epoch=epochs[partition_of(one.agent_id)]) for one in found]

    async def ids_in(self, partitions: Collection[int]) -> list[str]:
        """Return the ids of this verifier's nodes in these partitions."""
        async with self._database.reading() as connection:
            return list((await connection.execute(self._of_partitions(partitions, nodes.c.agent_id))).scalars())

    def _of_partitions(self, partitions: Collection[int], *columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
        query = sa.select(*columns).where(nodes.c.verifier_id == self._verifier_id).order_by(nodes.c.agent_id)
        return query if len(partitions) == PARTITIONS else query.where(nodes.c.partition.in_(sorted(partitions)))

    async def addresses(self) -> list[Address]:
        """Return where this verifier's agents listen, but for those that could not be reached last time."""
        table = nodes.c
        query = sa.select(table.agent_id, table.ip, table.port, table.certificate_sha256, table.supported_version)
        listening = (table.reachability != Reachability.UNREACHABLE, table.push.is_(sa.false()))
        async with self._database.reading() as connection:
            rows = (await connection.execute(query.where(table.verifier_id == self._verifier_id, *listening))).all()
        return [Address(*row) for row in rows]

    async def get(self, agent_id: str) -> NodeRecord | None:
        """Return the node of that id, whichever verifier has it."""
        async with self._database.reading() as connection:
            row = (await connection.execute(sa.select(*READ).where(nodes.c.agent_id == agent_id))).mappings().first()
        return None if row is None else record_of(row)

    async def enrolled_at(self, agent_id: str) -> float | None:
        """Return when a node of this verifier was enrolled; None when there is none."""
        query = sa.select(nodes.c.enrolled_at)
        query = query.where(nodes.c.agent_id == agent_id, nodes.c.verifier_id == self._verifier_id)
        async with self._database.reading() as connection:
            found: float | None = (await connection.execute(query)).scalar()
            return found

    async def get_many(self, agent_ids: Collection[str]) -> list[NodeRecord]:
        """Return those of these nodes that there are and that can be read, whichever verifier has them."""
        found: list[NodeRecord] = []
        wanted = sorted(agent_ids)
        async with self._database.reading() as connection:
            for start in range(0, len(wanted), _CHUNK):
                query = sa.select(*READ).where(nodes.c.agent_id.in_(wanted[start : start + _CHUNK]))
                rows = (await connection.execute(query)).mappings().all()
                found += [record for row in rows if (record := readable(row)) is not None]
        return found

    async def revocation_key(self, agent_id: str) -> str:
        """Return the PEM key that signs this node's notices, "" for none. It is kept out of records and memory."""
        async with self._database.reading() as connection:
            query = sa.select(nodes.c.revocation_key).where(nodes.c.agent_id == agent_id)
            return (await connection.execute(query)).scalar() or ""

    async def add(self, record: NodeRecord, *, mtls_cert: str | None, revocation_key: str, tell: bool = False) -> None:
        """Insert a node; `tell` its partition's owner, when that is another. Raises Conflict when the id exists."""
        enrolled = record.enrolled
        row = {
            **enrolled_row(enrolled),
            **state_row(record.state),
            "mtls_cert": mtls_cert,
            "revocation_key": revocation_key,
            "partition": partition_of(enrolled.agent_id),
            "version": record.version,
            "epoch": record.epoch,
        }
        line = {"verifier_id": self._verifier_id, "partition": row["partition"], "agent_id": enrolled.agent_id}
        await self._inserts.add(row, (changes, line) if tell else None)

    @uncancelled
    async def tell(self, agent_id: str) -> int:
        """Have the owner of a node's partition look at its row; return the number of the change."""
        async with self._database.transaction() as connection:
            return await insert_change(connection, self._verifier_id, agent_id, partition_of(agent_id))

    @uncancelled
    async def change(self, agent_id: str, step: Callable[[NodeRecord], NodeState | None]) -> int | None:
        """Change a node that another worker supervises; return the number of the change, None when there is no node.

        `step` gets the row as it is and returns the new state, or None to delete the node; what it raises undoes all.
        """
        async with self._database.transaction() as connection:
            query = sa.select(*READ).where(nodes.c.agent_id == agent_id, nodes.c.verifier_id == self._verifier_id)
            row = (await connection.execute(query.with_for_update())).mappings().first()
            if row is None:
                return None
            record = record_of(row)
            state = step(record)
            if state is None:
                await connection.execute(nodes.delete().where(nodes.c.agent_id == agent_id))
                await _delete_belongings(connection, agent_id)
            else:
                values = {**state_row(state), "version": record.version + 1}
                await connection.execute(nodes.update().where(nodes.c.agent_id == agent_id).values(values))
            return await insert_change(connection, self._verifier_id, agent_id, partition_of(agent_id))

    @uncancelled
    async def note_policy(self, name: str, *, says: bool) -> None:
        """Note of all nodes with this runtime policy whether it allows anything; no state changes by that."""
        statement = nodes.update().where(nodes.c.runtime_policy_name == name).values(has_runtime_policy=says)
        async with self._database.transaction() as connection:
            await connection.execute(statement)

    @uncancelled
    async def note_boot_policy(self, name: str, *, says: bool) -> None:
        """Note of all nodes with this measured boot policy whether there is any text in it."""
        statement = nodes.update().where(nodes.c.mb_policy_name == name).values(has_mb_policy=says)
        async with self._database.transaction() as connection:
            await connection.execute(statement)

    @uncancelled
    async def delete(self, agent_id: str, epoch: int | None = None) -> bool:
        """Remove a node of this verifier with all that goes with it; False when there was none.

        With an epoch only under that lease of its partition: a worker that lost it deletes no node that came after.
        """
        statement = nodes.delete().where(nodes.c.agent_id == agent_id, nodes.c.verifier_id == self._verifier_id)
        async with self._database.transaction() as connection:
            if epoch is not None and self._worker is not None:
                partition = partition_of(agent_id)
                if (await self._held(connection, {partition})).get(partition) != epoch:
                    return False
            if (await connection.execute(statement)).rowcount == 0:
                return False
            await _delete_belongings(connection, agent_id)
            return True

    async def change_trust(self, record: NodeRecord) -> NodeRecord | None:
        """Write one state at once; return the record as written, or None when another write came first."""
        refused = await self.save_rounds([record])
        return None if refused else msgspec.structs.replace(record, version=record.version + 1)

    @uncancelled
    async def save_rounds(self, batch: Sequence[NodeRecord], notices: Sequence[Notice] = ()) -> frozenset[str]:
        """Write the states of many nodes in one transaction; return the ids that were refused.

        Refused is a record whose row had another version or is gone, or whose partition is not leased to this worker
        under the record's epoch any more. A record's `version` is the one it builds on; the row gets the next one.
        `notices` about nodes that are written go into the outbox with them.
        """
        if not batch:
            return frozenset()
        async with self._database.transaction() as connection:
            ours = await self._under_lease(connection, batch)
            versions = await _locked_versions(connection, [record.agent_id for record in batch], self._verifier_id)
            good = [record for record in ours if versions.get(record.agent_id) == record.version]
            if good:
                await connection.execute(UPDATE, [update_row(record) for record in good])
            written = {record.agent_id for record in good}
            told = [notice for notice in notices if notice.agent_id in written]
            if told:
                await insert_notices(connection, self._verifier_id, told)
        return frozenset(record.agent_id for record in batch) - {record.agent_id for record in good}

    async def _under_lease(self, connection: AsyncConnection, batch: Sequence[NodeRecord]) -> Sequence[NodeRecord]:
        if self._worker is None:
            return batch
        partitions = [partition_of(record.agent_id) for record in batch]
        held = await self._held(connection, set(partitions))
        return [one for one, partition in zip(batch, partitions, strict=True) if held.get(partition) == one.epoch]

    async def _held(self, connection: AsyncConnection, partitions: Collection[int]) -> dict[int, int]:
        """Return the epochs of leases that are ours, and keep them so until the transaction ends."""
        whose = {"verifier_id": self._verifier_id, "owner": self._worker, "partitions": sorted(partitions)}
        return {row.partition: row.epoch for row in await connection.execute(_HELD, whose)}


# Made once: to build such a statement takes longer than to execute it.
_HELD: Final = (
    sa.select(leases.c.partition, leases.c.epoch)
    .where(
        leases.c.verifier_id == sa.bindparam("verifier_id"),
        leases.c.owner == sa.bindparam("owner"),
        leases.c.partition.in_(sa.bindparam("partitions", expanding=True)),
    )
    .order_by(leases.c.partition)
    .with_for_update(read=True)
)
_VERSIONS: Final = (
    sa.select(nodes.c.agent_id, nodes.c.version)
    .where(
        nodes.c.agent_id.in_(sa.bindparam("agent_ids", expanding=True)),
        nodes.c.verifier_id == sa.bindparam("verifier_id"),
    )
    .order_by(nodes.c.agent_id)  # every writer locks in the same order
    .with_for_update()
)


async def _locked_versions(connection: AsyncConnection, agent_ids: list[str], verifier_id: str) -> dict[str, int]:
    """Return the versions of these rows and keep them until the transaction ends (SQLite holds its one write lock)."""
    found: dict[str, int] = {}
    for start in range(0, len(agent_ids), _CHUNK):
        which = {"agent_ids": agent_ids[start : start + _CHUNK], "verifier_id": verifier_id}
        found.update({row.agent_id: row.version for row in await connection.execute(_VERSIONS, which)})
    return found


async def _delete_belongings(connection: AsyncConnection, agent_id: str) -> None:
    """Remove a node's sessions and attestations, and the policies that came with it under its id.

    A policy of that name that another node uses stays.
    """
    for table in (sessions, attestations):
        await connection.execute(table.delete().where(table.c.agent_id == agent_id))
    for table, used_by in ((boot_policies, nodes.c.mb_policy_name), (runtime_policies, nodes.c.runtime_policy_name)):
        used = sa.exists().where(used_by == agent_id)
        await connection.execute(table.delete().where(table.c.name == agent_id, ~used))
