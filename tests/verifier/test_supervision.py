"""Supervision over time: what readers see when it stops, what a restart takes up, and the words of operators."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tests.fakes.pki import Authority
from tests.fakes.soft_agent import SoftAgent, no_intercept
from tests.fakes.verifier_site import FAILED_AT_ONCE, Site, running_verifier

from limeguard.store.database import StoreUnavailable
from limeguard.store.nodes import Nodes

pytestmark = pytest.mark.services

LIFETIME = 0.6


@pytest.fixture
async def short(tmp_path: Path, authority: Authority) -> AsyncIterator[Site]:
    async with running_verifier(tmp_path, authority, trust_lifetime=LIFETIME) as running:
        yield running


async def everywhere(site: Site, agent: SoftAgent) -> dict[str, Any]:
    """Return the node's condition in every answer that carries one."""
    status = await site.status(agent)
    bulk = (await site.ask("GET", "/v2.6/agents?bulk=1")).json["results"]
    listed = (await site.ask("GET", "/limeguard/v1/nodes")).json
    return {
        "status": status["attestation_status"],
        "bulk": bulk[agent.agent_id]["attestation_status"],
        "view": (await site.view(agent))["condition"],
        "list": listed["nodes"][0]["condition"],
        "counts": [name for name, number in listed["counts"].items() if number],
    }


async def test_trust_runs_out_everywhere_when_nobody_looks_any_more(short: Site) -> None:
    # trust: green-is-recent
    agent = await short.add_agent()
    await short.enrol(agent)
    await short.reaches(agent, "trusted", rounds=1)
    fresh = {"status": "PASS", "bulk": "PASS", "view": "trusted", "list": "trusted", "counts": ["trusted"]}
    assert await everywhere(short, agent) == fresh
    assert short.verifier.engine is not None
    await short.verifier.engine.drain(1.0)
    await asyncio.sleep(LIFETIME)
    stale = {"status": "TIMEOUT", "bulk": "TIMEOUT", "view": "stale", "list": "stale", "counts": ["stale"]}
    assert await everywhere(short, agent) == stale


async def test_a_node_that_falls_silent_is_not_green_any_more(short: Site) -> None:
    # trust: green-is-recent
    agent = await short.add_agent()
    await short.enrol(agent)
    await short.reaches(agent, "trusted", rounds=1)

    async def silence(_request: web.Request) -> web.StreamResponse | None:
        await asyncio.sleep(60)
        return None

    agent.intercept = silence
    await asyncio.sleep(LIFETIME + 0.2)
    assert (await short.view(agent))["condition"] in {"stale", "unreachable"}
    agent.intercept = no_intercept


async def test_a_verifier_that_died_is_taken_up_where_it_was(tmp_path: Path, authority: Authority) -> None:
    # trust: green-is-recent
    async with running_verifier(tmp_path, authority, trust_lifetime=LIFETIME) as first:
        good, bad, stopped = [await first.add_agent(name) for name in ("good", "bad", "stopped")]
        bad.node.extend(23, bytes(32))
        for agent in (good, bad, stopped):
            await first.enrol(agent, tpm_policy='{"23": ["%s"], "mask": "0x800000"}' % ("00" * 32))
        await first.reaches(good, "trusted", rounds=2)
        await first.reaches(bad, "distrusted")
        await first.ask("PUT", "/v2.6/agents/stopped/stop", b"")
        await first.reaches(stopped, "paused")
        # It dies: nothing is drained, flushed or closed in order.
        assert first.verifier.engine is not None
        for task in first.verifier._tasks:
            task.cancel()
        for job in list(first.verifier.engine._jobs):
            job.cancel()
        await asyncio.sleep(LIFETIME)
        count = (await first.view(good))["attestation_count"]
        asked = bad.quotes
        async with running_verifier(tmp_path, authority, trust_lifetime=LIFETIME) as second:
            assert (await second.view(bad))["condition"] == "distrusted"
            assert second.event_ids(await second.view(bad)) == ["pcr_validation.invalid_pcr_23"]
            await second.reaches(good, "trusted", rounds=count + 1)
            assert (await second.view(stopped))["condition"] == "paused"
            assert (await second.view(bad))["condition"] == "distrusted"
            assert bad.quotes == asked


