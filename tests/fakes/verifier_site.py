"""A verifier with real sockets and a real database in this process, agents with TPMs in software, and an operator."""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp

from limeguard.settings import Sources
from limeguard.simulator.softtpm import SoftNode
from limeguard.verifier.build import Verifier
from limeguard.verifier.crew import Member
from limeguard.verifier.ownership import Timing
from limeguard.verifier.settings import VerifierSettings, load_verifier_settings
from limeguard.web.tls import agent_client_context, server_context
from tests.fakes.pki import Authority, client_context
from tests.fakes.soft_agent import SoftAgent, soft_agent

INTERVAL = 0.05
PATIENCE = 15.0
FAILED_AT_ONCE = {"max_retries": 0, "retry_interval": 0.05, "exponential_backoff": False}


@dataclass(frozen=True)
class Answer:
    """One answer: status, headers, and the body as text."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text)
        return found

    @property
    def said(self) -> str:
        """The status text of an error envelope that is whole."""
        envelope = self.json
        assert set(envelope) == {"code", "status", "results"}
        assert (envelope["code"], envelope["results"]) == (self.status, {})
        assert isinstance(envelope["status"], str)
        return str(envelope["status"])


@dataclass
class Site:
    """Where a running verifier is, and how to come to it."""

    verifier: Verifier
    folder: Path
    authority: Authority
    _stack: AsyncExitStack
    _session: aiohttp.ClientSession
    _operator: ssl.SSLContext
    agents: list[SoftAgent] = field(default_factory=list)

    @property
    def base(self) -> str:
        return f"https://127.0.0.1:{self.verifier.port}"

    def tls(self, *, certificate: bool = True) -> ssl.SSLContext:
        """Return a client's context: the operator's, or one without certificate."""
        return self._operator if certificate else client_context(None, self.authority.identity.certificate)

    async def ask(
        self, method: str, path: str, body: object = None, *, tls: ssl.SSLContext | None = None, **headers: str
    ) -> Answer:
        """Send a request; a `bytes` body goes out as it is, anything else as JSON."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if data is not None:
            headers.setdefault("Content_Type", "application/json")
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        url = path if path.startswith("http") else f"{self.base}{path}"
        async with self._session.request(
            method, url, data=data, headers=sent, ssl=tls or self._operator, allow_redirects=False
        ) as got:
            return Answer(got.status, dict(got.headers), (await got.read()).decode())

    async def add_agent(self, agent_id: str = "node-1", node: SoftNode | None = None) -> SoftAgent:
        """Start an agent; it is not enrolled yet."""
        clients = self.authority.identity.certificate
        agent = await self._stack.enter_async_context(soft_agent(self.folder, clients, agent_id, node))
        self.agents.append(agent)
        return agent

    async def enrol(self, agent: SoftAgent, **changes: Any) -> None:
        """Enrol an agent with the verifier."""
        answer = await self.ask("POST", f"/v2.6/agents/{agent.agent_id}", agent.enrolment(**changes))
        assert (answer.status, answer.json["status"]) == (200, "Success"), answer.text

    async def status(self, agent: SoftAgent) -> dict[str, Any]:
        """Return the node in Keylime's fields."""
        answer = await self.ask("GET", f"/v2.6/agents/{agent.agent_id}")
        assert answer.status == 200, answer.text
        found: dict[str, Any] = answer.json["results"]
        return found

    async def view(self, agent: SoftAgent) -> dict[str, Any]:
        """Return the node as our own interface shows it."""
        answer = await self.ask("GET", f"/limeguard/v1/nodes/{agent.agent_id}")
        assert answer.status == 200, answer.text
        return answer.json

    async def reaches(self, agent: SoftAgent, condition: str, *, rounds: int = 0) -> dict[str, Any]:
        """Wait for a condition after so many passed rounds, and return the view."""
        return await self.shows(agent, lambda v: v["condition"] == condition and v["attestation_count"] >= rounds)

    async def shows(self, agent: SoftAgent, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until the view of the node is as wanted, and return it."""
        end = time.monotonic() + PATIENCE
        while True:
            view = await self.view(agent)
            if holds(view):
                return view
            assert time.monotonic() < end, f"waited {PATIENCE} s in vain; last seen: {view}"
            await asyncio.sleep(0.02)

    def event_ids(self, view: dict[str, Any]) -> list[str]:
        return [finding["event_id"] for finding in view["findings"]]


def settings(folder: Path, **changed: Any) -> VerifierSettings:
    """Return settings for a free port, a database in the folder, and rounds in quick succession."""
    loaded = load_verifier_settings(Sources({"KEYLIME_DIR": str(folder)}, roots=(), cwd=folder))
    usual = {"port": 0, "quote_interval": INTERVAL, "retry_interval": 0.05, "shutdown_drain_timeout": 1.0}
    return replace(loaded.settings, **{**usual, **changed})


@asynccontextmanager
async def running_verifier(folder: Path, authority: Authority, **changed: Any) -> AsyncIterator[Site]:
    """Run a verifier whose files are in the folder; a second one goes on with the same database.

    `timing` is that of its leases, `member` says which of several workers it is; all else goes over the settings.
    """
    timing: Timing | None = changed.pop("timing", None)
    member: Member | None = changed.pop("member", None)
    server, client = authority.issue("verifier"), authority.issue("verifier-client")
    ca = authority.identity.certificate
    verifier = Verifier(
        settings(folder, **changed),
        server_context(server.certificate, server.key, "", (ca,), require_client=False),
        agent_client_context(client.certificate, client.key, ""),
        timing=timing,
        member=member,
    )
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30), cookie_jar=aiohttp.DummyCookieJar())
        )
        await verifier.start()
        stack.push_async_callback(verifier.stop)
        operator = client_context(authority.issue("operator"), ca)
        yield Site(verifier, folder, authority, stack, session, operator)
