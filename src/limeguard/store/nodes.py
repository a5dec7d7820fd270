"""Enrolled nodes in the database: what was enrolled, what supervision learned, and who may write it.

Every row carries the number of its last write; a write says which number it builds on and is refused when another one
came first. Results of rounds are written under a lease of the node's partition (`store.leases`): the transaction that
writes them holds the lease fast and compares it, so that a worker which lost it writes nothing. Operators' words need
no lease: they move the number on, and the owner hears of it. Knows rows and SQL; must not know what the states mean.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from limeguard.appraisal.ima.history import NO_IMA, ImaHistory
from limeguard.appraisal.verdict import Reachability
from limeguard.evidence.tpm.structures import ClockInfo
from limeguard.store.changes import announce, insert_change
from limeguard.store.database import Database, StoreUnavailable, uncancelled
from limeguard.store.group_insert import GroupInsert
from limeguard.store.ima_history import history_text, parse_history
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
from limeguard.telemetry import clean, get_logger

log = get_logger("keylime.verifier")

COMPONENT = "verifier"
MAX_FINDINGS = 64
"""Findings kept of a node's last bad round: nobody reads a thousand wrong files one by one."""
MAX_CONTEXT = 4096
"""Characters of one finding's context that are kept."""
_CHUNK = 500
"""Ids in one IN list: below the parameter limits of every database."""


class StoredFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was wrong: our id, the wire's event id, its severity, JSON text of the context, advice."""

    id: str
    event_id: str
    severity: int
    label: str
    context: str
    advice: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """What an operator enrolled; fixed until the node is deleted. Times are seconds since 1970.

    `push`: the node attests by itself and is never asked. `mtls_cert` and `revocation_key` are only read where they are
    needed, so that a fleet in memory stays small.
    """

    agent_id: str
    verifier_id: str
    verifier_ip: str
    verifier_port: int
    ip: str | None
    port: int | None
    v: str | None = field(repr=False)
    tpm_policy: str
    meta_data: str | None
    has_mb_policy: bool
    has_runtime_policy: bool
    runtime_policy_name: str | None = None
    ima_keys: str | None = field(default=None, repr=False)
    mb_policy_name: str | None = None
    accept_hash: tuple[str, ...]
    accept_enc: tuple[str, ...]
    accept_sign: tuple[str, ...]
    ak_tpm: str
    certificate_sha256: bytes | None
    enrolled_at: float
    push: bool = False


class NodeState(msgspec.Struct, frozen=True, kw_only=True):
    """What supervision knows of a node. Times are seconds since 1970, 0 is never.

    `attestation_limit` is above every number that an attestation of the node may have been given.
    """

    supported_version: str
    phase: str
    integrity: str
    reachability: str
    trust_expires_at: float | None = None
    proven_at: float | None = None
    attempts: int = 0
    attestation_count: int = 0
    last_received_quote: float = 0.0
    last_successful_attestation: float = 0.0
    clock: ClockInfo | None = None
    public_key: str | None = None
    boottime: int = 0
    ima: ImaHistory = NO_IMA
    hash_alg: str = ""
    enc_alg: str = ""
    sign_alg: str = ""
    severity_level: int | None = None
    last_event_id: str | None = None
    findings: tuple[StoredFinding, ...] = ()
    required_checks: tuple[str, ...] = ()
    ran_checks: tuple[str, ...] = ()
    attestation_limit: int = 0


class NodeRecord(msgspec.Struct, frozen=True):
    """One row. `version` is the number of the write that the record reflects.

    `epoch` is that of the lease under which the record was taken up, and under which alone it may be written.
    """

    enrolled: Enrolled
    state: NodeState
    version: int = 0
    epoch: int = 0

    @property
    def agent_id(self) -> str:
        """The node's id."""
        return self.enrolled.agent_id


@dataclass(frozen=True, slots=True)
class Address:
    """Where a node's agent is, the digest of the certificate that it must show, and the version of its API."""

    agent_id: str
    ip: str | None
    port: int | None
    certificate_sha256: bytes | None
    version: str


def partition_of(agent_id: str) -> int:
    """Return the partition of a node: the same on every host and in every release."""
    return int.from_bytes(hashlib.sha256(agent_id.encode()).digest()[:4], "big") % PARTITIONS


