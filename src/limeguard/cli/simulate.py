"""`limeguard simulate`: a fleet of simulated machines, to size servers with and to see how they take failures.

Starts its own servers in a temporary folder, or uses a verifier that runs. Figures are CPU of the processes as the
kernel counts it; the simulator's own is shown beside it, for it runs on the same machine.
"""

import asyncio
import json
import os
import resource
import ssl
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import uvloop
import yaml
from rich.console import Console
from rich.table import Table

from limeguard.cli.sandbox import Sandbox
from limeguard.cli.softtpm import SandboxError
from limeguard.clients.registrar_enrol import Target
from limeguard.simulator.identity import make_identity
from limeguard.simulator.push import PushSimulation
from limeguard.simulator.run import Plan, Report, Simulation, SimulationError, Site
from limeguard.simulator.scenario import Happening, ScenarioError, parse_scenario
from limeguard.web.tls import TlsError, client_context, server_context

TICKS = os.sysconf("SC_CLK_TCK")


@click.command("simulate")
@click.option("--nodes", type=click.IntRange(1, 50_000), default=200, show_default=True, help="Machines.")
@click.option("--seconds", type=click.FloatRange(1), default=30.0, show_default=True, help="How long is measured.")
@click.option("--interval", type=click.FloatRange(0.1), default=2.0, show_default=True, help="The verifier's interval.")
@click.option("--warm-up", type=click.FloatRange(0), default=5.0, show_default=True, help="Seconds before measuring.")
@click.option("--files", type=click.IntRange(0), default=0, show_default=True, help="Lines of each IMA log; 0: none.")
@click.option("--digests", type=click.IntRange(0), default=0, show_default=True, help="Size of the runtime policy.")
@click.option("--scenario", type=click.Path(dir_okay=False, exists=True, path_type=Path), help="YAML: what happens.")
@click.option("--push", is_flag=True, help="The machines call the verifier (push model), and are not asked.")
@click.option("--register", is_flag=True, help="Register the machines with the registrar as well.")
@click.option("--verifier", metavar="URL", help="A verifier that runs; without it one is started.")
@click.option("--cert", type=click.Path(exists=True, path_type=Path), help="With --verifier: operator's certificate.")
@click.option("--key", type=click.Path(exists=True, path_type=Path), help="With --verifier: its key.")
@click.option("--ca", type=click.Path(exists=True, path_type=Path), help="With --verifier: CA of servers and clients.")
@click.option("--database", default="", metavar="URL", help="Database of the started servers.")
@click.option("--json", "as_json", is_flag=True, help="JSON for programs.")
def simulate(*, as_json: bool, push: bool, verifier: str | None, scenario: Path | None, **options: Any) -> None:
    """Simulate a fleet and report what the verifier does with it."""
    _raise_limit(options["nodes"])
    plan = Plan(
        nodes=options["nodes"],
        seconds=options["seconds"],
        interval=options["interval"],
        warm_up=options["warm_up"],
        files=options["files"],
        digests=options["digests"],
        scenario=_scenario(scenario),
    )
    try:
        kind = PushSimulation if push else Simulation
        if verifier is None:
            result = _with_own_servers(kind, plan, register=options["register"], database=options["database"])
        else:
            result = _with_running(kind, plan, verifier, options)
    except (SimulationError, SandboxError, TlsError) as problem:
        raise click.ClickException(str(problem)) from None
    if as_json:
        click.echo(json.dumps(result))
    else:
        _print(Console(), result)


def _scenario(path: Path | None) -> tuple[Happening, ...]:
    if path is None:
        return ()
    try:
        return parse_scenario(yaml.safe_load(path.read_text()))
    except (ScenarioError, yaml.YAMLError, UnicodeDecodeError) as problem:
        raise click.ClickException(f"{path}: {problem}") from None


