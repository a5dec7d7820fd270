"""Answers of registrar and verifier as an operator's client reads them: loosely, and kept as they came.

A client must show every member a server sends, also those that a later version adds, so answers stay JSON objects here;
the few members that decide something are taken out with their types checked. Pure; spells JSON keys for nobody else.
"""

import json
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass

Document = dict[str, object]

STATE_NAMES: Mapping[int, str] = {
    0: "Registered",
    1: "Start",
    2: "Saved",
    3: "Get Quote",
    4: "Get Quote (retry)",
    5: "Provide V",
    6: "Provide V (retry)",
    7: "Failed",
    8: "Terminated",
    9: "Invalid Quote",
    10: "Tenant Quote Failed",
}
"""What `operational_state` is called when it is shown (Keylime REST API)."""

STATE = "operational_state"
NO_STATE = "Not applicable (Push Mode)"
DISABLED_CERTIFICATE = "disabled"
"""What an agent without TLS registers in place of its certificate."""


class UnreadableAnswer(ValueError):  # noqa: N818 - a fact about the answer
    """An answer lacks what a client of this API needs, or is no JSON object at all."""


def read_document(body: bytes) -> Document | None:
    """Decode a JSON object; None for anything else, also for nesting that is too deep."""
    try:
        decoded = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return decoded if isinstance(decoded, dict) else None


def code_of(document: Document | None) -> int | None:
    """Return the envelope's `code`."""
    code = (document or {}).get("code")
    return code if isinstance(code, int) and not isinstance(code, bool) else None


def status_of(document: Document | None) -> str:
    """Return the envelope's `status` text, empty when there is none."""
    status = (document or {}).get("status")
    return status if isinstance(status, str) else ""


def results_of(document: Document | None) -> Document:
    """Return the envelope's `results`. Raises UnreadableAnswer when they are no object."""
    results = (document or {}).get("results")
    if not isinstance(results, dict):
        raise UnreadableAnswer("the answer has no results")
    return results


def made_up_envelope(code: int, status: str, results: Mapping[str, object]) -> Document:
    """Build the envelope-shaped object that clients show for a registrar's record."""
    return {"code": code, "status": status, "results": dict(results)}


def server_versions(document: Document | None) -> tuple[str, ...]:
    """Return the API versions a registrar or verifier lists; empty when it lists none."""
    results = (document or {}).get("results")
    return _strings(results.get("supported_versions")) if isinstance(results, dict) else ()


def _strings(value: object) -> tuple[str, ...]:
    return tuple(v for v in value if isinstance(v, str)) if isinstance(value, list) else ()


@dataclass(frozen=True, slots=True)
class Registration:
    """A node as the registrar knows it. Keys are base64 TPM2B_PUBLIC; `ek_certificate` is base64 DER or None.

    `tls_certificate` is PEM, `disabled` for an agent without TLS, or None.
    """

    attestation_key: str
    endorsement_key: str
    ek_certificate: str | None
    tls_certificate: str | None
    ip: str | None
    port: int | None
    registration_count: int
    provider_keys: Mapping[str, object]

    def provider_keys_text(self) -> str:
        """Return the keys of a virtual TPM's provider as JSON text."""
        return json.dumps(dict(self.provider_keys))

    def shown(self) -> Document:
        """Return the object that a client shows for it."""
        return {
            "aik_tpm": self.attestation_key,
            "regcount": self.registration_count,
            "ek_tpm": self.endorsement_key,
            "ip": self.ip,
            "port": self.port,
            "mtls_cert": self.tls_certificate,
            "ekcert": self.ek_certificate,
            STATE: STATE_NAMES[0],
        }


