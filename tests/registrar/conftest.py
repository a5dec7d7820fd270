"""A registrar with real sockets and a real database, a certificate authority beside it, and agents."""

import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.pki import Authority, client_context
from tests.fakes.strict_agent import StrictAgent

from limeguard.registrar.server import RegistrarServer
from limeguard.registrar.settings import RegistrarSettings, load_registrar_settings
from limeguard.settings import Sources
from limeguard.simulator.softtpm import SoftNode
from limeguard.store.database import Database
from limeguard.web.tls import server_context

AGENT_ID = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000"


@dataclass
class Site:
    """Where a running registrar is, and how to come to it."""

    server: RegistrarServer
    database: Database
    authority: Authority

    @property
    def plain(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    @property
    def secure(self) -> str:
        return f"https://127.0.0.1:{self.server.tls_port}"

    @property
    def admin_tls(self) -> ssl.SSLContext:
        return client_context(self.authority.issue("operator"), self.authority.identity.certificate)

    @property
    def anonymous_tls(self) -> ssl.SSLContext:
        return client_context(None, self.authority.identity.certificate)

    def agent(self, number: int = 0, kind: str = "ecc256", agent_id: str = AGENT_ID) -> StrictAgent:
        """Return an agent on a TPM of that number, which speaks plain HTTP as agents do."""
        return StrictAgent(self.plain, agent_id, SoftNode.create(kind, number=number))

    def admin(self, agent_id: str = AGENT_ID) -> StrictAgent:
        """Return a strict client with the operator's certificate."""
        return StrictAgent(self.secure, agent_id, SoftNode.create("ecc256"), self.admin_tls)


def settings(folder: Path, **changed: Any) -> RegistrarSettings:
    """Return settings for free ports and a database in the folder."""
    loaded = load_registrar_settings(Sources({"KEYLIME_DIR": str(folder)}, roots=(), cwd=folder))
    return replace(loaded.settings, port=0, tls_port=0, **changed)


async def started(folder: Path, authority: Authority, **changed: Any) -> Site:
    """Start a registrar whose files are in the folder."""
    chosen = settings(folder, **changed)
    own = authority.issue("registrar")
    context = server_context(own.certificate, own.key, "", (authority.identity.certificate,), require_client=False)
    database = Database(chosen.database)
    server = RegistrarServer(chosen, context, database)
    await server.start()
    return Site(server, database, authority)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
async def site(tmp_path: Path, authority: Authority) -> AsyncIterator[Site]:
    running = await started(tmp_path, authority)
    yield running
    await running.server.stop()


Start = Callable[..., Any]


@pytest.fixture
async def start(tmp_path: Path, authority: Authority) -> AsyncIterator[Start]:
    """Return a function that starts a registrar with changed settings; all share one database."""
    running: list[Site] = []

    async def begin(**changed: Any) -> Site:
        running.append(await started(tmp_path, authority, **changed))
        return running[-1]

    yield begin
    for each in running:
        await each.server.stop()
