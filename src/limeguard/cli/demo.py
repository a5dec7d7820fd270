"""`limeguard demo`: a node is enrolled and attested on this machine; twice it changes and is distrusted with a reason.

Everything is real: a TPM (in software) with a certificate of its maker, registrar, verifier and agent as processes that
speak TLS with each other. Where swtpm is not installed, TPM and agent are those of `limeguard simulate`. This module
tells the story and fails when it does not go as told; `sandbox` runs programs.
"""

import hashlib
import importlib.util
import io
import json
import shutil
import signal
import time
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import click
from rich.console import Console
from rich.markup import escape

from limeguard.cli.kernel import Kernel
from limeguard.cli.sandbox import Sandbox, wait_until
from limeguard.cli.simulated_node import SimulatedNode
from limeguard.cli.softtpm import SandboxError
from limeguard.policy.runtime import empty_policy_document
from limeguard.simulator.machine import digest_of
from limeguard.telemetry import clean

PCR = 23
"""Left to applications and zero after a reset (TCG PC Client Platform TPM Profile, PCR usage)."""
UNTOUCHED = "00" * 32
PATIENCE = 30.0
COLOURS = {"trusted": "green", "distrusted": "red", "stale": "yellow", "unreachable": "yellow", "pending": "cyan"}
INTERRUPTED = 130
POLICY = "demo"
PROGRAMS = ("/usr/bin/bash", "/usr/bin/sshd", "/usr/lib/libc.so.6")
UPDATE = "/usr/local/bin/backup"


SWTPM = ("swtpm", "swtpm_setup", "swtpm_localca")


class Tpm(Protocol):
    """A TPM whose PCRs can be changed from here."""

    def extend(self, pcr: int, digest: bytes, /) -> None:
        """Extend one PCR."""
        ...


class Measures(Protocol):
    """The kernel's part."""

    def measure(self, name: str, digest: str, /) -> None:
        """Measure a file."""
        ...


class Node(Protocol):
    """The node of the story: an agent with swtpm, or a simulated machine."""

    id: str
    folder: Path

    @property
    def tpm(self) -> Tpm:
        """Its TPM."""
        ...

    @property
    def kernel(self) -> Measures | None:
        """What measures files on it."""
        ...

    @property
    def port(self) -> int:
        """Where its agent listens."""
        ...

    @property
    def secure_mount(self) -> bool:
        """Whether it takes a payload."""
        ...


def missing_for_swtpm() -> list[str]:
    """Return what is not installed of that which an agent with swtpm needs."""
    programs = [name for name in SWTPM if shutil.which(name) is None]
    return programs + (["tpm2-pytss"] if importlib.util.find_spec("tpm2_pytss") is None else [])


class Story:
    """What the person at the terminal reads."""

    def __init__(self, console: Console) -> None:
        """Start the clock."""
        self._console, self._began, self._step = console, time.monotonic(), 0

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def say(self, text: str = "") -> None:
        """Print a line, with rich's markup."""
        self._console.print(text, soft_wrap=True, highlight=False)

    def step(self, title: str) -> None:
        """Begin a numbered step."""
        self._step += 1
        self.say(f"\n[bold]{self._step}  {escape(title)}[/]")

    def fact(self, name: str, text: str) -> None:
        """Print one fact below a step."""
        self.say(f"   [dim]{escape(name):<12}[/] {escape(text)}")

    def verdict(self, view: dict[str, Any]) -> None:
        """Print how the verifier sees the node now."""
        condition = str(view["condition"])
        colour = COLOURS.get(condition, "white")
        count = view["attestation_count"]
        remark = f"{count} round{'s' if count != 1 else ''} passed"
        if condition == "trusted" and view["trust_expires_at"]:
            remark += f", good for another {view['trust_expires_at'] - time.time():.1f} s"
        self.say(f"   [dim]{self.seconds:5.1f} s[/]  [bold {colour}]{condition:<12}[/] {remark}")

    def findings(self, view: dict[str, Any]) -> None:
        """Print what was wrong and what to do."""
        for finding in view["findings"]:
            self.fact("finding", f"{finding['id']} ({finding['event_id']}, severity {finding['severity']})")
            for name, value in finding["context"].items():
                self.fact(f"  {name}", clean(value))
            self.fact("advice", finding["advice"])


