"""Results on their way into the database: in company, at once when trust changes, never lost, never out of order."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace
from tests.fakes.nodes import make_node

from limeguard.appraisal.verdict import Integrity, Reachability
from limeguard.store.database import StoreUnavailable
from limeguard.store.node_record import NodeRecord
from limeguard.store.notices import Notice
from limeguard.verifier import writer as module
from limeguard.verifier.fleet import Node
from limeguard.verifier.view import shows_trust
from limeguard.verifier.writer import Writer


class Rows:
    """A table in memory; `away` makes it fail, `gate` makes it slow."""

    def __init__(self) -> None:
        self.versions: dict[str, int] = {}
        self.rows: dict[str, NodeRecord] = {}
        self.batches: list[list[str]] = []
        self.away = False
        self.gate: asyncio.Event | None = None

    async def save_rounds(self, batch: list[NodeRecord], _notices: list[Notice]) -> frozenset[str]:
        if self.gate is not None:
            await self.gate.wait()
        if self.away:
            raise StoreUnavailable("away")
        self.batches.append([record.agent_id for record in batch])
        refused = set()
        for record in batch:
            if self.versions.setdefault(record.agent_id, 0) != record.version:
                refused.add(record.agent_id)
            else:
                self.versions[record.agent_id] += 1
                self.rows[record.agent_id] = record
        return frozenset(refused)


class Desk:
    """A writer at work over such a table."""

    def __init__(self) -> None:
        self.rows = Rows()
        self.refused: list[Node] = []
        self.writer = Writer(self.rows, self.refused.append)

    async def quiet(self) -> None:
        for _ in range(400):
            if not self.writer.backlog:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("still something to write")


@pytest.fixture
async def desk(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    monkeypatch.setattr(module, "RETRY_SECONDS", (0.01,))
    monkeypatch.setattr(module, "BATCH_SECONDS", 0.05)
    made = Desk()
    task = asyncio.create_task(made.writer.run())
    yield made
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def count(node: Node, attestations: int) -> None:
    node.become(replace(node.state, attestation_count=attestations), 0.0)


def green(node: Node) -> None:
    trusted = replace(
        node.state,
        integrity=Integrity.TRUSTED.value,
        reachability=Reachability.REACHABLE.value,
        trust_expires_at=1e12,
        proven_at=0.0,
    )
    node.become(trusted, 1.0)


async def test_results_that_can_wait_go_together(desk: Desk) -> None:
    nodes = [make_node(f"n{number}") for number in range(500)]
    for node in nodes:
        count(node, 1)
        desk.writer.save(node)
        desk.writer.save(node)
    await desk.quiet()
    assert len(desk.rows.batches) == 1
    assert len(desk.rows.batches[0]) == 500
    assert desk.writer.counters.written == 500


async def test_a_change_of_trust_does_not_wait_for_company(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_SECONDS", 30.0)
    slow, urgent = make_node("slow"), make_node("urgent")
    desk.writer.save(slow)
    await asyncio.sleep(0.02)
    async with asyncio.timeout(2):
        await desk.writer.save_now(urgent)
    assert desk.rows.batches[0] == ["urgent"]


async def test_many_changes_of_trust_leave_what_can_wait_its_time_and_no_longer(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GAP_SECONDS", 0.01)
    writer = Writer(desk.rows, desk.refused.append, gather=0.4)
    task = asyncio.create_task(writer.run())
    calm = {f"calm{number}" for number in range(5)}
    began = asyncio.get_running_loop().time()
    for name in calm:
        writer.save(make_node(name))
    at: dict[str, float] = {}
    for number in range(40):
        await writer.save_now(make_node(f"failed{number}"))
        for batch in desk.rows.batches:
            for name in batch:
                at.setdefault(name, asyncio.get_running_loop().time() - began)
        await asyncio.sleep(0.015)
    written = [name for batch in desk.rows.batches for name in batch]
    assert sorted(name for name in written if name in calm) == sorted(calm), "each once"
    assert all(0.35 < at[name] < 1.0 for name in calm)
    task.cancel()


async def test_trust_is_not_visible_before_it_is_written(desk: Desk) -> None:
    # trust: fail-closed
    node = make_node()
    desk.rows.gate = asyncio.Event()
    green(node)
    done = desk.writer.save_now(node)
    await asyncio.sleep(0.05)
    assert not shows_trust(node.visible.state, 2.0)
    desk.rows.gate.set()
    await asyncio.wait_for(done, 2)
    assert shows_trust(node.visible.state, 2.0)


async def test_what_is_lost_during_the_write_is_not_shown_when_it_ends(desk: Desk) -> None:
    # trust: fail-closed
    node = make_node()
    desk.rows.gate = asyncio.Event()
    green(node)
    done = desk.writer.save_now(node)
    await asyncio.sleep(0.05)
    node.become(replace(node.state, integrity=Integrity.DISTRUSTED.value, trust_expires_at=None), 1.0)
    desk.writer.save_now(node)
    desk.rows.gate.set()
    await asyncio.wait_for(done, 2)
    await desk.quiet()
    assert not shows_trust(node.visible.state, 2.0)
    assert desk.rows.rows["n"].state.integrity == "distrusted"
    assert node.record.version == desk.rows.versions["n"] == 2


async def test_a_database_that_is_away_loses_nothing_and_gets_the_newest(desk: Desk) -> None:
    desk.rows.away = True
    nodes = [make_node(f"n{number}") for number in range(50)]
    for attestations in range(1, 6):
        for node in nodes:
            count(node, attestations)
            desk.writer.save(node)
        await asyncio.sleep(0.02)
    assert desk.writer.failing
    assert desk.writer.backlog == 50  # bounded by the fleet, whatever happens meanwhile
    desk.rows.away = False
    await desk.quiet()
    assert {row.state.attestation_count for row in desk.rows.rows.values()} == {5}
    assert not desk.writer.failing


async def test_a_row_of_somebody_else_is_not_overwritten(desk: Desk) -> None:
    mine, other = make_node("mine"), make_node("other")
    desk.rows.versions["mine"] = 7
    desk.writer.save(mine)
    desk.writer.save(other)
    await desk.quiet()
    assert desk.refused == [mine]
    assert set(desk.rows.rows) == {"other"}


async def test_a_state_that_changes_during_its_write_is_written_again(desk: Desk) -> None:
    node = make_node()
    desk.rows.gate = asyncio.Event()
    count(node, 1)
    desk.writer.save(node)
    await asyncio.sleep(0.2)
    count(node, 2)
    desk.writer.save(node)
    desk.rows.gate.set()
    await desk.quiet()
    assert desk.rows.rows["n"].state.attestation_count == 2
    assert desk.rows.versions["n"] == 2


async def test_a_forgotten_node_is_not_written_and_nobody_waits_for_it(desk: Desk) -> None:
    node = make_node()
    desk.rows.away = True
    waiting = desk.writer.save_now(node)
    desk.writer.save(node)
    await asyncio.sleep(0.03)
    desk.writer.forget(node)
    await asyncio.wait_for(waiting, 1)
    desk.rows.away = False
    await desk.quiet()
    assert desk.rows.rows == {}


async def test_batches_are_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    # trust: bounded
    monkeypatch.setattr(module, "MAX_BATCH", 100)
    for number in range(1050):
        desk.writer.save(make_node(f"n{number}"))
    await desk.quiet()
    assert max(len(batch) for batch in desk.rows.batches) <= 100
    assert len(desk.rows.rows) == 1050


async def test_many_changes_of_trust_in_a_row_share_transactions(desk: Desk) -> None:
    nodes = [make_node(f"n{number}") for number in range(20)]
    began = asyncio.get_running_loop().time()
    written = []
    for node in nodes:
        count(node, 1)
        written.append(desk.writer.save_now(node))
        await asyncio.sleep(0.005)
    await asyncio.gather(*written)
    lasted = asyncio.get_running_loop().time() - began
    assert desk.rows.batches[0] == ["n0"]  # the first is not kept waiting
    assert len(desk.rows.batches) <= 2 + lasted / module.GAP_SECONDS
    assert sorted(one for batch in desk.rows.batches for one in batch) == sorted(node.agent_id for node in nodes)
