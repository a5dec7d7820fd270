"""What each route of version 3 takes and gives, for the generated description of the interface (OpenAPI)."""

from collections.abc import Mapping
from typing import Final

from limeguard.web.openapi import Body, Operation
from limeguard.wire import verifier_v3
from limeguard.wire.attestation_v3 import AttestationDocument, AttestationList
from limeguard.wire.jsonapi import Errors, RequestDocument
from limeguard.wire.verifier_v3 import SessionDocument, SessionRequest

_Responses = Mapping[int, tuple[str, Body]]

_MALFORMED: Final[_Responses] = {400: ("The body is no document, or lacks what it must say.", None)}
_NOT_NOW: Final[_Responses] = {
    429: ("Too early or too often; Retry-After says when to come again.", Errors),
    503: ("Not now; Retry-After says when to come again.", Errors),
}
_AGENTS_ALONE: Final[_Responses] = {
    401: ("The token is not valid.", None),
    403: ("The caller may not do this, or the message is not in order.", Errors),
    415: ("The body is not called application/vnd.api+json.", None),
    422: ("The attributes cannot be taken; each error points to one.", Errors),
}
_UNKNOWN: Final[_Responses] = {404: ("No such node or attestation.", Errors)}
_READ: Final[_Responses] = {200: ("The attestation.", AttestationDocument), **_UNKNOWN, 403: ("Not allowed.", None)}
_SUBMIT: Final = Operation(
    "Takes evidence for an attestation; the verdict follows later.",
    {202: ("Taken.", AttestationDocument), **_MALFORMED, **_UNKNOWN, **_AGENTS_ALONE, **_NOT_NOW},
    request=RequestDocument,
)

PUSH_OPERATIONS: Final[Mapping[tuple[str, str], Operation]] = {
    ("POST", verifier_v3.SESSIONS): Operation(
        "Opens a session: gives out a challenge.",
        {200: ("The challenge.", SessionDocument), **_MALFORMED, **_NOT_NOW},
        request=SessionRequest,
    ),
    ("PATCH", verifier_v3.SESSION): Operation(
        "Takes the proof that an agent has its attestation key, and gives out a token.",
        {
            200: ("The outcome; with a token when it is good.", SessionDocument),
            **_MALFORMED,
            401: ("The proof is not good.", SessionDocument),
            404: ("No session waits for a proof under this id.", None),
        },
        request=SessionRequest,
    ),
    ("GET", verifier_v3.ATTESTATIONS): Operation(
        "Lists what is kept of a node's attestations.",
        {200: ("The attestations.", AttestationList), **_UNKNOWN, 403: ("Not allowed.", None)},
    ),
    ("POST", verifier_v3.ATTESTATIONS): Operation(
        "Takes what an agent offers as evidence, and asks for some of it.",
        {
            201: ("What is asked for; Location says where to send it.", AttestationDocument),
            **_MALFORMED,
            **_UNKNOWN,
            **_AGENTS_ALONE,
            409: ("Another attestation is just being created.", Errors),
            **_NOT_NOW,
        },
        request=RequestDocument,
    ),
    ("GET", verifier_v3.LATEST_ATTESTATION): Operation("Returns a node's latest attestation.", _READ),
    ("PATCH", verifier_v3.LATEST_ATTESTATION): _SUBMIT,
    ("GET", verifier_v3.ATTESTATION): Operation("Returns one attestation of a node.", _READ),
    ("PATCH", verifier_v3.ATTESTATION): _SUBMIT,
}
