"""A registrar, a verifier and a node's agent over real HTTPS, as a tenant meets them; everything asked is on record."""

import base64
import contextlib
import hashlib
import hmac
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from limeguard.crypto import keysplit
from limeguard.crypto.keys import spki_pem
from limeguard.simulator.softtpm import SoftAk, SoftEk, transport_key
from limeguard.tenant.settings import TenantSettings
from limeguard.web.app import Incoming, Response
from limeguard.web.serve import Listener
from tests.fakes.pki import Authority, Identity, self_signed, server_context

VERSIONS = ["1.0", "2.0", "2.1", "2.2", "2.3", "2.4", "2.5", "2.6", "3.0"]
NODE = "d432fbb3-d2f1-4a97-9ef7-75bd81c00001"

Answer = tuple[int, object]
Override = Callable[["Call"], Answer | None]


@dataclass(frozen=True)
class Call:
    """One request that somebody made. `who` is registrar, verifier or agent."""

    who: str
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    client: str | None

    @property
    def json(self) -> dict[str, Any]:
        """The body as JSON."""
        decoded: dict[str, Any] = json.loads(self.body)
        return decoded

    @property
    def line(self) -> str:
        """Who was asked what, without version and nonce."""
        path = "/" + self.path.split("/", 2)[2] if self.path.startswith("/v2") else self.path
        return f"{self.who} {self.method} {path}"


class SoftAgent:
    """A node with a TPM in software: keys, certificate, and the answers of a pull agent."""

    def __init__(self, folder: Path, node: str, kind: str = "rsa2048") -> None:
        self.node = node
        self.ak = SoftAk.generate(kind)
        self.ek = SoftEk.generate("rsa2048")
        self.key = transport_key()
        self.identity: Identity = self_signed(folder, f"agent-{node}")
        self.versions = ["2.1", "2.2", "2.3", "2.4", "2.5", "2.6"]
        self.hash_alg, self.enc_alg, self.sign_alg = "sha256", "rsa2048", "rsassa"
        self.halves: list[tuple[bytes, str]] = []
        self.payload_key: bytes | None = None
        self.bind: str | None = None
        self.nonce: bytes | None = None

    @property
    def transport_key(self) -> str:
        """The public transport key, PEM."""
        return spki_pem(self.key.public_key())

    def quote(self, nonce: str) -> str:
        """Quote PCR 16 with the transport key in it; `bind` and `nonce` stand in for what should be there."""
        bound = (self.bind or self.transport_key).encode()
        value = hashlib.sha256(bytes(32) + hashlib.sha256(bound).digest()).digest()
        return self.ak.quote(self.nonce or nonce.encode(), {16: value})

    def receive(self, share: str, tag: str) -> None:
        """Take U, encrypted to the transport key."""
        self.halves.append((keysplit.decrypt_key_share(self.key, base64.b64decode(share)), tag))

    def combine(self, v: bytes) -> None:
        """Take V; the payload key is there when it fits a U."""
        for u, tag in self.halves:
            key = keysplit.combine(u, v)
            if hmac.compare_digest(keysplit.bootstrap_auth_tag(key, self.node), tag):
                self.payload_key = key


