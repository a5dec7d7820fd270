"""Sessions and attestations in the database, for each kind of database there is."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.fakes.nodes import make_record

from limeguard.store.attestations import MAX_KEPT, AttestationRow, Attestations
from limeguard.store.database import Database
from limeguard.store.nodes import COMPONENT, Nodes
from limeguard.store.sessions import SessionRows, StoredSession


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = Database(database_url)
    await opened.migrate(COMPONENT)
    yield opened
    await opened.close()


def waiting(name: str, agent: str = "a", expires_at: float = 100.0) -> StoredSession:
    return StoredSession(session_id=name, agent_id=agent, created_at=1.0, expires_at=expires_at, challenge=b"c" * 16)


def active(name: str, agent: str = "a") -> StoredSession:
    return StoredSession(
        session_id=name,
        agent_id=agent,
        created_at=1.0,
        expires_at=200.0,
        token_sha256=name[:1].encode() * 32,
        enrolled_at=5.5,
        reset_count=2**32 - 1,
    )


async def test_a_challenge_is_exchanged_once_among_all_workers(database: Database) -> None:
    # trust: fresh
    one, other = SessionRows(database, "v"), SessionRows(database, "v")
    await one.add(waiting("x"))
    assert await other.get("x") == waiting("x")
    done = await asyncio.gather(*(rows.activate(active("x")) for rows in (one, other, one, other)))
    assert sorted(done) == [False, False, False, True]
    assert await one.get("x") == active("x")


async def test_a_proof_ends_the_other_tokens_of_the_agent_and_nothing_else(database: Database) -> None:
    rows = SessionRows(database, "v")
    for name, agent in (("old", "a"), ("new", "a"), ("foreign", "b")):
        await rows.add(waiting(name, agent))
    await rows.add(waiting("pending"))
    await rows.activate(active("old"))
    await rows.activate(active("foreign", "b"))
    await rows.activate(active("new"))
    assert await rows.get("old") is None
    assert await rows.get("pending") is not None
    assert await rows.get("foreign") is not None
    assert await SessionRows(database, "another verifier").get("new") is None


async def test_tokens_live_on_and_are_swept_when_they_have_expired(database: Database) -> None:
    rows = SessionRows(database, "v")
    for name in ("x", "y"):
        await rows.add(waiting(name, name))
        await rows.activate(active(name, name))
    assert await rows.extend({"x": 300.0, "gone": 300.0}) == {"gone"}
    found = await rows.get("x")
    assert found is not None
    assert found.expires_at == 300.0
    await rows.sweep(250.0)
    assert await rows.get("y") is None


def row(number: int, *, passed: bool = True, agent: str = "a") -> AttestationRow:
    return AttestationRow(agent, number, passed, f'{{"n": {number}}}', float(number))


async def test_attestations_are_kept_up_to_a_bound(database: Database) -> None:
    # trust: bounded
    nodes, rows = Nodes(database, "default"), Attestations(database)
    for name in ("a", "b"):
        await nodes.add(make_record(name), mtls_cert=None, revocation_key="")
    await rows.write([row(n, passed=n % 2 == 0) for n in range(3 * MAX_KEPT)] + [row(0, agent="b")])
    await rows.write([row(500)], ["a"])
    kept = await rows.list("a")
    assert [one.number for one in kept] == [*range(MAX_KEPT + 2, 3 * MAX_KEPT), 500] or len(kept) == 2 * MAX_KEPT
    assert sum(1 for one in kept if one.passed) == MAX_KEPT
    assert sum(1 for one in kept if not one.passed) == MAX_KEPT
    assert await rows.latest("a") == row(500)
    assert await rows.get("b", 0) == row(0, agent="b")
    await rows.write([AttestationRow("b", 0, False, "{}", 9.0)])
    assert await rows.list("b") == [AttestationRow("b", 0, False, "{}", 9.0)]


async def test_a_deleted_node_takes_its_sessions_and_attestations_along(database: Database) -> None:
    nodes, sessions, records = Nodes(database, "default"), SessionRows(database, "default"), Attestations(database)
    for name in ("a", "b"):
        await nodes.add(make_record(name), mtls_cert=None, revocation_key="")
    await sessions.add(waiting("x"))
    await records.write([row(1), row(1, agent="b")])
    assert await nodes.delete("a")
    assert await sessions.get("x") is None
    assert await records.list("a") == []
    assert len(await records.list("b")) == 1
    await records.write([row(2), row(2, agent="b")])  # by a worker that has not heard of it
    assert await records.list("a") == []
    assert len(await records.list("b")) == 2
