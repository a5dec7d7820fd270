"""Rings between the workers of one parent: who hears them, and that nobody waits for one who does not."""

import asyncio
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests.fakes.pki import Authority
from tests.fakes.verifier_site import running_verifier
from tests.verifier.test_cluster import POLICY, QUICK

from limeguard.simulator.softtpm import SoftNode
from limeguard.store.changes import announce
from limeguard.store.database import Conflict, Database
from limeguard.store.nodes import COMPONENT
from limeguard.verifier.bell import Bell
from limeguard.verifier.crew import Member


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="limeguard-test-", dir="/tmp") as found:
        yield Path(found)


async def test_all_others_hear_a_ring_and_the_dead_are_left_out(folder: Path) -> None:
    heard: list[int] = []
    bells = [Bell(folder, number, 4, lambda number=number: heard.append(number)) for number in range(3)]  # type: ignore[misc]
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    dead.bind(str(folder / "3.bell"))
    dead.close()
    bells[0].ring()
    await asyncio.sleep(0.01)
    assert sorted(heard) == [1, 2]
    bells[2].close()
    bells[1].ring()
    await asyncio.sleep(0.01)
    assert sorted(heard) == [0, 1, 2]
    again = Bell(folder, 2, 4, lambda: heard.append(2))
    bells[1].ring()
    await asyncio.sleep(0.01)
    assert sorted(heard) == [0, 0, 1, 2, 2]
    for bell in (*bells[:2], again):
        bell.close()
    assert [path.name for path in folder.iterdir()] == ["3.bell"]


async def test_one_who_does_not_listen_holds_nobody_up(folder: Path) -> None:
    # trust: bounded
    heard: list[int] = []
    slow = Bell(folder, 0, 2, lambda: heard.append(0))
    bell = Bell(folder, 1, 2, lambda: heard.append(1))
    for _ in range(100_000):
        bell.ring()
    await asyncio.sleep(0.01)
    assert heard, "what was rung before it looked is heard"
    slow.close()
    bell.close()


async def test_what_is_announced_is_told_once_it_is_committed_and_not_before(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'a.sqlite'}")
    told: list[int] = []
    database.on_announced = lambda: told.append(1)
    async with database.transaction() as connection:
        await connection.execute(sa.text("CREATE TABLE things (name VARCHAR(50) PRIMARY KEY)"))
    assert told == []
    async with database.transaction() as connection:
        await announce(connection)
        await connection.execute(sa.text("INSERT INTO things VALUES ('one')"))
        assert told == []
    assert told == [1]
    with pytest.raises(Conflict):
        async with database.transaction() as connection:
            await announce(connection)
            await connection.execute(sa.text("INSERT INTO things VALUES ('one')"))
    async with database.transaction() as connection:
        await connection.execute(sa.text("INSERT INTO things VALUES ('two')"))
    assert told == [1], "what was undone is not told with the next"
    await database.close()


@pytest.mark.services
async def test_words_reach_the_owner_though_nobody_looks_by_himself(
    folder: Path, tmp_path: Path, authority: Authority
) -> None:
    shared: dict[str, Any] = {
        "database_url": f"sqlite:///{tmp_path / 'shared.sqlite'}",
        "trust_lifetime": 30.0,
        "timing": replace(QUICK, lease=20.0, beat=5.0, look_called=60.0, look=60.0, look_quiet=60.0),
    }
    database = Database(shared["database_url"])
    await database.migrate(COMPONENT)
    await database.close()
    one, two = Member(0, 2, folder), Member(1, 2, folder)
    async with (
        running_verifier(tmp_path, authority, member=one, **shared) as first,
        running_verifier(tmp_path, authority, member=two, **shared) as second,
    ):
        began = time.monotonic()
        agents = [await first.add_agent(f"node-{n}", SoftNode.create("ecc256", number=n)) for n in range(4)]
        for agent in agents:
            await first.enrol(agent, tpm_policy=POLICY)
        for agent in agents:
            await second.reaches(agent, "trusted", rounds=1)
        engines = [site.verifier.engine for site in (first, second)]
        assert all(engine is not None and len(list(engine.fleet)) > 0 for engine in engines), "both have some of them"
        for agent in agents:
            for site in (first, second):
                assert (await site.ask("PUT", f"/v2.6/agents/{agent.agent_id}/stop", b"")).status == 200
        asked = [agent.quotes for agent in agents]
        await asyncio.sleep(0.3)
        assert [agent.quotes for agent in agents] == asked
        assert time.monotonic() - began < 5.0
