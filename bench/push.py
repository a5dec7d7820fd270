"""CPU of a whole verifier per attestation of nodes that push, sessions kept, and Keylime's in the same run.

Each verifier is a process of its own. The nodes are light clients in this process with real keys and real quotes: one
connection each, one session, then an offer and evidence whenever the verifier says that it is time. What is measured
is the CPU of the verifier's processes as the kernel counts it, per attestation that was taken, between two moments at
which all nodes are in the steady state. Keylime's part needs its environment (`./dev peer` makes it); its agents cannot
use elliptic curves, and 30 nodes every 2 seconds are what it can bear.

    ./dev bench push
    ./dev run python bench/push.py --nodes 500 --seconds 30 --interval 2 --no-peer
"""

import argparse
import asyncio
import json
import os
import ssl
import sys
import tempfile
import time
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleet import CA, LOGGING, PEER, VERIFIER, Running

from limeguard.cli.sandbox import Sandbox, ini_text
from limeguard.cli.simulate import cpu_seconds, family, resident
from limeguard.cli.softtpm import Program, free_ports, wait_for_port
from limeguard.evidence.tpm.quote import signature_is_good
from limeguard.evidence.tpm.structures import parse_signature
from limeguard.policy.runtime import empty_policy_document
from limeguard.simulator.machine import IMA_PCR, BootList, digest_of
from limeguard.simulator.softtpm import SoftAk, SoftEk, SoftNode, transport_key
from limeguard.web.tls import client_context

MEDIA_TYPE = "application/vnd.api+json"
BOOT_TIME = "2026-01-05T08:00:00Z"
PUSH_SETTINGS = {
    "challenge_lifetime": "1800",
    "verification_timeout": "0",
    "session_create_rate_limit_per_ip": "100000",
    "session_create_rate_limit_window_ip": "60",
    "session_create_rate_limit_per_agent": "100000",
    "session_create_rate_limit_window_agent": "60",
    "session_lifetime": "180",
    "extend_token_on_attestation": "True",
    "auto_recover_attestation_failures": "False",
    "mode": "push",
}


