"""Columns as a database has them and as a mapping wants them, in the same words."""

import re

import sqlalchemy as sa

Columns = dict[str, tuple[str, bool]]


def made_columns(connection: sa.Connection, table: str) -> Columns:
    """Return type and nullability of each column that there is."""
    found = sa.inspect(connection).get_columns(table)
    return {c["name"]: (_words(c["type"], connection.dialect), bool(c["nullable"])) for c in found}


def wanted_columns(table: sa.Table, dialect: sa.Dialect) -> Columns:
    """Return type and nullability of each column of a mapping."""
    return {c.name: (_words(c.type, dialect), bool(c.nullable)) for c in table.c}


def _words(kind: sa.types.TypeEngine[object], dialect: sa.Dialect) -> str:
    """Return a type's name; MySQL has other words for what it made than for what it was asked to make."""
    text: str = kind.compile(dialect)
    if dialect.name not in {"mysql", "mariadb"}:
        return text
    text = re.sub(r"TINYINT\(1\)", "BOOL", text.partition(" ")[0])
    text = re.sub(r"(INTEGER|BIGINT|SMALLINT)\(\d+\)", r"\1", text)
    size = re.fullmatch(r"BLOB\((\d+)\)", text)
    if size is None:
        return text
    return next(
        name for name, room in (("TINYBLOB", 255), ("BLOB", 65535), ("MEDIUMBLOB", 1 << 24)) if int(size[1]) <= room
    )
