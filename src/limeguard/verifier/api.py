"""What each route of the verifier takes and gives, for the generated description of the interface (OpenAPI)."""

from collections.abc import Mapping
from typing import Final

import msgspec

from limeguard.verifier.push.api import PUSH_OPERATIONS
from limeguard.web.openapi import DESCRIPTION, Body, Operation
from limeguard.wire import limeguard_v1, verifier_v2
from limeguard.wire.envelope import Envelope, Nothing
from limeguard.wire.evidence_v2 import VERIFY_EVIDENCE, EvidenceRequest, EvidenceResult
from limeguard.wire.verifier_v2 import (
    AgentIds,
    AgentStatus,
    BootPolicyAnswer,
    BootPolicyNames,
    BootPolicyUpload,
    EnrolmentRequest,
    IdentityResult,
    RuntimePolicyAnswer,
    RuntimePolicyNames,
    RuntimePolicyUpload,
)


class Versions(msgspec.Struct, frozen=True):
    """API versions that the server advertises."""

    current_version: str
    supported_versions: tuple[str, ...]


class BulkAnswer(msgspec.Struct, frozen=True):
    """Statuses of nodes by id in the envelope."""

    code: int
    status: str
    results: dict[str, AgentStatus]


_Responses = Mapping[int, tuple[str, Body]]

_DONE: Final[_Responses] = {200: ("Done.", Envelope[Nothing])}
_REFUSED: Final[_Responses] = {400: ("The request cannot be taken; the status text says why.", Envelope[Nothing])}
_UNKNOWN: Final[_Responses] = {404: ("No such node.", Envelope[Nothing])}
_FORBIDDEN: Final[_Responses] = {403: ("The caller may not do this.", None)}
_BROKEN: Final[_Responses] = {500: ("The database cannot be used now.", Envelope[Nothing])}
_USUAL: Final[_Responses] = {**_REFUSED, **_FORBIDDEN, **_BROKEN}
_NO_POLICY: Final[_Responses] = {404: ("No such policy.", Envelope[Nothing]), **_FORBIDDEN}

_STORED_BOOT: Final[_Responses] = {201: ("Stored.", Envelope[Nothing]), **_USUAL}
_VERSIONS: Final[_Responses] = {
    200: ("The versions.", Envelope[Versions]),
    410: ("The verifier's mode is push: version 3 is what agents use.", Envelope[Nothing]),
}
_STORED: Final[_Responses] = {
    **_STORED_BOOT,
    401: ("Its signature is missing or bad.", Envelope[Nothing]),
}

