"""Our own read interface about nodes, version 1: what a person or a page wants to know, spelled once.

Decides how it is spelled. Must not know how conditions come about: they are handed in, computed for the time of asking.
Times are seconds since 1970; null is never.
"""

from typing import Final, TypeVar

import msgspec

NODES: Final = "/limeguard/v1/nodes"
NODE: Final = "/limeguard/v1/nodes/{agent_id}"


class FindingView(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was wrong, and what to do about it. `event_id` is the id that Keylime's users match on."""

    id: str
    event_id: str
    severity: str
    found_at: float
    context: dict[str, object]
    advice: str


class Checks(msgspec.Struct, frozen=True):
    """Which checks the last appraised round required, and which of them ran."""

    required: tuple[str, ...]
    ran: tuple[str, ...]


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """One node at the time of asking.

    `identity_only`: the TPM's identity is proven, nothing about software. `push`: the node attests by itself.
    """

    id: str
    condition: str
    integrity: str
    reachability: str
    phase: str
    identity_only: bool
    trust_expires_at: float | None
    last_answer_at: float | None
    last_trusted_at: float | None
    attestation_count: int
    failed_attempts: int
    findings: tuple[FindingView, ...]
    checks: Checks
    ip: str | None
    port: int | None
    agent_api_version: str
    verifier_id: str
    enrolled_at: float
    push: bool = False


class NodeSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the list of nodes."""

    id: str
    condition: str
    integrity: str
    reachability: str
    trust_expires_at: float | None
    last_event_id: str | None


class NodeList(msgspec.Struct, frozen=True):
    """The list of nodes, ordered by id, with how many there are in each condition."""

    counts: dict[str, int]
    nodes: tuple[NodeSummary, ...]


class Problem(msgspec.Struct, frozen=True):
    """Why there is no answer."""

    error: str


def encode(document: NodeView | NodeList | Problem) -> bytes:
    """Encode one of this module's documents."""
    return msgspec.json.encode(document)


class UnreadableViewError(ValueError):
    """An answer that is no document of this module."""


def decode_node(body: bytes) -> NodeView:
    """Read one node. Raises UnreadableViewError."""
    return _decode(body, NodeView)


def decode_nodes(body: bytes) -> NodeList:
    """Read the list of nodes. Raises UnreadableViewError."""
    return _decode(body, NodeList)


T = TypeVar("T")


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise UnreadableViewError(f"not what version 1 of the interface says: {problem}") from None


def context_of(text: str) -> dict[str, object]:
    """Decode the JSON text of a finding's context; text that is no object stands as a message."""
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        value = text
    return value if isinstance(value, dict) else {"message": value}
