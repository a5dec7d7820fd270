"""Policies by name: compiled once for each text, followed when others change them, forgotten when they are gone."""

from dataclasses import dataclass, field

import pytest

from limeguard.policy.errors import PolicyError
from limeguard.store.boot_policies import StoredBootPolicy
from limeguard.store.database import Conflict
from limeguard.verifier.shelf import Shelf


def row(name: str, text: str) -> StoredBootPolicy:
    return StoredBootPolicy(name, text, f"checksum of {text}")


@dataclass
class Rows:
    """A table in memory, which others may change."""

    rows: dict[str, StoredBootPolicy] = field(default_factory=dict)

    def put(self, name: str, text: str) -> None:
        self.rows[name] = row(name, text)

    async def names(self) -> tuple[str, ...]:
        return tuple(self.rows)

    async def checksums(self) -> dict[str, str]:
        return {name: one.checksum for name, one in self.rows.items()}

    async def get(self, name: str) -> StoredBootPolicy | None:
        return self.rows.get(name)

    async def add(self, policy: StoredBootPolicy) -> None:
        if policy.name in self.rows:
            raise Conflict(policy.name)
        self.rows[policy.name] = policy

    async def replace(self, policy: StoredBootPolicy) -> bool:
        known = policy.name in self.rows
        if known:
            self.rows[policy.name] = policy
        return known

    async def delete(self, name: str) -> str | bool:
        return self.rows.pop(name, None) is not None


class Compiled:
    def __init__(self, text: str) -> None:
        self.text = text


class Shelves(Shelf[StoredBootPolicy, Compiled]):
    """A shelf that counts how often it compiles; a text that says so cannot be used."""

    def __init__(self, rows: Rows) -> None:
        super().__init__(rows, self.compile, "Policy")
        self.compiled = 0

    def compile(self, stored: StoredBootPolicy) -> Compiled:
        self.compiled += 1
        if stored.text == "broken":
            raise PolicyError("it is broken")
        return Compiled(str(stored.text))

    def says(self, name: str) -> str | None:
        policy = self.current(name)
        return None if policy is None else policy.text


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def shelf(rows: Rows) -> Shelves:
    return Shelves(rows)


async def test_the_same_text_is_compiled_once_under_however_many_names(rows: Rows, shelf: Shelves) -> None:
    for name in ("a", "b", "c"):
        rows.put(name, "text")
    await shelf.load(["a", "b", "c", "a"])
    assert shelf.compiled == 1
    assert shelf.current("a") is shelf.current("b") is shelf.current("c")


async def test_a_change_by_somebody_else_is_followed(rows: Rows, shelf: Shelves) -> None:
    rows.put("a", "old")
    await shelf.load(["a"])
    rows.put("a", "new")
    assert shelf.says("a") == "old"
    await shelf.refresh()
    assert shelf.says("a") == "new"


async def test_what_is_fetched_is_what_is_stored_now(rows: Rows, shelf: Shelves) -> None:
    rows.put("a", "old")
    await shelf.load(["a"])
    rows.put("a", "new")
    assert await shelf.fetch("a") == row("a", "new")
    assert shelf.says("a") == "new"
    assert await shelf.fetch("nobody") is None


async def test_a_policy_that_cannot_be_used_stands_for_nothing(rows: Rows, shelf: Shelves) -> None:
    # trust: fail-closed
    rows.put("a", "good")
    await shelf.load(["a"])
    rows.put("a", "broken")
    await shelf.refresh()
    assert shelf.says("a") is None


async def test_what_is_gone_from_the_table_is_forgotten_at_the_second_look(rows: Rows, shelf: Shelves) -> None:
    # trust: bounded - nodes bring policies of their own, and take them away when they go
    rows.put("a", "text")
    await shelf.load(["a"])
    del rows.rows["a"]
    await shelf.refresh()
    assert shelf.says("a") == "text"
    await shelf.refresh()
    assert shelf.says("a") is None


async def test_what_was_stored_while_the_table_was_read_is_kept(rows: Rows, shelf: Shelves) -> None:
    await shelf.add_row(row("a", "text"), Compiled("text"))
    hidden = rows.rows.pop("a")
    await shelf.refresh()  # what it saw is from before
    await shelf.put_row(hidden, Compiled("text"))
    stored = rows.rows.pop("a")
    await shelf.refresh()
    rows.rows["a"] = stored
    await shelf.refresh()
    assert shelf.says("a") == "text"


async def test_a_replaced_text_is_let_go(rows: Rows, shelf: Shelves) -> None:
    # trust: bounded
    await shelf.add_row(row("a", "one"), Compiled("one"))
    with pytest.raises(Conflict):
        await shelf.add_row(row("a", "two"), Compiled("two"))
    assert await shelf.replace_row(row("a", "two"), Compiled("two"))
    assert not await shelf.replace_row(row("b", "two"), Compiled("two"))
    rows.put("c", "one")
    await shelf.load(["c"])
    assert shelf.compiled == 1  # the first text was not kept for nobody
    assert await shelf.delete("a") is True
    assert shelf.says("a") is None
