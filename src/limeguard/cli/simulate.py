"""`limeguard simulate`: a fleet of simulated machines, to size servers with and to see how they take failures.

Starts its own servers in a temporary folder, or uses a verifier that runs. Figures are CPU of the processes as the
kernel counts it; the simulator's own is shown beside it, for it runs on the same machine.
"""

import asyncio
import contextlib
import json
import os
import resource
import ssl
import subprocess
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
from limeguard.simulator.operator import SimulationError, Site
from limeguard.simulator.push import PushSimulation
from limeguard.simulator.report import Report
from limeguard.simulator.run import Meter, Plan, Simulation
from limeguard.simulator.scenario import Happening, ScenarioError, parse_scenario
from limeguard.web.pinned import room_for_peers
from limeguard.web.tls import TlsError, client_context, server_context

TICKS = os.sysconf("SC_CLK_TCK")
MIB = 1 << 20
SECTIONS = ("verifier", "revocations")
SHOW_SECONDS = 0.5


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
@click.option("--no-keep-alive", is_flag=True, help="Each answer ends its connection, as with long intervals.")
@click.option("--delete", is_flag=True, help="Delete the machines of earlier runs first, and these at the end.")
@click.option("--database", default="", metavar="URL", help="Database of the started verifier.")
@click.option("--workers", type=click.IntRange(1), help="Processes of the started verifier.")
@click.option(
    "--verifier-option", "settings", multiple=True, metavar="NAME=VALUE", help="Setting of the started verifier."
)
@click.option("--verifier-pid", type=click.IntRange(1), help="With --verifier: its process, to measure what it uses.")
@click.option("--json", "as_json", is_flag=True, help="JSON for programs.")
def simulate(*, as_json: bool, push: bool, verifier: str | None, scenario: Path | None, **options: Any) -> None:
    """Simulate a fleet and report what the verifier does with it."""
    plan = Plan(
        nodes=options["nodes"],
        seconds=options["seconds"],
        interval=options["interval"],
        warm_up=options["warm_up"],
        files=options["files"],
        digests=options["digests"],
        scenario=_scenario(scenario),
        delete=options["delete"],
        keep_alive=not options["no_keep_alive"],
    )
    if problems := plan.problems():
        raise click.ClickException("\n".join(["the scenario cannot be played:", *(f"  {one}" for one in problems)]))
    _raise_limit(options["nodes"], push=push)
    try:
        kind = PushSimulation if push else Simulation
        if verifier is None:
            result = _with_own_servers(kind, plan, options)
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


