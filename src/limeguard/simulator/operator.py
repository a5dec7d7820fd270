"""What an operator of the simulated fleet asks of the servers: register, enrol, look, delete.

Knows the servers' interfaces. Decides neither when anything happens nor what is measured.
"""

import json
import ssl
from base64 import b64encode
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from limeguard.clients.registrar_enrol import RegistrarClient, Target
from limeguard.crypto.keysplit import registration_auth_tag
from limeguard.simulator.machine import APPLICATION_PCR, Machine
from limeguard.simulator.server import address_of
from limeguard.web.answers import Unreachable
from limeguard.web.client import HttpClient
from limeguard.wire.registrar_agent_v2 import Registration
from limeguard.wire.verifier_v2 import EnrolmentRequest

API: Final = "2.6"
POLICY: Final = "simulated-fleet"
PREFIX: Final = "simulated-"
CONCURRENT: Final = 64
"""Requests of the operator at a time."""
MAX_ANSWER: Final = 1 << 28
TIMEOUT: Final = 60.0
OK: Final = frozenset({200, 201, 202})
CONFLICT: Final = 409


class SimulationError(Exception):
    """The fleet cannot be simulated; the text says why."""


class RefusedError(SimulationError):
    """A server's answer is no; `kind` groups such answers."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Site:
    """The servers: the verifier's URL and the operator's TLS context; the registrar's address for nodes, if wanted.

    `nodes` is the TLS context of machines that call the verifier.
    """

    verifier: str
    operator: ssl.SSLContext
    registrar: Target | None = None
    nodes: ssl.SSLContext | None = None


class Operator:
    """Asks the servers of a site. Made inside a running loop; `close` it. Methods may raise SimulationError."""

    def __init__(self, site: Site) -> None:
        """Connect with the first question."""
        self._site = site
        self._http = HttpClient(site.operator, timeout=TIMEOUT, max_answer=MAX_ANSWER, connections=CONCURRENT)
        self._registrar = None if site.registrar is None else RegistrarClient(site.registrar)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()
        if self._registrar is not None:
            await self._registrar.close()

    @property
    def registers(self) -> bool:
        """Whether there is a registrar."""
        return self._registrar is not None

    async def register(self, machine: Machine, port: int, certificate: str) -> None:
        """Register a machine, whose agent listens on `port`. Raises EnrolmentError."""
        if self._registrar is None:
            return
        node, agent_id = machine.node, machine.agent_id
        registration = Registration(
            ek_public=node.ek.public_2b,
            ek_certificates="",
            ak_public=node.ak.public_2b,
            server_certificate=certificate,
            ip=address_of(machine.number),
            port=port,
        )
        challenge = await self._registrar.register(API, agent_id, registration)
        await self._registrar.activate(API, agent_id, registration_auth_tag(node.activate(challenge), agent_id))

    async def store_policy(self, document: dict[str, Any]) -> None:
        """Store the fleet's runtime policy, or a new text for it."""
        body = {"runtime_policy": b64encode(json.dumps(document).encode()).decode()}
        status, said = await self._ask("POST", f"/v{API}/allowlists/{POLICY}", body)
        if status == CONFLICT:
            status, said = await self._ask("PUT", f"/v{API}/allowlists/{POLICY}", body)
        if status not in OK:
            raise RefusedError(f"policy: {status}", f"The verifier did not take the policy: {status} {_text(said)}")

    async def enrol(self, machine: Machine, port: int, certificate: str, *, with_policy: bool) -> None:
        """Enrol a machine. Raises RefusedError."""
        body = _enrolment(machine, port, certificate, POLICY if with_policy else "")
        status, said = await self._ask("POST", f"/v{API}/agents/{machine.agent_id}", body)
        if status not in OK:
            text = f"The verifier did not take {machine.agent_id}: {status} {_text(said)}"
            hint = " (of an earlier run? --delete deletes those)" if status == CONFLICT else ""
            raise RefusedError(f"enrolment: {status}", text + hint)

    async def condition(self, agent_id: str) -> tuple[str, float | None]:
        """Return a node's condition, and when its last finding was made: seconds since 1970."""
        status, view = await self._ask("GET", f"/limeguard/v1/nodes/{agent_id}")
        if status not in OK or not isinstance(view, dict):
            return "", None
        found = [one["found_at"] for one in view.get("findings", ())]
        return str(view.get("condition", "")), max(found, default=None)

    async def conditions(self) -> dict[str, str]:
        """Return the condition of each simulated node that the verifier knows."""
        status, found = await self._ask("GET", "/limeguard/v1/nodes")
        lines = found.get("nodes", []) if status in OK and isinstance(found, dict) else []
        return {str(one["id"]): str(one["condition"]) for one in lines if str(one.get("id", "")).startswith(PREFIX)}

    async def delete(self, agent_id: str) -> None:
        """Have the verifier forget a node. Raises RefusedError."""
        status, said = await self._ask("DELETE", f"/v{API}/agents/{agent_id}")
        if status not in OK and status != 404:
            raise RefusedError(f"deletion: {status}", f"{agent_id} was not deleted: {status} {_text(said)}")

    async def _ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        data = None if body is None else msgspec.json.encode(body)
        headers = {} if data is None else {"Content-Type": "application/json"}
        try:
            answer = await self._http.request(method, self._site.verifier + path, body=data, headers=headers)
        except Unreachable as problem:
            raise RefusedError(problem.kind, f"The verifier cannot be reached: {problem}") from None
        try:
            return answer.status, json.loads(answer.body or b"null")
        except ValueError:
            return answer.status, answer.body.decode("utf-8", "replace")


def _text(said: object) -> str:
    return str(said.get("status", said)) if isinstance(said, dict) else str(said)


def _enrolment(machine: Machine, port: int, certificate: str, policy: str) -> EnrolmentRequest:
    mask = 1 << APPLICATION_PCR
    return EnrolmentRequest(
        cloudagent_ip=address_of(machine.number),
        cloudagent_port=port,
        tpm_policy=json.dumps({str(APPLICATION_PCR): ["00" * 32], "mask": hex(mask)}),
        verifier_ip="127.0.0.1",
        verifier_port=8881,
        runtime_policy="",
        runtime_policy_name=policy,
        runtime_policy_key="",
        mb_policy=None,
        mb_policy_name="",
        ima_sign_verification_keys="",
        metadata="{}",
        revocation_key="",
        accept_tpm_hash_algs=("sha256",),
        accept_tpm_encryption_algs=("ecc",),
        accept_tpm_signing_algs=("ecdsa",),
        ak_tpm=b64encode(machine.node.ak.public_2b).decode(),
        mtls_cert=certificate,
        supported_version=API,
    )
