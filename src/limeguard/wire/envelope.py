"""The envelope of version 2 messages: `{"code": 200, "status": "Success", "results": {}}`; `code` as in HTTP."""

import json
from typing import Final, Generic, TypeVar

import msgspec

T = TypeVar("T")

SUCCESS: Final = "Success"


class BadRequest(ValueError):  # noqa: N818 - named as HTTP names it
    """A message that cannot be taken; `status_text` is what the peer is told."""

    def __init__(self, status_text: str, code: int = 400) -> None:
        super().__init__(status_text)
        self.status_text = status_text
        self.code = code


class Envelope(msgspec.Struct, Generic[T], frozen=True):
    """Every answer of the version 2 interfaces, over the type of its payload."""

    code: int
    status: str
    results: T


class Nothing(msgspec.Struct, frozen=True):
    """The empty payload of a success that says no more, or of an error whose text stands in `status`."""


_ENCODER = msgspec.json.Encoder()


def envelope(code: int, status: str, results: object) -> bytes:
    """Encode an answer."""
    return _ENCODER.encode(Envelope(code, status, results))


def error(code: int, status: str) -> bytes:
    """Encode an answer without payload.

    With blanks, as peers write it: tenants show such a body as it came, and scripts look for its text.
    """
    return json.dumps({"code": code, "status": status, "results": {}}).encode()
