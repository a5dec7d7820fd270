"""Verifiers of several workers over one database, as processes, and a simulated fleet that notes when it is asked."""

import asyncio
import itertools
import json
import os
import signal
import ssl
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from limeguard.cli.softtpm import Program, free_ports, wait_for_port
from limeguard.simulator.identity import make_identity
from limeguard.simulator.machine import APPLICATION_PCR, BootList, Machine
from limeguard.simulator.server import FleetServer, address_of
from limeguard.web.tls import server_context
from tests.fakes.site import Site

PATIENCE = 30.0
MASK = hex(1 << APPLICATION_PCR)


@dataclass
class Host:
    """One verifier with its workers: a machine of its own, as far as its parts can tell."""

    program: Program
    port: int

    def workers(self) -> list[int]:
        """Return the processes below the parent."""
        pid = self.program.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all of it."""
        os.killpg(self.program.pid, number)


@dataclass
class Cluster:
    """The fleet, the hosts, and an operator."""

    site: Site
    interval: float
    machines: list[Machine]
    asked: dict[str, list[float]] = field(default_factory=dict)
    hosts: list[Host] = field(default_factory=list)
    certificate: str = ""
    agents_port: int = 0
    _session: aiohttp.ClientSession | None = None
    _operator: ssl.SSLContext | None = None
    _names: Any = field(default_factory=lambda: itertools.count(1))

    def note(self, machine: Machine) -> float:
        """Take note of a question."""
        self.asked.setdefault(machine.agent_id, []).append(time.monotonic())
        return machine.behaviour.delay

    async def start_host(self, workers: int) -> Host:
        """Start a verifier and wait until it answers."""
        port = self.site.ports["verifier"] if not self.hosts else free_ports(1)[0]
        environment = {**self.site.environment(), "KEYLIME_VERIFIER_PORT": str(port)}
        command = self.site.command("verifier", "run", "--workers", str(workers))
        program = Program(f"verifier-{next(self._names)}", command, environment, self.site.logs)
        await asyncio.to_thread(program.start)
        await asyncio.to_thread(wait_for_port, port, program)
        host = Host(program, port)
        self.hosts.append(host)
        return host

    async def ask(self, host: Host, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Ask whichever worker of a host takes the connection."""
        assert self._session is not None
        data = None if body is None else json.dumps(body).encode()
        headers = {} if data is None else {"Content-Type": "application/json"}
        url = f"https://127.0.0.1:{host.port}{path}"
        async with self._session.request(method, url, data=data, headers=headers, ssl=self._operator or True) as got:
            text = await got.text()
            return got.status, json.loads(text) if "json" in got.headers.get("Content-Type", "") else text

    async def enrol(self, host: Host, machine: Machine) -> None:
        """Enrol a machine."""
        body = {
            "v": None,
            "cloudagent_ip": address_of(machine.number),
            "cloudagent_port": self.agents_port,
            "verifier_ip": "127.0.0.1",
            "verifier_port": 8881,
            "tpm_policy": json.dumps({str(APPLICATION_PCR): ["00" * 32], "mask": MASK}),
            "runtime_policy": "",
            "runtime_policy_name": "",
            "runtime_policy_key": "",
            "mb_policy": None,
            "mb_policy_name": "",
            "ima_sign_verification_keys": "",
            "metadata": "{}",
            "revocation_key": "",
            "accept_tpm_hash_algs": ["sha256"],
            "accept_tpm_encryption_algs": ["ecc"],
            "accept_tpm_signing_algs": ["ecdsa"],
            "ak_tpm": b64encode(machine.node.ak.public_2b).decode(),
            "mtls_cert": self.certificate,
            "supported_version": "2.6",
        }
        status, said = await self.ask(host, "POST", f"/v2.6/agents/{machine.agent_id}", body)
        assert status == 200, said

    async def enrol_all(self) -> None:
        """Enrol every machine, at all hosts in turn."""
        turns = itertools.cycle(self.hosts)
        await asyncio.gather(*(self.enrol(host, machine) for host, machine in zip(turns, self.machines, strict=False)))

    async def conditions(self, host: Host) -> dict[str, str]:
        """Return the condition of each node as a host tells it."""
        status, found = await self.ask(host, "GET", "/limeguard/v1/nodes")
        assert status == 200, found
        return {node["id"]: node["condition"] for node in found["nodes"]}

    async def view(self, host: Host, machine: Machine) -> dict[str, Any]:
        """Return one node as a host tells it."""
        status, found = await self.ask(host, "GET", f"/limeguard/v1/nodes/{machine.agent_id}")
        assert status == 200, found
        view: dict[str, Any] = found
        return view

    async def metrics(self, host: Host) -> dict[str, dict[str, float]]:
        """Return the figures of a host: sample name to worker to value (of samples without other labels)."""
        status, text = await self.ask(host, "GET", "/metrics")
        assert status == 200, text
        found: dict[str, dict[str, float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if set(sample.labels) <= {"worker"}:
                    found.setdefault(sample.name, {})[sample.labels.get("worker", "0")] = sample.value
        return found

    async def partitions(self) -> list[float]:
        """Return how many partitions each worker of every host holds."""
        found: list[float] = []
        for host in self.hosts:
            found += (await self.metrics(host))["limeguard_verifier_partitions"].values()
        return found

    async def until(self, what: str, holds: Callable[[], Any], seconds: float = PATIENCE) -> None:
        """Wait until something holds; `holds` may be a coroutine function."""
        end = time.monotonic() + seconds
        while True:
            answer = holds()
            if asyncio.iscoroutine(answer):
                answer = await answer
            if answer:
                return
            assert time.monotonic() < end, f"waited {seconds:.0f} s in vain for: {what}"
            await asyncio.sleep(0.1)

    async def all_asked_since(self, moment: float, seconds: float) -> float:
        """Wait until every machine has been asked after a moment; return how long after it the last one was."""
        names = [machine.agent_id for machine in self.machines]
        await self.until(
            "every machine to be asked", lambda: all(self._first_after(name, moment) for name in names), seconds
        )
        return max(self._first_after(name, moment) for name in names) - moment

    def _first_after(self, name: str, moment: float) -> float:
        return next((at for at in self.asked.get(name, ()) if at > moment), 0.0)

    def shortest_pause(self, since: float = 0.0) -> float:
        """Return the shortest time between two questions to the same machine."""
        pauses = [
            later - earlier
            for times in self.asked.values()
            for earlier, later in itertools.pairwise([at for at in times if at > since])
        ]
        return min(pauses)


@asynccontextmanager
async def cluster(folder: Path, machines: int, **verifier: object) -> AsyncIterator[Cluster]:
    """Serve a fleet; hosts are started by the test. `verifier` goes over the settings of every host."""
    interval = float(str(verifier.get("quote_interval", "1")))
    with Site(folder, verifier=verifier) as site:
        fleet = [Machine.make(number, BootList.of(())) for number in range(machines)]
        made = Cluster(site, interval, fleet)
        server = FleetServer({address_of(one.number): one for one in fleet}, made.note, time.monotonic)
        # The first host makes the authority that agents trust.
        first = await made.start_host(2)
        certificate, key = make_identity(folder, time.time())
        made.certificate = certificate.read_text()
        context = server_context(certificate, key, "", (site.authority / "cacert.crt",), require_client=True)
        made._operator = site.client_context()
        timeout = aiohttp.ClientTimeout(total=20)
        # A connection for each request: the system chooses a worker anew each time.
        connector = aiohttp.TCPConnector(force_close=True, limit=16)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            made._session = session
            await server.start(context)
            made.agents_port = server.port
            assert first.port
            try:
                yield made
            finally:
                for host in made.hosts:
                    if host.program.running:
                        host.signal(signal.SIGCONT)
                        await asyncio.to_thread(host.program.stop)
                await server.stop()
    assert not server.complaints
