"""What the agent's end-to-end tests share: a software TPM, a registrar in the test, and an agent as a process."""

import asyncio
import json
import os
import secrets
import signal
import ssl
import subprocess
import sys
import time
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.agent.swtpm_site import SoftwareTpm, free_port_pair, software_tpm

from limeguard.crypto.keysplit import registration_auth_tag
from limeguard.evidence.tpm.credential import make_credential
from limeguard.evidence.tpm.structures import PublicArea, parse_public_2b
from limeguard.web.answers import Answer
from limeguard.web.app import Incoming, Response
from limeguard.web.client import HttpClient
from limeguard.web.serve import Listener

AGENT_ID = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000"


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[SoftwareTpm]:
    with software_tpm(tmp_path, "--createek", "--create-ek-cert", "--pcr-banks", "sha256,sha384") as running:
        yield running


@dataclass
class Record:
    """What the registrar knows of one node."""

    body: dict[str, Any]
    challenge: bytes
    active: bool = False
    count: int = 1


@dataclass
class FakeRegistrar:
    """A registrar that keeps records in memory and, like a real one, refuses a changed AK."""

    nodes: dict[str, Record] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    failures: list[Response] = field(default_factory=list)
    """Answers to give first, before any request is looked at."""
    versions: Response | None = None
    port: int = 0

    async def answer(self, incoming: Incoming) -> Response:
        self.requests.append(f"{incoming.method} {incoming.target}")
        if self.failures:
            return self.failures.pop(0)
        if incoming.target == "/version":
            known = {"current_version": "2.6", "supported_versions": ["2.5", "2.6", "3.0"]}
            return self.versions or envelope(200, "Success", known)
        body = json.loads(await incoming.read_body(1 << 20))
        assert incoming.headers["Content-Type"] == "application/json"
        assert len(incoming.headers["X-Request-ID"]) == 6
        agent_id = incoming.target.rpartition("/")[2]
        return self._register(agent_id, body) if incoming.method == "POST" else self._activate(agent_id, body)

    def _register(self, agent_id: str, body: dict[str, Any]) -> Response:
        before = self.nodes.get(agent_id)
        if before is not None and before.body["aik_tpm"] != body["aik_tpm"]:
            return envelope(403, "Agent re-registration with different TPM identity is forbidden", {})
        challenge = secrets.token_hex(16).encode()
        ek, ak = (parse_public_2b(b64decode(body[name])) for name in ("ek_tpm", "aik_tpm"))
        blob = make_credential(
            ek,
            ak.name,
            challenge,
            seed=secrets.token_bytes(ek.name_alg.size),
            ephemeral_scalar=1 + secrets.randbits(250),
        )
        self.nodes[agent_id] = Record(body, challenge, count=1 if before is None else before.count + 1)
        return envelope(200, "Success", {"blob": b64encode(blob).decode()})

    def _activate(self, agent_id: str, body: dict[str, Any]) -> Response:
        record = self.nodes[agent_id]
        if body["auth_tag"] != registration_auth_tag(record.challenge, agent_id):
            del self.nodes[agent_id]
            return envelope(400, "Auth tag does not match", {})
        record.active = True
        return envelope(200, "Success", {})


def envelope(code: int, status: str, results: object) -> Response:
    return Response(code, json.dumps({"code": code, "status": status, "results": results}).encode(), "application/json")


@pytest.fixture
async def registrar() -> AsyncIterator[FakeRegistrar]:
    fake = FakeRegistrar()
    listener = Listener(fake.answer, "127.0.0.1", 0)
    await listener.start()
    fake.port = listener.port
    yield fake
    await listener.stop()


class AgentProcess:
    """`keylime_agent` as a process of its own, configured through the environment."""

    def __init__(self, folder: Path, tcti: str, registrar: int, **options: str) -> None:
        self.folder = folder / "keylime"
        self.folder.mkdir(exist_ok=True)
        self.log = folder / "agent.log"
        self.port = int(options.get("port", free_port_pair()))
        defaults = {
            "uuid": AGENT_ID,
            "port": str(self.port),
            "contact_port": str(self.port),
            "registrar_port": str(registrar),
            "enable_agent_mtls": "false",
            "enable_insecure_payload": "true",
            "run_as": "",
            "ima_ml_path": str(folder / "ima.log"),
            "measuredboot_ml_path": str(folder / "boot.log"),
            "exponential_backoff_initial_delay": "50",
        }
        configured = {f"KEYLIME_AGENT_{name.upper()}": value for name, value in {**defaults, **options}.items()}
        empty = folder / "agent.conf"
        empty.write_text("[agent]\n")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("KEYLIME")},
            "KEYLIME_AGENT_CONFIG": str(empty),
            "KEYLIME_DIR": str(self.folder),
            "TCTI": tcti,
            "RUST_LOG": "debug",
            **configured,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        code = "import sys; from limeguard.cli.agent import main; sys.exit(main([]))"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code], env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def text(self) -> str:
        return self.log.read_text()

    async def wait_for(self, text: str, count: int = 1, seconds: float = 60.0) -> None:
        """Wait until the log holds a text so many times."""
        end = time.monotonic() + seconds
        while self.text.count(text) < count:
            assert self.process is not None
            assert self.process.poll() is None, f"the agent ended with {self.process.returncode}:\n{self.text}"
            assert time.monotonic() < end, f"no {text!r} in:\n{self.text}"
            await asyncio.sleep(0.02)

    async def wait_for_port(self, seconds: float = 30.0) -> None:
        """Wait until the agent serves."""
        end = time.monotonic() + seconds
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                assert time.monotonic() < end, self.text
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return

    async def ended(self, seconds: float = 60.0) -> int:
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait, seconds)

    async def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return await self.ended()

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    async def get(self, path: str, context: ssl.SSLContext | None = None) -> Answer:
        http = HttpClient(context, timeout=30, max_answer=1 << 26)
        try:
            scheme = "http" if context is None else "https"
            return await http.request("GET", f"{scheme}://127.0.0.1:{self.port}{path}")
        finally:
            await http.close()

    async def post(self, path: str, body: bytes, context: ssl.SSLContext | None = None) -> Answer:
        http = HttpClient(context, timeout=30, max_answer=1 << 26)
        try:
            scheme = "http" if context is None else "https"
            url = f"{scheme}://127.0.0.1:{self.port}{path}"
            return await http.request("POST", url, body=body, headers={"Content-Type": "application/json"})
        finally:
            await http.close()


MakeAgent = Callable[..., AgentProcess]


@pytest.fixture
def make_agent(tmp_path: Path, tpm: SoftwareTpm, registrar: FakeRegistrar) -> Iterator[MakeAgent]:
    """Configure an agent on the fixture's TPM and registrar; it is ended with the test."""
    made: list[AgentProcess] = []

    def make(folder: Path = tmp_path, **options: str) -> AgentProcess:
        agent = AgentProcess(folder, options.pop("tcti", tpm.tcti), registrar.port, **options)
        made.append(agent)
        return agent

    yield make
    for agent in made:
        agent.kill()
        unmount(agent.folder / "secure")


def unmount(path: Path) -> None:
    """Undo the agent's mount, if it could make one."""
    if os.geteuid() == 0 and os.path.ismount(path):
        subprocess.run(["umount", str(path)], check=True)


def registered_ak(registrar: FakeRegistrar, agent_id: str = AGENT_ID) -> PublicArea:
    return parse_public_2b(b64decode(registrar.nodes[agent_id].body["aik_tpm"]))
