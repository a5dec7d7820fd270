"""What each route of the registrar takes and gives, for its OpenAPI description."""

from collections.abc import Mapping
from typing import Final

from limeguard.web.openapi import DESCRIPTION, Body, Operation
from limeguard.wire import registrar_v2 as wire
from limeguard.wire.envelope import Envelope, Nothing

Answers = dict[int, tuple[str, Body]]

_OUTAGE: Final[Answers] = {503: ("The database cannot be used now", Envelope[Nothing])}
_INVALID: Final[Answers] = {400: ("The request is not valid", Envelope[Nothing]), **_OUTAGE}
_NOT_ADMIN: Final[Answers] = {403: ("The caller has no client certificate", None), **_OUTAGE}
_NO_NODE: Final[Answers] = {404: ("There is no such registration", Envelope[Nothing]), **_INVALID}

_REGISTER: Final = Operation(
    "Register a node and get a challenge",
    {
        200: ("The challenge", Envelope[wire.ChallengeResults]),
        403: ("The id belongs to another TPM", Envelope[Nothing]),
        **_INVALID,
    },
    request=wire.RegistrationBody,
)
_ACTIVATE: Final = Operation(
    "Answer the challenge", {200: ("The node is active", Envelope[Nothing]), **_NO_NODE}, request=wire.ActivationBody
)
_LIST: Final = Operation("List all ids, activated or not", {200: ("The ids", Envelope[wire.IdsResults]), **_NOT_ADMIN})
_READ: Final = Operation(
    "Read the registration of an active node",
    {200: ("The registration", Envelope[wire.RecordResults]), **_NO_NODE, **_NOT_ADMIN},
)
_DELETE: Final = Operation("Remove a registration", {200: ("It is gone", Envelope[Nothing]), **_NO_NODE, **_NOT_ADMIN})

OPERATIONS: Final[Mapping[tuple[str, str], Operation]] = {
    ("GET", wire.VERSION): Operation("Read the API versions", {200: ("The versions", Envelope[wire.VersionResults])}),
    ("GET", wire.ROOT_V3): Operation("Find out whether version 3 is there", {200: ("It is", Envelope[Nothing])}),
    ("POST", wire.NODES): _REGISTER,
    ("POST", wire.NODE): _REGISTER,
    ("POST", wire.NODES_V3): _REGISTER,
    ("PUT", wire.NODE): _ACTIVATE,
    ("PUT", wire.ACTIVATE): _ACTIVATE,
    ("POST", wire.ACTIVATE): _ACTIVATE,
    ("POST", wire.ACTIVATE_V3): _ACTIVATE,
    ("GET", wire.NODES): _LIST,
    ("GET", wire.NODES_V3): _LIST,
    ("GET", wire.NODE): _READ,
    ("GET", wire.NODE_V3): _READ,
    ("DELETE", wire.NODE): _DELETE,
    ("DELETE", wire.NODE_V3): _DELETE,
    ("GET", DESCRIPTION): Operation("Read this description", {200: ("An OpenAPI document", None), **_NOT_ADMIN}),
}
"""One entry for each route; a route without entry cannot start."""