def payload_for(node: Node) -> bytes:
    """Return a ZIP file whose `autorun.sh` leaves a mark beside the agent."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("autorun.sh", f"#!/bin/sh\ncat greeting > '{_mark(node)}'\n")
        archive.writestr("greeting", "only a node that proved itself can read this\n")
    return out.getvalue()


def _mark(node: Node) -> Path:
    return node.folder / "payload-ran"


def watch(story: Story, sandbox: Sandbox, node: Node, until: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Print each new verdict until the condition is `until` and at least `rounds` rounds have passed; return the last.

    Raises SandboxError when that does not happen in time, or when the node is distrusted before it should be.
    """
    seen: tuple[object, ...] = ()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        view = sandbox.node_view(node.id)
        if view is None:
            raise SandboxError("the verifier has forgotten the node")
        now = (view["condition"], view["attestation_count"])
        if now != seen:
            story.verdict(view)
            seen = now
        if view["condition"] == until and view["attestation_count"] >= rounds:
            return view
        if view["condition"] == "distrusted":
            story.findings(view)
            raise SandboxError("the node is distrusted although nothing was changed")
        time.sleep(0.1)
    raise SandboxError(f"the node is not {until} after {seconds:.0f} s")


def tell(story: Story, sandbox: Sandbox, rounds: int, missing: list[str] | None) -> None:
    """Run the story from the TPM to the verdict. Raises SandboxError when anything goes otherwise than told.

    With a list, which names what swtpm would need, the TPM is the simulator's.
    """
    story.say("[bold]limeguard demo[/]: one node is attested, and changes twice")
    story.say(f"[dim]Everything stays on loopback ports and in {sandbox.folder}, which is removed at the end.[/]")
    node: Node = _set_up(story, sandbox) if missing is None else _set_up_simulated(story, sandbox, missing)
    _enrol(story, sandbox, node)
    story.step(f"The verifier asks for a quote every second; {rounds} rounds")
    watch(story, sandbox, node, "trusted", rounds, PATIENCE)
    if node.secure_mount:
        wait_until("the payload's script to run", PATIENCE, _mark(node).exists)
        story.fact("payload", "reached the node with the second half of its key; autorun.sh ran")
    _run_unknown_program(story, sandbox, node)
    _allow_it(story, sandbox, node)
    _extend_pcr(story, sandbox, node)


def _run_unknown_program(story: Story, sandbox: Sandbox, node: Node) -> None:
    story.step(f"A program runs that the policy does not list: {UPDATE}")
    assert node.kernel is not None  # noqa: S101 - set up above
    node.kernel.measure(UPDATE, digest_of(UPDATE))
    story.fact("kernel", "adds it to the measurement list and extends PCR 10")
    view = _distrusted(story, sandbox, node)
    if [finding["context"].get("path") for finding in view["findings"]] != [UPDATE]:
        raise SandboxError("the node is distrusted for another reason than the program that ran")


def _allow_it(story: Story, sandbox: Sandbox, node: Node) -> None:
    story.step("The operator looks, adds it to the policy, and lets the node try again")
    policy = _policy(sandbox, UPDATE)
    _tenant(sandbox, "updateruntimepolicy", "--runtime-policy-name", POLICY, "--runtime-policy", policy)
    _tenant(sandbox, "reactivate", "-u", node.id)
    watch(story, sandbox, node, "trusted", 1, PATIENCE)


def _extend_pcr(story: Story, sandbox: Sandbox, node: Node) -> None:
    story.step(f"Something else changes: PCR {PCR} is extended")
    node.tpm.extend(PCR, hashlib.sha256(b"something nobody has approved").digest())
    view = _distrusted(story, sandbox, node)
    if not any(f"pcr_{PCR}" in finding["event_id"] for finding in view["findings"]):
        raise SandboxError("the node is distrusted for another reason than the PCR that was changed")


def _distrusted(story: Story, sandbox: Sandbox, node: Node) -> dict[str, Any]:
    """Wait until the node is distrusted and say why."""
    changed = story.seconds
    before = sandbox.node_view(node.id)
    view = watch(story, sandbox, node, "distrusted", int((before or {}).get("attestation_count", 0)), PATIENCE)
    story.findings(view)
    story.say(f"   [bold green]As it must be:[/] distrusted {story.seconds - changed:.1f} s after the change.")
    return view


def _set_up(story: Story, sandbox: Sandbox) -> Node:
    story.step("A machine with a TPM")
    tpm = sandbox.add_tpm()
    sandbox.trust_tpm_maker()
    story.fact("TPM", f"swtpm, {tpm.tcti}; its EK certificate comes from a throw-away maker")
    _start_servers(story, sandbox)
    log = sandbox.folder / "ascii_runtime_measurements"
    node = sandbox.add_node(str(uuid.uuid4()), tpm, ima_ml_path=str(log))
    node.kernel = Kernel(tpm, log)
    for name in PROGRAMS:
        node.kernel.measure(name, digest_of(name))
    node.start()
    story.fact("agent", f"https://127.0.0.1:{node.port}, registered as {node.id}")
    return node


