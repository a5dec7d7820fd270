"""What fleets of 100, 1,000, 5,000 and 20,000 machines cost one process of a verifier, all at the same rate of rounds.

The interval is stretched with the fleet, so what is compared is the cost of having nodes, not of asking them more
often: CPU of a round should stay the same and memory grow by the same for each node. Prints a table and, with
`--write`, puts it into docs/how-to/sizing.md with a plot beside it, and what 1,000,000 nodes need by these figures.

    ./dev bench curve
    ./dev run python bench/curve.py --nodes 100 1000 --seconds 10
"""

import argparse
import asyncio
import math
import resource
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limeguard.cli.sandbox import Sandbox
from limeguard.cli.simulate import meter_of
from limeguard.simulator.identity import make_identity
from limeguard.simulator.operator import Site
from limeguard.simulator.report import Report
from limeguard.simulator.run import Plan, Simulation
from limeguard.web.pinned import room_for_peers
from limeguard.web.tls import server_context

DOCS = Path(__file__).resolve().parent.parent / "docs" / "how-to"
PLOT = "sizing-curve.svg"
BEGIN, END = "<!-- curve: begin, written by bench/curve.py -->", "<!-- curve: end -->"
MIB, KIB = 1 << 20, 1 << 10
USED = 0.7
"""Part of a core that a process should use at most, so that it catches up after a stop."""
MANY = 1_000_000
KEPT_SECONDS = 30
"""How long the verifier keeps an idle connection: with longer intervals every round begins with a TLS handshake."""
HANDSHAKE = 4_000
"""Bytes of a TLS handshake with client certificates, both ways, about."""


@dataclass(frozen=True)
class Point:
    """One fleet: what a simulation showed of it, and what the verifier's database had to do."""

    interval: float
    report: Report
    transactions: float
    transaction_ms: float
    stored: float

    @property
    def cpu(self) -> float:
        """Milliseconds of CPU for a round."""
        return 1000 * self.report.verifier_cpu / max(self.report.rounds, 1)

    @property
    def memory(self) -> float:
        """Bytes in memory."""
        return float(self.report.memory.end)

    @property
    def network(self) -> float:
        """Bytes of HTTP for a round."""
        return float(self.report.figures()["bytes_per_round"])


def measured(nodes: int, rate: float, seconds: float, *, keep: bool = True) -> Point:
    """Simulate one fleet beside a verifier of its own; `keep` says whether connections are kept."""
    interval = nodes / rate
    plan = Plan(
        nodes=nodes, seconds=max(seconds, 1.5 * interval), interval=interval, warm_up=1.2 * interval, keep_alive=keep
    )
    with Sandbox(verifier={"quote_interval": f"{interval:g}"}) as sandbox:
        sandbox.start_verifier("--workers", "1")
        assert sandbox.verifier is not None  # noqa: S101 - started above
        certificate, key = make_identity(sandbox.folder, time.time())
        agents = server_context(certificate, key, "", (sandbox.authority / "cacert.crt",), require_client=True)
        site = Site(f"https://127.0.0.1:{sandbox.ports['verifier']}", sandbox.client_context())
        meter = meter_of(sandbox.verifier.pid)
        began = time.monotonic()

        async def run() -> Report:
            return await Simulation(plan, site, meter).run(agents, certificate.read_text())

        report = asyncio.run(run())
        figures = scraped(sandbox)
        lasted = time.monotonic() - began
        count = figures["limeguard_verifier_transactions_total"]
        files = sum(path.stat().st_size for path in sandbox.work.glob("*.sqlite*"))
        took = 1000 * figures["limeguard_verifier_transaction_seconds_total"] / max(count, 1)
        return Point(interval, report, count / lasted, took, files / nodes)


def scraped(sandbox: Sandbox) -> dict[str, float]:
    """Return the verifier's metrics that have no label."""
    lines = sandbox.ask_text(sandbox.ports["verifier"], "/metrics")[1].splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line and line[0] != "#" and "{" not in line)
    return {name: float(value) for name, value in pairs}


# --- the table ------------------------------------------------------------------------------------------------------