@dataclass
class Connection:
    """One connection over which requests go one after the other."""

    port: int
    tls: ssl.SSLContext
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None

    async def ask(self, method: str, path: str, body: bytes, token: str = "") -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of the answer."""
        if self.writer is None or self.reader is None or self.writer.is_closing():
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls)
        authority = f"Authorization: Bearer {token}\r\n" if token else ""
        media_type = MEDIA_TYPE if path.startswith("/v3") else "application/json"
        kind = f"Content-Type: {media_type}\r\n" if body else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{kind}{authority}Content-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        content = await self.reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("connection", "").lower() == "close":
            self.writer.close()
        return int(lines[0].split()[1]), headers, content


@dataclass
class Pusher:
    """One node. `boot` is its IMA list, None for a node without policy."""

    agent_id: str
    node: SoftNode
    boot: BootList | None
    connection: Connection
    counts: Counter[str]
    token: str = ""
    offer: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        if self.boot is not None:
            self.node.pcrs[IMA_PCR] = self.boot.pcr
        area, bank = self.node.ak.area, self.node.ak.hash_alg.name
        key = {
            "key_algorithm": area.type,
            "key_class": "asymmetric",
            "key_size": area.key.key_size,
            "server_identifier": "ak",
            "local_identifier": area.name.hex(),
            "public": b64encode(area.raw).decode(),
            "allowable_hash_algorithms": [bank],
            "allowable_signature_schemes": [self.node.ak.scheme],
        }
        quote = {
            "component_version": "2.0",
            "hash_algorithms": [bank],
            "signature_schemes": ["ecdsa", "ecschnorr", "rsapss", "rsassa"],
            "available_subjects": {bank: list(range(24))},
            "certification_keys": [key],
        }
        entries = len(self.boot.lines) if self.boot is not None else 0
        log = {"entry_count": entries, "supports_partial_access": True, "appendable": True, "formats": ["text/plain"]}
        items = [
            {"evidence_class": "certification", "evidence_type": "tpm_quote", "capabilities": quote},
            {"evidence_class": "log", "evidence_type": "ima_log", "capabilities": log},
        ]
        self.offer = document("attestation", evidence_supported=items, system_info={"boot_time": BOOT_TIME})

    async def run(self, first: float, end: float) -> None:
        """Attest from `first` on until `end`, whenever it is time."""
        await asyncio.sleep(max(first - time.monotonic(), 0))
        while time.monotonic() < end:
            try:
                if not self.token:
                    await self.log_in()
                await asyncio.sleep(await self.attest())
            except (OSError, asyncio.IncompleteReadError, KeyError, ValueError) as problem:
                self.counts[type(problem).__name__] += 1
                self.connection.writer = None
                await asyncio.sleep(1.0)

    async def log_in(self) -> None:
        """Get a token."""
        method = {"authentication_class": "pop", "authentication_type": "tpm_pop"}
        body = document("session", agent_id=self.agent_id, authentication_supported=[method])
        _, _, text = await self.connection.ask("POST", "/v3.0/sessions", body)
        data = json.loads(text)["data"]
        challenge = data["attributes"]["authentication_requested"][0]["chosen_parameters"]["challenge"]
        message, signature = self.node.ak.certify(self.node.ak.area, b64decode(challenge), self.node.clock)
        proof = {"message": b64encode(message).decode(), "signature": b64encode(signature).decode()}
        body = document("session", agent_id=self.agent_id, authentication_provided=[{**method, "data": proof}])
        _, _, text = await self.connection.ask("PATCH", f"/v3.0/sessions/{data['id']}", body)
        self.token = json.loads(text)["data"]["attributes"]["token"]
        self.counts["sessions"] += 1

    async def attest(self) -> float:
        """Do one attestation; return how long to wait for the next."""
        path = f"/v3.0/agents/{self.agent_id}/attestations"
        status, headers, text = await self.connection.ask("POST", path, self.offer, self.token)
        if status != 201:
            return self.refused(status, headers)
        requested = json.loads(text)["data"]["attributes"]["evidence_requested"]
        body = document("attestation", evidence_collected=[self.collect(one) for one in requested])
        status, headers, text = await self.connection.ask("PATCH", headers["location"], body, self.token)
        if status != 202:
            return self.refused(status, headers)
        self.counts["taken"] += 1
        return float(json.loads(text)["meta"]["seconds_to_next_attestation"])

    def refused(self, status: int, headers: dict[str, str]) -> float:
        """Count a refusal; return how long to wait."""
        self.counts[f"refused {status}"] += 1
        if status in {401, 403}:
            self.token = ""
        return float(headers.get("retry-after", "1"))

    def collect(self, one: dict[str, Any]) -> dict[str, Any]:
        """Return one piece of evidence."""
        chosen, kinds = one["chosen_parameters"], {name: one[name] for name in ("evidence_class", "evidence_type")}
        if one["evidence_type"] == "tpm_quote":
            pcrs = set(chosen["selected_subjects"][chosen["hash_algorithm"]] or ())
            message, signature, values = self.node.quote(b64decode(chosen["challenge"]), pcrs)[1:].split(":")
            return {**kinds, "data": {"message": message, "signature": signature, "subject_data": values}}
        lines = self.boot.lines[chosen["starting_offset"] :] if self.boot is not None else ()
        return {**kinds, "data": {"entries": "".join(f"{line}\n" for line in lines), "entry_count": len(lines)}}

    def enrolment(self, policy: str) -> bytes:
        """Return what enrols the node."""
        body = {
            "v": None,
            "cloudagent_ip": "127.0.0.1",
            "cloudagent_port": 9002,
            "verifier_ip": "127.0.0.1",
            "verifier_port": 8881,
            "tpm_policy": '{"mask": "0x400"}' if policy else '{"15": ["' + "00" * 32 + '"], "mask": "0x8000"}',
            "runtime_policy": policy,
            "runtime_policy_name": "",
            "runtime_policy_key": "",
            "mb_policy": None,
            "mb_policy_name": "",
            "ima_sign_verification_keys": "",
            "metadata": "{}",
            "revocation_key": "",
            "accept_tpm_hash_algs": ["sha512", "sha384", "sha256"],
            "accept_tpm_encryption_algs": ["ecc", "rsa"],
            "accept_tpm_signing_algs": ["rsassa", "ecdsa"],
            "ak_tpm": b64encode(self.node.ak.public_2b).decode(),
            "mtls_cert": "disabled",
            "supported_version": "2.6",
        }
        return json.dumps(body).encode()


def document(kind: str, **attributes: Any) -> bytes:
    return json.dumps({"data": {"type": kind, "attributes": attributes}}).encode()


@contextmanager
def ours(interval: int, workers: int) -> Iterator[Running]:
    """Run limeguard's verifier; 0 workers are as many as it starts by itself."""
    with Sandbox(verifier={**PUSH_SETTINGS, "quote_interval": str(interval)}) as sandbox:
        sandbox.start_verifier(*(["--workers", str(workers)] if workers else []))
        pid = sandbox.verifier.pid if sandbox.verifier is not None else 0
        yield Running(pid, sandbox.ports["verifier"], sandbox.authority)


