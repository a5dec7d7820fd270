"""The agent's HTTP interface, version 2: every JSON key of quotes, key halves, versions and notices, both ways.

Encodes for the agent, decodes for verifier and tenant. Decides what a well-formed message is; what it proves is decided
elsewhere. Unknown members are ignored, so that newer agents stay readable. Keylime REST API, agent.
"""

import base64
import binascii
from collections.abc import Sequence
from typing import Final, TypeVar
from urllib.parse import quote

import msgspec

from limeguard.wire import versions
from limeguard.wire.envelope import SUCCESS, BadRequest, envelope, error

UNSUPPORTED: Final = versions.UNSUPPORTED
"""Clients look for this text to learn that they must ask for the versions again."""
SIZED_NAMES_SINCE: Final = "2.5"
MAX_NONCE: Final = 64
MAX_BOOT_LOG: Final = 8 * 1024 * 1024
"""Characters of a boot log in base64: a log of 4 MiB, which none comes near, has 6 million."""
BODY_TYPE: Final = "application/json"

_SHORT_NAMES: Final = {"rsa2048": "rsa", "ecc256": "ecc"}


class BadAnswer(ValueError):  # noqa: N818 - a fact about the peer's message
    """An agent's answer is not what the interface says; the text says where, without quoting it."""


class QuoteAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Results of `GET /quotes/identity` and `/quotes/integrity`; members that are not set are left out.

    `ima_measurement_list` holds whole lines from number `ima_measurement_list_entry` on; `mb_measurement_list` is the
    boot log in base64; `boottime` is in seconds since 1970, 0 when unknown.
    """

    quote: str
    hash_alg: str
    enc_alg: str
    sign_alg: str
    pubkey: str | None = None
    ima_measurement_list: str | None = None
    ima_measurement_list_entry: int | None = None
    mb_measurement_list: str | None = None
    boottime: int = 0

    @property
    def first_entry(self) -> int:
        """Return the number of the first line of the IMA log, 0 when the agent gave none."""
        return self.ima_measurement_list_entry or 0


class AgentInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Results of `GET /agent/info`. `ak_handle` means something to the agent's TPM library only."""

    agent_uuid: str
    tpm_hash_alg: str
    tpm_enc_alg: str
    tpm_sign_alg: str
    ak_handle: int


class _UKeyBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    auth_tag: str
    encrypted_key: str
    payload: str | None = None


class _VKeyBody(msgspec.Struct, frozen=True, kw_only=True):
    encrypted_key: str


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /notifications/revocation`: a JSON document as text, and the signature over that text."""

    msg: str
    signature: str


class UKey(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /keys/ukey` with its members decoded; `encrypted_share` is still encrypted to the transport key."""

    encrypted_share: bytes
    auth_tag: bytes
    payload: bytes | None


class _Versions(msgspec.Struct, frozen=True):
    supported_version: str | None = None
    supported_versions: list[str] | None = None


class _VersionsOut(msgspec.Struct, frozen=True):
    supported_version: str
    supported_versions: Sequence[str]


class _Pubkey(msgspec.Struct, frozen=True):
    pubkey: str


class _Hmac(msgspec.Struct, frozen=True):
    hmac: str


class _Status(msgspec.Struct, frozen=True):
    status: str = ""


class _WithQuote(msgspec.Struct, frozen=True):
    results: QuoteAnswer


class _WithVersions(msgspec.Struct, frozen=True):
    results: _Versions


class _WithInfo(msgspec.Struct, frozen=True):
    results: AgentInfo


class _WithPubkey(msgspec.Struct, frozen=True):
    results: _Pubkey


class _WithHmac(msgspec.Struct, frozen=True):
    results: _Hmac


T = TypeVar("T")


def _answer(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise BadAnswer(f"unreadable answer: {type(problem).__name__}: {str(problem)[:200]}") from problem


def _request(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise BadRequest(f"Json deserialize error: {_spell(str(problem))}") from problem


def _spell(text: str) -> str:
    """Name a missing member the way clients of the agent know it; other texts stand as they are."""
    _, required, rest = text.partition("Object missing required field `")
    return f"missing field `{rest.partition('`')[0]}`" if required else text[:200]


def _base64(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as problem:
        raise BadRequest(f"Invalid base64 encoding in {what}: {problem}") from problem


def key_algorithm_name(sized: str, version: str) -> str:
    """Spell a key algorithm (`rsa2048`) for an API version: without size before 2.5 where it is the usual one."""
    return _SHORT_NAMES.get(sized, sized) if versions.is_older(version, SIZED_NAMES_SINCE) else sized


# --- paths, for clients ---------------------------------------------------------------------------------------------


def identity_path(version: str, nonce: str) -> str:
    """Return path and query of the identity quote."""
    return f"/v{version}/quotes/identity?nonce={quote(nonce)}"


def integrity_path(version: str, nonce: str, mask: str, *, partial: bool, ima_entry: int) -> str:
    """Return path and query of the integrity quote; `partial` leaves the transport key out, `mask` is hex text."""
    query = f"nonce={_quoted(nonce)}&mask={_quoted(mask)}&partial={int(partial)}&ima_ml_entry={ima_entry}"
    return f"/v{version}/quotes/integrity?{query}"


def _quoted(text: str) -> str:
    return text if text.isascii() and text.isalnum() else quote(text)


def verify_path(version: str, challenge: str) -> str:
    """Return path and query of the payload key's proof."""
    return f"/v{version}/keys/verify?challenge={quote(challenge)}"