class Nodes:
    """The nodes of one verifier id."""

    def __init__(self, database: Database, verifier_id: str, *, worker: str | None = None) -> None:
        """Work on rows of `verifier_id`; results of rounds are written under the leases of `worker`.

        None writes without leases: for tools that are alone with the database.
        """
        self._database = database
        self._verifier_id = verifier_id
        self._worker = worker
        self._inserts = GroupInsert(database, nodes)

    async def load_all(self) -> list[NodeRecord]:
        """Return every node of this verifier."""
        return await self.list_nodes(self._verifier_id)

    async def list_nodes(self, verifier_id: str | None = None) -> list[NodeRecord]:
        """Return the nodes of one verifier id, or of all when None.

        A row that cannot be read is left out and named in the log: it must not hide the others.
        """
        query = sa.select(*_READ).order_by(nodes.c.agent_id)
        if verifier_id is not None:
            query = query.where(nodes.c.verifier_id == verifier_id)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [record for row in rows if (record := _readable(row)) is not None]

    async def load(self, epochs: Mapping[int, int]) -> list[NodeRecord]:
        """Return the nodes of this verifier in these partitions, each under the epoch of its partition's lease."""
        query = self._of_partitions(epochs, *_READ)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).mappings().all()
        found = [record for row in rows if (record := _readable(row)) is not None]
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
            row = (await connection.execute(sa.select(*_READ).where(nodes.c.agent_id == agent_id))).mappings().first()
        return None if row is None else _record(row)

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
                query = sa.select(*_READ).where(nodes.c.agent_id.in_(wanted[start : start + _CHUNK]))
                rows = (await connection.execute(query)).mappings().all()
                found += [record for row in rows if (record := _readable(row)) is not None]
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
            **_enrolled_row(enrolled),
            **_state_row(record.state),
            "mtls_cert": mtls_cert,
            "revocation_key": revocation_key,
            "partition": partition_of(enrolled.agent_id),
            "version": record.version,
            "epoch": record.epoch,
        }
        line = {"verifier_id": self._verifier_id, "partition": row["partition"], "agent_id": enrolled.agent_id}
        await self._inserts.add(row, (changes, line) if tell else None)
        if tell and self._database.dialect == "postgresql":
            with contextlib.suppress(StoreUnavailable):  # who is not called finds the line a little later
                async with self._database.transaction() as connection:
                    await announce(connection, self._verifier_id)

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
            query = sa.select(*_READ).where(nodes.c.agent_id == agent_id, nodes.c.verifier_id == self._verifier_id)
            row = (await connection.execute(query.with_for_update())).mappings().first()
            if row is None:
                return None
            record = _record(row)
            state = step(record)
            if state is None:
                await connection.execute(nodes.delete().where(nodes.c.agent_id == agent_id))
                await _delete_belongings(connection, agent_id)
            else:
                values = {**_state_row(state), "version": record.version + 1}
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
                await connection.execute(_UPDATE, [_update_row(record) for record in good])
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
        query = (
            sa.select(leases.c.partition, leases.c.epoch)
            .where(
                leases.c.verifier_id == self._verifier_id,
                leases.c.owner == self._worker,
                leases.c.partition.in_(sorted(partitions)),
            )
            .order_by(leases.c.partition)
            .with_for_update(read=True)
        )
        return {row.partition: row.epoch for row in await connection.execute(query)}


def _update_row(record: NodeRecord) -> dict[str, Any]:
    return {
        **_state_row(record.state),
        "b_agent_id": record.agent_id,
        "version": record.version + 1,
        "epoch": record.epoch,
    }


_LEFT_OUT = frozenset({"mtls_cert", "revocation_key", "partition", "epoch", "updated_at"})
_READ = tuple(column for column in nodes.c if column.name not in _LEFT_OUT)
_STATE_COLUMNS = (
    "supported_version",
    "phase",
    "integrity",
    "reachability",
    "trust_expires_at",
    "proven_at",
    "attempts",
    "attestation_count",
    "last_received_quote",
    "last_successful_attestation",
    "tpm_clockinfo",
    "public_key",
    "boottime",
    "ima_next_entry",
    "ima_history",
    "hash_alg",
    "enc_alg",
    "sign_alg",
    "severity_level",
    "last_event_id",
    "findings",
    "required_checks",
    "ran_checks",
    "attestation_limit",
    "updated_at",
    "version",
    "epoch",
)
_UPDATE = (
    nodes.update()
    .where(nodes.c.agent_id == sa.bindparam("b_agent_id"))
    .values({name: sa.bindparam(name) for name in _STATE_COLUMNS})
)


async def _locked_versions(connection: AsyncConnection, agent_ids: list[str], verifier_id: str) -> dict[str, int]:
    """Return the versions of these rows and keep them until the transaction ends (SQLite holds its one write lock)."""
    found: dict[str, int] = {}
    for start in range(0, len(agent_ids), _CHUNK):
        query = (
            sa.select(nodes.c.agent_id, nodes.c.version)
            .where(nodes.c.agent_id.in_(agent_ids[start : start + _CHUNK]), nodes.c.verifier_id == verifier_id)
            .order_by(nodes.c.agent_id)  # every writer locks in the same order
            .with_for_update()
        )
        found.update({row.agent_id: row.version for row in await connection.execute(query)})
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


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _enrolled_row(enrolled: Enrolled) -> dict[str, Any]:
    return {
        "agent_id": enrolled.agent_id,
        "verifier_id": enrolled.verifier_id,
        "verifier_ip": enrolled.verifier_ip,
        "verifier_port": enrolled.verifier_port,
        "ip": enrolled.ip,
        "port": enrolled.port,
        "v": enrolled.v,
        "tpm_policy": enrolled.tpm_policy,
        "meta_data": enrolled.meta_data,
        "has_mb_policy": enrolled.has_mb_policy,
        "has_runtime_policy": enrolled.has_runtime_policy,
        "runtime_policy_name": enrolled.runtime_policy_name,
        "ima_keys": enrolled.ima_keys,
        "mb_policy_name": enrolled.mb_policy_name,
        "accept_tpm_hash_algs": _json(enrolled.accept_hash),
        "accept_tpm_encryption_algs": _json(enrolled.accept_enc),
        "accept_tpm_signing_algs": _json(enrolled.accept_sign),
        "ak_tpm": enrolled.ak_tpm,
        "certificate_sha256": enrolled.certificate_sha256,
        "enrolled_at": enrolled.enrolled_at,
        "push": enrolled.push,
    }


