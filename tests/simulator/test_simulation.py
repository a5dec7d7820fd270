"""A small simulated fleet against a running verifier: every change and every attack has the effect that it should."""

import ssl
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.pki import Authority, client_context
from tests.fakes.verifier_site import running_verifier

from limeguard.simulator import run
from limeguard.simulator.identity import make_identity
from limeguard.simulator.operator import SimulationError, Site
from limeguard.simulator.push import PushSimulation
from limeguard.simulator.report import Report
from limeguard.simulator.run import Plan, Simulation
from limeguard.simulator.scenario import ATTACKS, Happening
from limeguard.web import tls
from limeguard.web.tls import server_context

pytestmark = [pytest.mark.services, pytest.mark.timeout(120)]


async def simulated(folder: Path, authority: Authority, plan: Plan) -> Report:
    ca = authority.identity.certificate
    async with running_verifier(folder, authority, quote_interval=plan.interval) as site:
        certificate, key = make_identity(folder, time.time())
        agents = server_context(certificate, key, "", (ca,), require_client=True)
        simulation = Simulation(plan, Site(site.base, client_context(authority.issue("operator"), ca)))
        return await simulation.run(agents, certificate.read_text())


async def test_an_honest_fleet_stays_trusted_through_all_that_machines_do(tmp_path: Path, authority: Authority) -> None:
    everyday = (
        Happening(0.2, "measure", None, 1.0, files=5),
        Happening(0.6, "reboot", 2, 0.0),
        Happening(0.8, "latency", 2, 0.0, seconds=0.1),
        Happening(1.2, "offline", 1, 0.0, seconds=0.2),
        Happening(1.6, "measure", None, 1.0, files=2),
    )
    plan = Plan(nodes=6, seconds=4.0, interval=0.2, files=20, digests=100, scenario=everyday)
    report = await simulated(tmp_path, authority, plan)
    assert report.conditions == {"trusted": 6}
    assert report.complaints == 0
    assert report.errors == {}
    assert report.waiting == 0
    assert report.rounds > 40
    assert 100 < report.bytes_asked / report.rounds < 1_000 < report.bytes_answered / report.rounds < 10_000
    assert 0 <= report.lateness["p50"] <= report.lateness["p99"] <= report.lateness["max"]


# trust: fail-closed
async def test_every_attack_is_found_and_nobody_else_suffers(tmp_path: Path, authority: Authority) -> None:
    attacks = tuple(Happening(0.3, attack, 1, 0.0) for attack in ATTACKS)
    plan = Plan(nodes=len(ATTACKS) + 3, seconds=2.0, interval=0.2, files=10, digests=10, scenario=attacks)
    report = await simulated(tmp_path, authority, plan)
    assert {one.attack for one in report.detections if one.seconds is not None} == set(ATTACKS)
    assert report.conditions == {"distrusted": len(ATTACKS), "trusted": 3}


async def test_machines_of_an_earlier_run_are_refused_by_name_or_deleted(tmp_path: Path, authority: Authority) -> None:
    plan = Plan(nodes=3, seconds=0.5, interval=0.2)
    ca = authority.identity.certificate
    async with running_verifier(tmp_path, authority, quote_interval=plan.interval) as site:
        certificate, key = make_identity(tmp_path, time.time())
        agents = server_context(certificate, key, "", (ca,), require_client=True)
        where = Site(site.base, client_context(authority.issue("operator"), ca))
        await Simulation(plan, where).run(agents, certificate.read_text())
        with pytest.raises(SimulationError, match=r"simulated-00000.: 409 .*--delete deletes those"):
            await Simulation(plan, where).run(agents, certificate.read_text())
        more = replace(plan, nodes=5)
        report = await Simulation(more, where).run(agents, certificate.read_text())
        assert report.errors == {"enrolment: 409": 3}
        assert report.conditions["trusted"] >= 2
        report = await Simulation(replace(more, delete=True), where).run(agents, certificate.read_text())
        assert (report.errors, report.conditions) == ({}, {"trusted": 5})
        assert (await site.ask("GET", "/limeguard/v1/nodes")).json["nodes"] == []


