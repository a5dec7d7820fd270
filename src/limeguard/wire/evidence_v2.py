"""Evidence that is verified on request: every JSON key of `POST /v2/verify/evidence`, both ways.

Decides what a well-formed request is and how the outcome is spelled; whether evidence is good is decided elsewhere.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from limeguard.wire.envelope import BadRequest, envelope

VERIFY_EVIDENCE: Final = "/v2/verify/evidence"

NO_POLICY: Final = "at least one policy (tpm_policy, runtime_policy, or mb_policy) must be provided"
_TPM_NEEDS: Final = ("quote", "nonce", "hash_alg", "tpm_ek", "tpm_ak")
_TEE_NEEDS: Final = ("tee-evidence", "nonce", "tee-pubkey-x-b64", "tee-pubkey-y-b64")


class Failure(msgspec.Struct, frozen=True):
    """One thing that is wrong: the event's id, and what is known of it."""

    type: str
    context: Mapping[str, Any]


class EvidenceResult(msgspec.Struct, frozen=True):
    """`results`: `claims` is the `data` of the request when the evidence is valid, and empty when it is not."""

    valid: bool
    claims: msgspec.Raw | Mapping[str, Any]
    failures: tuple[Failure, ...] = ()


class TpmEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """`data` of the type `tpm`. Policies are JSON in a text; an object is taken as well. Other members are ignored."""

    quote: str
    nonce: str
    hash_alg: str
    tpm_ek: str
    tpm_ak: str
    tpm_policy: str | dict[str, Any] | None = None
    runtime_policy: str | dict[str, Any] | None = None
    mb_policy: str | dict[str, Any] | None = None
    ima_measurement_list: str | None = None
    mb_log: str | None = None


class TeeEvidence(msgspec.Struct, frozen=True):
    """`data` of the type `tee`: which kind of trusted execution environment it is from."""

    tee: str


class EvidenceRequest(msgspec.Struct, frozen=True):
    """The body, for the description of the interface."""

    type: str
    data: dict[str, Any]


class MissingParameter(Exception):  # noqa: N818 - an answer, not a fault
    """A member that the type of evidence needs is missing or empty."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(name)
        self.kind, self.name = kind, name

    @property
    def failure(self) -> Mapping[str, Any]:
        """What the answer says of it."""
        return {"message": f'missing parameter "{self.name}"'}


Decoded = TpmEvidence | TeeEvidence


def decode_evidence(body: bytes) -> tuple[Decoded, msgspec.Raw]:
    """Read a request: the evidence, and its `data` as it was sent. Raises BadRequest, MissingParameter."""
    try:
        members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        for name in ("type", "data"):
            if name not in members:
                raise BadRequest(f"missing parameter '{name}'")
        kind, data = msgspec.json.decode(members["type"]), msgspec.json.decode(members["data"])
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as problem:
        raise BadRequest(f"Exception error: {problem}") from None
    if not isinstance(kind, str) or kind not in {"tpm", "tee"}:
        raise BadRequest("invalid evidence type")
    if not isinstance(data, dict):
        raise BadRequest("Exception error: data is not an object")
    return (_tpm(data) if kind == "tpm" else _tee(data)), members["data"]


def _tpm(data: dict[str, Any]) -> TpmEvidence:
    _need(data, "tpm", _TPM_NEEDS)
    try:
        return msgspec.convert(data, TpmEvidence, strict=True)
    except (msgspec.ValidationError, RecursionError) as problem:
        raise BadRequest(f"Exception error: {problem}") from None


def _tee(data: dict[str, Any]) -> TeeEvidence:
    _need(data, "tee", _TEE_NEEDS)
    inner = data["tee-evidence"]
    tee = inner.get("tee") if isinstance(inner, dict) else None
    if not isinstance(tee, str) or not tee:
        raise MissingParameter("tee", "tee")
    return TeeEvidence(tee)


def _need(data: dict[str, Any], kind: str, names: Sequence[str]) -> None:
    for name in names:
        if not data.get(name):
            raise MissingParameter(kind, name)


def policy_text(policy: str | dict[str, Any] | None) -> str:
    """Return a policy as text, "" where none was given."""
    if isinstance(policy, dict):
        return msgspec.json.encode(policy).decode() if policy else ""
    return policy or ""


def nonces(text: str) -> tuple[bytes, ...]:
    """Return what a nonce may stand for: itself, or the bytes that it is the base64 of."""
    plain = text.encode()
    try:
        return plain, base64.b64decode(text, validate=True)
    except ValueError:
        return (plain,)


def encode_result(result: EvidenceResult) -> bytes:
    """Encode the outcome of a verification."""
    return envelope(200, "Success", result)


def encode_incomplete(failure: Failure) -> bytes:
    """Encode the answer to a request that lacks something."""
    return envelope(400, "Bad Request", EvidenceResult(valid=False, claims={}, failures=(failure,)))
