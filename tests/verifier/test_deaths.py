"""A worker dies at every point around a transaction: another takes up, and nothing that was promised is lost.

The n-th step into or out of a transaction fails, before or after the commit, and so does every later one until the
worker is ended as a killed process ends. Nothing is picked by hand, so what is added later is covered too.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from tests.fakes.pki import Authority
from tests.fakes.soft_agent import SoftAgent
from tests.fakes.verifier_site import Site, running_verifier
from tests.verifier.test_cluster import POLICY, QUICK, die

from limeguard.simulator.softtpm import SoftNode
from limeguard.store.database import Database, StoreUnavailable

pytestmark = [pytest.mark.services, pytest.mark.timeout(1800)]

DEATHS = int(os.environ.get("LIMEGUARD_DEATHS", "5"))
"""How many of the points are tried, spread over all of them; 0 is every one."""
MOST = 400


class Mortal:
    """Makes the steps of one database fail from the n-th on."""

    def __init__(self, database: Database, at: int) -> None:
        self.steps = 0
        self.failed = asyncio.Event()
        self._at = at
        self._real: Callable[[], Any] = database._written
        database._written = self._written  # type: ignore[method-assign]

    def _step(self) -> None:
        self.steps += 1
        if self.steps >= self._at:
            self.failed.set()
            raise StoreUnavailable("the worker dies here")

    @asynccontextmanager
    async def _written(self) -> AsyncIterator[AsyncConnection]:
        self._step()
        async with self._real() as connection:
            yield connection
            self._step()
        self._step()


class Promises:
    """What operators were told."""

    def __init__(self) -> None:
        self.enrolled: set[str] = set()
        self.stopped = False
        self.deleted = False


async def play(site: Site, agents: dict[str, SoftAgent], promised: Promises) -> None:
    """Do all that a site does, until it is over or the worker fails."""
    for name, agent in agents.items():
        answer = await site.ask("POST", f"/v2.6/agents/{name}", agent.enrolment(tpm_policy=POLICY))
        if answer.status == 200:
            promised.enrolled.add(name)
    await site.reaches(agents["good"], "trusted", rounds=1)
    agents["bad"].node.extend(23, bytes(32))
    await site.reaches(agents["bad"], "distrusted")
    promised.stopped = (await site.ask("PUT", "/v2.6/agents/halted/stop", b"")).status == 200
    promised.deleted = (await site.ask("DELETE", "/v2.6/agents/gone")).status in {200, 202}
    await site.reaches(agents["good"], "trusted", rounds=4)


async def rows(database: Database) -> dict[str, tuple[str, int]]:
    async with database.reading() as connection:
        found = await connection.execute(sa.text("SELECT agent_id, integrity, attestation_count FROM limeguard_nodes"))
        return {row[0]: (row[1], row[2]) for row in found}


async def life_and_after(folder: Path, authority: Authority, at: int) -> int:
    """Live until step `at` fails, have another worker take up, look at everything; return how many steps there were."""
    changed: dict[str, Any] = {
        "timing": QUICK,
        "trust_lifetime": 30.0,
        "webhook_url": "https://127.0.0.1:9/",
        "enabled_revocation_notifications": ("webhook",),
    }
    promised = Promises()
    async with running_verifier(folder, authority, **changed) as first:
        mortal = Mortal(first.verifier._database, at)
        names = ("good", "bad", "halted", "gone")
        agents = {
            name: await first.add_agent(name, SoftNode.create("ecc256", number=n)) for n, name in enumerate(names)
        }
        playing = asyncio.create_task(play(first, agents, promised))
        failing = asyncio.create_task(mortal.failed.wait())
        await asyncio.wait({playing, failing}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0.05)
        steps = mortal.steps
        await die(first)
        playing.cancel()
        failing.cancel()
        (outcome,) = await asyncio.gather(playing, return_exceptions=True)
        assert outcome is None or isinstance(
            outcome, asyncio.CancelledError | aiohttp.ClientError | AssertionError | OSError
        ), outcome
        async with running_verifier(folder, authority, **changed) as second:
            before = await rows(second.verifier._database)
            await second_life(second, agents, promised, before)
            after = await rows(second.verifier._database)
            for name, (integrity, count) in before.items():
                if name in after:
                    assert after[name][1] >= count, f"{name}: a committed round was forgotten"
                    assert integrity != "distrusted" or after[name][0] == "distrusted", (
                        f"{name}: distrust was forgotten"
                    )
            if "bad" in before:
                await told_of_bad(second.verifier._database)
    return steps


async def told_of_bad(database: Database) -> None:
    for _ in range(100):
        async with database.reading() as connection:
            told = await connection.execute(sa.text("SELECT count(*) FROM limeguard_notices WHERE agent_id = 'bad'"))
            if told.scalar():
                return
        await asyncio.sleep(0.02)
    raise AssertionError("the notice of a distrusted node was lost")


async def second_life(
    site: Site, agents: dict[str, SoftAgent], promised: Promises, before: dict[str, tuple[str, int]]
) -> None:
    # trust: fail-closed
    assert promised.enrolled - {"gone"} <= set(before), "an enrolment that was answered is lost"
    agents["bad"].node.extend(23, bytes(32))
    if "good" in before:
        await site.reaches(agents["good"], "trusted", rounds=before["good"][1] + 1)
    if "bad" in before:
        await site.reaches(agents["bad"], "distrusted")
    if promised.stopped:
        assert (await site.view(agents["halted"]))["condition"] == "paused"
    if promised.deleted:
        for _ in range(100):
            if (await site.ask("GET", "/v2.6/agents/gone")).status == 404:
                break
            await asyncio.sleep(0.02)
        assert (await site.ask("GET", "/v2.6/agents/gone")).status == 404
    elif "gone" in before:
        await site.shows(agents["gone"], lambda view: view["condition"] in {"trusted", "paused"})


async def test_a_death_at_any_point_loses_nothing_that_was_promised(tmp_path: Path, authority: Authority) -> None:
    # trust: fail-closed, enrolment-order
    folder = tmp_path / "whole"
    folder.mkdir()
    steps = await life_and_after(folder, authority, MOST)
    assert 12 < steps < MOST
    points = (
        range(1, steps + 1)
        if not DEATHS
        else sorted({1 + n * (steps - 1) // max(DEATHS - 1, 1) for n in range(DEATHS)})
    )
    for at in points:
        folder = tmp_path / f"step-{at}"
        folder.mkdir()
        try:
            await life_and_after(folder, authority, at)
        except AssertionError as problem:
            raise AssertionError(f"step {at} of {steps}: {problem}") from problem