OPERATIONS: Final[Mapping[tuple[str, str], Operation]] = {
    **PUSH_OPERATIONS,
    ("GET", "/"): Operation("Points to the newest version.", {307: ("See the Location header.", None)}),
    ("GET", verifier_v2.ROOT): Operation("Says that version 2 is served.", _DONE),
    ("GET", "/v3"): Operation("Says that version 3 is known.", _DONE),
    ("GET", "/version"): Operation("Lists the API versions.", _VERSIONS),
    ("GET", "/versions"): Operation("Lists the API versions.", _VERSIONS),
    ("GET", verifier_v2.NODES): Operation(
        "Lists nodes.",
        {
            200: ("Ids, or statuses by id.", (Envelope[AgentIds], BulkAnswer)),
            **_FORBIDDEN,
            **_BROKEN,
        },
        query={"verifier": "Only nodes of this verifier id.", "bulk": "Any value: full statuses instead of ids."},
    ),
    ("GET", verifier_v2.NODE): Operation(
        "Returns a node's status.", {200: ("The status.", Envelope[AgentStatus]), **_UNKNOWN, **_USUAL}
    ),
    ("POST", verifier_v2.NODE): Operation(
        "Enrols a node and begins to supervise it.",
        {**_DONE, **_USUAL, 409: ("The node is enrolled already.", Envelope[Nothing])},
        request=EnrolmentRequest,
    ),
    ("DELETE", verifier_v2.NODE): Operation(
        "Deletes a node.",
        {
            **_DONE,
            202: ("It will be gone when the running request to it has ended.", Envelope[Nothing]),
            **_UNKNOWN,
            **_USUAL,
        },
    ),
    ("PUT", verifier_v2.REACTIVATE): Operation("Supervises a node afresh.", {**_DONE, **_USUAL}),
    ("PUT", verifier_v2.STOP): Operation("Leaves a node alone until it is reactivated.", {**_DONE, **_USUAL}),
    ("GET", verifier_v2.VERIFY_IDENTITY): Operation(
        "Checks that a node's attestation key signed a quote.",
        {200: ("The outcome.", Envelope[IdentityResult]), **_REFUSED, **_UNKNOWN},
        query={
            "agent_uuid": "Id of an enrolled node.",
            "quote": "The quote.",
            "nonce": "The nonce that it was made over.",
            "hash_alg": "The hash algorithm of its signature.",
        },
    ),
    ("POST", VERIFY_EVIDENCE): Operation(
        "Verifies evidence that the caller brings, by policies that the caller brings. Nothing is stored.",
        {
            200: ("The outcome, with everything that is wrong.", Envelope[EvidenceResult]),
            400: ("The request cannot be taken, or lacks something.", (Envelope[Nothing], Envelope[EvidenceResult])),
            500: ("Our own fault; it says nothing about the evidence.", Envelope[Nothing]),
            503: ("Too many verifications are waiting.", Envelope[Nothing]),
        },
        request=EvidenceRequest,
    ),
    ("GET", limeguard_v1.NODES): Operation(
        "Lists nodes as people want to know them.", {200: ("The nodes.", limeguard_v1.NodeList), **_FORBIDDEN}
    ),
    ("GET", limeguard_v1.NODE): Operation(
        "Returns a node with its condition, findings and advice.",
        {200: ("The node.", limeguard_v1.NodeView), 404: ("No such node.", limeguard_v1.Problem), **_FORBIDDEN},
    ),
    ("GET", "/healthz"): Operation("Says that the process lives.", {200: ("It does.", None)}),
    ("GET", "/readyz"): Operation(
        "Says whether requests should come here.", {200: ("They should.", None), 503: ("Why they should not.", None)}
    ),
    ("GET", "/metrics"): Operation(
        "Returns metrics as Prometheus reads them.", {200: ("The metrics.", None), **_FORBIDDEN}
    ),
    ("GET", DESCRIPTION): Operation("Returns this description.", {200: ("OpenAPI 3.1.", None), **_FORBIDDEN}),
    ("GET", verifier_v2.RUNTIME_POLICIES): Operation(
        "Lists runtime policies.", {200: ("Their names.", Envelope[RuntimePolicyNames]), **_FORBIDDEN}
    ),
    ("GET", verifier_v2.RUNTIME_POLICY): Operation(
        "Returns a runtime policy.",
        {200: ("The policy as it was uploaded.", Envelope[RuntimePolicyAnswer]), **_NO_POLICY},
    ),
    ("POST", verifier_v2.RUNTIME_POLICY): Operation(
        "Stores a runtime policy.",
        {**_STORED, 409: ("There is one of that name.", Envelope[Nothing])},
        request=RuntimePolicyUpload,
    ),
    ("PUT", verifier_v2.RUNTIME_POLICY): Operation(
        "Replaces a runtime policy; nodes that use it are judged by it from their next answer on.",
        {**_STORED, **_NO_POLICY},
        request=RuntimePolicyUpload,
    ),
    ("DELETE", verifier_v2.RUNTIME_POLICY): Operation(
        "Deletes a runtime policy.",
        {204: ("Done.", None), **_NO_POLICY, 409: ("A node uses it.", Envelope[Nothing])},
    ),
    ("GET", verifier_v2.BOOT_POLICIES): Operation(
        "Lists measured boot policies.", {200: ("Their names.", Envelope[BootPolicyNames]), **_FORBIDDEN}
    ),
    ("GET", verifier_v2.BOOT_POLICY): Operation(
        "Returns a measured boot policy.",
        {200: ("The policy as it was uploaded.", Envelope[BootPolicyAnswer]), **_NO_POLICY},
    ),
    ("POST", verifier_v2.BOOT_POLICY): Operation(
        "Stores a measured boot policy.",
        {**_STORED_BOOT, 409: ("There is one of that name.", Envelope[Nothing])},
        request=BootPolicyUpload,
    ),
    ("PUT", verifier_v2.BOOT_POLICY): Operation(
        "Replaces a measured boot policy; nodes that use it are judged by it from their next answer on.",
        {**_STORED_BOOT, 409: ("There is none of that name.", Envelope[Nothing])},
        request=BootPolicyUpload,
    ),
    ("DELETE", verifier_v2.BOOT_POLICY): Operation(
        "Deletes a measured boot policy.",
        {204: ("Done.", None), **_NO_POLICY, 409: ("A node uses it.", Envelope[Nothing])},
    ),
}