def _raise_limit(nodes: int) -> None:
    """Allow a connection for each machine, on this side and on that of servers that are started from here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * nodes + 1_024
    if soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
    except (ValueError, OSError):
        limit = f"ulimit -n {wanted}"
        raise click.ClickException(f"{nodes} machines need more open files than allowed here: {limit}") from None


def _with_own_servers(kind: type[Simulation], plan: Plan, *, register: bool, database: str) -> dict[str, Any]:
    servers: dict[str, object] = {"database_url": database} if database else {}
    options: dict[str, object] = {"quote_interval": f"{plan.interval:g}", **servers}
    if kind is PushSimulation:
        # All machines have one address here, and one limit for it.
        options |= {"mode": "push", "session_create_rate_limit_per_ip": 100 * plan.nodes + 1000}
    with Sandbox(verifier=options) as sandbox:
        if register:
            sandbox.start_servers()
        else:
            sandbox.start_verifier()
        registrar = Target("127.0.0.1", sandbox.ports["registrar"], None) if register else None
        operator = sandbox.client_context()
        ca = sandbox.authority / "cacert.crt"
        site = Site(f"https://127.0.0.1:{sandbox.ports['verifier']}", operator, registrar, _of_nodes(ca))
        assert sandbox.verifier is not None  # noqa: S101 - started above
        pids = family(sandbox.verifier.pid)
        return _simulated(kind, plan, site, sandbox.folder, ca, pids)


def _of_nodes(ca: Path) -> ssl.SSLContext:
    """Return the TLS context of machines that call: they know the CA and have no certificate."""
    return client_context(None, None, "", [ca], system_store=False)


def _with_running(kind: type[Simulation], plan: Plan, url: str, options: dict[str, Any]) -> dict[str, Any]:
    if not (options["cert"] and options["key"] and options["ca"]):
        raise click.ClickException("--verifier needs --cert, --key and --ca")
    operator = client_context(options["cert"], options["key"], "", [options["ca"]], system_store=False)
    with tempfile.TemporaryDirectory(prefix="limeguard-") as folder:
        site = Site(url.rstrip("/"), operator, None, _of_nodes(options["ca"]))
        return _simulated(kind, plan, site, Path(folder), options["ca"], [])


def _simulated(
    kind: type[Simulation], plan: Plan, site: Site, folder: Path, clients: Path, pids: list[int]
) -> dict[str, Any]:
    certificate, key = make_identity(folder, time.time())
    agents = server_context(certificate, key, "", (clients,), require_client=True)

    def meter() -> tuple[float, int]:
        return sum(map(cpu_seconds, pids)), sum(map(resident, pids))

    async def run() -> Report:
        return await kind(plan, site, meter).run(agents, certificate.read_text())

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report = runner.run(run())
    return {"plan": {**asdict(plan), "scenario": len(plan.scenario)}, **_figures(report)}


def _figures(report: Report) -> dict[str, Any]:
    found = asdict(report)
    found["rounds_per_second"] = report.rounds_per_second
    return found


def family(pid: int) -> list[int]:
    """Return a process and what it started."""
    found = [pid]
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return found
    for child in children:
        found += family(int(child))
    return found


def cpu_seconds(pid: int) -> float:
    """Return the CPU that a process has used, 0 for one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident(pid: int) -> int:
    """Return the bytes that a process has in memory."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _print(console: Console, result: dict[str, Any]) -> None:
    table = Table(show_header=False, box=None)
    for name, value in _rows(result):
        table.add_row(name, value)
    console.print(table)


def _rows(result: dict[str, Any]) -> Iterable[tuple[str, str]]:
    rounds = result["rounds"] or 1
    yield "machines", f"{result['nodes']:,}"
    if result["registered_per_second"]:
        yield "registered", f"{result['registered_per_second']:,.0f}/s"
    yield "enrolled", f"{result['enrolled_per_second']:,.0f}/s"
    if result["all_asked_after"] is not None:
        yield "all asked", f"{result['all_asked_after']:.1f} s after the first enrolment"
    yield "rounds", f"{result['rounds']:,} in {result['seconds']:.0f} s, {result['rounds_per_second']:,.0f}/s"
    late = result["lateness"]
    yield "lateness", ", ".join(f"{name} {value * 1000:.0f} ms" for name, value in late.items())
    if result.get("verifier_cpu"):
        yield "verifier", f"{1000 * result['verifier_cpu'] / rounds:.3f} ms CPU a round"
        yield "", f"{result['verifier_bytes'] / (1 << 20):,.0f} MiB"
    yield "simulator", f"{1000 * result['simulator_cpu'] / rounds:.3f} ms CPU a round"
    yield "conditions", ", ".join(f"{name} {count}" for name, count in sorted(result["conditions"].items()))
    for attack in sorted({one["attack"] for one in result["detections"]}):
        yield f"found: {attack}", _detected([one for one in result["detections"] if one["attack"] == attack])
    if result["sessions"]:
        yield "sessions", f"{result['sessions']:,}"
    if result["refusals"]:
        yield "refused", ", ".join(f"{what}: {count}" for what, count in sorted(result["refusals"].items()))
    if result["complaints"]:
        yield "complaints", f"{result['complaints']} requests that a deployed agent would refuse"


def _detected(found: list[dict[str, Any]]) -> str:
    times = sorted(one["seconds"] for one in found if one["seconds"] is not None)
    if not times:
        return f"0 of {len(found)}"
    return f"{len(times)} of {len(found)}; median {times[len(times) // 2]:.2f} s, last {times[-1]:.2f} s"