@dataclass
class Site:
    """The three of them. `overrides` may answer any call first; `calls` has every request in order."""

    folder: Path
    agent: SoftAgent
    calls: list[Call] = field(default_factory=list)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    policies: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: list[str] = field(default_factory=lambda: list(VERSIONS))
    overrides: list[Override] = field(default_factory=list)
    delivers_v: bool = True
    ports: dict[str, int] = field(default_factory=dict)

    def settings(self, **changes: Any) -> TenantSettings:
        """Return settings that lead to this site; EK certificates are not demanded unless `changes` say so."""
        values: dict[str, Any] = {
            "verifier_port": self.ports["verifier"],
            "registrar_port": self.ports["registrar"],
            "work_dir": self.folder,
            "tpm_cert_store": str(self.folder / "store"),
            "require_ek_cert": False,
            "retry_interval": 0.01,
            "max_retries": 3,
            "request_timeout": 10.0,
        }
        return TenantSettings(**{**values, **changes})

    def lines(self) -> list[str]:
        """Return who was asked what, in order, without the questions for versions."""
        return [call.line for call in self.calls if call.path != "/version"]

    def to(self, who: str, method: str) -> list[Call]:
        """Return the calls of one kind."""
        return [call for call in self.calls if (call.who, call.method) == (who, method)]

    def register(self, **changes: Any) -> None:
        """Make the node known to the registrar."""
        self.records[self.agent.node] = {
            "agent_id": self.agent.node,
            "ek_tpm": base64.b64encode(self.agent.ek.public_2b).decode(),
            "ekcert": None,
            "aik_tpm": base64.b64encode(self.agent.ak.public_2b).decode(),
            "mtls_cert": self.agent.identity.pem,
            "ip": "127.0.0.1",
            "port": self.ports["agent"],
            "regcount": 1,
            **changes,
        }

    def enrol(self, state: int = 3) -> None:
        """Put the node under supervision without asking it anything."""
        self.nodes[self.agent.node] = status_of(
            {
                "v": base64.b64encode(b"V" * 32).decode(),
                "cloudagent_ip": "127.0.0.1",
                "cloudagent_port": self.ports["agent"],
                "tpm_policy": '{"mask": "0x0"}',
                "metadata": "{}",
                "accept_tpm_hash_algs": ["sha256"],
                "accept_tpm_encryption_algs": ["rsa"],
                "accept_tpm_signing_algs": ["rsassa"],
                "verifier_ip": "127.0.0.1",
                "verifier_port": self.ports["verifier"],
            },
            state,
        )

    def answer(self, who: str) -> Callable[[Incoming], Any]:
        """Return the handler of one listener."""
        handlers = {"registrar": self._registrar, "verifier": self._verifier, "agent": self._agent}

        async def handle(incoming: Incoming) -> Response:
            path, _, query = incoming.target.partition("?")
            body = await incoming.read_body(64 * 1024 * 1024)
            call = Call(
                who, incoming.method, path, dict(parse_qsl(query)), incoming.headers, body, incoming.certificate_name
            )
            self.calls.append(call)
            for override in self.overrides:
                if (found := override(call)) is not None:
                    return _response(*found)
            return _response(*handlers[who](call, [part for part in path.split("/") if part]))

        return handle

    def _registrar(self, call: Call, parts: list[str]) -> Answer:
        if parts == ["version"]:
            return success({"current_version": "2.6", "supported_versions": self.versions})
        if call.client is None:
            return 403, {"errors": []}
        if len(parts) == 2:
            return success({"uuids": list(self.records)})
        record = self.records.get(parts[2])
        if record is None:
            return failure(404, f"Agent with ID '{parts[2]}' not found")
        if call.method == "DELETE":
            del self.records[parts[2]]
            return success({})
        return success(record)

    def _verifier(self, call: Call, parts: list[str]) -> Answer:
        if parts == ["version"]:
            return success({"current_version": "2.6", "supported_versions": self.versions})
        if parts[1] != "agents":
            return self._stored(call, parts)
        if len(parts) == 2:
            return success(self.nodes if "bulk" in call.query else {"uuids": [[node] for node in self.nodes]})
        return self._node(call, parts)

    def _node(self, call: Call, parts: list[str]) -> Answer:
        node = parts[2]
        if call.method == "POST":
            if node in self.nodes:
                return failure(409, f"Agent of uuid {node} already exists. Please use delete or update.")
            self.nodes[node] = status_of(call.json, 1)
            if call.json["v"] is not None and self.delivers_v:
                self.agent.combine(base64.b64decode(call.json["v"]))
            return success({})
        if node not in self.nodes:
            return failure(404, "agent id not found")
        if call.method == "DELETE":
            del self.nodes[node]
            return success({})
        if call.method == "PUT":
            self.nodes[node]["operational_state"] = {"stop": 10, "reactivate": 1}[parts[3]]
            return success({})
        return success(self.nodes[node])

    def _stored(self, call: Call, parts: list[str]) -> Answer:
        kind = parts[1]
        noun = "Runtime policy" if kind == "allowlists" else "Measured boot policy"
        stored = self.policies.setdefault(kind, {})
        if len(parts) == 2:
            return success({f"{'runtimepolicy' if kind == 'allowlists' else 'mbpolicy'} names": list(stored)})
        name = parts[2]
        if call.method == "POST":
            if name in stored:
                return failure(409, f"{noun} with name {name} already exists")
            stored[name] = call.json
            return 201, {"code": 201, "status": "Created", "results": {}}
        if name not in stored:
            return failure(404, f"{noun} {name} not found")
        if call.method == "PUT":
            stored[name] = call.json
            return 201, {"code": 201, "status": "Created", "results": {}}
        if call.method == "DELETE":
            del stored[name]
            return 204, None
        body = stored[name]
        if kind == "mbpolicies":
            return success({"name": name, "mb_policy": body["mb_policy"]})
        text = base64.b64decode(body["runtime_policy"]).decode()
        return success({"name": name, "tmp_policy": None, "runtime_policy": text})

    def _agent(self, call: Call, parts: list[str]) -> Answer:
        agent = self.agent
        if parts == ["version"]:
            return success({"supported_version": agent.versions[-1], "supported_versions": agent.versions})
        if parts[1:] == ["quotes", "identity"]:
            return success(
                {
                    "quote": agent.quote(call.query["nonce"]),
                    "hash_alg": agent.hash_alg,
                    "enc_alg": agent.enc_alg,
                    "sign_alg": agent.sign_alg,
                    "pubkey": agent.transport_key,
                }
            )
        if parts[1:] == ["keys", "ukey"]:
            agent.receive(call.json["encrypted_key"], call.json["auth_tag"])
            return success(None)
        if parts[1:] == ["keys", "verify"]:
            if agent.payload_key is None:
                return failure(400, "Bootstrap key not yet available.")
            return success({"hmac": keysplit.challenge_hmac(agent.payload_key, call.query["challenge"])})
        return failure(400, "Not Implemented")


