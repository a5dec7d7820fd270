"""A verifier that stands still for a while: late rounds are counted, nobody is forgotten, nobody turns green by it."""

import asyncio
import os
import signal
import ssl
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from limeguard.cli.sandbox import Sandbox
from limeguard.cli.simulate import family
from limeguard.simulator.identity import make_identity
from limeguard.simulator.operator import Site
from limeguard.simulator.run import Plan, Simulation
from limeguard.web.tls import server_context

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-tools")]
STOPPED = 3.0


async def late_rounds(base: str, tls: ssl.SSLContext) -> float:
    async with aiohttp.ClientSession() as session, session.get(f"{base}/metrics", ssl=tls) as answer:
        lines = (await answer.text()).splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith("limeguard_verifier_late_rounds_total"))


async def held_up(sandbox: Sandbox) -> tuple[Any, float]:
    plan = Plan(nodes=40, seconds=9.0, interval=2.0, warm_up=1.0)
    certificate, key = make_identity(sandbox.folder, time.time())
    agents = server_context(certificate, key, "", (sandbox.authority / "cacert.crt",), require_client=True)
    base, tls = f"https://127.0.0.1:{sandbox.ports['verifier']}", sandbox.client_context()
    simulation = Simulation(plan, Site(base, tls))
    running = asyncio.create_task(simulation.run(agents, certificate.read_text()))
    while not simulation.progress.startswith("measuring"):
        await asyncio.sleep(0.05)
    assert sandbox.verifier is not None
    processes = family(sandbox.verifier.pid)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in processes:
            os.kill(pid, number)
        await asyncio.sleep(STOPPED if number is signal.SIGSTOP else 0)
    return await running, await late_rounds(base, tls)


def test_a_verifier_that_stood_still_catches_up(tmp_path: Path) -> None:
    with Sandbox(tmp_path / "site", verifier={"quote_interval": "2"}) as sandbox:
        sandbox.start_verifier()
        report, late = asyncio.run(held_up(sandbox))
    assert late >= 20  # those that were due in the first two of three seconds
    assert report.lateness["max"] >= STOPPED - 2.0
    assert report.waiting == 0
    assert report.errors == {}
    assert report.conditions == {"trusted": 40}