async def test_without_keep_alive_each_round_has_a_connection_of_its_own(tmp_path: Path, authority: Authority) -> None:
    report = await simulated(tmp_path, authority, Plan(nodes=3, seconds=1.0, interval=0.2, keep_alive=False))
    assert (report.conditions, report.errors) == ({"trusted": 3}, {})
    assert abs(report.connections - report.rounds) <= 3


async def test_a_scenario_that_does_not_fit_is_refused_before_anything_is_enrolled(
    tmp_path: Path, authority: Authority
) -> None:
    with pytest.raises(SimulationError, match="forge needs machines with an IMA log"):
        await simulated(
            tmp_path, authority, Plan(nodes=1, seconds=1, interval=1, scenario=(Happening(0, "forge", 1, 0),))
        )


async def test_a_verifier_that_is_not_there_is_one_sentence(tmp_path: Path, authority: Authority) -> None:
    ca = authority.identity.certificate
    certificate, key = make_identity(tmp_path, time.time())
    agents = server_context(certificate, key, "", (ca,), require_client=True)
    simulation = Simulation(
        Plan(nodes=1, seconds=1, interval=1), Site("https://127.0.0.1:9", client_context(authority.issue("op"), ca))
    )
    with pytest.raises(SimulationError, match="The verifier cannot be reached"):
        await simulation.run(agents, certificate.read_text())


# --- machines that call the verifier ----------------------------------------------------------------------------------


async def pushed(folder: Path, authority: Authority, plan: Plan, **settings: Any) -> Report:
    ca = authority.identity.certificate
    limits = {"session_create_rate_limit_per_ip": 10_000, **settings}
    async with running_verifier(folder, authority, quote_interval=plan.interval, mode="push", **limits) as site:
        nodes = tls.client_context(None, None, "", [ca], system_store=False)
        operator = client_context(authority.issue("operator"), ca)
        simulation = PushSimulation(plan, Site(site.base, operator, None, nodes))
        return await simulation.run(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "")


async def test_an_honest_fleet_that_pushes_stays_trusted(tmp_path: Path, authority: Authority) -> None:
    everyday = (
        Happening(0.5, "measure", None, 1.0, files=5),
        Happening(1.5, "reboot", 2, 0.0),
        Happening(1.6, "latency", 2, 0.0, seconds=0.1),
        Happening(2.0, "offline", 1, 0.0, seconds=0.5),
    )
    plan = Plan(nodes=6, seconds=6.0, interval=1, files=20, digests=100, scenario=everyday)
    report = await pushed(tmp_path, authority, plan)
    assert report.conditions == {"trusted": 6}
    # A machine that restarts proves itself anew; all others keep the session that they have.
    assert report.sessions == 6 + 2
    assert report.refusals == {}
    assert report.rounds > 15


# trust: fail-closed
async def test_every_attack_of_a_fleet_that_pushes_is_found(tmp_path: Path, authority: Authority) -> None:
    attacks = tuple(Happening(1.5, attack, 1, 0.0) for attack in ATTACKS)
    plan = Plan(nodes=len(ATTACKS) + 3, seconds=4.0, interval=1, files=10, digests=10, scenario=attacks)
    report = await pushed(tmp_path, authority, plan)
    assert {one.attack for one in report.detections if one.seconds is not None} == set(ATTACKS)
    assert report.conditions == {"distrusted": len(ATTACKS), "trusted": 3}


async def test_what_a_verifier_refuses_is_counted(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "ALL_ASKED_SECONDS", 0.1)  # two of three are never asked
    plan = Plan(nodes=3, seconds=2.0, interval=1)
    report = await pushed(tmp_path, authority, plan, session_create_rate_limit_per_ip=1)
    assert report.refusals["session 429"] >= 2