def read_registration(results: Document) -> Registration:
    """Read the registrar's record of one node. Raises UnreadableAnswer naming the member that is wrong."""
    for key in ("aik_tpm", "regcount", "ek_tpm", "ip", "port"):
        if key not in results:
            raise UnreadableAnswer(f"the registrar's record has no {key}")
    provider_keys = results.get("provider_keys")
    return Registration(
        attestation_key=_text(results, "aik_tpm") or _missing("aik_tpm"),
        endorsement_key=_text(results, "ek_tpm") or "",
        ek_certificate=_text(results, "ekcert"),
        tls_certificate=_text(results, "mtls_cert"),
        ip=_text(results, "ip"),
        port=_port(results, "port"),
        registration_count=_number(results, "regcount") or 0,
        provider_keys=provider_keys if isinstance(provider_keys, dict) else {},
    )


@dataclass(frozen=True, slots=True)
class Enrolment:
    """Where the verifier's record says that a node is supervised, and where it is reached."""

    verifier_ip: str | None
    verifier_port: int | None
    verifier_id: str | None
    agent_ip: str | None
    agent_port: int | None


def read_enrolment(results: Document) -> Enrolment:
    """Read who supervises a node out of the verifier's record. Raises UnreadableAnswer."""
    for key in ("verifier_ip", "verifier_port", "verifier_id", "ip", "port"):
        if key not in results:
            raise UnreadableAnswer(f"the verifier's record has no {key}")
    return Enrolment(
        verifier_ip=_text(results, "verifier_ip"),
        verifier_port=_port(results, "verifier_port"),
        verifier_id=_text(results, "verifier_id"),
        agent_ip=_text(results, "ip"),
        agent_port=_port(results, "port"),
    )


def shown_enrolment(results: Document, *, push: bool) -> Document:
    """Return the verifier's record as it is shown: the state by name, or no state for a push node.

    Raises UnreadableAnswer when there is no state at all.
    """
    if STATE not in results:
        raise UnreadableAnswer(f"the verifier's record has no {STATE}")
    if push:
        return {key: value for key, value in results.items() if key != STATE}
    return {key: _state_name(value) if key == STATE else value for key, value in results.items()}


def shown_fleet(results: Document) -> Document:
    """Return the records of many nodes, by id, with their states by name; a null state says push model."""
    shown: Document = {}
    for node, record in results.items():
        if not isinstance(record, dict) or STATE not in record:
            raise UnreadableAnswer(f"a record of the verifier has no {STATE}")
        named = {k: (NO_STATE if v is None else _state_name(v)) if k == STATE else v for k, v in record.items()}
        shown[node] = named
    return shown


def _state_name(value: object) -> object:
    return STATE_NAMES.get(value, value) if isinstance(value, int) else value


def _missing(key: str) -> str:
    raise UnreadableAnswer(f"the registrar's record has an empty {key}")


def _text(results: Document, key: str) -> str | None:
    value = results.get(key)
    if value is not None and not isinstance(value, str):
        raise UnreadableAnswer(f"{key} is no text")
    return value


def _number(results: Document, key: str) -> int | None:
    value = results.get(key)
    if value is None:
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 10:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UnreadableAnswer(f"{key} is no number")
    return value


def _port(results: Document, key: str) -> int | None:
    value = _number(results, key)
    if value is not None and not 0 < value < 65536:
        raise UnreadableAnswer(f"{key} is no port")
    return value


def runtime_policy_body(*, tpm_policy: str, policy: bytes, key: bytes) -> bytes:
    """Encode the upload of a stored runtime policy: policy and key travel as base64, `tpm_policy` as JSON text."""
    body = {"tpm_policy": tpm_policy, "runtime_policy": base64_text(policy), "runtime_policy_key": base64_text(key)}
    return json.dumps(body).encode()


def boot_policy_body(policy: str | None) -> bytes:
    """Encode the upload of a stored measured boot policy, given as JSON text."""
    return json.dumps({"mb_policy": policy}).encode()


def base64_text(data: bytes) -> str:
    """Return base64 with padding."""
    return b64encode(data).decode("ascii")


def certificate_metadata(serial: int, subject: str) -> str:
    """Return the metadata of a node that was given a certificate, as the JSON text that travels."""
    return json.dumps({"cert_serial": serial, "subject": subject})
