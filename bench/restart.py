"""How long a verifier that starts again takes until its whole fleet is supervised, and until everybody was asked.

A verifier process attests simulated machines, is ended in the middle of it, and starts again on what its database
holds. Seconds are counted from the start of the new process: until it is ready, until all nodes are in its memory with
their timers, and until each machine was asked again.

    ./dev bench restart
    ./dev run python bench/restart.py --nodes 1000 --interval 2
"""

import argparse
import asyncio
import os
import re
import resource
import signal
import sys
import time
from dataclasses import dataclass

from limeguard.cli.sandbox import Sandbox
from limeguard.cli.simulate import family
from limeguard.simulator.identity import make_identity
from limeguard.simulator.operator import Site
from limeguard.simulator.run import Plan, Simulation
from limeguard.web.tls import server_context

LOOK = 0.05
NODES = re.compile(r"^limeguard_verifier_nodes\{.*\} (\S+)$", re.MULTILINE)


@dataclass
class Seen:
    """Seconds since the start of the new process; `slowest` is how long it took to answer while all came due."""

    listening: float
    ready: float
    supervised: float
    asked: list[float]
    refused: int
    slowest: float


def get(sandbox: Sandbox, path: str) -> tuple[int, str]:
    """Return status and text of a page of the verifier; 0 while there is none."""
    try:
        return sandbox.ask_text(sandbox.ports["verifier"], path)
    except OSError:
        return 0, ""


def supervised(sandbox: Sandbox) -> int:
    return sum(int(float(count)) for count in NODES.findall(get(sandbox, "/metrics")[1]))


def unasked(simulation: Simulation, since: float) -> int:
    return sum((one.asked_at or 0.0) < since for one in simulation.machines)


async def play(options: argparse.Namespace, sandbox: Sandbox) -> Seen:
    plan = Plan(nodes=options.nodes, seconds=600.0, interval=options.interval, warm_up=2 * options.interval)
    certificate, key = make_identity(sandbox.folder, time.time())
    agents = server_context(certificate, key, "", (sandbox.authority / "cacert.crt",), require_client=True)
    simulation = Simulation(plan, Site(f"https://127.0.0.1:{sandbox.ports['verifier']}", sandbox.client_context()))
    running = asyncio.create_task(simulation.run(agents, certificate.read_text()))
    try:
        while not simulation.progress.startswith("measuring"):
            if running.done():
                running.result()
            await asyncio.sleep(LOOK)
        assert sandbox.verifier is not None  # noqa: S101 - started by the caller
        for pid in family(sandbox.verifier.pid):
            os.kill(pid, signal.SIGKILL if options.kill else signal.SIGTERM)
        while sandbox.verifier.running:  # noqa: ASYNC110 - a bench looks
            await asyncio.sleep(LOOK)
        began = time.monotonic()
        await asyncio.to_thread(sandbox.start_verifier, "--workers", str(options.workers))
        listening = time.monotonic() - began
        while (await asyncio.to_thread(get, sandbox, "/readyz"))[0] != 200:  # noqa: ASYNC110 - a bench looks
            await asyncio.sleep(LOOK)
        ready = time.monotonic() - began
        while await asyncio.to_thread(supervised, sandbox) < options.nodes:  # noqa: ASYNC110 - a bench looks
            await asyncio.sleep(LOOK)
        all_there, end = time.monotonic() - began, time.monotonic() + options.patience
        slowest = 0.0
        while (missing := unasked(simulation, began)) and time.monotonic() < end:
            asking = time.monotonic()
            await asyncio.to_thread(get, sandbox, "/readyz")
            slowest = max(slowest, time.monotonic() - asking)
            await asyncio.sleep(LOOK)
        asked = [one.asked_at - began for one in simulation.machines if one.asked_at and one.asked_at >= began]
        return Seen(listening, ready, all_there, sorted(asked), missing, slowest)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def show(options: argparse.Namespace, seen: Seen) -> None:
    ended, last = "killed" if options.kill else "stopped", max(seen.asked, default=0.0)
    print(f"{options.nodes:,} machines, interval {options.interval:g} s, {options.workers} worker(s); {ended}, started")
    print(f"  listening           {seen.listening:.2f} s after the start of the process")
    print(f"  ready               {seen.ready:.2f} s")
    print(f"  all supervised      {seen.supervised:.2f} s")
    print(f"  machines asked      the last {last:.2f} s; {seen.refused:,} not at all")
    print(f"  its own answers     the slowest took {seen.slowest:.2f} s meanwhile")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=5_000)
    parser.add_argument("--interval", type=float, default=2.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--kill", action="store_true", help="with SIGKILL, so that leases have to run out first")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for the last machine")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with Sandbox(verifier={"quote_interval": str(options.interval)}) as sandbox:
        sandbox.start_verifier("--workers", str(options.workers))
        seen = asyncio.run(play(options, sandbox))
    show(options, seen)
    sys.exit(bool(seen.refused))


if __name__ == "__main__":
    main()
