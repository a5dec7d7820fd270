"""The registrar dies in the middle, or its database goes away: what was promised is kept, and nothing is half done."""

import asyncio
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import aiohttp
import pytest
from tests.fakes.pki import Authority
from tests.fakes.postgres import postgres_server
from tests.fakes.strict_agent import Refusal, StrictAgent
from tests.registrar.conftest import AGENT_ID, Start

from limeguard.registrar.identity import IdentityRules
from limeguard.registrar.routes import make_app
from limeguard.registrar.service import RegistrarService
from limeguard.simulator.softtpm import SoftNode
from limeguard.store.database import Database, StoreUnavailable
from limeguard.store.registrations import Registration, Registrations
from limeguard.web.app import Incoming, Response
from limeguard.wire.registrar_v2 import UNAVAILABLE

pytestmark = pytest.mark.services

RUN = "import sys; from limeguard.cli.registrar import main; sys.exit(main([]))"
START_SECONDS = 30.0


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@asynccontextmanager
async def registrar_process(folder: Path, port: int, tls_port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a registrar as a process of its own; kill it at the end without any warning."""
    given = {"KEYLIME_DIR": folder, "KEYLIME_REGISTRAR_TLS_DIR": "generate", "KEYLIME_CA_PASSWORD": "test"}
    ports = {"KEYLIME_REGISTRAR_PORT": port, "KEYLIME_REGISTRAR_TLS_PORT": tls_port}
    environment = os.environ | {name: str(value) for name, value in (given | ports).items()}
    with (folder / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", RUN), stdout=log, stderr=log, env=environment, cwd=folder
        )
    try:
        async with asyncio.timeout(START_SECONDS):
            while not await answers(port):
                assert process.returncode is None, (folder / "log").read_text()
                await asyncio.sleep(0.05)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@dataclass
class Enrolment:
    """What one agent was promised before the registrar died."""

    agent: StrictAgent
    proof: str = ""
    active: bool = False
    failure: list[str] = field(default_factory=list)

    async def run(self) -> None:
        try:
            self.proof = self.agent.answer(await self.agent.register())
            await self.agent.activate(self.proof)
            self.active = True
        except (aiohttp.ClientError, OSError) as problem:
            self.failure.append(str(problem))


# trust: enrolment-order
async def test_a_registrar_that_is_killed_keeps_what_it_promised(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "cv_ca").mkdir()
    shutil.copy(authority.identity.certificate, tmp_path / "cv_ca")  # the CA of the operators
    port, tls_port = free_ports(2)
    enrolments = [
        Enrolment(StrictAgent(f"http://127.0.0.1:{port}", f"node-{number}", SoftNode.create("ecc256", number=number)))
        for number in range(60)
    ]
    async with registrar_process(tmp_path, port, tls_port) as process:
        running = [asyncio.create_task(one.run()) for one in enrolments]
        while sum(one.active for one in enrolments) < 10:
            await asyncio.sleep(0.001)
        process.kill()
        await asyncio.gather(*running)
    assert any(one.failure for one in enrolments), "it was killed too late to test anything"

    database = Database(f"sqlite:///{tmp_path / 'reg_data.sqlite'}")
    store = Registrations(database)
    for one in enrolments:
        stored = await store.get(one.agent.agent_id)
        assert stored is not None or not one.proof, one
        assert stored is None or stored.active or not one.active, one
        assert stored is None or stored.active == stored.proven
    await database.close()

    async with registrar_process(tmp_path, port, tls_port):
        for one in enrolments:
            # the challenge is still open, an activation can be repeated, and whoever had no answer begins anew
            await (one.agent.activate(one.proof) if one.proof else one.agent.enrol())
    assert "Traceback" not in (tmp_path / "log").read_text()


async def test_an_outage_of_the_database_is_answered_and_forgotten(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    # trust: fail-closed
    with postgres_server() as server:
        async with server.database() as url:
            site = await start(database_url=url)
            agent, admin, late = site.agent(), site.admin(), site.agent(2, agent_id="late")
            proof = agent.answer(await agent.register())
            server.kill()
            for attempt in (
                agent.activate(proof),
                agent.activate("00"),  # a wrong answer deletes nothing that cannot be looked up
                agent.register(),
                late.register(),
                admin.ask("GET", "/v2.6/agents"),
                admin.ask("GET", agent.path),
                admin.ask("DELETE", agent.path),
            ):
                with pytest.raises(Refusal) as caught:
                    await attempt
                assert (caught.value.status, caught.value.said) == (503, UNAVAILABLE)
            assert (await agent.negotiate()) == "2.6"
            server.start()
            await agent.activate(proof)
            await late.enrol()
            assert (await admin.ask("GET", "/v2.6/agents"))["results"]["uuids"] == [AGENT_ID, "late"]
            assert (await admin.ask("GET", agent.path))["results"]["regcount"] == 1
            await site.server.stop()
    assert "Traceback" not in caplog.text
    assert server.password not in caplog.text  # trust: secret


class Failing(Registrations):
    """A store whose database goes away at one of its calls: before the work, or after it and before the answer."""

    def __init__(self, database: Database, at: int, *, late: bool) -> None:
        super().__init__(database)
        self._left, self._late = at, late

    def _fails(self, *, late: bool) -> None:
        if late == self._late:
            self._left -= 1
            if self._left == 0:
                raise StoreUnavailable("the database cannot be used: gone")

    async def get(self, agent_id: str) -> Registration | None:
        self._fails(late=False)
        found = await super().get(agent_id)
        self._fails(late=True)
        return found

    async def save(self, record: Registration) -> Registration:
        self._fails(late=False)
        written = await super().save(record)
        self._fails(late=True)
        return written

    async def delete_as_read(self, record: Registration) -> None:
        self._fails(late=False)
        await super().delete_as_read(record)
        self._fails(late=True)


async def send(store: Registrations, method: str, body: bytes) -> Response:
    async def whole(given: bytes, _limit: int) -> bytes:
        return given

    app = make_app(RegistrarService(store, IdentityRules()), 2**20)
    headers = {"Content-Type": "application/json"}
    path = f"/v2.6/agents/{AGENT_ID}"
    return await app.handle(Incoming(method, path, headers, read_body=partial(whole, body), secure=False))


# trust: fail-closed
# trust: enrolment-order
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("message", ["register", "answer", "wrong answer"])
async def test_a_database_that_goes_away_at_any_call_leaves_a_whole_state(
    start: Start, message: str, at: int, *, late: bool
) -> None:
    site = await start()
    agent, store = site.agent(), Registrations(site.database)
    proof = agent.answer(await agent.register())
    before = await store.get(AGENT_ID)
    assert before is not None
    failing = Failing(site.database, at, late=late)
    if message == "register":
        fields = b'{"aik_tpm": "%s"}' % str(agent.node.registration_fields()["aik_tpm"]).encode()
        response = await send(failing, "POST", fields)
    else:
        response = await send(failing, "PUT", b'{"auth_tag": "%s"}' % (proof if message == "answer" else "x").encode())
    assert response.status == 503
    assert UNAVAILABLE.encode() in response.body
    after = await store.get(AGENT_ID)
    if not (late and at == 2):
        assert after == before
    elif message == "wrong answer":
        assert after is None
    else:
        assert after is not None
        assert (after.active, after.regcount) == (message == "answer", 1 if message == "answer" else 2)
    await agent.enrol()  # whatever happened, a restarted agent gets on
    read = await store.get(AGENT_ID)
    assert read is not None
    assert read.active
