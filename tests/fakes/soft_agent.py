"""An agent in this process: a software TPM behind the real HTTP interface and real TLS, and hooks to make it lie.

It is as strict about requests as deployed agents are: what they would refuse is a complaint, and a complaint fails the
test that used the agent.
"""

import json
import re
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from limeguard.crypto.keysplit import decrypt_key_share
from limeguard.simulator.softtpm import SoftNode
from limeguard.wire import agent_v2
from limeguard.wire.envelope import envelope
from tests.fakes.pki import Identity, self_signed, server_context

Alter = Callable[[web.Request, dict[str, Any]], dict[str, Any]]
Intercept = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


def unaltered(_request: web.Request, results: dict[str, Any]) -> dict[str, Any]:
    return results


async def no_intercept(_request: web.Request) -> web.StreamResponse | None:
    return None


class SoftAgent:
    """One agent. `alter` changes the results of a quote before they go out; `intercept` may answer in its place."""

    def __init__(self, node: SoftNode, agent_id: str, identity: Identity, clients: Path) -> None:
        self.node = node
        self.agent_id = agent_id
        self.identity = identity
        self._clients = clients
        self.versions: tuple[str, ...] = ("2.1", "2.2", "2.3", "2.4", "2.5", "2.6")
        self.requests: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.shares: list[bytes] = []
        self.notices: list[dict[str, Any]] = []
        self.complaints: list[str] = []
        self.alter: Alter = unaltered
        self.intercept: Intercept = no_intercept
        self.port = 0
        self._runner: web.ServerRunner | None = None

    @property
    def quotes(self) -> int:
        """How often a quote was asked for."""
        return sum(1 for _, path in self.requests if "/quotes/integrity" in path)

    async def start(self, port: int = 0) -> None:
        runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0.1)
        await runner.setup()
        context = server_context(self.identity, self._clients, required=True)
        await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
        self._runner = runner
        self.port = int(runner.addresses[0][1])

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def enrolment(self, **changes: Any) -> dict[str, Any]:
        """Return the body with which a tenant enrols this node."""
        return {**enrolment(self.node, self.identity.pem, self.port), **changes}

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        assert isinstance(request, web.BaseRequest)
        self.requests.append((request.method, request.raw_path))
        self.headers.append(dict(request.headers))
        self.complaints += complaints(request)
        taken = await self.intercept(request)  # type: ignore[arg-type]  # a BaseRequest is all that hooks use
        return taken if taken is not None else await self._route(request)

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/version":
            return reply(200, agent_v2.encode_version(self.versions))
        _, version, *rest = request.path.split("/")
        if version[1:] not in self.versions:
            return reply(400, agent_v2.encode_error(400, f"{agent_v2.UNSUPPORTED}: {version}"))
        match "/".join(rest):
            case "quotes/integrity":
                return self._quote(request, version[1:])
            case "keys/vkey":
                share = agent_v2.decode_vkey(await request.read())
                self.shares.append(decrypt_key_share(self.node.transport, share))
                return reply(200, agent_v2.encode_success())
            case "notifications/revocation":
                self.notices.append(json.loads(await request.read()))
                return reply(200, agent_v2.encode_success())
            case _:
                return reply(404, agent_v2.encode_error(404, "Not Found"))

    def _quote(self, request: web.BaseRequest, version: str) -> web.StreamResponse:
        query = request.query
        results = self.node.integrity_answer(
            query["nonce"], query["mask"], partial=query["partial"] == "1", version=version
        )
        return reply(200, envelope(200, "Success", self.alter(request, results)))  # type: ignore[arg-type]


QUOTE = re.compile(
    r"/v2\.[1-6]/quotes/integrity\?nonce=[A-Za-z0-9]{1,64}&mask=0x[0-9a-f]{1,8}&partial=[01]&ima_ml_entry=(0|[1-9][0-9]*)"
)
SHARE = re.compile(r"/v2\.[1-6]/(keys/vkey|notifications/revocation)")


def complaints(request: web.BaseRequest) -> list[str]:
    """Return what a deployed agent would not take of a request of the verifier."""
    found = []
    wanted = {"GET": QUOTE, "POST": SHARE}.get(request.method)
    if request.raw_path != "/version" and (wanted is None or not wanted.fullmatch(request.raw_path)):
        found.append(f"{request.method} {request.raw_path}")
    if request.headers.get("Content-Type") != "application/json":
        found.append(f"content type {request.headers.get('Content-Type')}")
    found += [f"header {name}" for name in ("Authorization", "Cookie", "Expect", "Upgrade") if name in request.headers]
    if request.method == "GET" and request.can_read_body:
        found.append("a GET with a body")
    return found


def reply(status: int, body: bytes) -> web.Response:
    return web.Response(status=status, body=body, headers={"Content-Type": "application/json"})


def enrolment(node: SoftNode, certificate: str | None, port: int) -> dict[str, Any]:
    """Return the body with which Keylime's tenant enrols a node, in its order of members."""
    return {
        "v": None,
        "cloudagent_ip": "127.0.0.1",
        "cloudagent_port": port,
        "verifier_ip": "127.0.0.1",
        "verifier_port": "8881",
        "tpm_policy": '{"mask": "0x0"}',
        "runtime_policy": "",
        "runtime_policy_name": "",
        "runtime_policy_key": "",
        "mb_policy": None,
        "mb_policy_name": "",
        "ima_sign_verification_keys": "",
        "metadata": "{}",
        "revocation_key": "",
        "accept_tpm_hash_algs": ["sha512", "sha384", "sha256"],
        "accept_tpm_encryption_algs": ["ecc", "rsa"],
        "accept_tpm_signing_algs": ["ecschnorr", "rsassa", "ecdsa"],
        "ak_tpm": b64encode(node.ak.public_2b).decode(),
        "mtls_cert": certificate,
        "supported_version": "2.6",
    }


@asynccontextmanager
async def soft_agent(
    folder: Path, clients: Path, agent_id: str = "node-1", node: SoftNode | None = None
) -> AsyncIterator[SoftAgent]:
    """Serve an agent on a free port; `clients` is the CA file of those who may call it."""
    agent = SoftAgent(
        node or SoftNode.create("ecc256"), agent_id, self_signed(folder / f"agent-{agent_id}", "agent"), clients
    )
    await agent.start()
    try:
        yield agent
    finally:
        await agent.stop()
    assert agent.complaints == []


def altered_part(quote: str, part: int, position: int) -> str:
    """Return a quote with one bit of one of its three parts flipped."""
    parts = [bytearray(b64decode(text)) for text in quote[1:].split(":")]
    parts[part][position] ^= 1
    return "r" + ":".join(b64encode(text).decode() for text in parts)


__all__ = ["SoftAgent", "altered_part", "enrolment", "reply", "soft_agent"]
