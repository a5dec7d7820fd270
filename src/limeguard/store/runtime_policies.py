"""Runtime policies as rows: the one reader and writer of their table. Texts are kept as they were uploaded."""

import time
from dataclasses import dataclass

import sqlalchemy as sa

from limeguard.store.database import Database
from limeguard.store.schema_verifier import nodes, runtime_policies


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """One row. `text` is as uploaded, `checksum` its SHA-256 in hex, `generator` that of the policy inside."""

    name: str
    text: str
    checksum: str
    generator: int
    tpm_policy: str | None = None


class RuntimePolicies:
    """The table of runtime policies. Every method may raise StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        """Work on this database."""
        self._database = database

    async def names(self) -> tuple[str, ...]:
        """Return the names of all policies."""
        async with self._database.reading() as connection:
            query = sa.select(runtime_policies.c.name).order_by(runtime_policies.c.name)
            return tuple((await connection.execute(query)).scalars())

    async def checksums(self) -> dict[str, str]:
        """Return name and checksum of each policy: what has to be read again is seen without reading texts."""
        async with self._database.reading() as connection:
            query = sa.select(runtime_policies.c.name, runtime_policies.c.checksum)
            return {row.name: row.checksum for row in await connection.execute(query)}

    async def get(self, name: str) -> StoredPolicy | None:
        """Return one policy."""
        table = runtime_policies.c
        query = sa.select(table.name, table.text, table.checksum, table.generator, table.tpm_policy)
        async with self._database.reading() as connection:
            row = (await connection.execute(query.where(table.name == name))).first()
        return None if row is None else StoredPolicy(*row)

    async def add(self, policy: StoredPolicy) -> None:
        """Insert a policy. Raises Conflict when the name is taken."""
        async with self._database.transaction() as connection:
            await connection.execute(runtime_policies.insert().values(**_row(policy)))

    async def replace(self, policy: StoredPolicy) -> bool:
        """Replace a policy; False when there is none of that name."""
        statement = runtime_policies.update().where(runtime_policies.c.name == policy.name).values(**_row(policy))
        async with self._database.transaction() as connection:
            return (await connection.execute(statement)).rowcount > 0

    async def delete(self, name: str) -> str | bool:
        """Delete a policy: True when done, False when there is none, the id of a node when one uses it."""
        async with self._database.transaction() as connection:
            used = sa.select(nodes.c.agent_id).where(nodes.c.runtime_policy_name == name).limit(1)
            user = (await connection.execute(used)).scalar()
            if user is not None:
                return str(user)
            statement = runtime_policies.delete().where(runtime_policies.c.name == name)
            return (await connection.execute(statement)).rowcount > 0


def _row(policy: StoredPolicy) -> dict[str, object]:
    return {
        "name": policy.name,
        "text": policy.text,
        "checksum": policy.checksum,
        "generator": policy.generator,
        "tpm_policy": policy.tpm_policy,
        "updated_at": time.time(),
    }
