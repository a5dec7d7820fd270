"""A verifier of two worker processes, and nodes that push: one worker is killed, and every node goes on."""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.fakes.push_agent import push_enrolment
from tests.fakes.push_puppet import Puppet
from tests.fakes.site import Site

from limeguard.clients.verifier_push import Refused, Session
from limeguard.web.answers import Unreachable
from limeguard.web.client import HttpClient
from limeguard.web.tls import client_context

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-push-workers")]

NODES = 12
PATIENCE = 30.0


class Pusher:
    """One node that comes again and again, as agents do, and what it was told."""

    def __init__(self, puppet: Puppet) -> None:
        self.puppet = puppet
        self.session: Session | None = None
        self.taken = 0
        self.sessions = 0

    async def run(self) -> None:
        while True:
            try:
                await self._turn()
            except Refused as refused:
                if refused.status in {401, 403}:
                    self.session = None
                await asyncio.sleep(min(refused.asked or 0.2, 1.0))
            except Unreachable:
                await asyncio.sleep(0.2)

    async def _turn(self) -> None:
        if self.session is None:
            self.sessions += 1
            self.session = await self.puppet.session()
            assert self.session is not None
        await self.puppet.attest(self.session)
        self.taken += 1
        await asyncio.sleep(0.3)


@pytest.fixture
async def pushers(tmp_path: Path) -> AsyncIterator[tuple[Site, list[Pusher]]]:
    with Site(tmp_path) as site:
        site.options["verifier"] = {
            "mode": "push",
            "quote_interval": "0.2",
            "session_create_rate_limit_per_ip": 0,
            "session_create_rate_limit_per_agent": 0,
        }
        site.start_verifier("--workers", "2")
        base = f"https://127.0.0.1:{site.ports['verifier']}"
        ca = site.authority / "cacert.crt"
        operator = HttpClient(site.client_context(), timeout=10, max_answer=1 << 20)
        made = []
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(operator.close)
            for number in range(NODES):
                context = client_context(None, None, "", [ca], system_store=False)
                puppet = Puppet.make(f"node-{number}", base, context, number=number)
                stack.push_async_callback(puppet.http.close)
                body = push_enrolment(puppet.node)
                answer = await operator.request(
                    *("POST", f"{base}/v2.6/agents/node-{number}"),
                    body=json.dumps(body).encode(),
                    headers={"Content-Type": "application/json"},
                )
                assert answer.status == 200, answer.body
                made.append(Pusher(puppet))
            tasks = [asyncio.create_task(one.run()) for one in made]
            for task in tasks:
                stack.callback(task.cancel)
            yield site, made
            for task in tasks:
                if task.done():
                    task.result()


async def all_taken(pushers: list[Pusher], more: int) -> float:
    """Wait until evidence of every node was taken so many times more; return how long that took."""
    began, wanted = time.monotonic(), [one.taken + more for one in pushers]
    while any(one.taken < count for one, count in zip(pushers, wanted, strict=True)):
        assert time.monotonic() < began + PATIENCE, [one.taken for one in pushers]
        await asyncio.sleep(0.05)
    return time.monotonic() - began


def workers(site: Site) -> list[int]:
    assert site.verifier is not None
    pid = site.verifier.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# trust: fail-closed
async def test_nodes_go_on_when_a_worker_is_killed(pushers: tuple[Site, list[Pusher]]) -> None:
    site, nodes = pushers
    await all_taken(nodes, 3)
    assert [one.sessions for one in nodes] == [1] * NODES
    for _ in range(2):
        victim = workers(site)[0]
        os.kill(victim, signal.SIGKILL)
        assert await all_taken(nodes, 3) < PATIENCE
    # Sessions are rows: nobody had to prove its key again.
    assert [one.sessions for one in nodes] == [1] * NODES
    conditions = {one: site.node_view(f"node-{one}") for one in range(NODES)}
    assert {view["condition"] for view in conditions.values() if view is not None} == {"trusted"}