def table(points: Sequence[Point]) -> Iterable[str]:
    yield "| nodes | interval | rounds/s | CPU a round | p99 lateness | memory | a node | network a round | database |"
    yield "|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for point in points:
        report = point.report
        each = report.figures()["bytes_per_machine"] / KIB
        yield (
            f"| {report.nodes:,} | {point.interval:g} s | {report.rounds_per_second:,.0f} | {point.cpu:.2f} ms"
            f" | {1000 * report.lateness['p99']:,.0f} ms | {point.memory / MIB:,.0f} MiB | {each:,.1f} KiB"
            f" | {point.network:,.0f} B | {point.transactions:.1f}/s of {point.transaction_ms:.0f} ms |"
        )


def slope(points: Sequence[Point]) -> tuple[float, float]:
    """Return bytes without nodes, and for each node, by the line of least squares."""
    count = len(points)
    nodes, sizes = [one.report.nodes for one in points], [one.memory for one in points]
    middle, mean = sum(nodes) / count, sum(sizes) / count
    spread = sum((n - middle) ** 2 for n in nodes) or 1.0
    each = sum((n - middle) * (size - mean) for n, size in zip(nodes, sizes, strict=True)) / spread
    return mean - each * middle, each


def extrapolated(points: Sequence[Point], cold: Point) -> Iterable[str]:
    """Say what a million nodes need if each round and node costs what it does here, divided among equal processes.

    A process keeps no more connections than were tried. Above half a minute's interval, when they are not kept, rounds
    and nodes cost what those of `cold` do; its memory, from a small fleet, is an upper bound.
    """
    largest, (base, each) = points[-1], slope(points)
    yield f"| {MANY:,} nodes, one round every | rounds/s | cores | processes | memory | network | rows written |"
    yield "|---:|---:|---:|---:|---:|---:|---:|"
    for interval, name in ((20, "20 seconds"), (60, "minute"), (600, "10 minutes"), (3_600, "hour")):
        kept, rate = interval <= KEPT_SECONDS, MANY / interval
        point, node = (largest, each) if kept else (cold, max(cold.memory - base, 0.0) / cold.report.nodes)
        cores = rate * point.cpu / 1000 / USED
        processes = max(math.ceil(cores), math.ceil(MANY / largest.report.nodes) if kept else 1)
        memory = (processes * max(base, 0) + MANY * node) / (1 << 30)
        network = rate * (point.network + (0 if kept else HANDSHAKE)) * 8 / 1e6
        shown = f"{rate:,.0f} | {cores:,.1f} | {processes} | {memory:,.0f} GiB | {network:,.0f} Mbit/s | {rate:,.0f}/s"
        yield f"| {name} | {shown} |"


# --- the plot -------------------------------------------------------------------------------------------------------

WIDE, HIGH, LEFT, TOP, PANEL, GAP = 760, 300, 60, 40, 270, 90
INK, LINE_A, LINE_B, FAINT = "#333", "#1b6ca8", "#b3541e", "#ddd"


def plot(points: Sequence[Point]) -> str:
    """Return an SVG with two panels over the number of nodes: CPU of a round, and memory."""
    nodes = [one.report.nodes for one in points]
    most_cpu = 1.25 * max(one.cpu for one in points)
    most_memory = 1.15 * max(one.memory for one in points) / MIB
    cpu = [(one.report.nodes, one.cpu) for one in points]
    memory = [(one.report.nodes, one.memory / MIB) for one in points]
    parts = [
        *panel(LEFT, "CPU of a round, ms (nodes on a logarithmic scale)", cpu, nodes, most_cpu, LINE_A, log=True),
        *panel(LEFT + PANEL + GAP, "memory, MiB (both scales linear)", memory, nodes, most_memory, LINE_B, log=False),
    ]
    body = "\n".join(parts)
    look = f'viewBox="0 0 {WIDE} {HIGH}" font-family="sans-serif" font-size="12"'
    title = "<title>CPU of a round and memory over the number of nodes</title>"
    ground = f'<rect width="{WIDE}" height="{HIGH}" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {look}>\n{title}\n{ground}\n{body}\n</svg>\n'