def _set_up_simulated(story: Story, sandbox: Sandbox, missing: list[str]) -> SimulatedNode:
    story.step("A machine with a TPM")
    node = SimulatedNode(sandbox, str(uuid.uuid4()))
    sandbox.nodes.append(node)
    (sandbox.store / "software-tpm.pem").write_text(node.maker.pem)
    story.fact("TPM", "limeguard's own, in software; its EK certificate comes from a throw-away maker")
    if missing:
        story.fact("", f"(not installed here: {', '.join(missing)}. With swtpm, swtpm-tools and limeguard[agent]")
        story.fact("", "the demo runs swtpm and the real agent. This one signs real quotes, and takes no payload.)")
    _start_servers(story, sandbox)
    for name in PROGRAMS:
        node.measure(name, digest_of(name))
    node.start()
    story.fact("agent", f"https://127.0.0.1:{node.port}, simulated, registered as {node.id}")
    return node


def _start_servers(story: Story, sandbox: Sandbox) -> None:
    story.step("A site: verifier, registrar, and the node's agent")
    sandbox.start_servers()
    story.fact("verifier", f"https://127.0.0.1:{sandbox.ports['verifier']} (made the site's CA)")
    story.fact("registrar", f"https://127.0.0.1:{sandbox.ports['registrar_tls']}")


def _enrol(story: Story, sandbox: Sandbox, node: Node) -> None:
    story.step("The tenant enrols the node")
    _tenant(sandbox, "addruntimepolicy", "--runtime-policy-name", POLICY, "--runtime-policy", _policy(sandbox))
    policy = f'{{"{PCR}": ["{UNTOUCHED}"]}}'
    arguments = ["-u", node.id, "-t", "127.0.0.1", "--tpm_policy", policy, "--runtime-policy-name", POLICY]
    if node.secure_mount:
        package = sandbox.folder / "payload.zip"
        package.write_bytes(payload_for(node))
        arguments += ["-f", str(package)]
    _tenant(sandbox, "add", *arguments)
    story.fact("identity", "EK certificate traced to the maker's CA; AK bound to that EK; a first quote checked")
    story.fact("policy", f"PCR {PCR} is all zero; {len(PROGRAMS)} programs may run, each with its digest")
    if node.secure_mount:
        story.fact("payload", "encrypted; one half of its key given to the agent, the other to the verifier")
    elif not isinstance(node, SimulatedNode):
        story.fact("payload", "left out: mounting a memory file system for it is not allowed here")


def _tenant(sandbox: Sandbox, *arguments: str) -> None:
    done = sandbox.tenant(*arguments)
    if done.returncode != 0:
        raise SandboxError(f"limeguard tenant {arguments[0]} failed:\n{done.stdout}{done.stderr}")


def _policy(sandbox: Sandbox, *more: str) -> str:
    """Write the runtime policy that lists the programs, and `more`; return where."""
    document = empty_policy_document()
    document["digests"] = {name: [digest_of(name)] for name in (*PROGRAMS, *more)}
    path = sandbox.folder / "policy.json"
    path.write_text(json.dumps(document))
    return str(path)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the story as Ctrl-C does, so that everything is cleaned up."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@click.command("demo")
@click.option("--rounds", type=click.IntRange(1, 60), default=3, show_default=True, help="Rounds before the change.")
@click.option("--keep", is_flag=True, help="Leave the folder with settings and logs in place.")
@click.option(
    "--tpm",
    type=click.Choice(["auto", "swtpm", "simulated"]),
    default="auto",
    show_default=True,
    help="swtpm with the real agent, or the simulator's TPM and agent; auto: swtpm if it is installed.",
)
def demo(*, rounds: int, keep: bool, tpm: str) -> None:
    """Attest a node with a software TPM on this machine, change it, and see it distrusted with the reason.

    With swtpm, swtpm-tools and the extra `agent` a real agent is attested; without them the TPM and the agent of
    `limeguard simulate` take its part. The exit status is 0 only if all went as told.
    """
    console = Console()
    story = Story(console)
    missing = missing_for_swtpm()
    if tpm == "swtpm" and missing:
        raise click.ClickException(f"--tpm swtpm: not installed: {', '.join(missing)}")
    simulated = missing if tpm == "simulated" or missing else None
    status = 0
    sandbox = Sandbox(keep=keep)
    try:
        with _ended_by_signals(), sandbox:
            tell(story, sandbox, rounds, simulated)
    except SandboxError as problem:
        console.print(f"\nThe demo did not go as told: {problem}", style="bold red", markup=False, highlight=False)
        status = 1
    except KeyboardInterrupt:
        story.say("\nInterrupted.")
        status = INTERRUPTED
    kept = f"Settings and logs are in {sandbox.folder}" if keep else "Everything is stopped and removed"
    story.say(f"[dim]{kept}, after {story.seconds:.0f} s.[/]")
    raise SystemExit(status)
