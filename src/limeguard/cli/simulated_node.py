"""A node of the sandbox without programs: the simulator's machine, TPM and agent, served by a thread of this process.

For machines on which no software TPM can be installed. Everything that a server sees is as it is with a real one: keys,
an EK certificate, a credential that is opened, quotes, TLS. What only an agent does (payloads, actions) is not there.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from limeguard.cli.sandbox import LOOPBACK, PRIVATE_FOLDER, Sandbox
from limeguard.cli.softtpm import SandboxError
from limeguard.clients.registrar_enrol import EnrolmentError, RegistrarClient, Target
from limeguard.crypto.keysplit import registration_auth_tag
from limeguard.simulator.identity import TpmMaker, make_identity
from limeguard.simulator.machine import BootList, Machine, digest_of
from limeguard.simulator.server import FleetServer, free_socket
from limeguard.web.tls import server_context
from limeguard.wire.registrar_agent_v2 import Registration

API: Final = "2.6"
START_SECONDS: Final = 30.0


class SimulatedNode:
    """One attested machine that is all software: `tpm` and `kernel` are what the story changes."""

    secure_mount = False
    """It accepts no payload."""

    def __init__(self, sandbox: Sandbox, agent_id: str) -> None:
        """Make the machine; nothing listens yet."""
        self.id, self._sandbox = agent_id, sandbox
        self.folder: Path = sandbox.folder / f"node-{agent_id[:8]}"
        self.folder.mkdir(mode=PRIVATE_FOLDER)
        self.machine = Machine.make(0, BootList.of(()))
        self.maker = TpmMaker.create(time.time())
        self.tpm = self.kernel = self
        self._server = FleetServer({LOOPBACK: self.machine}, lambda _machine: 0.0, time.monotonic)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="simulated agent", daemon=True)

    @property
    def port(self) -> int:
        """Where the agent listens."""
        return self._server.port

    def start(self) -> None:
        """Serve, and register with the sandbox's registrar. Raises SandboxError."""
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(START_SECONDS)
        except TimeoutError:
            raise SandboxError("the simulated agent does not start: no answer of the registrar in time") from None
        except (EnrolmentError, OSError) as problem:
            raise SandboxError(f"the simulated agent does not start: {problem}") from problem

    async def _start(self) -> None:
        certificate, key = make_identity(self.folder, time.time())
        clients = (self._sandbox.authority / "cacert.crt",)
        context = server_context(certificate, key, "", clients, require_client=True)
        await self._server.start(context, free_socket(LOOPBACK))
        await self._register(certificate.read_text())

    async def _register(self, certificate: str) -> None:
        node = self.machine.node
        client = RegistrarClient(Target(LOOPBACK, self._sandbox.ports["registrar"], None))
        registration = Registration(
            ek_public=node.ek.public_2b,
            ek_certificates=self.maker.certify(node.ek.key.public_key()),
            ak_public=node.ak.public_2b,
            server_certificate=certificate,
            ip=LOOPBACK,
            port=self.port,
        )
        try:
            challenge = await client.register(API, self.id, registration)
            await client.activate(API, self.id, registration_auth_tag(node.activate(challenge), self.id))
        finally:
            await client.close()

    def stop(self) -> None:
        """Listen no more."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._server.stop(), self._loop).result(START_SECONDS)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(START_SECONDS)
        if not self._loop.is_running():
            self._loop.close()

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extend one PCR."""
        self._between_answers(lambda: self.machine.node.extend(pcr, digest))

    def measure(self, name: str, digest: str) -> None:
        """Measure a simulated file; it has the digest that the simulator gives to its name."""
        if digest != digest_of(name):
            raise SandboxError(f"{name} has another digest in the simulator")
        self._between_answers(lambda: self.machine.measure(name))

    def _between_answers(self, change: Callable[[], None]) -> None:
        """Change the machine where its agent runs, so that no answer shows half of a change."""
        if not self._thread.is_alive():
            change()
            return

        async def carry_out() -> None:
            change()

        asyncio.run_coroutine_threadsafe(carry_out(), self._loop).result(START_SECONDS)
