"""A fault at every single call of a round: no fault makes trust, and none ends supervision.

A trace function counts the calls into this project's code while a round runs, and raises in the n-th of them, for every
n there is. Nothing is picked by hand, so code that is added later is covered too.
"""

import asyncio
import gc
import sys
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace as with_fields
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from msgspec.structs import replace
from tests.fakes.nodes import make_record
from tests.fakes.soft_boot import SoftFirmware

import limeguard
from limeguard.appraisal.verdict import Condition
from limeguard.clients.agent import AgentAddress, AgentClient
from limeguard.evidence.bootlog.event_types import EV_SEPARATOR
from limeguard.policy.boot import BootPolicy, parse_boot_policy
from limeguard.policy.pcrs import PcrPolicy
from limeguard.policy.severity import parse_severity
from limeguard.simulator.softtpm import SoftNode
from limeguard.store.database import StoreUnavailable
from limeguard.store.node_record import NodeRecord
from limeguard.store.notices import Notice
from limeguard.verifier import engine as engine_module
from limeguard.verifier import lifecycle
from limeguard.verifier.engine import Engine, Limits
from limeguard.verifier.enrolment import quoting_logs
from limeguard.verifier.fleet import Fleet, Node
from limeguard.verifier.poller import Poller
from limeguard.verifier.supervision import Rules
from limeguard.verifier.view import agent_status, condition_of, node_view
from limeguard.verifier.writer import Writer
from limeguard.web.answers import Answer, NoRoom
from limeguard.wire.envelope import envelope

ROOT = str(Path(limeguard.__file__).parent)
PATIENCE = 10.0
TURNS = 12
SHARE = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY="
RULES = Rules(
    quote_interval=0.01,
    retry_interval=0.01,
    exponential_backoff=False,
    max_retries=3,
    trust_lifetime=60.0,
    severity=parse_severity(("info", "emergency"), ((".*", "emergency"),)),
)
FAULTS: list[Callable[[], BaseException]] = [
    lambda: RuntimeError("a bug"),
    MemoryError,
    lambda: StoreUnavailable("the database is away"),
    lambda: OSError(28, "No space left on device"),
    asyncio.CancelledError,
    TimeoutError,
    lambda: ValueError("a value"),
]


class NoPolicies:
    """A shelf without policies: what is judged here needs none."""

    def current(self, _name: str) -> None:
        """Return no policy."""
        return


class OneBootPolicy:
    """A shelf with one measured boot policy: every log that leads to the quoted PCRs."""

    def __init__(self) -> None:
        self._policy = parse_boot_policy('{"any": "reference state"}')

    def current(self, _name: str) -> BootPolicy:
        """Return it."""
        return self._policy


class Wire:
    """Stands where HTTP is, with an honest agent behind it. `asked` counts the questions for quotes."""

    def __init__(self, agent: SoftNode) -> None:
        self._agent = agent
        self._firmware = SoftFirmware(agent)
        self._firmware.measure(4, EV_SEPARATOR, bytes(4))
        self.asked = 0
        self.delivered = 0

    async def request(self, _method: str, url: str, **_options: Any) -> Answer:
        if url.endswith("/keys/vkey"):
            self.delivered += 1
            return Answer(200, envelope(200, "Success", {}), {})
        self.asked += 1
        query = dict(part.split("=") for part in url.partition("?")[2].split("&"))
        results = self._agent.integrity_answer(query["nonce"], query["mask"], partial=query["partial"] == "1")
        results["mb_measurement_list"] = b64encode(self._firmware.log).decode()
        return Answer(200, envelope(200, "Success", results), {})


class Store:
    """Rows in memory, as the database would hold them."""

    def __init__(self, record: NodeRecord) -> None:
        self.row = record

    async def save_rounds(self, batch: list[NodeRecord], _notices: list[Notice]) -> frozenset[str]:
        for record in batch:
            if record.version != self.row.version:
                return frozenset({record.agent_id})
            self.row = replace(record, version=record.version + 1)
        return frozenset()

    async def delete(self, _agent_id: str, _epoch: int | None = None) -> bool:
        return True


class Injection:
    """Raises in call number `at` into the project's code, and counts the calls."""

    def __init__(self, at: int, fault: Callable[[], BaseException]) -> None:
        self.calls, self.place = 0, ""
        self._at, self._fault = at, fault

    def __call__(self, frame: FrameType, _event: str, _argument: object) -> None:
        code = frame.f_code
        if not code.co_filename.startswith(ROOT) or code.co_name in {"run", "<module>"}:
            return  # the outermost loops are the ones that a fault must not end: they have no caller in here
        self.calls += 1
        if self.calls == self._at:
            self.place = f"{Path(code.co_filename).relative_to(ROOT)}:{code.co_name}"
            raise self._fault()


