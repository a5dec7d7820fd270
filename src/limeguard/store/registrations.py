"""Registered nodes in the database: one row for each id, and writes that build on the row as it was read.

Every row carries the number of its last write. A write says which number it builds on and raises Conflict when another
one came first, so several processes may share the database. Knows rows and SQL; must not know what makes a registration
good.
"""

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import sqlalchemy as sa

from limeguard.store.database import Conflict, Database
from limeguard.store.schema_registrar import registrations

COMPONENT = "registrar"


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """One row: TPM2B_PUBLIC and DER bytes as they came, contact, and how far the registration got.

    `active`: the last challenge was answered. `proven`: this EK and AK answered one at some time. `proof_sha256` is the
    digest of the answer that is awaited. `registered_at` is seconds since 1970. `version` 0 is not yet written.
    """

    agent_id: str
    ek_tpm: bytes | None
    ekcert: bytes | None
    aik_tpm: bytes
    iak_tpm: bytes | None = None
    iak_cert: bytes | None = None
    idevid_tpm: bytes | None = None
    idevid_cert: bytes | None = None
    ip: str | None = None
    port: int | None = None
    mtls_cert: str | None = None
    active: bool = False
    proven: bool = False
    proof_sha256: bytes = b""
    regcount: int = 0
    registered_at: float = 0.0
    version: int = 0


class Registrations:
    """The registered nodes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ids(self) -> list[str]:
        """Return every id, activated or not, in order."""
        query = sa.select(registrations.c.agent_id).order_by(registrations.c.agent_id)
        async with self._database.reading() as connection:
            return list((await connection.execute(query)).scalars())

    async def get(self, agent_id: str) -> Registration | None:
        """Return the registration of exactly that id."""
        query = sa.select(registrations).where(registrations.c.agent_id == agent_id)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).mappings().first()
        # Some databases compare texts without regard to case.
        return None if row is None or row["agent_id"] != agent_id else _record(row)

    async def save(self, record: Registration) -> Registration:
        """Write a record that builds on its `version`; return it as written. Raises Conflict.

        Version 0 inserts. A conflict means that the id exists meanwhile, was written by another, or is gone.
        """
        # The first number is drawn: a row that was deleted and made again is not taken for the one that was read.
        written = replace(record, version=1 + (record.version or secrets.randbits(48)))
        values = asdict(written)
        async with self._database.transaction() as connection:
            if record.version == 0:
                await connection.execute(registrations.insert().values(**values))
            else:
                statement = registrations.update().where(*_is(record)).values(**values)
                if (await connection.execute(statement)).rowcount != 1:
                    raise Conflict("the registration was written by another meanwhile")
        return written

    async def delete(self, agent_id: str) -> bool:
        """Remove a registration; False when there was none."""
        async with self._database.transaction() as connection:
            statement = registrations.delete().where(registrations.c.agent_id == agent_id)
            return (await connection.execute(statement)).rowcount > 0

    async def delete_as_read(self, record: Registration) -> None:
        """Remove a registration that nobody wrote since it was read. Raises Conflict."""
        async with self._database.transaction() as connection:
            if (await connection.execute(registrations.delete().where(*_is(record)))).rowcount != 1:
                raise Conflict("the registration was written by another meanwhile")


def _is(record: Registration) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return registrations.c.agent_id == record.agent_id, registrations.c.version == record.version


def _record(row: Mapping[Any, Any]) -> Registration:
    return Registration(**row)
