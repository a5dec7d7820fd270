"""When leases count: by the clock of this machine, through sleeps, outages and losses."""

import os
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pytest

from limeguard.store.changes import Look
from limeguard.store.database import StoreUnavailable
from limeguard.store.leases import Standing
from limeguard.store.node_record import partition_of
from limeguard.store.schema_verifier import PARTITIONS
from limeguard.verifier.ownership import Ownership, Timing, place, process_gone

TIMING = Timing(lease=5.0, beat=1.25, outage=300.0)
ALL = dict.fromkeys(range(PARTITIONS), 1)
MINE = partition_of("n")


class Table:
    """Leases as a database would have them: what the test says."""

    def __init__(self) -> None:
        self.standing = Standing(ALL, 1, PARTITIONS)
        self.away = False
        self.beats: list[dict[str, Any]] = []
        self.released: list[int] = []
        self.left = False
        self.meanwhile: Callable[[], None] = lambda: None

    async def beat(self, held: Mapping[int, int], _gone: object, /, **named: Any) -> Standing:
        self.beats.append({"held": dict(held), **named})
        self.meanwhile()
        if self.away:
            raise StoreUnavailable("away")
        return self.standing

    async def release(self, partitions: Collection[int]) -> None:
        self.released += partitions
        kept = {one: epoch for one, epoch in self.standing.held.items() if one not in partitions}
        self.standing = Standing(kept, self.standing.live, self.standing.share)

    async def leave(self) -> None:
        self.left = True

    async def look(self) -> Look:
        return Look(0, 0, 0.0, present=True)

    async def mine(self) -> list[tuple[int, str]]:
        return []

    async def heard(self, _numbers: Collection[int]) -> None:
        return


class Kept:
    """Nodes that come and go."""

    def __init__(self) -> None:
        self.log: list[tuple[str, Any]] = []
        self.writes = True

    async def taken(self, epochs: Mapping[int, int]) -> None:
        self.log.append(("taken", dict(epochs)))

    def lost(self, partitions: Collection[int]) -> None:
        self.log.append(("lost", set(partitions)))

    async def let_go(self, partitions: Collection[int]) -> bool:
        self.log.append(("let go", set(partitions)))
        return self.writes

    async def changed(self, _agent_ids: Collection[str]) -> None:
        return

    async def policies_changed(self) -> None:
        return

    async def reconcile(self, _partitions: Collection[int]) -> None:
        return


class Desk:
    """An ownership with a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.table, self.kept = Table(), Kept()
        self.opened = 0
        self.ownership = Ownership(self.table, self.table, timing=TIMING, opened=self._opened, clock=lambda: self.now)

    def _opened(self) -> None:
        self.opened += 1

    async def moved(self) -> None:
        if self.ownership._moving is not None:
            await self.ownership._moving


def is_open(desk: Desk) -> bool:
    return desk.ownership.open


@pytest.fixture
async def desk() -> Desk:
    made = Desk()
    await made.ownership.begin(made.kept)
    return made


async def test_leases_count_a_little_shorter_than_the_database_says_and_from_before_it_was_asked() -> None:
    # trust: fail-closed
    desk = Desk()

    def slow() -> None:
        desk.now += 2.0

    desk.table.meanwhile = slow
    assert not is_open(desk)
    await desk.ownership.begin(desk.kept)
    assert is_open(desk)
    desk.now = 100.0 + TIMING.lease - TIMING.margin - 0.01
    assert is_open(desk)
    assert desk.ownership.epoch_of("n") == 1
    desk.now += 0.02
    assert not is_open(desk)
    assert desk.ownership.epoch_of("n") is None
    assert not desk.ownership.alone


async def test_one_that_slept_starts_nothing_until_it_has_asked(desk: Desk) -> None:
    # trust: fail-closed
    desk.now += 3600.0
    assert not is_open(desk)
    desk.table.standing = Standing({**ALL, MINE: 7}, 2, PARTITIONS)
    await desk.ownership.beat()
    await desk.moved()
    assert desk.opened == 1
    assert desk.ownership.epoch_of("n") == 7
    # The node was somebody else's meanwhile: what was known of it is dropped and read again.
    assert desk.kept.log[1:] == [("lost", {MINE}), ("taken", {MINE: 7})]
    assert not desk.ownership.holds("n", 1)


async def test_leases_outlast_a_database_that_is_away_but_not_for_ever(desk: Desk) -> None:
    # trust: bounded
    desk.table.away = True
    end = desk.now + TIMING.lease - TIMING.margin + TIMING.outage
    while desk.now < end - 2.0:
        await desk.ownership.beat()
        desk.now += 1.0
        assert is_open(desk)
    for _ in range(4):
        await desk.ownership.beat()
        desk.now += 1.0
    assert not is_open(desk)
    assert desk.ownership.counters.failed_beats > 200


async def test_one_that_slept_through_an_outage_has_not_tried_and_does_not_go_on(desk: Desk) -> None:
    # trust: fail-closed
    desk.table.away = True
    await desk.ownership.beat()
    desk.now += TIMING.lease + 1.0
    before = is_open(desk)
    await desk.ownership.beat()
    assert (before, is_open(desk)) == (False, True), "what was tried a moment ago counts, nothing older"


async def test_after_an_outage_others_are_given_a_lease_s_time(desk: Desk) -> None:
    await desk.ownership.beat()
    assert not desk.table.beats[-1]["patient"]
    desk.table.away = True
    await desk.ownership.beat()
    desk.table.away = False
    for after, patient in ((1.0, True), (1.0, True), (TIMING.lease - 1.5, True), (1.0, False)):
        desk.now += after
        await desk.ownership.beat()
        assert desk.table.beats[-1]["patient"] is patient


async def test_a_refused_write_makes_it_doubt_everything(desk: Desk) -> None:
    await desk.ownership.beat()
    assert len(desk.table.beats[-1]["held"]) == PARTITIONS
    desk.ownership.beat_soon()
    await desk.ownership.beat()
    assert desk.table.beats[-1]["held"] == {}


async def test_what_is_too_much_is_given_back_after_it_was_written(desk: Desk) -> None:
    desk.table.standing = Standing(ALL, 2, PARTITIONS // 2)
    desk.kept.writes = False
    await desk.ownership.beat()
    await desk.moved()
    assert desk.table.released == []
    assert desk.ownership.partitions == PARTITIONS, "what could not be written is kept"
    desk.kept.writes = True
    await desk.ownership.beat()
    await desk.moved()
    assert sorted(desk.table.released) == list(range(PARTITIONS // 2, PARTITIONS))
    assert desk.ownership.partitions == PARTITIONS // 2


async def test_one_that_leaves_gives_back_what_is_idle_and_then_the_rest(desk: Desk) -> None:
    await desk.ownership.hand_over(lambda partition: partition != MINE)
    assert desk.table.beats[-1]["leaving"]
    assert set(desk.table.released) == set(ALL) - {MINE}
    assert desk.ownership.epoch_of("n") == 1
    await desk.ownership.leave()
    assert desk.table.left
    assert not is_open(desk)


def test_a_process_of_this_machine_that_ended_is_gone_and_no_other() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert not process_gone(place(), child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_gone(place(), child.pid), "it has ended, though nobody has taken note"
    child.wait()
    assert child.stdin is not None
    child.stdin.close()
    assert process_gone(place(), child.pid)
    assert not process_gone("another machine", child.pid), "numbers of another machine say nothing here"
    assert not process_gone("", child.pid)
    assert not process_gone(place(), os.getpid())