class Bench:
    """One node, supervised by the real engine, poller and writer, over a wire and a store in memory."""

    def __init__(self) -> None:
        soft = SoftNode.create("ecc256")
        soft.transport  # noqa: B018 - made once for all
        self.wire = Wire(SoftNode(soft.ek, soft.ak, soft.transport, dict(soft.pcrs), soft.clock))
        policy = quoting_logs(PcrPolicy({23: frozenset({bytes(32)})}, 1 << 23), ima=False, boot=True)
        record = make_record("node-1", has_v=True)
        enrolled = with_fields(record.enrolled, v=SHARE, mb_policy_name="node-1")
        self.store = Store(replace(record, enrolled=enrolled))
        self.node = Node(self.store.row, soft.ak.area, policy, AgentAddress("127.0.0.1", 1, None))
        self.writer = Writer(self.store, lambda _node: None)
        self.engine = Engine(
            Fleet(late_after=1.0, jitter=lambda: 0.0),
            Poller(
                AgentClient(self.wire),  # type: ignore[arg-type]
                answer_within=5.0,
                policies=NoPolicies(),
                boot_policies=OneBootPolicy(),
            ),
            self.writer,
            self.store,
            RULES,
            Limits(4, 5.0),
        )

    def condition(self) -> Condition:
        """Return what readers are told, in every form that they are told it."""
        now, visible = time.time(), self.node.visible
        condition = condition_of(visible.state, now)
        assert node_view(visible, now).condition == condition.value
        assert (agent_status(visible, now, 1.0).attestation_status == "PASS") == (condition is Condition.TRUSTED)
        return condition

    async def round(self, injection: Injection) -> bool:
        """Let the first round run under the injection, and the writes after it; say whether both loops go on."""
        if self.engine.fleet.get("node-1") is None:
            self.engine.take_in(self.node, lifecycle.Enrolled())
        # What is injected into callbacks of the loop has nobody to go to; it would be told when the task is collected.
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
        tasks = [asyncio.create_task(self.engine.run()), asyncio.create_task(self.writer.run())]
        await asyncio.sleep(0)
        sys.settrace(injection)
        try:
            turns, end = 0, time.monotonic() + PATIENCE
            while self.wire.delivered == 0 and turns < TURNS and time.monotonic() < end:
                await asyncio.sleep(0.002)
                turns += bool(injection.place)  # after the fault it gets a few turns more, to settle
        finally:
            sys.settrace(None)
        going_on = not any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)
        return going_on


async def test_without_a_fault_the_round_makes_trust() -> None:
    bench = Bench()
    injection = Injection(0, RuntimeError)
    await bench.round(injection)
    assert bench.condition() is Condition.TRUSTED
    assert bench.store.row.state.integrity == "trusted"
    assert injection.calls > 100


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault()).__name__)
async def test_a_fault_anywhere_makes_no_trust_and_ends_nothing(
    fault: Callable[[], BaseException], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # trust: fail-closed
    caplog.set_level("CRITICAL")
    monkeypatch.setattr(engine_module, "FALLBACK_PAUSE", 0.01)
    at, reached = 0, True
    places: set[str] = set()
    while reached:
        at += 1
        bench = Bench()
        injection = Injection(at, fault)
        going_on = await bench.round(injection)
        reached = bool(injection.place)
        if not reached:
            break
        places.add(injection.place)
        judged = bench.wire.asked > 1 or _judged(bench)
        where = f"fault {at} at {injection.place}"
        assert bench.condition() is not Condition.TRUSTED or judged, where
        if bench.condition() is Condition.TRUSTED:
            assert bench.store.row.state.integrity == "trusted", f"{where}: shown before it was stored"
        # A loop that is cancelled ends the whole program, aloud: see what `Verifier.failed` is for.
        assert going_on or fault is asyncio.CancelledError, f"{where}: a loop has ended"
        # A ValueError where text is decoded is what malformed evidence looks like: a finding, and that is no silence.
        found = isinstance(fault(), ValueError) and bool(bench.node.visible.state.findings)
        assert not going_on or bench.node.due is not None or bench.node.busy or found, f"{where}: nobody asks again"
    gc.collect()  # tasks that ended by an injected fault go while their loop, which keeps silent, is still there
    assert len(places) > 40, places


async def test_a_word_to_a_job_that_has_not_begun_leaves_nobody_busy() -> None:
    # trust: enrolment-order
    bench = Bench()
    bench.engine.take_in(bench.node, lifecycle.Enrolled())
    tasks = [asyncio.create_task(bench.engine.run()), asyncio.create_task(bench.writer.run())]
    try:
        async with asyncio.timeout(PATIENCE):
            while not bench.node.busy:
                await asyncio.sleep(0)
            assert not bench.node.begun  # its task is made, and has its first step after this one
            bench.engine.apply(bench.node, lifecycle.StopRequested())
            bench.engine.apply(bench.node, lifecycle.Reactivated())
            while bench.condition() is not Condition.TRUSTED:
                await asyncio.sleep(0.01)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _judged(bench: Bench) -> bool:
    """Whether the database holds a proof with every required check run: the fault came after the judgement."""
    state = bench.store.row.state
    return bool(state.required_checks) and set(state.required_checks) <= set(state.ran_checks)


async def test_a_node_is_not_to_blame_for_connections_that_this_process_may_not_open() -> None:
    bench = Bench()

    async def refused(*_: Any, **_options: Any) -> Answer:
        raise NoRoom("Cannot connect: [Errno 24] Too many open files")

    bench.wire.request = refused  # type: ignore[method-assign]
    bench.engine.take_in(bench.node, lifecycle.Enrolled())
    running = asyncio.create_task(bench.engine.run())
    async with asyncio.timeout(PATIENCE):
        while bench.node.faults < RULES.max_retries + 1:
            await asyncio.sleep(0.01)
    assert bench.node.state.reachability == "unknown"
    assert not bench.node.state.findings
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
