"""Policies in the database, of both kinds: by name, in use, and gone with the node that brought them."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.fakes.nodes import make_record

from limeguard.store.boot_policies import BootPolicies, StoredBootPolicy
from limeguard.store.database import Conflict, Database
from limeguard.store.nodes import Nodes
from limeguard.store.policy_table import PolicyTable
from limeguard.store.runtime_policies import RuntimePolicies, StoredPolicy

pytestmark = pytest.mark.services


def runtime(name: str, text: str = "{}") -> StoredPolicy:
    return StoredPolicy(name, text, text.ljust(64), 2, '{"mask": "0x0"}')


def boot(name: str, text: str | None = "{}") -> StoredBootPolicy:
    return StoredBootPolicy(name, text, str(text).ljust(64))


KINDS: dict[str, tuple[Any, Any, str]] = {
    "runtime": (RuntimePolicies, runtime, "runtime_policy_name"),
    "boot": (BootPolicies, boot, "mb_policy_name"),
}


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    made = Database(database_url)
    await made.migrate("verifier")
    yield made
    await made.close()


async def enrol(database: Database, agent_id: str, **names: str) -> None:
    record = make_record(agent_id)
    for name, value in names.items():
        object.__setattr__(record.enrolled, name, value)
    await Nodes(database, "default").add(record, mtls_cert=None, revocation_key="")


@pytest.mark.parametrize("kind", KINDS)
async def test_policies_live_under_their_names(database: Database, kind: str) -> None:
    make_table, make, _ = KINDS[kind]
    table: PolicyTable[Any] = make_table(database)
    await table.add(make("b"))
    await table.add(make("a"))
    with pytest.raises(Conflict):
        await table.add(make("a", "other"))
    assert await table.names() == ("a", "b")
    assert await table.get("a") == make("a")
    assert await table.replace(make("a", "new"))
    assert not await table.replace(make("c"))
    assert await table.checksums() == {"a": make("a", "new").checksum, "b": make("b").checksum}
    assert await table.get("a") == make("a", "new")
    assert await table.get("c") is None
    assert await table.delete("a") is True
    assert await table.delete("a") is False


@pytest.mark.parametrize("kind", KINDS)
async def test_a_policy_in_use_cannot_be_deleted(database: Database, kind: str) -> None:
    make_table, make, column = KINDS[kind]
    table: PolicyTable[Any] = make_table(database)
    await table.add(make("web"))
    await enrol(database, "n1", **{column: "web"})
    assert await table.delete("web") == "n1"
    await Nodes(database, "default").delete("n1")
    assert await table.delete("web") is True


@pytest.mark.parametrize("kind", KINDS)
async def test_a_policy_that_came_with_a_node_goes_with_it_unless_another_uses_it(
    database: Database, kind: str
) -> None:
    make_table, make, column = KINDS[kind]
    table: PolicyTable[Any] = make_table(database)
    nodes = Nodes(database, "default")
    for name in ("n1", "n2", "web"):
        await table.add(make(name))
    await enrol(database, "n1", **{column: "n1"})
    await enrol(database, "n2", **{column: "n2"})
    await enrol(database, "n3", **{column: "n2"})
    assert not await Nodes(database, "other").delete("n1")
    assert await table.names() == ("n1", "n2", "web")
    for agent_id in ("n1", "n2"):
        assert await nodes.delete(agent_id)
    assert await table.names() == ("n2", "web")


async def test_a_null_text_is_kept_apart_from_an_empty_one(database: Database) -> None:
    table = BootPolicies(database)
    for name, text in (("none", None), ("empty", "")):
        await table.add(boot(name, text))
        assert await table.get(name) == boot(name, text)
