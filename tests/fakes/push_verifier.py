"""A verifier of the push model in memory, that takes nothing a real one would refuse, and fails as it is told to."""

import json
import secrets
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from limeguard.evidence.tpm.quote import (
    QuotedPcrs,
    build_quote_string,
    parse_quote,
    signature_is_good,
    verify_quote,
)
from limeguard.evidence.tpm.structures import CertifyAttest, PublicArea, parse_attest, parse_signature
from limeguard.web.app import Incoming, Response

MEDIA = "application/vnd.api+json"
ACCEPTED = frozenset({"sha256", "sha384", "sha512"})
Interfere = Callable[[str, str], Response | None]


@dataclass
class PushVerifierFake:
    """One verifier that supervises one node. `interfere` may answer in its place; `asks` makes what it asks for."""

    agent_id: str
    ak: PublicArea
    enrolled: bool = True
    interval: int = 30
    interfere: Interfere = lambda _method, _path: None
    items: tuple[str, ...] = ("tpm_quote", "ima_log")
    scheme: str = ""
    location: str = "/v3.0/agents/{id}/attestations/{index}"
    tokens: set[str] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)
    offered: list[dict[str, Any]] = field(default_factory=list)
    proven: list[QuotedPcrs] = field(default_factory=list)
    logs: list[dict[str, Any]] = field(default_factory=list)
    errors: int = 0
    offset: int = 0
    _challenge: bytes = b""
    _requested: list[str] = field(default_factory=list)

    async def answer(self, incoming: Incoming) -> Response:
        self.calls.append(f"{incoming.method} {incoming.target}")
        body = await incoming.read_body(1 << 24)
        instead = self.interfere(incoming.method, incoming.target)
        if instead is not None:
            return instead
        assert incoming.headers["Content-Type"] == MEDIA
        document = json.loads(body)
        assert set(document) == {"data"}
        resource = document["data"]
        match incoming.method, incoming.target.split("/")[2]:
            case "POST", "sessions":
                return self._open(resource["attributes"])
            case "PATCH", "sessions":
                return self._judge(resource["attributes"])
        if incoming.headers.get("Authorization", "").removeprefix("Bearer ") not in self.tokens:
            return refusal(401, "")
        if incoming.method == "POST":
            return self._negotiate(resource["attributes"])
        return self._submit(resource)

    def _open(self, attributes: dict[str, Any]) -> Response:
        assert attributes["agent_id"] == self.agent_id
        self._challenge = secrets.token_bytes(16)
        asked = {
            "authentication_class": "pop",
            "authentication_type": "tpm_pop",
            "chosen_parameters": {"challenge": b64encode(self._challenge).decode()},
        }
        return answer(200, "session", {"authentication_requested": [asked]}, id="7f0c-1")

    def _judge(self, attributes: dict[str, Any]) -> Response:
        (given,) = attributes["authentication_provided"]
        message, signature = (b64decode(given["data"][name]) for name in ("message", "signature"))
        attest = parse_attest(message)
        good = (
            isinstance(attest, CertifyAttest)
            and attest.extra_data == self._challenge
            and attest.name == self.ak.name
            and signature_is_good(self.ak, parse_signature(signature), message)
        )
        if not (good and self.enrolled):
            return answer(200, "session", {"agent_id": self.agent_id, "evaluation": "fail"}, id="7f0c-1")
        token = f"7f0c-1.{secrets.token_urlsafe(32)}"
        self.tokens = {token}
        return answer(200, "session", {"agent_id": self.agent_id, "evaluation": "pass", "token": token}, id="7f0c-1")

    def _negotiate(self, attributes: dict[str, Any]) -> Response:
        self.offered.append(attributes)
        self._challenge = secrets.token_bytes(16)
        scheme = self.ak.scheme
        assert scheme is not None
        quote = {
            "challenge": b64encode(self._challenge).decode(),
            "signature_scheme": self.scheme or scheme.name,
            "hash_algorithm": scheme.hash_alg.name,
            "selected_subjects": {scheme.hash_alg.name: [0, 10]},
        }
        parameters: dict[str, dict[str, Any]] = {
            "tpm_quote": quote,
            "ima_log": {"starting_offset": self.offset, "format": "text/plain"},
            "uefi_log": {"format": "application/octet-stream"},
        }
        self._requested = list(self.items)
        asked = [
            {
                "evidence_class": "certification" if item == "tpm_quote" else "log",
                "evidence_type": item,
                "chosen_parameters": parameters.get(item, {}),
            }
            for item in self.items
        ]
        place = self.location.format(id=self.agent_id, index=len(self.offered) - 1)
        made = answer(201, "attestation", {"stage": "awaiting_evidence", "evidence_requested": asked})
        return Response(made.status, made.body, MEDIA, {"Location": place})

    def _submit(self, resource: dict[str, Any]) -> Response:
        if resource["type"] == "error":
            self.errors += 1
            return refusal(400, "invalid_request")
        collected = resource["attributes"]["evidence_collected"]
        assert [one["evidence_type"] for one in collected] == self._requested
        for one in collected:
            if one["evidence_type"] == "tpm_quote":
                parts = [b64decode(one["data"][name]) for name in ("message", "signature", "subject_data")]
                quote = parse_quote(build_quote_string(parts[0], parts[1], parts[2]))
                found = verify_quote(quote, key=self.ak, nonce=self._challenge, accepted_hashes=ACCEPTED)
                assert isinstance(found, QuotedPcrs), found
                self.proven.append(found)
            else:
                self.logs.append(one)
        done = answer(202, "attestation", {"stage": "evaluating_evidence"})
        document = {**json.loads(done.body), "meta": {"seconds_to_next_attestation": self.interval}}
        return Response(202, json.dumps(document).encode(), MEDIA)


def answer(status: int, kind: str, attributes: dict[str, Any], **more: str) -> Response:
    return Response(status, json.dumps({"data": {"type": kind, **more, "attributes": attributes}}).encode(), MEDIA)


def refusal(status: int, code: str, detail: str = "no", **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = {"errors": [{"status": str(status), "code": code, "detail": detail}]}
    return Response(status, json.dumps(body).encode(), MEDIA, named)
