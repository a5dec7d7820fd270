"""A node that attests by itself, as strict about answers as deployed push agents are, with a TPM in software.

It takes no answer that a deployed agent would refuse: statuses, headers, members, JSON types and spellings are checked.
"""

import asyncio
import json
import re
import ssl
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from limeguard.simulator.softtpm import SoftNode
from tests.fakes.soft_ima import SoftKernel
from tests.fakes.strict_agent import NotUnderstood
from tests.fakes.verifier_site import PATIENCE, Answer, Site

MEDIA_TYPE = "application/vnd.api+json"
REQUEST_ID = "a1b2c3"
STAGES = {"awaiting_evidence", "evaluating_evidence", "verification_complete"}
QUOTE_CAPABILITIES: dict[str, type] = {
    "component_version": str,
    "hash_algorithms": list,
    "signature_schemes": list,
    "available_subjects": dict,
    "certification_keys": list,
}
LOG_CAPABILITIES: dict[str, type] = {
    "entry_count": int,
    "supports_partial_access": bool,
    "appendable": bool,
    "formats": list,
}
KEY: dict[str, type] = {
    "key_algorithm": str,
    "key_class": str,
    "key_size": int,
    "server_identifier": str,
    "local_identifier": str,
    "public": str,
}
Alter = Callable[[dict[str, Any]], dict[str, Any]]


def unaltered(document: dict[str, Any]) -> dict[str, Any]:
    return document


def need(condition: object, what: str) -> None:
    if not condition:
        raise NotUnderstood(what)


def members(found: Any, wanted: dict[str, type], where: str) -> None:
    need(isinstance(found, dict), f"{where} is no object")
    for name, kind in wanted.items():
        need(name in found, f"{where} has no {name}")
        need(type(found[name]) is kind, f"{where}.{name} is {type(found[name]).__name__}, not {kind.__name__}")