def _state_row(state: NodeState) -> dict[str, Any]:
    clock = state.clock
    return {
        "supported_version": state.supported_version,
        "phase": state.phase,
        "integrity": state.integrity,
        "reachability": state.reachability,
        "trust_expires_at": state.trust_expires_at,
        "proven_at": state.proven_at,
        "attempts": state.attempts,
        "attestation_count": state.attestation_count,
        "last_received_quote": state.last_received_quote,
        "last_successful_attestation": state.last_successful_attestation,
        # The TPM's clock has 64 bits without a sign: no column of every database holds it, text does.
        "tpm_clockinfo": None
        if clock is None
        else _json([clock.clock, clock.reset_count, clock.restart_count, clock.safe]),
        "public_key": state.public_key,
        "boottime": state.boottime,
        "ima_next_entry": state.ima.next_entry,
        "ima_history": history_text(state.ima),
        "hash_alg": state.hash_alg,
        "enc_alg": state.enc_alg,
        "sign_alg": state.sign_alg,
        "severity_level": state.severity_level,
        "last_event_id": state.last_event_id,
        "findings": _json(_bounded(state.findings)),
        "required_checks": _json(state.required_checks),
        "ran_checks": _json(state.ran_checks),
        "attestation_limit": state.attestation_limit,
        "updated_at": time.time(),
    }


def _bounded(findings: tuple[StoredFinding, ...]) -> list[StoredFinding]:
    return [
        finding
        if len(finding.context) <= MAX_CONTEXT
        else msgspec.structs.replace(finding, context=finding.context[:MAX_CONTEXT])
        for finding in findings[:MAX_FINDINGS]
    ]


def _readable(row: Mapping[Any, Any]) -> NodeRecord | None:
    try:
        return _record(row)
    except (ValueError, TypeError) as problem:
        reason = clean(problem)
    log.error("The row of node %s cannot be read: %s", clean(row["agent_id"]), reason)
    return None


def _record(row: Mapping[Any, Any]) -> NodeRecord:
    enrolled = Enrolled(
        agent_id=row["agent_id"],
        verifier_id=row["verifier_id"],
        verifier_ip=row["verifier_ip"],
        verifier_port=row["verifier_port"],
        ip=row["ip"],
        port=row["port"],
        v=row["v"],
        tpm_policy=row["tpm_policy"],
        meta_data=row["meta_data"],
        has_mb_policy=row["has_mb_policy"],
        has_runtime_policy=row["has_runtime_policy"],
        runtime_policy_name=row["runtime_policy_name"],
        ima_keys=row["ima_keys"],
        mb_policy_name=row["mb_policy_name"],
        accept_hash=_strings(row["accept_tpm_hash_algs"]),
        accept_enc=_strings(row["accept_tpm_encryption_algs"]),
        accept_sign=_strings(row["accept_tpm_signing_algs"]),
        ak_tpm=row["ak_tpm"],
        certificate_sha256=row["certificate_sha256"],
        enrolled_at=row["enrolled_at"],
        push=row["push"],
    )
    return NodeRecord(enrolled, _state(row), row["version"])


def _state(row: Mapping[Any, Any]) -> NodeState:
    clock = None if row["tpm_clockinfo"] is None else msgspec.json.decode(row["tpm_clockinfo"], type=_ClockRow)
    return NodeState(
        supported_version=row["supported_version"],
        phase=row["phase"],
        integrity=row["integrity"],
        reachability=row["reachability"],
        trust_expires_at=row["trust_expires_at"],
        proven_at=row["proven_at"],
        attempts=row["attempts"],
        attestation_count=row["attestation_count"],
        last_received_quote=row["last_received_quote"],
        last_successful_attestation=row["last_successful_attestation"],
        clock=None if clock is None else ClockInfo(*clock),
        public_key=row["public_key"],
        boottime=row["boottime"],
        ima=parse_history(row["ima_next_entry"], row["ima_history"]),
        hash_alg=row["hash_alg"],
        enc_alg=row["enc_alg"],
        sign_alg=row["sign_alg"],
        severity_level=row["severity_level"],
        last_event_id=row["last_event_id"],
        findings=tuple(msgspec.json.decode(row["findings"], type=list[StoredFinding])),
        required_checks=_strings(row["required_checks"]),
        ran_checks=_strings(row["ran_checks"]),
        attestation_limit=row["attestation_limit"],
    )


_ClockRow = tuple[int, int, int, bool]


def _strings(text: str) -> tuple[str, ...]:
    return msgspec.json.decode(text, type=tuple[str, ...])