@contextmanager
def keylimes(interval: int) -> Iterator[Running]:
    """Run Keylime's verifier with the settings that it ships, but for mode, interval and limits of sessions."""
    with tempfile.TemporaryDirectory(prefix="limeguard-") as name:
        folder = Path(name)
        (port,) = free_ports(1)
        settings = {**VERIFIER, **PUSH_SETTINGS, "port": str(port), "quote_interval": str(interval)}
        sections = {"verifier": settings, "revocations": {"enabled_revocation_notifications": "[]"}}
        environment = {**os.environ, "KEYLIME_DIR": name, "KEYLIME_TEST": "on"}
        for part, content in {"verifier": sections, "ca": {"ca": CA}, "logging": LOGGING}.items():
            path = folder / f"{part}.conf"
            path.write_text("".join(ini_text(section, options) for section, options in content.items()))
            environment[f"KEYLIME_{part.upper()}_CONFIG"] = str(path)
        program = Program("keylime_verifier", [str(PEER / "bin" / "keylime_verifier")], environment, folder)
        program.start()
        try:
            wait_for_port(port, program)
            yield Running(program.pid, port, folder / "cv_ca")
        finally:
            program.kill()


@dataclass(frozen=True)
class Plan:
    """What to do: `kind` of keys, and how many lines each IMA list has; 0 is no IMA at all."""

    nodes: int
    seconds: float
    interval: int
    kind: str
    lines: int


@dataclass(frozen=True)
class Seen:
    """What was measured."""

    cpu: float
    taken: int
    memory: int
    own_cpu: float
    statuses: Counter[str]
    counts: Counter[str]


def make_node(kind: str, number: int) -> SoftNode:
    """Return a machine with an attestation key of its own; other keys have no part in this."""
    pcrs = {n: b"\xff" * 32 if 17 <= n <= 22 else bytes(32) for n in range(24)}
    return SoftNode(SoftEk.generate("ecc256"), SoftAk.generate(kind, number=number), transport_key(), pcrs)


def verify_milliseconds() -> float:
    """Return what one check of an ECDSA signature costs now: the yardstick for a machine that is not alone."""
    ak = SoftAk.generate("ecc256")
    message, signature, _ = ak.quote_parts(b"x" * 16, {0: bytes(32)})
    parsed = parse_signature(signature)
    began = time.process_time()
    for _ in range(300):
        signature_is_good(ak.area, parsed, message)
    return 1000 * (time.process_time() - began) / 300


