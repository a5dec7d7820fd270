"""Keylime itself as the other side: its servers in a folder of their own, its tenant, and a node for both to see."""

import asyncio
import base64
import contextlib
import hmac
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest

from limeguard.crypto import keysplit
from limeguard.simulator.softtpm import SoftNode
from limeguard.web.app import Incoming, Response
from limeguard.web.client import HttpClient
from limeguard.web.serve import Listener
from tests.fakes.pki import Identity, self_signed, server_context
from tests.fakes.shared import shared_path

LOGGING = """[loggers]
keys = root,keylime
[handlers]
keys = consoleHandler
[formatters]
keys = formatter
[formatter_formatter]
format = %(asctime)s.%(msecs)03d - %(name)s - %(levelname)s - %(message)s
datefmt = %Y-%m-%d %H:%M:%S
[logger_root]
level = INFO
handlers = consoleHandler
[handler_consoleHandler]
class = StreamHandler
level = INFO
formatter = formatter
args = (sys.stdout,)
[logger_keylime]
level = INFO
qualname = keylime
handlers =
"""


def peer_venv() -> Path:
    """Return the environment that has Keylime in it, or skip."""
    named = os.environ.get("LIMEGUARD_PEER_VENV")
    if not named:
        pytest.skip("LIMEGUARD_PEER_VENV does not name an environment with Keylime")
    return Path(named)


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    status: int
    out: str
    err: str

    @property
    def documents(self) -> list[str]:
        """The lines that scripts select."""
        return [line for line in self.out.splitlines() if line.startswith("{")]


@dataclass(frozen=True)
class KeylimeSite:
    """Keylime's verifier and registrar, running."""

    venv: Path
    folder: Path
    ports: Mapping[str, int]
    ca: Path
    environment: Mapping[str, str]

    async def keylime_tenant(self, *argv: str, **environment: str) -> Ended:
        """Run Keylime's tenant."""
        return await self._run([str(self.venv / "bin" / "keylime_tenant"), *argv], environment)

    async def our_tenant(self, *argv: str, **environment: str) -> Ended:
        """Run ours, under Keylime's name."""
        code = "import sys; from limeguard.cli.tenant import keylime_tenant; sys.exit(keylime_tenant(sys.argv[1:]))"
        return await self._run([sys.executable, "-c", code, *argv], environment)

    async def _run(self, command: list[str], environment: Mapping[str, str]) -> Ended:
        full = {**os.environ, **self.environment, **environment}
        full.pop("KEYLIME_TEST", None)
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=full, cwd=self.folder
        )
        out, err = await asyncio.wait_for(process.communicate(), 120)
        return Ended(process.returncode or 0, out.decode(), err.decode())


@contextlib.asynccontextmanager
async def keylime_site(folder: Path, *settings: str) -> AsyncIterator[KeylimeSite]:
    """Run Keylime's servers; `settings` are `component.option=value`."""
    venv = peer_venv()
    program = shared_path("peer/keylime_site.py")
    options = [word for setting in settings for word in ("--set", setting)]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(program),
        str(venv),
        str(folder),
        *options,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        told = json.loads(await asyncio.wait_for(process.stdout.readline(), 90))
        logging_conf = folder / "logging.conf"
        logging_conf.write_text(LOGGING)
        environment = {**told["environment"], "KEYLIME_LOGGING_CONFIG": str(logging_conf)}
        yield KeylimeSite(venv, folder, told["ports"], Path(told["ca"]), environment)
    finally:
        process.stdin.close()
        await process.wait()


