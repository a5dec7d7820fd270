"""Runtime policies as rows."""

from dataclasses import dataclass

from limeguard.store.database import Database
from limeguard.store.policy_table import PolicyTable
from limeguard.store.schema_verifier import nodes, runtime_policies


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """One row. `text` is as uploaded, `checksum` its SHA-256 in hex, `generator` that of the policy inside."""

    name: str
    text: str
    checksum: str
    generator: int
    tpm_policy: str | None = None


class RuntimePolicies(PolicyTable[StoredPolicy]):
    """The table of runtime policies."""

    def __init__(self, database: Database) -> None:
        """Work on this database."""
        super().__init__(database, runtime_policies, nodes.c.runtime_policy_name, StoredPolicy)