# --- answers --------------------------------------------------------------------------------------------------------


def encode_success() -> bytes:
    """Encode success without results: JSON null, as agents have always sent it."""
    return envelope(200, SUCCESS, None)


def encode_error(status: int, text: str) -> bytes:
    """Encode a refusal."""
    return error(status, text)


def encode_quote(answer: QuoteAnswer) -> bytes:
    """Encode a quote."""
    return envelope(200, SUCCESS, answer)


def decode_quote(body: bytes) -> QuoteAnswer:
    """Decode a quote. Raises BadAnswer."""
    answer = _answer(body, _WithQuote).results
    if answer.first_entry < 0 or answer.boottime < 0:
        raise BadAnswer("unreadable answer: a count or a time is negative")
    return answer


def decode_boot_log(text: str) -> bytes:
    """Decode a boot log from base64. Raises BadAnswer."""
    if len(text) > MAX_BOOT_LOG:
        raise BadAnswer(f"the boot log has {len(text)} characters, at most {MAX_BOOT_LOG} are allowed")
    try:
        # Ten times as quick as binascii, and as strict: every round of every node brings its whole log.
        return msgspec.convert(text, bytes)
    except msgspec.ValidationError:
        raise BadAnswer("the boot log is not base64") from None


def encode_version(served: Sequence[str]) -> bytes:
    """Encode the API versions that the agent serves, oldest first."""
    return envelope(200, SUCCESS, _VersionsOut(served[-1], served))


def decode_version(body: bytes) -> tuple[str, ...]:
    """Decode the versions that an agent serves; an old agent names only one. Raises BadAnswer."""
    results = _answer(body, _WithVersions).results
    if results.supported_versions:
        return tuple(results.supported_versions)
    if results.supported_version:
        return (results.supported_version,)
    raise BadAnswer("unreadable answer: no version is named")


def encode_info(info: AgentInfo) -> bytes:
    """Encode what the agent says of itself."""
    return envelope(200, SUCCESS, info)


def decode_info(body: bytes) -> AgentInfo:
    """Decode what an agent says of itself. Raises BadAnswer."""
    return _answer(body, _WithInfo).results


def encode_pubkey(pem: str) -> bytes:
    """Encode the public transport key."""
    return envelope(200, SUCCESS, _Pubkey(pem))


def decode_pubkey(body: bytes) -> str:
    """Decode the public transport key (PEM). Raises BadAnswer."""
    return _answer(body, _WithPubkey).results.pubkey


def encode_hmac(value: str) -> bytes:
    """Encode the proof that the agent has the payload key (hex)."""
    return envelope(200, SUCCESS, _Hmac(value))


def decode_hmac(body: bytes) -> str:
    """Decode the proof of the payload key (hex). Raises BadAnswer."""
    return _answer(body, _WithHmac).results.hmac


def decode_error_status(body: bytes) -> str:
    """Return the `status` text of an answer, or "" when it has none that can be read."""
    try:
        return msgspec.json.decode(body, type=_Status).status
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""


def says_unsupported(body: bytes) -> bool:
    """Say whether an answer with status 400 means that the agent does not serve the API version of the path."""
    return UNSUPPORTED in decode_error_status(body)


# --- bodies ---------------------------------------------------------------------------------------------------------


def encode_ukey(message: UKey) -> bytes:
    """Encode the tenant's half."""
    payload = None if message.payload is None else base64.b64encode(message.payload).decode("ascii")
    share = base64.b64encode(message.encrypted_share).decode("ascii")
    return msgspec.json.encode(_UKeyBody(auth_tag=message.auth_tag.hex(), encrypted_key=share, payload=payload))


def decode_ukey(body: bytes) -> UKey:
    """Decode the tenant's half. Raises BadRequest with the status text that clients know."""
    message = _request(body, _UKeyBody)
    share = _base64(message.encrypted_key, "encrypted_key")
    try:
        tag = bytes.fromhex(message.auth_tag)
    except ValueError as problem:
        raise BadRequest(f"Invalid hex encoding in auth_tag: {problem}") from problem
    if len(message.auth_tag) != 96:  # HMAC-SHA384 in hex; fromhex also accepts blanks
        raise BadRequest(f"Invalid auth_tag: expected 48 bytes, got {len(tag)}")
    payload = None if message.payload is None else _base64(message.payload, "payload")
    return UKey(encrypted_share=share, auth_tag=tag, payload=payload)


def encode_vkey(encrypted_share: bytes) -> bytes:
    """Encode the verifier's half, already encrypted to the transport key."""
    return msgspec.json.encode(_VKeyBody(encrypted_key=base64.b64encode(encrypted_share).decode("ascii")))


def decode_vkey(body: bytes) -> bytes:
    """Decode the verifier's half, still encrypted. Raises BadRequest."""
    return _base64(_request(body, _VKeyBody).encrypted_key, "encrypted_key")


def encode_notice(notice: Notice) -> bytes:
    """Encode a revocation notice."""
    return msgspec.json.encode(notice)


def decode_notice(body: bytes) -> Notice:
    """Decode a revocation notice. Raises BadRequest."""
    return _request(body, Notice)
