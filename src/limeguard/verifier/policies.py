"""Runtime policies as objects: accepted, stored, shared by nodes, and compiled once for each text.

Decides whether an upload may be stored and which compiled policy a name stands for now. What a policy allows is decided
in `appraisal`.
"""

import asyncio
import binascii
import hashlib
import json
from base64 import b64decode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from limeguard.policy import dsse
from limeguard.policy.errors import PolicyError
from limeguard.policy.runtime import RuntimePolicy, check_document, compile_document, decode_policy
from limeguard.store.database import Conflict, StoreUnavailable
from limeguard.store.runtime_policies import StoredPolicy
from limeguard.telemetry import clean, get_logger
from limeguard.wire.envelope import BadRequest

log = get_logger("keylime.verifier")

REFRESH_SECONDS: Final = 2.0
"""How often the table is looked at for policies that another process replaced."""
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


class PolicyRows(Protocol):
    """What the shelf needs of the store."""

    async def names(self) -> tuple[str, ...]:
        """Return all names."""
        ...

    async def checksums(self) -> dict[str, str]:
        """Return the checksum of each text by name."""
        ...

    async def get(self, name: str, /) -> StoredPolicy | None:
        """Return one row."""
        ...

    async def add(self, policy: StoredPolicy, /) -> None:
        """Insert. Raises Conflict."""
        ...

    async def replace(self, policy: StoredPolicy, /) -> bool:
        """Replace; False when there is none."""
        ...

    async def delete(self, name: str, /) -> str | bool:
        """Delete: True, False when there is none, the id of a node that uses it."""
        ...


class PolicyShelf:
    """Compiled policies by name. Nodes with the same text share one object, however many names it has."""

    def __init__(self, rows: PolicyRows, signers: Signers | None = None) -> None:
        """Keep what `rows` hold; accept what `signers` demand."""
        self._rows = rows
        self.signers = signers or Signers()
        self.changed: Callable[[str], object] = lambda _name: None
        """Hears the name of each policy that somebody else has replaced."""
        self._checksums: dict[str, str] = {}
        self._compiled: dict[str, RuntimePolicy] = {}

    def current(self, name: str) -> RuntimePolicy | None:
        """Return what the name stands for now; None when it cannot be used, which no node may pass with."""
        return self._compiled.get(self._checksums.get(name, ""))

    async def accept(self, encoded: str, key: str | None) -> Accepted:
        """Judge an upload outside of the loop: a large policy takes a second. Raises BadRequest."""
        return await asyncio.to_thread(accept, encoded, key, self.signers)

    async def names(self) -> tuple[str, ...]:
        """Return the names of all stored policies."""
        return await self._rows.names()

    async def get(self, name: str) -> StoredPolicy | None:
        """Return one stored policy."""
        return await self._rows.get(name)

    async def add(self, name: str, accepted: Accepted, tpm_policy: str | None = None) -> None:
        """Store a new policy. Raises Conflict."""
        row = accepted.stored(name, tpm_policy)
        await self._rows.add(row)
        self._put(row, accepted.policy)

    async def replace(self, name: str, accepted: Accepted, tpm_policy: str | None = None) -> bool:
        """Replace a policy; nodes are judged by the new one from their next answer on. False when there is none."""
        row = accepted.stored(name, tpm_policy)
        if not await self._rows.replace(row):
            return False
        self._put(row, accepted.policy)
        return True

    async def put(self, name: str, accepted: Accepted) -> None:
        """Store a policy whether or not the name is taken."""
        if not await self.replace(name, accepted):
            try:
                await self.add(name, accepted)
            except Conflict:  # stored by somebody else in between
                await self.replace(name, accepted)

    async def delete(self, name: str) -> str | bool:
        """Delete a policy that no node uses; see PolicyRows."""
        outcome = await self._rows.delete(name)
        if outcome is True:
            self._checksums.pop(name, None)
            self._sweep()
        return outcome

    async def load(self, names: Iterable[str]) -> None:
        """Have these policies ready. One that cannot be used is named in the log."""
        for name in names:
            if name not in self._checksums:
                await self._load(name)

    async def run(self) -> None:
        """Follow changes that other processes make, until cancelled."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await self.refresh()
            except StoreUnavailable as problem:
                log.debug("Policies cannot be refreshed: %s", clean(problem))

    async def refresh(self) -> None:
        """Read policies again whose text changed in the table."""
        stored = await self._rows.checksums()
        for name in [name for name, checksum in self._checksums.items() if stored.get(name, checksum) != checksum]:
            await self._load(name)
            self.changed(name)

    async def _load(self, name: str) -> None:
        row = await self._rows.get(name)
        if row is None:
            return
        try:
            policy = self._compiled.get(row.checksum)
            if policy is None:
                policy = await asyncio.to_thread(unwrap, row.text)
        except PolicyError as problem:
            log.error("Runtime policy %s cannot be used: %s", clean(name), clean(problem))  # noqa: TRY400
            self._checksums.pop(name, None)
            return
        self._put(row, policy)

    def _put(self, row: StoredPolicy, policy: RuntimePolicy) -> None:
        self._checksums[row.name] = row.checksum
        self._compiled.setdefault(row.checksum, policy)
        self._sweep()

    def _sweep(self) -> None:
        used = set(self._checksums.values())
        self._compiled = {checksum: policy for checksum, policy in self._compiled.items() if checksum in used}


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
