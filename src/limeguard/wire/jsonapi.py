"""JSON:API as version 3 of the verifier speaks it: the media type, the members of a document, errors with pointers.

Decides whether a body is a document at all. Must not know what its attributes mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

MEDIA_TYPE: Final = "application/vnd.api+json"
ANSWER_TYPE: Final = "application/json; charset=UTF-8"
"""What answers say; peers read JSON by it, and would not know the media type of JSON:API."""
NULL: Final = b"null"
ATTRIBUTES: Final = "/data/attributes"


class NotADocument(ValueError):  # noqa: N818 - named for what it says of the body
    """The body breaks a rule of JSON:API. It is answered with a bare 400."""


class Version(msgspec.Struct, frozen=True):
    """The member `jsonapi` of answers."""

    version: str = "1.1"


class Links(msgspec.Struct, frozen=True):
    """The member `links`: the path that was asked for, or that of a resource."""

    self: str


class Resource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The member `data` of a request."""

    type: str
    attributes: dict[str, Raw]
    id: str | UnsetType = UNSET
    links: Raw | UnsetType = UNSET
    meta: Raw | UnsetType = UNSET


class RequestDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of a request."""

    data: Resource
    errors: Raw | UnsetType = UNSET
    meta: Raw | UnsetType = UNSET
    links: Raw | UnsetType = UNSET
    jsonapi: Raw | UnsetType = UNSET


class Source(msgspec.Struct, frozen=True):
    """Where in the request the problem is."""

    pointer: str


class ErrorObject(msgspec.Struct, frozen=True, omit_defaults=True):
    """One error of an answer."""

    status: str
    code: str
    detail: str
    source: Source | None = None


class Errors(msgspec.Struct, frozen=True):
    """An answer that refuses."""

    errors: tuple[ErrorObject, ...]
    links: Links
    jsonapi: Version = Version()


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the attributes of a request: where, below the attributes, and the words for it."""

    pointer: str
    message: str

    @property
    def detail(self) -> str:
        """The sentence for people; it names the first member of the pointer only, as deployed servers do."""
        return f"Attribute '{self.pointer.split('/')[1]}' {self.message}."


_decode = msgspec.json.Decoder(RequestDocument).decode
_encode = msgspec.json.Encoder().encode


def decode_resource(body: bytes) -> Resource:
    """Return the resource of a request's document. Raises NotADocument."""
    try:
        resource = _decode(body).data
    except (msgspec.DecodeError, RecursionError, UnicodeError) as problem:
        raise NotADocument(str(problem)) from None
    for name, value in resource.attributes.items():
        if bytes(value) == NULL:
            raise NotADocument(f"attribute {name[:40]!r} is null")
    return resource


def encode_error(status: int, code: str, detail: str, path: str) -> bytes:
    """Encode a refusal with one error that points nowhere."""
    return _encode(Errors((ErrorObject(str(status), code, detail),), Links(path)))


def encode_problems(problems: Sequence[Problem], path: str) -> bytes:
    """Encode the refusal of attributes (422), one error for each problem."""
    errors = tuple(
        ErrorObject("422", "invalid_resource_data", one.detail, Source(ATTRIBUTES + one.pointer)) for one in problems
    )
    return _encode(Errors(errors, Links(path)))