def panel(
    left: float,
    title: str,
    values: Sequence[tuple[int, float]],
    nodes: Sequence[int],
    most: float,
    ink: str,
    *,
    log: bool,
) -> Iterable[str]:
    """Draw one panel: frame, four lines across, a mark for each value and what it is."""
    bottom, width, height = HIGH - 45.0, float(PANEL), HIGH - 45.0 - TOP
    low, high = (math.log10(nodes[0]), math.log10(nodes[-1])) if log else (0.0, float(nodes[-1]))

    def place(count: int, value: float) -> tuple[float, float]:
        at = math.log10(count) if log else float(count)
        return left + width * (at - low) / max(high - low, 1e-9), bottom - height * value / most

    yield f'<text x="{left}" y="{TOP - 18}" fill="{INK}" font-weight="bold">{title}</text>'
    for step in range(5):
        y = bottom - height * step / 4
        yield f'<line x1="{left}" y1="{y:.1f}" x2="{left + width}" y2="{y:.1f}" stroke="{FAINT}"/>'
        shown = f"{most * step / 4:,.2f}" if most < 10 else f"{most * step / 4:,.0f}"
        yield f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="{INK}">{shown}</text>'
    corners = " ".join("{:.1f},{:.1f}".format(*place(*one)) for one in values)
    yield f'<polyline points="{corners}" fill="none" stroke="{ink}" stroke-width="2"/>'
    for count, value in values:
        x, y = place(count, value)
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{ink}"/>'
        if log or count >= 0.2 * nodes[-1]:
            yield f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle" fill="{INK}">{count:,}</text>'


# --- the program ----------------------------------------------------------------------------------------------------


def write(points: Sequence[Point], cold: Point) -> None:
    """Put table and plot into the page about sizes."""
    (DOCS / PLOT).write_text(plot(points))
    page = DOCS / "sizing.md"
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    base, each = slope(points)
    node = max(cold.memory - base, 0.0) / cold.report.nodes / KIB
    once = f"{cold.cpu:.2f} ms of CPU a round, at most {node:,.1f} KiB a node ({cold.report.nodes:,} nodes)"
    block = [
        BEGIN,
        "",
        *table(points),
        "",
        f"![CPU of a round and memory over the number of nodes]({PLOT})",
        "",
        f"Memory by the line through these: {base / MIB:,.0f} MiB and {each / KIB:,.1f} KiB a node.",
        "",
        f"With a new connection for each round: {once}.",
        "",
        *extrapolated(points, cold),
        "",
        END,
    ]
    page.write_text(before + "\n".join(block) + after)


def parsed() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[100, 1_000, 5_000, 20_000])
    parser.add_argument("--rate", type=float, default=800.0, help="rounds a second that every fleet is asked")
    parser.add_argument("--cold", type=int, default=5_000, help="nodes of the fleet whose connections are not kept")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long is measured at least")
    parser.add_argument("--write", action="store_true", help="put the results into docs/how-to/sizing.md")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if max(options.nodes) > room_for_peers(hard):
        print(f"{hard:,} open files are allowed: the largest fleet cannot keep all its connections (`ulimit -Hn`)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    points = []
    for nodes in sorted(options.nodes):
        point = measured(nodes, options.rate, options.seconds)
        points.append(point)
        report = point.report
        own = 1000 * report.simulator_cpu / max(report.rounds, 1)
        print(
            f"{nodes:,}: {report.rounds_per_second:,.0f} rounds/s, {point.cpu:.3f} ms a round (simulator {own:.3f}),"
            f" {point.memory / MIB:,.0f} MiB, p99 {1000 * report.lateness['p99']:,.0f} ms,"
            f" {report.connections:,} new connections, {point.stored:,.0f} B a node on disk, {report.conditions}",
            flush=True,
        )
    cold = measured(options.cold, options.rate / 4, options.seconds, keep=False)
    shown = f"{cold.cpu:.3f} ms a round, {cold.memory / MIB:,.0f} MiB"
    print(f"{options.cold:,} with a new connection for each round: {shown}")
    print("\n".join([*table(points), "", *extrapolated(points, cold)]))
    if options.write:
        write(points, cold)


if __name__ == "__main__":
    main()
