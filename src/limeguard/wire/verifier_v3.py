"""The verifier's HTTP interface, version 3, sessions: how agents that push prove who they are and get a token.

Decides what a well-formed message is and how answers are spelled. Must not know which agents exist or what a proof is
worth. Keylime REST API, verifier, push model.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from limeguard.wire.jsonapi import NotADocument, decode_resource

ROOT: Final = "/v3"
SESSIONS: Final = "/v3/sessions"
SESSION: Final = "/v3/sessions/{session_id}"
ATTESTATIONS: Final = "/v3/agents/{agent_id}/attestations"
LATEST_ATTESTATION: Final = "/v3/agents/{agent_id}/attestations/latest"
ATTESTATION: Final = "/v3/agents/{agent_id}/attestations/{index}"

NO_AGENT_ID: Final = "agent_id is required"
BAD_AGENT_ID: Final = "agent_id is not a valid identifier"
NO_POP: Final = "authentication_supported must include tpm_pop authentication type"
UNKNOWN_SESSION: Final = "Session not found"
OTHER_AGENT: Final = "Agent ID mismatch"
TOO_MANY: Final = "Rate limit exceeded. Please try again later."
TOO_MANY_OF_AGENT: Final = "Rate limit exceeded for this agent. Please try again later."

NO_TOKEN: Final = "Invalid authentication token"  # noqa: S105 - a sentence
TOKEN_NOT_ACTIVE: Final = "Authentication session not active"  # noqa: S105
TOKEN_EXPIRED: Final = "Authentication token expired"  # noqa: S105

POP_CLASS: Final = "pop"
POP_TYPE: Final = "tpm_pop"
SESSION_TYPE: Final = "session"
PASS: Final = "pass"  # noqa: S105 - a word of the wire
FAIL: Final = "fail"
MAX_OFFERS: Final = 32
MAX_PROOF: Final = 8 * 1024
"""Characters of one part of a proof; a certification has about 200, a signature 700 at most."""


@dataclass(frozen=True, slots=True)
class Opening:
    """A request for a session: for which agent, and whether it can prove possession of its attestation key."""

    agent_id: str | None
    offers_possession: bool


@dataclass(frozen=True, slots=True)
class Provided:
    """A proof of possession as sent: base64 texts, empty where the member is missing."""

    agent_id: str | None
    message: str
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionView:
    """What an answer about a session says. Times are seconds since 1970; what is None is left out."""

    session_id: str
    agent_id: str
    challenge: str
    created_at: float
    challenges_expire_at: float
    provided: Provided | None = None
    received_at: float | None = None
    passed: bool = False
    token: str | None = field(default=None, repr=False)
    token_expires_at: float | None = None
    expired: bool = False


class Method(msgspec.Struct, frozen=True):
    """A way of authentication."""

    authentication_type: str = ""
    authentication_class: str = ""


class ProofData(msgspec.Struct, frozen=True):
    """The two parts of a proof, base64."""

    message: str = ""
    signature: str = ""


class GivenProof(msgspec.Struct, frozen=True):
    """A proof as an agent sends it."""

    authentication_type: str = ""
    authentication_class: str = ""
    data: ProofData = ProofData()


class SessionRequestAttributes(msgspec.Struct, frozen=True):
    """`attributes` of a request about a session."""

    agent_id: str | None = None
    authentication_supported: tuple[Method, ...] = ()
    authentication_provided: tuple[GivenProof, ...] = ()


class SessionRequestResource(msgspec.Struct, frozen=True):
    """`data` of a request about a session."""

    type: str
    attributes: SessionRequestAttributes = SessionRequestAttributes()


class SessionRequest(msgspec.Struct, frozen=True):
    """A request about a session."""

    data: SessionRequestResource


class Challenge(msgspec.Struct, frozen=True):
    """Base64 of what the TPM is to sign."""

    challenge: str


class RequestedProof(msgspec.Struct, frozen=True):
    """A challenge, and how to answer it."""

    chosen_parameters: Challenge
    authentication_class: str = POP_CLASS
    authentication_type: str = POP_TYPE


class ShownProof(msgspec.Struct, frozen=True):
    """A challenge and the answer to it."""

    chosen_parameters: Challenge
    data: ProofData
    authentication_class: str = POP_CLASS
    authentication_type: str = POP_TYPE


class SessionAttributes(msgspec.Struct, frozen=True, kw_only=True):
    """`attributes` of an answer about a session."""

    agent_id: str
    evaluation: str | UnsetType = UNSET
    token: str | UnsetType = UNSET
    authentication_requested: tuple[RequestedProof, ...] | UnsetType = UNSET
    authentication: tuple[ShownProof, ...] | UnsetType = UNSET
    created_at: str
    challenges_expire_at: str
    response_received_at: str | UnsetType = UNSET
    token_expires_at: str | UnsetType | None = UNSET

    def __repr__(self) -> str:
        """Tell nothing: it may hold a token."""
        return "SessionAttributes(...)"


class SessionResource(msgspec.Struct, frozen=True):
    """`data` of an answer about a session."""

    type: str
    id: str
    attributes: SessionAttributes


class SessionDocument(msgspec.Struct, frozen=True):
    """An answer about a session."""

    data: SessionResource


@lru_cache(maxsize=4096)  # each time of an attestation stands in several answers
def timestamp(at: float) -> str:
    """Return seconds since 1970 as the wire spells them."""
    return datetime.fromtimestamp(at, UTC).isoformat()


def decode_opening(body: bytes, *, strict: bool) -> Opening:
    """Read a request for a session; `strict` holds it to the members of JSON:API. Raises NotADocument."""
    attributes = _attributes(body, strict=strict)
    offered = attributes.authentication_supported[:MAX_OFFERS]
    return Opening(attributes.agent_id or None, any(one.authentication_type == POP_TYPE for one in offered))


def decode_provided(body: bytes, *, strict: bool) -> Provided:
    """Read a proof of possession; what is missing reads as empty. Raises NotADocument."""
    attributes = _attributes(body, strict=strict)
    agent_id = attributes.agent_id or None
    first = attributes.authentication_provided[0] if attributes.authentication_provided else None
    if first is None or first.authentication_type != POP_TYPE:
        return Provided(agent_id, "", "")
    if max(len(first.data.message), len(first.data.signature)) > MAX_PROOF:
        raise NotADocument("a part of the proof is too long")
    return Provided(agent_id, first.data.message, first.data.signature)


def _attributes(body: bytes, *, strict: bool) -> SessionRequestAttributes:
    if strict:
        decode_resource(body)
    try:
        plain = msgspec.json.decode(body, type=SessionRequest).data
    except (msgspec.DecodeError, RecursionError, UnicodeError) as problem:
        raise NotADocument(str(problem)) from None
    if plain.type != SESSION_TYPE:
        raise NotADocument(f"type is not {SESSION_TYPE}")
    return plain.attributes


def encode_opened(view: SessionView) -> bytes:
    """Encode the answer that carries a challenge."""
    attributes = SessionAttributes(
        agent_id=view.agent_id,
        authentication_requested=(RequestedProof(Challenge(view.challenge)),),
        created_at=timestamp(view.created_at),
        challenges_expire_at=timestamp(view.challenges_expire_at),
    )
    return _document(view, attributes)


def encode_evaluated(view: SessionView) -> bytes:
    """Encode the answer to a proof, good or bad."""
    provided = view.provided or Provided(view.agent_id, "", "")
    token_expires_at: str | UnsetType | None = UNSET
    if view.passed and view.token_expires_at is not None:
        token_expires_at = timestamp(view.token_expires_at)
    elif view.expired:
        token_expires_at = None
    attributes = SessionAttributes(
        agent_id=view.agent_id,
        evaluation=PASS if view.passed else FAIL,
        token=view.token if view.passed and view.token is not None else UNSET,
        authentication=(ShownProof(Challenge(view.challenge), ProofData(provided.message, provided.signature)),),
        created_at=timestamp(view.created_at),
        challenges_expire_at=timestamp(view.challenges_expire_at),
        response_received_at=timestamp(view.created_at if view.received_at is None else view.received_at),
        token_expires_at=token_expires_at,
    )
    return _document(view, attributes)


def _document(view: SessionView, attributes: SessionAttributes) -> bytes:
    return msgspec.json.encode(SessionDocument(SessionResource(SESSION_TYPE, view.session_id, attributes)))