def is_time(text: Any, where: str) -> datetime:
    need(isinstance(text, str), f"{where} is no text")
    need(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00", text), f"{where} is no RFC 3339 time: {text}")
    return datetime.fromisoformat(text)


@dataclass
class PushAgent:
    """One agent. `alter_*` change a document before it is sent."""

    site: Site
    agent_id: str
    node: SoftNode
    kernel: SoftKernel | None = None
    boot_log: bytes = b""
    boot_time: str = "2026-01-05T08:00:00Z"
    token: str = ""
    tls: ssl.SSLContext | None = None
    alter_offer: Alter = unaltered
    alter_evidence: Alter = unaltered
    schemes: tuple[str, ...] = ("ecdsa", "ecschnorr", "rsapss", "rsassa")
    tokens: list[str] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)

    # --- requests -----------------------------------------------------------------------------------------------------

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """Send a request as the agent does: over TLS without certificate."""
        self.tls = self.tls or self.site.tls(certificate=False)
        headers.setdefault("Content_Type", MEDIA_TYPE)
        headers.setdefault("X_Request_ID", REQUEST_ID)
        if self.token:
            headers.setdefault("Authorization", f"Bearer {self.token}")
        answer = await self.site.ask(method, path, body, tls=self.tls, **headers)
        need(answer.headers.get("X-Request-ID") == headers["X_Request_ID"], "the request id is not echoed")
        if answer.status < 300:
            need("Retry-After" not in answer.headers, "Retry-After on a good answer: it would be sent for ever")
        return answer

    # --- sessions -----------------------------------------------------------------------------------------------------

    async def open_session(self) -> dict[str, Any]:
        """Ask for a challenge; return `data`."""
        self.token = ""
        offer = [{"authentication_class": "pop", "authentication_type": "tpm_pop"}]
        answer = await self.ask("POST", "/v3.0/sessions", session(self.agent_id, authentication_supported=offer))
        need(answer.status == 200, f"{answer.status}: {answer.text}")
        need(answer.headers["Content-Type"].startswith("application/json"), "the answer is not called JSON")
        data = answer.json["data"]
        members(data, {"type": str, "id": str, "attributes": dict}, "data")
        attributes = data["attributes"]
        need(data["type"] == "session" and attributes["agent_id"] == self.agent_id, "another session")
        first = attributes["authentication_requested"][0]
        need((first["authentication_class"], first["authentication_type"]) == ("pop", "tpm_pop"), "another method")
        need(len(b64decode(first["chosen_parameters"]["challenge"], validate=True)) <= 32, "the challenge is too long")
        created = is_time(attributes["created_at"], "created_at")
        need(is_time(attributes["challenges_expire_at"], "challenges_expire_at") > created, "expired already")
        return dict(data)

    def proof(self, challenge: str) -> dict[str, Any]:
        """Certify the key by itself over a challenge."""
        message, signature = self.node.ak.certify(self.node.ak.area, b64decode(challenge), self.node.clock)
        return {"message": b64encode(message).decode(), "signature": b64encode(signature).decode()}

    async def send_proof(self, data: dict[str, Any], proof: dict[str, Any]) -> Answer:
        """Answer a challenge."""
        provided = [{"authentication_class": "pop", "authentication_type": "tpm_pop", "data": proof}]
        body = session(self.agent_id, authentication_provided=provided)
        body["data"]["id"] = data["id"]
        return await self.ask("PATCH", f"/v3.0/sessions/{data['id']}", body)

    async def log_in(self) -> str:
        """Get a token."""
        data = await self.open_session()
        challenge = data["attributes"]["authentication_requested"][0]["chosen_parameters"]["challenge"]
        answer = await self.send_proof(data, self.proof(challenge))
        need(answer.status == 200, f"{answer.status}: {answer.text}")
        attributes = self.check_evaluated(answer, challenge)
        need(attributes["evaluation"] == "pass", "the proof is refused")
        token = attributes["token"]
        need(isinstance(token, str) and re.fullmatch(r"[0-9a-f-]{36}\.[A-Za-z0-9_-]{43}", token), "no token")
        is_time(attributes["token_expires_at"], "token_expires_at")
        self.token = token
        self.tokens.append(token)
        return str(token)

    def check_evaluated(self, answer: Answer, challenge: str) -> dict[str, Any]:
        """Check all members without which agents do not understand an evaluation; return its attributes."""
        data = answer.json["data"]
        members(data, {"type": str, "id": str, "attributes": dict}, "data")
        attributes: dict[str, Any] = data["attributes"]
        need(attributes["agent_id"] == self.agent_id, "another agent")
        need(attributes["evaluation"] in {"pass", "fail"}, "no evaluation")
        first = attributes["authentication"][0]
        need(first["chosen_parameters"]["challenge"] == challenge, "another challenge")
        members(first["data"], {"message": str, "signature": str}, "data")
        for name in ("created_at", "challenges_expire_at", "response_received_at"):
            is_time(attributes[name], name)
        return attributes

    # --- attestations -------------------------------------------------------------------------------------------------

    def offer(self) -> dict[str, Any]:
        """Return what the agent can show, as deployed agents say it."""
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
            "signature_schemes": list(self.schemes),
            "available_subjects": {bank: list(range(24))},
            "certification_keys": [key],
        }
        lines = len(self.kernel.lines) if self.kernel is not None else 0
        uefi = {"evidence_version": "2.1", **log_offer(0, ["application/octet-stream"], partial=False)}
        ima = log_offer(lines, ["text/plain"], partial=True)
        return attestation(
            evidence_supported=[
                {"evidence_class": "certification", "evidence_type": "tpm_quote", "capabilities": quote},
                {
                    "evidence_class": "log",
                    "evidence_type": "uefi_log",
                    "capabilities": uefi,
                },
                {"evidence_class": "log", "evidence_type": "ima_log", "capabilities": ima},
            ],
            system_info={"boot_time": self.boot_time},
        )

    @property
    def path(self) -> str:
        return f"/v3.0/agents/{self.agent_id}/attestations"

    async def send_offer(self) -> Answer:
        return await self.ask("POST", self.path, self.alter_offer(self.offer()))

    async def negotiate(self) -> tuple[str, list[dict[str, Any]]]:
        """Offer evidence; return where to send what is asked for, and what that is."""
        answer = await self.send_offer()
        need(answer.status == 201, f"{answer.status}: {answer.text}")
        location = answer.headers["Location"]
        need(re.fullmatch(re.escape(self.path) + r"/\d+", location), f"Location is {location}")
        data = answer.json["data"]
        need(data["type"] == "attestation" and data["attributes"]["stage"] == "awaiting_evidence", "another document")
        requested = data["attributes"]["evidence_requested"]
        for one in requested:
            self.check_requested(one)
        self.asked.append(data)
        return location, requested

    @property
    def offsets(self) -> list[int]:
        """From which entry on the IMA log was asked for, round by round."""
        logs = [
            one["chosen_parameters"]
            for data in self.asked
            for one in data["attributes"]["evidence_requested"]
            if one["evidence_type"] == "ima_log"
        ]
        return [chosen["starting_offset"] for chosen in logs]

    def check_requested(self, one: dict[str, Any]) -> None:
        """Check what deployed agents need in order to answer."""
        members(one, {"evidence_class": str, "evidence_type": str, "chosen_parameters": dict}, "evidence_requested")
        chosen, ak = one["chosen_parameters"], self.node.ak
        if one["evidence_type"] != "tpm_quote":
            need(chosen.get("format") in {"text/plain", "application/octet-stream"}, "a log without format")
            return
        need("format" not in chosen, "a quote with a format would be taken for a log")
        need(chosen["signature_scheme"] == ak.scheme, "the key cannot sign so")
        need(chosen["hash_algorithm"] == ak.hash_alg.name, "the key cannot hash so")
        need(isinstance(chosen["challenge"], str), "no challenge")
        for bank, pcrs in chosen["selected_subjects"].items():
            need(bank in {"sha1", "sha256", "sha384", "sha512", "sm3_256"}, f"bank {bank}")
            need(pcrs is None or all(type(n) is int and 0 <= n < 24 for n in pcrs), "numbers of PCRs")
        if "certification_key" in chosen:
            members(chosen["certification_key"], KEY, "certification_key")

    def evidence(self, requested: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what is asked for."""
        return attestation(evidence_collected=[self.collect(one) for one in requested])

    def collect(self, one: dict[str, Any]) -> dict[str, Any]:
        chosen = one["chosen_parameters"]
        kinds = {name: one[name] for name in ("evidence_class", "evidence_type")}
        if one["evidence_type"] == "tpm_quote":
            pcrs = set(chosen["selected_subjects"].get(chosen["hash_algorithm"]) or ())
            quote = self.node.quote(b64decode(chosen["challenge"], validate=True), pcrs)
            message, signature, values = quote[1:].split(":")
            return {**kinds, "data": {"message": message, "signature": signature, "subject_data": values}}
        if one["evidence_type"] == "uefi_log":
            return {**kinds, "data": {"entries": b64encode(self.boot_log).decode()}}
        lines = self.kernel.lines[chosen.get("starting_offset", 0) :] if self.kernel is not None else []
        return {**kinds, "data": {"entries": "".join(f"{line}\n" for line in lines), "entry_count": len(lines)}}

    async def send_evidence(self, location: str, document: object) -> Answer:
        return await self.ask("PATCH", location, document)

    async def attest(self) -> dict[str, Any]:
        """Do one round; return the whole answer to the evidence."""
        location, requested = await self.negotiate()
        answer = await self.send_evidence(location, self.alter_evidence(self.evidence(requested)))
        return self.check_taken(answer)

    def check_taken(self, answer: Answer) -> dict[str, Any]:
        """Check all members without which agents do not hear when to come again."""
        need(answer.status == 202, f"{answer.status}: {answer.text}")
        document = answer.json
        data = document["data"]
        need(data["type"] == "attestation" and data["attributes"]["stage"] == "evaluating_evidence", "another stage")
        for one in data["attributes"]["evidence"]:
            if one["evidence_type"] == "tpm_quote":
                members(one["capabilities"], QUOTE_CAPABILITIES, "capabilities")
                members(one["data"], {"subject_data": str, "message": str, "signature": str}, "data")
            else:
                members(one["capabilities"], LOG_CAPABILITIES, "capabilities")
                members(one["data"], {"entries": str}, "data")
                need(type(one["data"].get("entry_count", 0)) is int, "entry_count is no number")
        if "system_info" in data["attributes"]:
            is_time(data["attributes"]["system_info"]["boot_time"], "boot_time")
        seconds = document["meta"]["seconds_to_next_attestation"]
        need(type(seconds) is int and seconds >= 0, "no interval")
        return document

    async def start(self) -> dict[str, Any]:
        """Log in and attest once."""
        await self.log_in()
        return await self.attest()

    async def evaluated(self, which: str = "latest") -> dict[str, Any]:
        """Wait for the verdict of an attestation, and return its attributes as the operator sees them."""
        end = time.monotonic() + PATIENCE
        while True:
            answer = await self.site.ask("GET", f"{self.path}/{which}")
            assert answer.status == 200, answer.text
            attributes: dict[str, Any] = answer.json["data"]["attributes"]
            if attributes["stage"] == "verification_complete":
                return attributes
            assert time.monotonic() < end, f"no verdict: {attributes}"
            await asyncio.sleep(0.01)

    async def view(self) -> dict[str, Any]:
        """Return the node as our own interface shows it."""
        answer = await self.site.ask("GET", f"/limeguard/v1/nodes/{self.agent_id}")
        assert answer.status == 200, answer.text
        return answer.json

    async def status(self) -> dict[str, Any]:
        """Return the node in Keylime's fields."""
        found: dict[str, Any] = (await self.site.ask("GET", f"/v2.6/agents/{self.agent_id}")).json["results"]
        return found

    async def reaches(self, condition: str) -> dict[str, Any]:
        """Wait for a condition and return the view."""
        end = time.monotonic() + PATIENCE
        while True:
            view = await self.view()
            if view["condition"] == condition:
                return view
            assert time.monotonic() < end, f"not {condition}: {view}"
            await asyncio.sleep(0.01)

    async def judged(self) -> dict[str, Any]:
        """Do one round, and return its attributes when there is a verdict."""
        location = (await self.attest())["links"]["self"]
        return await self.evaluated(location.rpartition("/")[2])


def session(agent_id: str, **attributes: Any) -> dict[str, Any]:
    return {"data": {"type": "session", "attributes": {"agent_id": agent_id, **attributes}}}


def attestation(**attributes: Any) -> dict[str, Any]:
    return {"data": {"type": "attestation", "attributes": attributes}}


def log_offer(entries: int, formats: list[str], *, partial: bool) -> dict[str, Any]:
    return {"entry_count": entries, "supports_partial_access": partial, "appendable": partial, "formats": formats}


def push_enrolment(node: SoftNode, **changes: Any) -> dict[str, Any]:
    """Return the enrolment of a node that pushes, as the tenant sends it."""
    body = {
        "v": None,
        "cloudagent_ip": "127.0.0.1",
        "cloudagent_port": 9002,
        "verifier_ip": "127.0.0.1",
        "verifier_port": 8881,
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
        "accept_tpm_encryption_algs": [node.kind],
        "accept_tpm_signing_algs": ["ecschnorr", "rsassa", "rsapss", "ecdsa"],
        "ak_tpm": b64encode(node.ak.public_2b).decode(),
        "mtls_cert": "disabled",
        "supported_version": "2.6",
    }
    return {**body, **changes}


async def enrolled(site: Site, agent_id: str = "pusher", node: SoftNode | None = None, **changes: Any) -> PushAgent:
    """Enrol a node that pushes and return its agent."""
    node = node or SoftNode.create("ecc256")
    agent = PushAgent(site, agent_id, node)
    answer = await site.ask("POST", f"/v2.6/agents/{agent_id}", push_enrolment(node, **changes))
    assert answer.status == 200, answer.text
    return agent


def dumps(document: object) -> bytes:
    return json.dumps(document).encode()
