"""Measured boot policies as rows."""

from dataclasses import dataclass

from limeguard.store.database import Database
from limeguard.store.policy_table import PolicyTable
from limeguard.store.schema_verifier import boot_policies, nodes


@dataclass(frozen=True, slots=True)
class StoredBootPolicy:
    """One row. `text` is as uploaded, None where the upload said null; `checksum` is SHA-256 of the text, hex."""

    name: str
    text: str | None
    checksum: str


class BootPolicies(PolicyTable[StoredBootPolicy]):
    """The table of measured boot policies."""

    def __init__(self, database: Database) -> None:
        """Work on this database."""
        super().__init__(database, boot_policies, nodes.c.mb_policy_name, StoredBootPolicy)