@dataclass
class PeerAgent:
    """A pull agent over a TPM in software, registered and activated with a registrar."""

    node: str
    soft: SoftNode
    identity: Identity
    port: int = 0
    payload_key: bytes | None = None
    payload: bytes | None = None
    calls: list[str] = field(default_factory=list)
    deaf: bool = False
    _u: list[tuple[bytes, str]] = field(default_factory=list)
    _v: list[bytes] = field(default_factory=list)

    async def answer(self, incoming: Incoming) -> Response:
        """Answer as an agent of API 2.1 to 2.6 does."""
        path, _, text = incoming.target.partition("?")
        query = dict(parse_qsl(text))
        self.calls.append(f"{incoming.method} {path}")
        parts = path.strip("/").split("/")
        version, name = parts[0].removeprefix("v"), "/".join(parts[1:])
        versions = ["2.1", "2.2", "2.3", "2.4", "2.5", "2.6"]
        if path == "/version":
            return _success({"supported_version": versions[-1], "supported_versions": versions})
        if version not in versions:
            return _failure(f"API version not supported: v{version}")
        match incoming.method, name:
            case "GET", "quotes/identity":
                return _success(self.soft.identity_answer(query["nonce"], version))
            case "GET", "quotes/integrity":
                partial = query["partial"] == "1"
                return _success(
                    self.soft.integrity_answer(query["nonce"], query["mask"], partial=partial, version=version)
                )
            case "GET", "keys/verify":
                if self.payload_key is None or self.deaf:
                    return _failure("Bootstrap key not yet available.")
                return _success({"hmac": keysplit.challenge_hmac(self.payload_key, query["challenge"])})
            case "POST", "keys/ukey" | "keys/vkey":
                self._take(json.loads(await incoming.read_body(1 << 21)))
                return _success(None)
            case _:
                return _failure("Not Implemented")

    def _take(self, body: dict[str, Any]) -> None:
        half = keysplit.decrypt_key_share(self.soft.transport, base64.b64decode(body["encrypted_key"]))
        if "auth_tag" in body:
            self._u.append((half, body["auth_tag"]))
            self.payload = base64.b64decode(body["payload"]) if "payload" in body else None
        else:
            self._v.append(half)
        for u, tag in self._u:
            for v in self._v:
                key = keysplit.combine(u, v)
                if hmac.compare_digest(keysplit.bootstrap_auth_tag(key, self.node), tag):
                    self.payload_key = key

    async def register(self, port: int, ekcert: str = "") -> None:
        """Register and activate at the plain port of a registrar on this machine."""
        client = HttpClient(None, timeout=20, max_answer=1 << 20)
        url = f"http://127.0.0.1:{port}/v2.6/agents/{self.node}"
        fields = {**self.soft.registration_fields(mtls_cert=self.identity.pem, ekcert=ekcert), "port": self.port}
        headers = {"Content-Type": "application/json"}
        try:
            answer = await client.request("POST", url, body=json.dumps(fields).encode(), headers=headers)
            assert answer.status == 200, answer
            blob = base64.b64decode(json.loads(answer.body)["results"]["blob"])
            tag = keysplit.registration_auth_tag(self.soft.activate(blob), self.node)
            answer = await client.request("PUT", url, body=json.dumps({"auth_tag": tag}).encode(), headers=headers)
            assert answer.status == 200, answer
        finally:
            await client.close()


@contextlib.asynccontextmanager
async def peer_agent(folder: Path, node: str, ca: Path, kind: str = "rsa2048") -> AsyncIterator[PeerAgent]:
    """Run an agent that trusts the clients of a CA."""
    agent = PeerAgent(node, SoftNode.create(kind), self_signed(folder, f"agent-{node}"))
    context = server_context(agent.identity, ca / "cacert.crt", required=True)
    listener = Listener(agent.answer, "127.0.0.1", 0, context)
    await listener.start()
    agent.port = listener.port
    try:
        yield agent
    finally:
        await listener.stop()


def _success(results: object) -> Response:
    body = json.dumps({"code": 200, "status": "Success", "results": results}).encode()
    return Response(200, body, "application/json")


def _failure(status: str) -> Response:
    body = json.dumps({"code": 400, "status": status, "results": {}}).encode()
    return Response(400, body, "application/json")