async def measure(plan: Plan, running: Running) -> Seen:
    """Let the nodes push, and return what it cost."""
    ca = running.authority / "cacert.crt"
    client = running.authority / "client-cert.crt", running.authority / "client-private.pem"
    operator = client_context(*client, "", [ca], system_store=False)
    anonymous = ssl.create_default_context(cafile=str(ca))
    anonymous.check_hostname = False
    counts: Counter[str] = Counter()
    names = [f"/usr/bin/tool{number}" for number in range(plan.lines)]
    boot = BootList.of(names) if names else None
    policy = empty_policy_document()
    policy["digests"] = {name: [digest_of(name)] for name in names}
    policy["meta"] = {**dict(policy["meta"]), "generator": 2}  # Keylime passes over policies that it calls empty
    text = b64encode(json.dumps(policy).encode()).decode() if names else ""
    pushers = [
        Pusher(f"push-{n:05d}", make_node(plan.kind, n), boot, Connection(running.port, anonymous), counts)
        for n in range(plan.nodes)
    ]
    admin = Connection(running.port, operator)
    for pusher in pushers:
        status, _, said = await admin.ask("POST", f"/v2.6/agents/{pusher.agent_id}", pusher.enrolment(text))
        if status != 200:
            raise SystemExit(f"a node cannot be enrolled: {status} {said.decode()}")
    warm = 3.0 * plan.interval + plan.nodes / 200
    begin = time.monotonic()
    end = begin + warm + plan.seconds
    tasks = [
        asyncio.create_task(pusher.run(begin + (warm - plan.interval) * number / plan.nodes, end))
        for number, pusher in enumerate(pushers)
    ]
    await asyncio.sleep(begin + warm - time.monotonic())
    before, counted, own = cpu(running.pid), counts["taken"], time.process_time()
    await asyncio.sleep(begin + warm + plan.seconds - time.monotonic())
    after, taken, own_after = cpu(running.pid), counts["taken"], time.process_time()
    memory = sum(map(resident, family(running.pid)))
    _, _, listed = await admin.ask("GET", "/v2.6/agents/?bulk=True&verifier=", b"")
    statuses = Counter(one["attestation_status"] for one in json.loads(listed)["results"].values())
    await asyncio.gather(*tasks)
    for pusher in pushers:
        if pusher.connection.writer is not None:
            pusher.connection.writer.close()
    return Seen(after - before, taken - counted, memory, own_after - own, statuses, counts)


def cpu(pid: int) -> float:
    return sum(map(cpu_seconds, family(pid)))


def row(name: str, plan: Plan, seen: Seen) -> None:
    cost = 1000 * seen.cpu / max(seen.taken, 1)
    own = 1000 * seen.own_cpu / max(seen.taken, 1)
    refused = {name: count for name, count in seen.counts.items() if name not in {"taken", "sessions"}}
    check, memory, statuses = verify_milliseconds(), seen.memory >> 20, dict(seen.statuses)
    print(
        f"  {name:10s} {plan.kind:8s} {plan.lines:4d} lines {cost:8.3f} ms   {seen.taken / plan.seconds:7.1f}/s"
        f"   ECDSA check {check:.3f} ms   {memory:5d} MiB   {statuses} {refused or ''} (clients {own:.3f} ms)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1_000)
    parser.add_argument("--peer-nodes", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--interval", type=int, default=2)
    parser.add_argument("--lines", type=int, default=100)
    parser.add_argument("--workers", type=int, default=0, help="processes of limeguard; 0: as installed")
    parser.add_argument("--no-peer", action="store_true")
    options = parser.parse_args()
    plans = [("ecc256", 0), ("rsa2048", 0), ("ecc256", options.lines), ("rsa2048", options.lines)]
    print(f"{options.nodes} nodes every {options.interval} s: CPU of the verifier an attestation (offer and evidence)")
    for kind, lines in plans:
        nodes = options.nodes if kind == "ecc256" else min(options.nodes, 50)
        plan = Plan(nodes, options.seconds, options.interval, kind, lines)
        with ours(options.interval, options.workers) as running:
            row("limeguard", plan, asyncio.run(measure(plan, running)))
    if PEER.exists() and not options.no_peer:
        plan = Plan(options.peer_nodes, options.seconds, options.interval, "rsa2048", options.lines)
        with keylimes(options.interval) as running:
            row("Keylime", plan, asyncio.run(measure(plan, running)))
    else:
        print("  (without Keylime: ./dev peer makes its environment)")


if __name__ == "__main__":
    main()
    print(json.dumps({"python": sys.version.split()[0], "cpus": os.cpu_count()}))