def success(results: object) -> Answer:
    """Return the envelope of a success."""
    return 200, {"code": 200, "status": "Success", "results": results}


def failure(code: int, status: str) -> Answer:
    """Return the envelope of a failure."""
    return code, {"code": code, "status": status, "results": {}}


def status_of(enrolment: dict[str, Any], state: int) -> dict[str, Any]:
    """Return the record that a verifier shows for an enrolment."""
    return {
        "operational_state": state,
        "v": enrolment["v"],
        "ip": enrolment["cloudagent_ip"],
        "port": enrolment["cloudagent_port"],
        "tpm_policy": enrolment["tpm_policy"],
        "meta_data": enrolment["metadata"],
        "has_mb_refstate": 0,
        "has_runtime_policy": 0,
        "accept_tpm_hash_algs": enrolment["accept_tpm_hash_algs"],
        "accept_tpm_encryption_algs": enrolment["accept_tpm_encryption_algs"],
        "accept_tpm_signing_algs": enrolment["accept_tpm_signing_algs"],
        "hash_alg": "",
        "enc_alg": "",
        "sign_alg": "",
        "verifier_id": "default",
        "verifier_ip": enrolment["verifier_ip"],
        "verifier_port": enrolment["verifier_port"],
        "severity_level": None,
        "last_event_id": None,
        "attestation_count": 0,
        "last_received_quote": 0,
        "last_successful_attestation": 0,
        "attestation_status": "PENDING",
        "attestation_period": "2s",
        "maximum_attestation_interval": "10s",
    }


def _response(status: int, document: object) -> Response:
    if isinstance(document, bytes):
        return Response(status, document)
    return Response(status, b"" if document is None else json.dumps(document).encode(), "application/json")


@contextlib.asynccontextmanager
async def running_site(folder: Path, agent: SoftAgent, agent_clients: Path | None = None) -> AsyncIterator[Site]:
    """Start the three on free ports, under one CA whose files lie where the tenant's settings look for them.

    `agent_clients` names the CA of the clients that the agent trusts, when that is another one.
    """
    ca = Authority(folder / "cv_ca")
    server, client = ca.issue("server"), ca.issue("client")
    client.certificate.rename(folder / "cv_ca" / "client-cert.crt")
    client.key.rename(folder / "cv_ca" / "client-private.pem")
    (folder / "cv_ca" / "client-private.pem").chmod(0o600)
    (folder / "store").mkdir(exist_ok=True)
    site = Site(folder, agent)
    contexts: dict[str, ssl.SSLContext] = {
        "registrar": server_context(server, ca.identity.certificate),
        "verifier": server_context(server, ca.identity.certificate),
        "agent": server_context(agent.identity, agent_clients or ca.identity.certificate, required=True),
    }
    listeners = {who: Listener(site.answer(who), "127.0.0.1", 0, context) for who, context in contexts.items()}
    async with contextlib.AsyncExitStack() as stack:
        for who, listener in listeners.items():
            await listener.start()
            stack.push_async_callback(listener.stop)
            site.ports[who] = listener.port
        yield site
