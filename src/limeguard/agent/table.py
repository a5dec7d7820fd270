"""Which operation a request to the agent names, or the exact refusal. Pure: method and path in, a value out.

The refusals are part of the protocol: clients look for their texts (Keylime REST API, agent).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from limeguard.wire.versions import UNSUPPORTED, is_older


class Operation(Enum):
    """What a request asks for."""

    VERSION = "version"
    PUBKEY = "pubkey"
    VERIFY = "verify"
    UKEY = "ukey"
    VKEY = "vkey"
    IDENTITY = "identity"
    INTEGRITY = "integrity"
    INFO = "info"
    REVOCATION = "revocation"


@dataclass(frozen=True, slots=True)
class Found:
    """An operation, and the API version in the path ("" for `/version`)."""

    operation: Operation
    version: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to a request that names no operation. An empty text means an empty body."""

    status: int
    text: str
    allow: str | None = None


_OPERATIONS: Mapping[str, tuple[str, Operation]] = {
    "/keys/pubkey": ("GET", Operation.PUBKEY),
    "/keys/verify": ("GET", Operation.VERIFY),
    "/keys/ukey": ("POST", Operation.UKEY),
    "/keys/vkey": ("POST", Operation.VKEY),
    "/quotes/identity": ("GET", Operation.IDENTITY),
    "/quotes/integrity": ("GET", Operation.INTEGRITY),
    "/agent/info": ("GET", Operation.INFO),
    "/notifications/revocation": ("POST", Operation.REVOCATION),
}
_SINCE: Mapping[str, str] = {"agent": "2.2"}
"""Sections that older API versions do not have."""


@dataclass(frozen=True, slots=True)
class _Section:
    """How unknown paths below one section are refused: the texts for the methods it has, and for the others."""

    unknown: Mapping[str, str]
    other: str


_SECTIONS: Mapping[str, _Section] = {
    "keys": _Section(
        {
            "GET": "URI not supported, only /pubkey and /verify are supported for GET in /keys interface",
            "POST": "URI not supported, only /ukey and /vkey are supported for POST in /keys interface",
        },
        "Method is not supported in /keys interface",
    ),
    "quotes": _Section(
        {"GET": "URI not supported, only /identity and /integrity are supported for GET in /quotes/ interface"},
        "Method is not supported in /quotes/ interface",
    ),
    "agent": _Section(
        {"GET": "URI not supported, only /info is supported for GET in /agent interface"},
        "Method is not supported in /agent interface",
    ),
    "notifications": _Section(
        {"POST": "URI not supported, only /revocation is supported for POST in /notifications/ interface"},
        "Method is not supported in /notifications/ interface",
    ),
}
_VERSION_ROOT = _Section(
    {
        "GET": "Not Implemented: Use /agent, /keys, or /quotes interfaces",
        "POST": "Not Implemented: Use /keys or /notifications interfaces",
    },
    "Method is not supported",
)
_VERSIONED = re.compile(r"/v([0-9]{1,6})\.([0-9]{1,6})(/.*)?", re.DOTALL)


def resolve(method: str, path: str, versions: Sequence[str]) -> Found | Refusal:
    """Say what the request asks for. `versions` are the enabled API versions, such as "2.6", oldest first."""
    if path == "/version":
        return _named(method, "GET", Found(Operation.VERSION, ""))
    versioned = _VERSIONED.fullmatch(path)
    if versioned is None:
        enabled = ", ".join(f"/{version}" for version in versions)
        text = f"Not Implemented: Use {enabled} or /version interfaces"
        return _refuse(_Section({"GET": text, "POST": text}, "Method is not supported"), method)
    version = f"{versioned[1]}.{versioned[2]}"
    if version not in versions:
        return Refusal(400, f"{UNSUPPORTED}: v{version}")
    rest = versioned[3] or "/"
    section = rest.split("/")[1]
    if section not in _SECTIONS or is_older(version, _SINCE.get(section, "0.0")):
        return _refuse(_VERSION_ROOT, method)
    if rest in _OPERATIONS:
        allowed, operation = _OPERATIONS[rest]
        return _named(method, allowed, Found(operation, version))
    return _refuse(_SECTIONS[section], method)


def _named(method: str, allowed: str, found: Found) -> Found | Refusal:
    return found if method == allowed else Refusal(405, "", allowed)


def _refuse(section: _Section, method: str) -> Refusal:
    text = section.unknown.get(method)
    return Refusal(400, text) if text else Refusal(405, section.other, ", ".join(section.unknown))
