"""Nodes in the database: round trips, compare-and-set, what is kept out of memory; on every database there is."""

from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.fakes.columns import made_columns, wanted_columns

from limeguard.evidence.tpm.structures import ClockInfo
from limeguard.store.database import Conflict, Database
from limeguard.store.node_record import (
    MAX_CONTEXT,
    MAX_FINDINGS,
    Enrolled,
    NodeRecord,
    NodeState,
    StoredFinding,
    partition_of,
)
from limeguard.store.nodes import Nodes
from limeguard.store.schema_verifier import PARTITIONS, metadata

pytestmark = pytest.mark.services


def record(agent_id: str = "n1", verifier_id: str = "default") -> NodeRecord:
    enrolled = Enrolled(
        agent_id=agent_id,
        verifier_id=verifier_id,
        verifier_ip="127.0.0.1",
        verifier_port=8881,
        ip="192.0.2.1",
        port=9002,
        v="c2VjcmV0IHNoYXJl",
        tpm_policy='{"mask": "0x0"}',
        meta_data="{}",
        has_mb_policy=False,
        has_runtime_policy=False,
        accept_hash=("sha512", "sha256"),
        accept_enc=("rsa",),
        accept_sign=("rsassa",),
        ak_tpm="AAAA",
        certificate_sha256=bytes(32),
        enrolled_at=1767607200.25,
    )
    return NodeRecord(enrolled, NodeState(supported_version="2.6", phase="start", integrity="none", reachability="ok"))


def finding(number: int = 0, context: str = "{}") -> StoredFinding:
    return StoredFinding(
        id=f"f{number}", event_id="e", severity=6, label="emergency", context=context, advice="Look.", at=1.5
    )


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    made = Database(database_url)
    await made.migrate("verifier")
    yield made
    await made.close()


@pytest.fixture
def store(database: Database) -> Nodes:
    return Nodes(database, "default")


async def test_a_record_comes_back_as_it_was_written(store: Nodes) -> None:
    first = record()
    await store.add(first, mtls_cert="PEM", revocation_key="KEY")
    assert await store.get("n1") == first
    full = replace(
        first,
        state=replace(
            first.state,
            trust_expires_at=1767607210.5,
            attempts=3,
            clock=ClockInfo(2**64 - 1, 2**32 - 1, 7, safe=True),
            public_key="-----BEGIN PUBLIC KEY-----\n",
            severity_level=6,
            last_event_id="pcr_validation.invalid_pcr_15",
            findings=(finding(),),
            required_checks=("freshness", "signature"),
            ran_checks=("signature",),
        ),
    )
    written = await store.change_trust(full)
    assert written is not None
    assert written.version == 1
    assert await store.get("n1") == written
    assert await store.load_all() == [written]
    assert await store.revocation_key("n1") == "KEY"


async def test_the_same_id_twice_is_a_conflict_under_any_verifier(store: Nodes, database: Database) -> None:
    await store.add(record(), mtls_cert=None, revocation_key="")
    other = Nodes(database, "other")
    with pytest.raises(Conflict):
        await other.add(record(verifier_id="other"), mtls_cert=None, revocation_key="")
    assert await other.load_all() == []
    assert [r.agent_id for r in await other.list_nodes()] == ["n1"]
    assert await other.list_nodes("other") == []
    assert not await other.delete("n1")
    assert await store.delete("n1")
    assert await store.get("n1") is None


async def test_a_write_that_builds_on_an_old_version_is_refused(store: Nodes) -> None:
    first, second = record("a"), record("b")
    await store.add(first, mtls_cert=None, revocation_key="")
    await store.add(second, mtls_cert=None, revocation_key="")
    changed = await store.change_trust(replace(first, state=replace(first.state, phase="stopped")))
    assert changed is not None
    late = replace(first, state=replace(first.state, integrity="trusted"))
    refused = await store.save_rounds([late, replace(second, state=replace(second.state, attempts=1)), record("gone")])
    assert refused == {"a", "gone"}
    assert await store.get("a") == changed
    kept = await store.get("b")
    assert kept is not None
    assert (kept.state.attempts, kept.version) == (1, 1)


async def test_a_batch_larger_than_one_statement_is_written_whole(
    store: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limeguard.store.nodes._CHUNK", 3)
    batch = [record(f"n{i}") for i in range(10)]
    for one in batch:
        await store.add(one, mtls_cert=None, revocation_key="")
    assert await store.save_rounds(batch) == frozenset()
    assert {r.version for r in await store.load_all()} == {1}


# trust: bounded
async def test_findings_are_bounded(store: Nodes) -> None:
    first = record()
    await store.add(first, mtls_cert=None, revocation_key="")
    many = tuple(finding(i, "x" * (MAX_CONTEXT + 1)) for i in range(MAX_FINDINGS + 10))
    await store.save_rounds([replace(first, state=replace(first.state, findings=many))])
    kept = await store.get("n1")
    assert kept is not None
    assert len(kept.state.findings) == MAX_FINDINGS
    assert len(kept.state.findings[0].context) == MAX_CONTEXT


# trust: secret
async def test_key_material_stays_out_of_representations_and_of_the_records_in_memory(store: Nodes) -> None:
    await store.add(record(), mtls_cert="PEM", revocation_key="RSA PRIVATE KEY")
    (kept,) = await store.load_all()
    assert "c2VjcmV0IHNoYXJl" not in repr(kept)
    assert "PRIVATE" not in repr(kept)
    assert not hasattr(kept.enrolled, "revocation_key")


async def test_the_migration_makes_what_the_mapping_says(database: Database) -> None:
    async with database.reading() as connection:
        made = await connection.run_sync(made_columns, "limeguard_nodes")
        wanted = wanted_columns(metadata.tables["limeguard_nodes"], connection.dialect)
    assert made == wanted


@given(st.text(min_size=1, max_size=80))
def test_a_partition_is_always_within_its_range(agent_id: str) -> None:
    assert 0 <= partition_of(agent_id) < PARTITIONS


def test_partitions_never_change() -> None:
    assert partition_of("d432fbb3-d2f1-4a97-9ef7-75bd81c00000") == 112


async def test_a_row_with_broken_json_does_not_hide_the_others(store: Nodes, database: Database) -> None:
    await store.add(record("good"), mtls_cert=None, revocation_key="")
    await store.add(record("bad"), mtls_cert=None, revocation_key="")
    async with database.transaction() as connection:
        await connection.execute(sa.text("UPDATE limeguard_nodes SET findings = '{' WHERE agent_id = 'bad'"))
    assert [r.agent_id for r in await store.load_all()] == ["good"]
