"""The timer heap as a machine: one timer a node, the earliest first, nothing owed twice, nothing forgotten."""

import dataclasses
from collections import Counter
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace
from tests.fakes.nodes import make_node

from limeguard.appraisal.verdict import Integrity, Reachability
from limeguard.verifier.fleet import Fleet, Node

IDS = [f"n{number}" for number in range(6)]
LATE = 1.0


class Heap(RuleBasedStateMachine):
    """Compares the fleet with a dictionary of when each node is due."""

    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet(late_after=LATE, jitter=lambda: 0.5)
        self.nodes: dict[str, Node] = {}
        self.due: dict[str, float] = {}
        self.now = 0.0
        self.late = 0

    @rule(name=st.sampled_from(IDS))
    def add(self, name: str) -> None:
        node = make_node(name)
        if name in self.nodes:
            with pytest.raises(ValueError, match="in the fleet already"):
                self.fleet.add(node)
        else:
            self.fleet.add(node)
            self.nodes[name] = node

    @precondition(lambda self: self.nodes)
    @rule(data=st.data(), after=st.floats(0, 10), spread=st.floats(0, 2))
    def schedule(self, data: Any, after: float, spread: float) -> None:
        name = data.draw(st.sampled_from(sorted(self.nodes)))
        self.fleet.schedule(self.nodes[name], self.now + after, spread=spread)
        self.due[name] = self.now + after + spread * 0.5

    @precondition(lambda self: self.nodes)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        name = data.draw(st.sampled_from(sorted(self.nodes)))
        self.fleet.cancel(self.nodes[name])
        self.due.pop(name, None)

    @precondition(lambda self: self.nodes)
    @rule(data=st.data())
    def remove(self, data: Any) -> None:
        name = data.draw(st.sampled_from(sorted(self.nodes)))
        gone = self.nodes.pop(name)
        assert self.fleet.remove(name) is gone
        assert self.fleet.remove(name) is None
        self.due.pop(name, None)
        self.fleet.schedule(gone, self.now)  # a job of before, which ends now, brings nothing back
        assert gone.due is None

    @rule(step=st.floats(0, 5))
    def take_due(self, step: float) -> None:
        self.now += step
        taken: list[str] = []
        while (node := self.fleet.take_due(self.now)) is not None:
            taken.append(node.agent_id)
        wanted = sorted((at, name) for name, at in self.due.items() if at <= self.now)
        assert sorted(taken) == sorted(name for _, name in wanted)
        assert [self.due[name] for name in taken] == [at for at, _ in wanted]
        self.late += sum(self.now - at > LATE for at, _ in wanted)
        for name in taken:
            del self.due[name]

    @invariant()
    def agrees(self) -> None:
        assert len(self.fleet) == len(self.nodes)
        assert {node.agent_id: node.due for node in self.fleet if node.due is not None} == self.due
        assert self.fleet.next_due() == min(self.due.values(), default=None)
        assert self.fleet.pending() == len(self.due)
        assert self.fleet.counters.late_rounds == self.late
        assert len(self.fleet._heap) <= 64 + 4 * max(len(self.nodes), 1) + 1


TestHeap = Heap.TestCase
TestHeap.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


def test_timers_that_are_set_again_and_again_take_no_room() -> None:
    # trust: bounded
    fleet = Fleet(late_after=LATE, jitter=lambda: 0.0)
    node = make_node("n")
    fleet.add(node)
    for at in range(100_000):
        fleet.schedule(node, float(at))
    assert len(fleet._heap) < 100
    assert fleet.take_due(1e9) is node
    assert fleet.take_due(1e9) is None


def play(seconds: float, interval: float, held_up: tuple[float, float], per_tick: int) -> dict[str, list[float]]:
    """Let 200 nodes be asked at most `per_tick` times in each hundredth of a second, and nobody while held up."""
    random = Random(4)
    fleet = Fleet(late_after=LATE, jitter=random.random)
    nodes = [make_node(f"n{number}") for number in range(200)]
    for node in nodes:
        fleet.add(node)
        fleet.schedule(node, 0.0, spread=interval)
    asked: dict[str, list[float]] = {node.agent_id: [] for node in nodes}
    for tick in range(int(seconds * 100)):
        now = tick / 100
        if held_up[0] <= now < held_up[1]:
            continue
        for _ in range(per_tick):
            taken = fleet.take_due(now)
            if taken is None:
                break
            asked[taken.agent_id].append(now)
            fleet.schedule(taken, now + interval, spread=0.05 * interval, catch_up=interval)
    assert (fleet.counters.late_rounds > 0) == any(
        b - a > 1.05 * interval + LATE for times in asked.values() for a, b in pairwise(times)
    )
    return asked


def busiest(asked: dict[str, list[float]], since: float, until: float) -> int:
    """Return how many rounds the second with most of them had."""
    seconds = Counter(int(at) for times in asked.values() for at in times if since <= at < until)
    return max(seconds.values())


def test_rounds_that_came_due_together_do_not_march_in_step_afterwards() -> None:
    """200 nodes every 10 s are 20 rounds a second; for 15 s nobody is asked, then all 200 are due at once."""
    asked = play(60, 10.0, (20.0, 35.0), per_tick=100)
    assert busiest(asked, 10, 20) <= 2 * 20
    assert busiest(asked, 35, 36) == 200
    assert busiest(asked, 36, 60) <= 2 * 20  # without the spread: 200 at 45 s, and again at 55 s
    assert all(len([at for at in times if at > 36]) >= 1 for times in asked.values())
    assert max(b - a for times in asked.values() for a, b in pairwise(times) if a >= 35) < 2 * 10.0 + 0.5


def test_nobody_starves_while_there_is_more_to_do_than_can_be_done() -> None:
    """100 rounds a second can be done and 200 are wanted: everybody is asked half as often, nobody is forgotten."""
    asked = play(30, 1.0, (0.0, 0.0), per_tick=1)
    counts = [len(times) for times in asked.values()]
    assert sum(counts) >= 0.9 * 30 * 100
    assert min(counts) >= 0.6 * 15
    assert max(b - a for times in asked.values() for a, b in pairwise(times)) < 4.0


def test_no_spread_without_lateness() -> None:
    fleet = Fleet(late_after=LATE, jitter=lambda: 0.5)
    node = make_node("n")
    fleet.add(node)
    for due, now, after in ((0.0, 0.9, 10.0), (0.0, 8.0, 14.0), (0.0, 100.0, 15.0)):
        fleet.schedule(node, due)
        assert fleet.take_due(now) is node
        fleet.schedule(node, 10.0, catch_up=10.0)
        assert node.due == after


def test_what_is_noted_of_an_enrolment_during_a_write_stays_visible() -> None:
    node = make_node("n")
    green = {"integrity": Integrity.TRUSTED, "reachability": Reachability.REACHABLE, "trust_expires_at": 100.0}
    node.become(replace(node.state, **green, proven_at=0.5, attestation_count=1), 1.0)
    writing = node.record
    node.note_enrolled(dataclasses.replace(node.record.enrolled, has_mb_policy=True))
    node.become(replace(node.state, attestation_count=2), 2.0)
    assert node.visible.state.attestation_count == 0
    node.committed(replace(writing, version=writing.version + 1))
    assert node.visible.state.attestation_count == 1
    assert node.visible.enrolled.has_mb_policy
    assert node.record.enrolled.has_mb_policy
