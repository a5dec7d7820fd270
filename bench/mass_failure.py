"""Many machines fail in the same second: what that costs the verifier, and whether everybody is told in time.

A verifier process attests simulated machines; notices go to a webhook of this program. The CPU of the verifier is
compared between the seconds before the failure and the seconds with it, the lateness of the healthy machines is shown,
and how long after the failure the last notice arrived. With `--agents` all agents are told as well, at their pace.

    ./dev bench mass_failure
    ./dev run python bench/mass_failure.py --nodes 400 --failures 200 --agents
"""

import argparse
import asyncio
import json
import resource
import sys
import time
from dataclasses import dataclass, field

from aiohttp import web

from limeguard.cli.sandbox import Sandbox
from limeguard.cli.simulate import cpu_seconds, family
from limeguard.simulator.identity import make_identity
from limeguard.simulator.operator import Site
from limeguard.simulator.report import Report
from limeguard.simulator.run import Plan, Simulation
from limeguard.simulator.scenario import Happening
from limeguard.web.tls import server_context

STEP = 1.0


@dataclass
class Hook:
    """Takes notices: when each came, and about whom."""

    came: dict[str, float] = field(default_factory=dict)
    repeated: int = 0

    async def take(self, request: web.Request) -> web.Response:
        """Note one."""
        about = str(json.loads(json.loads(await request.text())["msg"])["agent_id"])
        self.repeated += about in self.came
        self.came.setdefault(about, time.monotonic())
        return web.Response()


@dataclass
class Seen:
    """What one run showed. `cpu` are cores that the verifier used in each second since the start of measuring."""

    report: Report
    hook: Hook
    failed_at: float
    cpu: list[float]


async def cpu_by_second(pid: int, found: list[float]) -> None:
    before, at = sum(map(cpu_seconds, family(pid))), time.monotonic()
    while True:
        await asyncio.sleep(STEP)
        now, then = sum(map(cpu_seconds, family(pid))), time.monotonic()
        found.append((now - before) / (then - at))
        before, at = now, then


async def play(options: argparse.Namespace, sandbox: Sandbox, hook: Hook) -> Seen:
    happening = Happening(options.before, "extend", options.failures, 0.0)
    plan = Plan(
        nodes=options.nodes,
        seconds=options.before + options.after,
        interval=options.interval,
        warm_up=3 * options.interval,
        scenario=(happening,),
    )
    certificate, key = make_identity(sandbox.folder, time.time())
    agents = server_context(certificate, key, "", (sandbox.authority / "cacert.crt",), require_client=True)
    simulation = Simulation(plan, Site(f"https://127.0.0.1:{sandbox.ports['verifier']}", sandbox.client_context()))
    running = asyncio.create_task(simulation.run(agents, certificate.read_text()))
    while not simulation.progress.startswith("measuring") and not running.done():  # noqa: ASYNC110 - a bench looks
        await asyncio.sleep(0.02)
    began, used = time.monotonic(), list[float]()
    assert sandbox.verifier is not None  # noqa: S101 - started by the caller
    measuring = asyncio.create_task(cpu_by_second(sandbox.verifier.pid, used))
    report = await running
    measuring.cancel()
    end = time.monotonic() + options.patience
    while len(hook.came) < options.failures and time.monotonic() < end:  # noqa: ASYNC110 - a bench looks
        await asyncio.sleep(0.1)
    return Seen(report, hook, began + options.before, used)


async def measured(options: argparse.Namespace) -> Seen:
    hook = Hook()
    app = web.Application()
    app.router.add_post("/told", hook.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    told = {
        "enabled_revocation_notifications": "['webhook', 'agent']" if options.agents else "['webhook']",
        "webhook_url": f"http://127.0.0.1:{runner.addresses[0][1]}/told",
    }
    try:
        with Sandbox(verifier={"quote_interval": str(options.interval)}, revocations=told) as sandbox:
            await asyncio.to_thread(sandbox.start_verifier)
            return await play(options, sandbox, hook)
    finally:
        await runner.cleanup()


def show(options: argparse.Namespace, seen: Seen) -> None:
    report, before = seen.report, int(options.before)
    normal = sum(seen.cpu[:before]) / before
    during = seen.cpu[before : before + 5]
    detected = sorted(one.seconds for one in report.detections if one.seconds is not None)
    arrived = sorted(at - seen.failed_at for at in seen.hook.came.values())
    late = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in report.lateness.items())
    most, shown = max(during) / normal, " ".join(f"{100 * one:.0f}" for one in during)
    middle = detected[len(detected) // 2]
    print(f"{options.failures:,} of {options.nodes:,} machines fail at once, interval {options.interval:g} s")
    print(f"  rounds              {report.rounds:,}, {report.rounds_per_second:,.0f} a second")
    print(f"  CPU before          {100 * normal:.0f} % of a core")
    print(f"  CPU in the seconds  {shown} %: at most {most:.2f} times as much")
    print(f"  distrusted          {len(detected):,}; median {middle:.2f} s, last {detected[-1]:.2f} s")
    print(
        f"  notices             {len(arrived):,}, the last after {arrived[-1]:.2f} s; {seen.hook.repeated} came twice"
    )
    print(f"  lateness            {late}; {report.waiting} machines not asked for long")
    print(f"  conditions          {report.conditions}; errors {report.errors or 'none'}")
    print(f"  agents told         {report.notices:,} times while it was measured")
    print(json.dumps({"cpu": [round(one, 3) for one in seen.cpu], "notices": len(arrived)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=5_000)
    parser.add_argument("--failures", type=int, default=1_000)
    parser.add_argument("--interval", type=float, default=2.0)
    parser.add_argument("--before", type=float, default=8.0, help="seconds of normal rounds")
    parser.add_argument("--after", type=float, default=12.0, help="seconds from the failure on")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds that notices may take after that")
    parser.add_argument("--agents", action="store_true", help="tell all agents, too")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    seen = asyncio.run(measured(options))
    show(options, seen)
    sys.exit(len(seen.hook.came) != options.failures)


if __name__ == "__main__":
    main()