async def test_what_was_green_before_a_death_is_stale_until_it_is_proven_again(
    tmp_path: Path, authority: Authority
) -> None:
    # trust: green-is-recent
    async with running_verifier(tmp_path, authority, trust_lifetime=LIFETIME) as first:
        agent = await first.add_agent()
        await first.enrol(agent)
        await first.reaches(agent, "trusted", rounds=1)
        await first.verifier.stop()
        await asyncio.sleep(LIFETIME)

        async def silence(_request: web.Request) -> web.StreamResponse | None:
            await asyncio.sleep(60)
            return None

        agent.intercept = silence
        async with running_verifier(tmp_path, authority, trust_lifetime=LIFETIME) as second:
            assert (await second.view(agent))["condition"] == "stale"


async def test_trust_is_shown_only_when_the_database_holds_it(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    # trust: fail-closed
    async with running_verifier(tmp_path, authority) as site:
        agent = await site.add_agent()
        real = Nodes.save_rounds

        async def away(_self: Nodes, _batch: object) -> frozenset[str]:
            raise StoreUnavailable("the database is away")

        monkeypatch.setattr(Nodes, "save_rounds", away)
        await site.enrol(agent)
        await site.shows(agent, lambda _: agent.quotes >= 4)
        assert (await site.view(agent))["condition"] == "pending"
        monkeypatch.setattr(Nodes, "save_rounds", real)
        view = await site.reaches(agent, "trusted")
        assert view["attestation_count"] >= 4  # nothing of what was learned meanwhile is lost


async def test_distrust_is_shown_even_when_the_database_is_away(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    # trust: fail-closed
    async with running_verifier(tmp_path, authority) as site:
        agent = await site.add_agent()
        await site.enrol(agent, tpm_policy='{"23": ["%s"], "mask": "0x800000"}' % ("00" * 32))
        await site.reaches(agent, "trusted", rounds=1)

        async def away(_self: Nodes, _batch: object) -> frozenset[str]:
            raise StoreUnavailable("the database is away")

        monkeypatch.setattr(Nodes, "save_rounds", away)
        agent.node.extend(23, bytes(32))
        await site.reaches(agent, "distrusted")
        monkeypatch.undo()
        await asyncio.sleep(0.3)


async def test_a_node_that_cannot_be_reached_comes_back_by_itself(tmp_path: Path, authority: Authority) -> None:
    async with running_verifier(
        tmp_path, authority, max_retries=100, retry_interval=0.05, exponential_backoff=False
    ) as site:
        agent = await site.add_agent()
        await site.enrol(agent)
        await site.reaches(agent, "trusted", rounds=1)
        port = agent.port
        await agent.stop()
        view = await site.reaches(agent, "unreachable")
        assert view["integrity"] == "trusted"  # a cable says nothing about what the machine runs
        assert (await site.status(agent))["operational_state"] == 4
        await agent.start(port)
        await site.reaches(agent, "trusted", rounds=view["attestation_count"] + 1)


async def test_a_node_whose_retries_are_used_up_has_failed_until_it_is_reactivated(
    tmp_path: Path, authority: Authority
) -> None:
    async with running_verifier(tmp_path, authority, **FAILED_AT_ONCE) as site:
        agent = await site.add_agent()
        await site.enrol(agent)
        await site.reaches(agent, "trusted", rounds=1)
        port = agent.port
        await agent.stop()
        view = await site.shows(agent, lambda seen: bool(seen["phase"] == "failed"))
        assert view["condition"] == "unreachable"
        assert site.event_ids(view) == ["internal.verifier.not_reachable"]
        assert (await site.status(agent))["operational_state"] == 7
        await agent.start(port)
        await asyncio.sleep(0.3)
        assert (await site.view(agent))["phase"] == "failed"
        assert (await site.ask("PUT", "/v2.6/agents/node-1/reactivate", b"")).status == 200
        await site.reaches(agent, "trusted")


async def test_a_stopped_node_is_left_alone(site: Site) -> None:
    agent = await site.add_agent()
    await site.enrol(agent)
    await site.reaches(agent, "trusted", rounds=1)
    assert (await site.ask("PUT", "/v2.6/agents/node-1/stop", b"")).status == 200
    view = await site.view(agent)
    assert (view["condition"], view["trust_expires_at"]) == ("paused", None)
    asked = agent.quotes
    await asyncio.sleep(0.3)
    assert agent.quotes == asked
    assert (await site.status(agent))["operational_state"] == 10
    assert (await site.ask("PUT", "/v2.6/agents/node-1/reactivate", b"")).status == 200
    await site.reaches(agent, "trusted")


@pytest.mark.parametrize("word", ["stop", "reactivate", "delete"])
async def test_an_operator_s_word_beats_a_round_that_is_running(site: Site, word: str) -> None:
    agent = await site.add_agent()
    await site.enrol(agent)
    await site.reaches(agent, "trusted", rounds=1)
    held = asyncio.Event()

    async def hold(_request: web.Request) -> web.StreamResponse | None:
        held.set()
        await asyncio.sleep(5)
        return None

    agent.intercept = hold
    await asyncio.wait_for(held.wait(), 5)
    agent.intercept = no_intercept
    if word == "delete":
        answer = await site.ask("DELETE", "/v2.6/agents/node-1")
        assert answer.status in {200, 202}
        for _ in range(100):
            if (await site.ask("GET", "/v2.6/agents/node-1")).status == 404:
                break
            await asyncio.sleep(0.02)
        assert (await site.ask("GET", "/v2.6/agents/node-1")).status == 404
        await site.enrol(agent)
        await site.reaches(agent, "trusted", rounds=1)
    else:
        assert (await site.ask("PUT", f"/v2.6/agents/node-1/{word}", b"")).status == 200
        await site.reaches(agent, {"stop": "paused", "reactivate": "trusted"}[word])


async def test_words_in_any_order_and_all_at_once_leave_one_timer(site: Site) -> None:
    # trust: enrolment-order
    agent = await site.add_agent()
    await site.enrol(agent)
    words = [("PUT", "/v2.6/agents/node-1/stop"), ("PUT", "/v2.6/agents/node-1/reactivate")] * 10
    answers = await asyncio.gather(*(site.ask(method, path, b"") for method, path in words))
    assert {answer.status for answer in answers} == {200}
    await site.ask("PUT", "/v2.6/agents/node-1/reactivate", b"")
    await site.reaches(agent, "trusted", rounds=1)
    before = agent.quotes
    await asyncio.sleep(0.5)
    assert agent.quotes - before <= 0.5 / 0.05 + 2  # a second poller would ask twice as often


async def test_the_same_node_enrolled_many_times_at_once_is_enrolled_once(site: Site) -> None:
    # trust: enrolment-order
    agent = await site.add_agent()
    body = agent.enrolment()
    answers = await asyncio.gather(*(site.ask("POST", "/v2.6/agents/node-1", body) for _ in range(20)))
    assert sorted(answer.status for answer in answers) == [200] + [409] * 19
    await site.reaches(agent, "trusted", rounds=1)


async def test_a_row_that_somebody_else_deletes_is_let_go(site: Site) -> None:
    agent = await site.add_agent()
    await site.enrol(agent)
    await site.reaches(agent, "trusted", rounds=1)
    await site.verifier._rows.delete("node-1")
    for _ in range(500):
        if (await site.ask("GET", "/v2.6/agents/node-1")).status == 404:
            break
        await asyncio.sleep(0.02)
    assert (await site.ask("GET", "/v2.6/agents/node-1")).status == 404
    asked = agent.quotes
    await asyncio.sleep(0.3)
    assert agent.quotes == asked
