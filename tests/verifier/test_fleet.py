"""The timer heap as a machine: one timer a node, the earliest first, nothing owed twice, nothing forgotten."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.fakes.nodes import make_node

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
