"""A million nodes in memory: what the verifier's engine costs by itself, without network, TLS, quotes or database.

Every node is asked once in the interval by an agent that answers at once; what came due while the nodes were made is
done first. Shows bytes and CPU that go to keeping time,
to stepping the state machine and to queueing results: the floor below every figure of `fleet` and `curve`.

    ./dev run python bench/engine.py --nodes 1000000 --seconds 20
"""

import argparse
import asyncio
import gc
import resource
import secrets
import time
from base64 import b64encode
from typing import Any

from limeguard.appraisal.verdict import Integrity, Reachability
from limeguard.clients.agent import AgentAddress
from limeguard.policy.pcrs import parse_tpm_policy
from limeguard.policy.severity import parse_severity
from limeguard.simulator.softtpm import SoftAk
from limeguard.store.node_record import Enrolled, NodeRecord, NodeState
from limeguard.store.notices import Notice
from limeguard.verifier import lifecycle
from limeguard.verifier.engine import Engine, Limits, shuffled
from limeguard.verifier.fleet import Fleet, Node
from limeguard.verifier.poller import Result
from limeguard.verifier.record import with_supervision
from limeguard.verifier.supervision import Job, Rules, Supervision
from limeguard.verifier.writer import Writer

LABELS = ("info", "emergency")


class Answers:
    """Agents that answer at once, and well."""

    async def perform(self, _node: Node, _job: Job) -> Result:
        """Return a good round."""
        return Result(lifecycle.RoundTrusted(time.time(), new_key=False))


class Nowhere:
    """A database that keeps nothing and is never slow."""

    async def save_rounds(self, _batch: list[NodeRecord], _notices: list[Notice]) -> frozenset[str]:
        """Take everything."""
        return frozenset()

    async def delete(self, _agent_id: str, _epoch: int | None = None) -> bool:
        """Delete nothing."""
        return True


def record(number: int, ak: str, policy: str) -> NodeRecord:
    """Return a row as the store hands it out: texts of its own, nothing shared that rows do not share."""
    enrolled = Enrolled(
        agent_id=f"{number:08x}-{secrets.token_hex(12)}",
        verifier_id="default",
        verifier_ip="127.0.0.1",
        verifier_port=8881,
        ip=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}",
        port=9002,
        v=None,
        tpm_policy=policy,
        meta_data="{}",
        has_mb_policy=False,
        has_runtime_policy=False,
        accept_hash=("sha256",),
        accept_enc=("ecc",),
        accept_sign=("ecdsa",),
        ak_tpm=ak,
        certificate_sha256=secrets.token_bytes(32),
        enrolled_at=0.0,
    )
    known = Supervision(integrity=Integrity.TRUSTED, reachability=Reachability.REACHABLE)
    return NodeRecord(
        enrolled, with_supervision(NodeState(supported_version="2.6", phase="", integrity="", reachability=""), known)
    )


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - one line of the kernel's
        return int(file.read().split()[1]) * resource.getpagesize()


def make_engine(interval: float) -> Engine:
    rules = Rules(
        quote_interval=interval,
        retry_interval=1.0,
        exponential_backoff=False,
        max_retries=5,
        trust_lifetime=5 * interval,
        severity=parse_severity(LABELS, ((".*", "emergency"),)),
    )
    nowhere = Nowhere()
    writer = Writer(nowhere, lambda _node: None, gather=5.0)
    return Engine(Fleet(late_after=1.0, jitter=shuffled), Answers(), writer, nowhere, rules, Limits(2_048, 60.0))


async def play(options: argparse.Namespace) -> dict[str, Any]:
    engine = make_engine(options.interval)
    ak = SoftAk.generate("ecc256")
    policy_text = '{"mask": "0x0"}'
    policy, text = parse_tpm_policy(policy_text), b64encode(ak.public_2b).decode()
    gc.collect()
    before = resident()
    for number in range(options.nodes):
        one = record(number, text + secrets.token_hex(1), policy_text)
        node = Node(one, ak.area, policy, AgentAddress(one.enrolled.ip or "", 9002, None))
        engine.take_in(node, lifecycle.Restarted(), spread=options.interval)
    size = resident() - before
    gc.freeze()
    running = asyncio.create_task(engine.run())
    writing = asyncio.create_task(engine._writer.run())  # noqa: SLF001 - the bench puts it together
    counters, cpu, began = engine.fleet.counters, time.process_time(), time.monotonic()
    await asyncio.sleep(options.seconds)
    used, lasted, rounds = time.process_time() - cpu, time.monotonic() - began, counters.rounds
    for task in (running, writing):
        task.cancel()
    return {"size": size, "cpu": used, "seconds": lasted, "rounds": rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=200_000)
    parser.add_argument("--interval", type=float, default=60.0)
    parser.add_argument("--seconds", type=float, default=15.0)
    options = parser.parse_args()
    seen = asyncio.run(play(options))
    rounds, seconds, wanted = seen["rounds"] or 1, seen["seconds"], options.nodes / options.interval
    size, cpu = seen["size"], seen["cpu"]
    print(f"{options.nodes:,} nodes, one round every {options.interval:g} s, {seconds:.0f} s")
    print(f"  memory a node      {size / options.nodes:,.0f} bytes, {size / (1 << 20):,.0f} MiB in all")
    print(f"  rounds             {rounds:,}, {rounds / seconds:,.0f} a second of {wanted:,.0f}")
    print(f"  CPU a round        {1e6 * cpu / rounds:.0f} us, {100 * cpu / seconds:.0f} % of a core")


if __name__ == "__main__":
    main()
