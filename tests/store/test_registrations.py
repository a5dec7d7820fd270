"""Registrations in the database: round trips, and writes that build on what was read; on every database there is."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import fields, replace
from typing import get_args, get_type_hints

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fakes.columns import made_columns, wanted_columns

from limeguard.store.database import Conflict, Database, StoreUnavailable
from limeguard.store.registrations import COMPONENT, Registration, Registrations
from limeguard.store.schema_registrar import registrations

pytestmark = pytest.mark.services

ID = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000"


def record(agent_id: str = ID) -> Registration:
    return Registration(agent_id=agent_id, ek_tpm=b"ek", ekcert=None, aik_tpm=b"ak")


FULL = replace(
    record(),
    ekcert=bytes(65536),
    iak_tpm=bytes(range(256)),
    iak_cert=b"\x00",
    idevid_tpm=b"\xff",
    idevid_cert=b"",
    ip="[2001:db8::1%eth0]",
    port=65535,
    mtls_cert="-----BEGIN CERTIFICATE-----\n",
    active=True,
    proven=True,
    proof_sha256=bytes(range(32)),
    regcount=2**31 - 1,
    registered_at=1767607200.123456,
)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    made = Database(database_url)
    await made.migrate(COMPONENT)
    yield made
    await made.close()


@pytest.fixture
def store(database: Database) -> Registrations:
    return Registrations(database)


@pytest.mark.parametrize("one", [record(), FULL], ids=["sparse", "full"])
async def test_a_registration_comes_back_as_it_was_written(store: Registrations, one: Registration) -> None:
    written = await store.save(one)
    assert written.version > 0
    assert replace(written, version=0) == one
    assert await store.get(ID) == written
    changed = await store.save(replace(written, ekcert=None, ip=None, active=False, regcount=3))
    assert changed.version == written.version + 1
    assert await store.get(ID) == changed
    assert await store.ids() == [ID]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    one=st.builds(
        Registration,
        agent_id=st.just(ID),
        ek_tpm=st.none() | st.binary(max_size=50),
        aik_tpm=st.binary(max_size=50),
        ekcert=st.none() | st.binary(max_size=50),
        ip=st.none() | st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=255),
        port=st.none() | st.integers(1, 65535),
        active=st.booleans(),
        proven=st.booleans(),
        registered_at=st.floats(0, 1e11),
    )
)
async def test_every_registration_survives(store: Registrations, one: Registration) -> None:
    await store.delete(ID)
    written = await store.save(one)
    assert await store.get(ID) == written


async def test_ids_are_told_apart_to_the_letter(store: Registrations) -> None:
    # trust: bound-identity
    for agent_id in ("node", "NODE", "node.", "nod_", "n"):
        await store.save(record(agent_id))
    assert await store.ids() == sorted(["node", "NODE", "node.", "nod_", "n"])
    for absent in ("Node", "node ", " node", "nod%", "", "node\0"[:4] + "x"):
        assert await store.get(absent) is None
        assert not await store.delete(absent)
    assert len(await store.ids()) == 5


async def test_an_id_is_inserted_once(store: Registrations) -> None:
    # trust: bound-identity
    first = await store.save(record())
    with pytest.raises(Conflict):
        await store.save(replace(record(), ek_tpm=b"another"))
    assert await store.get(ID) == first


async def test_of_many_inserts_at_once_one_wins(store: Registrations) -> None:
    # trust: bound-identity
    outcomes = await asyncio.gather(
        *(store.save(replace(record(), ek_tpm=bytes([number]))) for number in range(8)), return_exceptions=True
    )
    won = [one for one in outcomes if isinstance(one, Registration)]
    assert [type(one) for one in outcomes if not isinstance(one, Registration)] == [Conflict] * 7
    assert await store.get(ID) == won[0]


async def test_of_many_changes_that_build_on_one_row_one_wins(store: Registrations) -> None:
    # trust: enrolment-order
    read = await store.save(record())
    outcomes = await asyncio.gather(
        *(store.save(replace(read, regcount=number)) for number in range(8)),
        store.delete_as_read(read),
        return_exceptions=True,
    )
    assert sum(isinstance(one, Conflict) for one in outcomes) == 8
    won = next((one for one in outcomes if isinstance(one, Registration)), None)
    assert await store.get(ID) == won


async def test_a_row_that_is_gone_is_not_written_back(store: Registrations) -> None:
    # trust: enrolment-order
    read = await store.save(record())
    assert await store.delete(ID)
    for late in (store.save(replace(read, active=True)), store.delete_as_read(read)):
        with pytest.raises(Conflict):
            await late
    assert await store.ids() == []


async def test_a_row_that_was_made_anew_is_not_the_one_that_was_read(store: Registrations) -> None:
    # trust: enrolment-order - also when both were written equally often
    read = await store.save(record())
    await store.delete(ID)
    anew = await store.save(record())
    for late in (store.save(replace(read, active=True)), store.delete_as_read(read)):
        with pytest.raises(Conflict):
            await late
    assert await store.get(ID) == anew
    await store.delete_as_read(anew)
    assert not await store.delete(ID)


async def test_a_change_touches_its_own_row_alone(store: Registrations) -> None:
    one, other = await store.save(record("one")), await store.save(record("other"))
    await store.save(replace(one, active=True))
    assert await store.get("other") == other
    await store.delete("one")
    assert await store.ids() == ["other"]


async def test_before_the_migration_nothing_can_be_read(database_url: str) -> None:
    database = Database(database_url)
    with pytest.raises((StoreUnavailable, sa.exc.ProgrammingError)):
        await Registrations(database).ids()
    await database.close()


async def test_the_migration_makes_what_the_mapping_says(database: Database) -> None:
    async with database.reading() as connection:
        made = await connection.run_sync(made_columns, registrations.name)
        wanted = wanted_columns(registrations, connection.dialect)
    assert made == wanted


def test_the_record_has_the_columns_of_the_table() -> None:
    hints = get_type_hints(Registration)
    assert [field.name for field in fields(Registration)] == [column.name for column in registrations.c]
    for column in registrations.c:
        assert (type(None) in get_args(hints[column.name])) == bool(column.nullable), column.name


def test_nothing_secret_is_kept() -> None:
    # trust: secret - the digest of the proof alone, neither challenge nor proof nor blob
    assert {c.name for c in registrations.c if "proof" in c.name or "key" in c.name or "blob" in c.name} == {
        "proof_sha256"
    }
