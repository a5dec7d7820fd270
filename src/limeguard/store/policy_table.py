"""Policies of one kind as rows, by name: the one reader and writer of their table. Texts are kept as they came."""

import time
from collections.abc import Callable
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import sqlalchemy as sa

from limeguard.store.changes import announce
from limeguard.store.database import Database
from limeguard.store.schema_verifier import nodes


class PolicyRow(Protocol):
    """A frozen dataclass whose fields are the columns of its table, but for the time of the last change."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        """The policy's name."""
        ...


RowT = TypeVar("RowT", bound=PolicyRow)


class PolicyTable(Generic[RowT]):
    """One table of policies. Every method may raise StoreUnavailable."""

    def __init__(
        self, database: Database, table: sa.Table, used_by: sa.Column[str | None], row: Callable[..., RowT]
    ) -> None:
        """Work on `table`; `used_by` is the column of nodes that names one of its rows."""
        self._database = database
        self._table = table
        self._used_by = used_by
        self._row = row

    async def names(self) -> tuple[str, ...]:
        """Return the names of all policies."""
        async with self._database.reading() as connection:
            query = sa.select(self._table.c.name).order_by(self._table.c.name)
            return tuple((await connection.execute(query)).scalars())

    async def checksums(self) -> dict[str, str]:
        """Return name and checksum of each policy: what has to be read again is seen without reading texts."""
        async with self._database.reading() as connection:
            query = sa.select(self._table.c.name, self._table.c.checksum)
            return {row.name: row.checksum for row in await connection.execute(query)}

    async def get(self, name: str) -> RowT | None:
        """Return one policy."""
        columns = [column for column in self._table.c if column.name != "updated_at"]
        query = sa.select(*columns).where(self._table.c.name == name)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).mappings().first()
        return None if row is None else self._row(**row)

    async def add(self, policy: RowT) -> None:
        """Insert a policy. Raises Conflict when the name is taken."""
        async with self._database.transaction() as connection:
            await connection.execute(self._table.insert().values(**_values(policy)))
            await announce(connection)

    async def replace(self, policy: RowT) -> bool:
        """Replace a policy; False when there is none of that name."""
        statement = self._table.update().where(self._table.c.name == policy.name).values(**_values(policy))
        async with self._database.transaction() as connection:
            await announce(connection)
            return (await connection.execute(statement)).rowcount > 0

    async def delete(self, name: str) -> str | bool:
        """Delete a policy: True when done, False when there is none, the id of a node when one uses it."""
        async with self._database.transaction() as connection:
            used = sa.select(nodes.c.agent_id).where(self._used_by == name).limit(1)
            user = (await connection.execute(used)).scalar()
            if user is not None:
                return str(user)
            statement = self._table.delete().where(self._table.c.name == name)
            await announce(connection)
            return (await connection.execute(statement)).rowcount > 0


def _values(policy: PolicyRow) -> dict[str, object]:
    return {**{name: getattr(policy, name) for name in policy.__dataclass_fields__}, "updated_at": time.time()}
