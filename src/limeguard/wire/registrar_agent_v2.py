"""The registrar's HTTP interface from the agent's side: the node's keys out, the challenge in, the proof out.

The messages are those of `registrar_v2`, read and written the other way round. Decides what a usable answer is; must
not know what the agent does with it. Keylime REST API, registrar.
"""

import base64
import binascii
from typing import Final, TypeVar

import msgspec

from limeguard.wire.registrar_v2 import ActivationBody, ChallengeResults, RegistrationBody, VersionResults

BODY_TYPE: Final = "application/json"


class BadAnswer(ValueError):  # noqa: N818 - a fact about the peer's message
    """A registrar's answer is not what the interface says; the text says where, without quoting it."""


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """What a node registers: TPM2B_PUBLIC of EK and AK, certificates as PEM ("" or `disabled`: none), its address."""

    ek_public: bytes
    ek_certificates: str
    ak_public: bytes
    server_certificate: str
    ip: str
    port: int


class _Versions(msgspec.Struct, frozen=True):
    results: VersionResults


class _Challenge(msgspec.Struct, frozen=True):
    results: ChallengeResults


class RegistrarVersions(msgspec.Struct, frozen=True):
    """What a registrar offers: the version it prefers, and all it knows."""

    current: str
    supported: tuple[str, ...]


T = TypeVar("T")


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise BadAnswer(f"unreadable answer: {type(problem).__name__}: {str(problem)[:200]}") from problem


def node_path(version: str, agent_id: str) -> str:
    """Return the path of a node: POST registers it, PUT activates it. The id needs no quoting."""
    return f"/v{version}/agents/{agent_id}"


def decode_versions(body: bytes) -> RegistrarVersions:
    """Decode the answer to `GET /version`. Raises BadAnswer."""
    results = _decode(body, _Versions).results
    return RegistrarVersions(results.current_version, results.supported_versions)


def encode_registration(registration: Registration) -> bytes:
    """Encode the body that registers a node."""
    return msgspec.json.encode(
        RegistrationBody(
            aik_tpm=base64.b64encode(registration.ak_public).decode("ascii"),
            ek_tpm=base64.b64encode(registration.ek_public).decode("ascii"),
            ekcert=registration.ek_certificates,
            iak_cert=None,
            idevid_cert=None,
            ip=registration.ip,
            mtls_cert=registration.server_certificate,
            port=registration.port,
        )
    )


def decode_challenge(body: bytes) -> bytes:
    """Decode the answer to a registration: the credential blob. Raises BadAnswer."""
    try:
        return base64.b64decode(_decode(body, _Challenge).results.blob, validate=True)
    except (binascii.Error, ValueError) as problem:
        raise BadAnswer("unreadable answer: the blob is not base64") from problem


def encode_proof(auth_tag: str) -> bytes:
    """Encode the body that activates a node."""
    return msgspec.json.encode(ActivationBody(auth_tag))
