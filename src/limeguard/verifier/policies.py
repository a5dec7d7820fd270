"""Runtime policies as objects: what may be stored of an upload, and with whose signature.

What a policy allows is decided in `appraisal`; which one a name stands for now, in `shelf`.
"""

import asyncio
import binascii
import hashlib
import json
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from limeguard.policy import dsse
from limeguard.policy.errors import PolicyError
from limeguard.policy.runtime import RuntimePolicy, check_document, compile_document, decode_policy
from limeguard.store.runtime_policies import StoredPolicy
from limeguard.verifier.shelf import PolicyRows, Shelf
from limeguard.wire.envelope import BadRequest

SHOWN_PROBLEMS: Final = 20

NO_KEY: Final = "Runtime policy signature verification required but no key was given!"
BAD_SIGNATURE: Final = "Runtime policy failed DSSE signature verification!"
NOT_SIGNED: Final = "Runtime policy is not signed!"


@dataclass(frozen=True, slots=True)
class Signers:
    """Whose signatures count. `pinned` keys, where there are any, make every other key worthless."""

    required: bool = False
    pinned: tuple[ec.EllipticCurvePublicKey, ...] = ()


@dataclass(frozen=True, slots=True)
class Accepted:
    """A policy that may be stored: its text as uploaded and the policy inside, compiled."""

    text: str
    policy: RuntimePolicy

    def stored(self, name: str, tpm_policy: str | None = None) -> StoredPolicy:
        """Return the row of that name."""
        checksum = hashlib.sha256(self.text.encode("utf-8", "surrogateescape")).hexdigest()
        return StoredPolicy(name, self.text, checksum, int(self.policy.generator), tpm_policy)


def accept(encoded: str, encoded_key: str | None, signers: Signers) -> Accepted:
    """Judge an upload: base64 of a policy or of an envelope around one, and base64 of the key that signed it.

    Raises BadRequest with the wire's texts, and every problem of the policy.
    """
    text = _base64(encoded, "runtime_policy")
    try:
        document = decode_policy(text)
        if dsse.is_envelope(document):
            envelope = dsse.parse_envelope(document)
            _check_signature(envelope, _keys(encoded_key, signers), signers)
            document = decode_policy(envelope.payload)
        elif signers.required:
            raise BadRequest(NOT_SIGNED)
        return Accepted(_text(text), compiled(document, text))
    except PolicyError as problem:
        raise BadRequest(_refusal(problem.problems)) from None


def unwrap(text: str) -> RuntimePolicy:
    """Compile a stored policy; its signature was checked when it came. Raises PolicyError."""
    document = decode_policy(text)
    if dsse.is_envelope(document):
        document = decode_policy(dsse.parse_envelope(document).payload)
    return compiled(document, text.encode("utf-8", "surrogateescape"))


def compiled(document: object, text: bytes) -> RuntimePolicy:
    """Check and compile a decoded policy. Raises PolicyError with all problems."""
    problems = check_document(document)
    if problems or not isinstance(document, dict):
        raise PolicyError(*(f"Runtime policy is malformatted: {problem}" for problem in problems))
    return compile_document(document, hashlib.sha256(text).hexdigest())


def _check_signature(envelope: dsse.Envelope, keys: Sequence[ec.EllipticCurvePublicKey], signers: Signers) -> None:
    if not keys:
        if signers.required:
            raise BadRequest(NO_KEY, 401)
        return  # without any key an envelope is a policy like any other, as Keylime takes it
    if not dsse.verifies(envelope, keys):
        raise BadRequest(BAD_SIGNATURE, 401)


def _keys(encoded: str | None, signers: Signers) -> tuple[ec.EllipticCurvePublicKey, ...]:
    if signers.pinned:
        return signers.pinned
    return (dsse.load_signer(_base64(encoded, "runtime_policy_key")),) if encoded else ()


def _base64(text: str | None, member: str) -> bytes:
    try:
        data = b64decode(text or "", validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data:
        raise BadRequest(f"Exception error: {member} is not base64 of a document")
    return data


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BadRequest("Exception error: the runtime policy is not UTF-8 text") from None


def _refusal(problems: Sequence[str]) -> str:
    more = len(problems) - SHOWN_PROBLEMS
    shown = [*problems[:SHOWN_PROBLEMS], f"and {more} more"] if more > 0 else problems
    return "; ".join(shown).replace("; Runtime policy is malformatted: ", "; ")


class PolicyShelf(Shelf[StoredPolicy, RuntimePolicy]):
    """Runtime policies by name."""

    def __init__(self, rows: PolicyRows[StoredPolicy], signers: Signers | None = None) -> None:
        """Keep what `rows` hold; accept what `signers` demand."""
        super().__init__(rows, lambda row: unwrap(row.text), "Runtime policy")
        self.signers = signers or Signers()

    async def accept(self, encoded: str, key: str | None) -> Accepted:
        """Judge an upload outside of the loop: a large policy takes a second. Raises BadRequest."""
        return await asyncio.to_thread(accept, encoded, key, self.signers)

    async def add(self, name: str, accepted: Accepted, tpm_policy: str | None = None) -> None:
        """Store a new policy. Raises Conflict."""
        await self.add_row(accepted.stored(name, tpm_policy), accepted.policy)

    async def replace(self, name: str, accepted: Accepted, tpm_policy: str | None = None) -> bool:
        """Replace a policy; nodes are judged by the new one from their next answer on. False when there is none."""
        return await self.replace_row(accepted.stored(name, tpm_policy), accepted.policy)

    async def put(self, name: str, accepted: Accepted) -> None:
        """Store a policy whether or not the name is taken."""
        await self.put_row(accepted.stored(name), accepted.policy)


def policy_answer(row: StoredPolicy) -> dict[str, object]:
    """Return `results` of the request for one policy."""
    return {"name": row.name, "tmp_policy": None, "runtime_policy": row.text}


def decode_upload(body: bytes) -> tuple[str, str | None, str | None]:
    """Read the body of an upload: policy, key and tpm_policy, still encoded. Raises BadRequest."""
    if not body:
        raise BadRequest("Expected non zero content length")
    try:
        members = json.loads(body)
    except (ValueError, RecursionError) as problem:
        raise BadRequest(f"Exception error: the body is not JSON: {problem}") from None
    if not isinstance(members, dict):
        raise BadRequest("Exception error: the body is not a JSON object")
    values = [members.get(name) for name in ("runtime_policy", "runtime_policy_key", "tpm_policy")]
    if not isinstance(values[0], str) or not values[0]:
        raise BadRequest("Exception error: runtime_policy is missing")
    if not all(value is None or isinstance(value, str) for value in values):
        raise BadRequest("Exception error: runtime_policy_key and tpm_policy are texts")
    return values[0], values[1], values[2]