def _raise_limit(nodes: int, *, push: bool) -> None:
    """Allow a connection for each machine, on this side and on that of servers that are started from here.

    A verifier that may have fewer open files than that closes some of those to machines that it asks; machines that
    attest by themselves need one each.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * nodes + 1_024
    if soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        if nodes <= room_for_peers(hard):
            return
        problem = (
            f"{nodes} machines want more open files than the {hard} allowed here (`ulimit -n {wanted}` allows them)"
        )
        if push:
            raise click.ClickException(problem) from None
        click.echo(f"{problem}: not all connections can stay open", err=True)


def _with_own_servers(kind: type[Simulation], plan: Plan, options: dict[str, Any]) -> dict[str, Any]:
    for name in ("cert", "key", "ca", "verifier_pid"):
        if options[name]:
            raise click.ClickException(f"--{name.replace('_', '-')} goes with --verifier, which is not given")
    settings, registrar = _settings(plan, options, push=kind is PushSimulation), None
    with Sandbox() as sandbox:
        sandbox.options.update(settings)
        sandbox.start_verifier(*_arguments(sandbox, options["workers"]))
        if options["register"]:
            sandbox.start_registrar()
            registrar = Target("127.0.0.1", sandbox.ports["registrar"], None)
        operator, ca = sandbox.client_context(), sandbox.authority / "cacert.crt"
        site = Site(f"https://127.0.0.1:{sandbox.ports['verifier']}", operator, registrar, _of_nodes(ca))
        assert sandbox.verifier is not None  # noqa: S101 - started above
        return _simulated(kind, plan, site, sandbox.folder, ca, sandbox.verifier.pid)


def _settings(plan: Plan, options: dict[str, Any], *, push: bool) -> dict[str, dict[str, object]]:
    """Return the settings of the verifier that is started, by section."""
    found: dict[str, dict[str, object]] = {"verifier": {"quote_interval": f"{plan.interval:g}"}}
    if push:
        # All machines have one address here, and one limit for it.
        found["verifier"] |= {"mode": "push", "session_create_rate_limit_per_ip": 100 * plan.nodes + 1000}
    if options["database"]:
        found["verifier"]["database_url"] = options["database"]
    for text in options["settings"]:
        name, equals, value = text.partition("=")
        section, dot, rest = name.strip().rpartition(".")
        if not equals or not rest or (dot and section not in SECTIONS):
            wanted = f"NAME=VALUE, where NAME may begin with {' or '.join(f'{one}.' for one in SECTIONS)}"
            raise click.ClickException(f"--verifier-option {text}: it is {wanted}")
        found.setdefault(section or "verifier", {})[rest] = value.strip()
    return found


def _arguments(sandbox: Sandbox, workers: int | None) -> list[str]:
    """Return the arguments that the verifier is started with."""
    if workers is None:
        return []
    known = subprocess.run(  # noqa: S603 - our own program
        sandbox.command("verifier", "run", "--help"), capture_output=True, text=True, check=False, timeout=60
    )
    if "--workers" in known.stdout:
        return ["--workers", str(workers)]
    if workers == 1:
        return []
    raise click.ClickException(f"--workers {workers}: this verifier does all its work in one process")


def _of_nodes(ca: Path) -> ssl.SSLContext:
    """Return the TLS context of machines that call: they know the CA and have no certificate."""
    return client_context(None, None, "", [ca], system_store=False)


def _with_running(kind: type[Simulation], plan: Plan, url: str, options: dict[str, Any]) -> dict[str, Any]:
    if not (options["cert"] and options["key"] and options["ca"]):
        raise click.ClickException("--verifier needs --cert, --key and --ca")
    for name in ("database", "workers", "settings", "register"):
        if options[name]:
            shown = "verifier-option" if name == "settings" else name
            raise click.ClickException(f"--{shown} is for servers that are started from here, not for --verifier")
    operator = client_context(options["cert"], options["key"], "", [options["ca"]], system_store=False)
    with tempfile.TemporaryDirectory(prefix="limeguard-") as folder:
        site = Site(url.rstrip("/"), operator, None, _of_nodes(options["ca"]))
        return _simulated(kind, plan, site, Path(folder), options["ca"], options["verifier_pid"])


def _simulated(
    kind: type[Simulation], plan: Plan, site: Site, folder: Path, clients: Path, pid: int | None
) -> dict[str, Any]:
    certificate, key = make_identity(folder, time.time())
    agents = server_context(certificate, key, "", (clients,), require_client=True)

    async def run() -> Report:
        simulation = kind(plan, site, meter_of(pid) if pid is not None else None)
        showing = asyncio.create_task(_show(simulation))
        try:
            return await simulation.run(agents, certificate.read_text())
        finally:
            showing.cancel()

    report = uvloop.run(run())
    return {"plan": {**asdict(plan), "scenario": len(plan.scenario)}, **report.figures()}


async def _show(simulation: Simulation) -> None:
    """Keep one line up to date on a terminal; elsewhere write a line for each thing that is begun."""
    console, begun = Console(stderr=True), ""
    with console.status("") if console.is_terminal else contextlib.nullcontext() as status:
        while True:
            text = simulation.progress
            if status is not None:
                status.update(text)
            elif (what := text.split()[0].strip(",")) != begun:
                begun = what
                click.echo(text, err=True)
            await asyncio.sleep(SHOW_SECONDS)


def meter_of(pid: int) -> Meter:
    """Return what tells the CPU that a program has used, with all that it started, and what it has in memory."""

    def meter() -> tuple[float, int]:
        pids = family(pid)
        # Pages that several processes share count once; for a single one, what it shares with others counts in full.
        size = resident(pid) if len(pids) == 1 else sum(map(proportional, pids))
        return sum(map(cpu_seconds, pids)), size

    return meter


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


def proportional(pid: int) -> int:
    """Return the bytes that a process has in memory, of shared pages only its part."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return resident(pid)
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


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
    yield "", f"busiest second {result['busiest_second']:,} rounds, {result['waiting']:,} machines not asked for long"
    yield from _cost(result, rounds)
    yield "conditions", ", ".join(f"{name} {count:,}" for name, count in sorted(result["conditions"].items()))
    for attack in sorted({one["attack"] for one in result["detections"]}):
        yield f"found: {attack}", _detected([one for one in result["detections"] if one["attack"] == attack])
    if result["sessions"]:
        yield "sessions", f"{result['sessions']:,}"
    if result["notices"]:
        yield "notices", f"{result['notices']:,} reached machines"
    yield "errors", ", ".join(f"{kind} {count:,}" for kind, count in sorted(result["errors"].items())) or "none"


def _cost(result: dict[str, Any], rounds: int) -> Iterable[tuple[str, str]]:
    if result["verifier_cpu"]:
        share = 100 * result["verifier_cpu"] / result["seconds"]
        yield "verifier", f"{1000 * result['verifier_cpu_per_round']:.3f} ms CPU a round, {share:.0f} % of a core"
        memory, growth = result["memory"], result["memory_growth"] / MIB
        used = f"mean {memory['mean'] / MIB:,.0f} MiB, peak {memory['peak'] / MIB:,.0f} MiB"
        each = f"{result['bytes_per_machine'] / 1024:,.0f} KiB a machine"
        yield "memory", f"{used}, {each}, {growth:+,.1f} MiB since the warm-up"
    asked, answered = result["bytes_asked"] / rounds, result["bytes_answered"] / rounds
    yield "network", f"{asked:,.0f} + {answered:,.0f} bytes a round, {result['connections']:,} new connections"
    share = 100 * result["simulator_cpu"] / max(result["seconds"], 1e-9)
    yield "simulator", f"{1000 * result['simulator_cpu_per_round']:.3f} ms CPU a round, {share:.0f} % of a core"


def _detected(found: list[dict[str, Any]]) -> str:
    times = sorted(one["seconds"] for one in found if one["seconds"] is not None)
    if not times:
        return f"0 of {len(found)}"
    p99 = times[min(int(0.99 * len(times)), len(times) - 1)]
    shown = f"median {times[len(times) // 2]:.2f} s, p99 {p99:.2f} s, last {times[-1]:.2f} s"
    return f"{len(times):,} of {len(found):,}; {shown}"
