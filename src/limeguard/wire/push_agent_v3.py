"""The verifier's push interface (API 3.0) from the agent's side: sessions, capabilities, evidence.

Encodes what an agent sends, decodes what it is answered. Strict about what the agent acts on, tolerant of members that
it does not know. Decides what a usable answer is; what the agent does with it is decided elsewhere. Keylime REST API.
"""

import base64
import binascii
import datetime
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

import msgspec

BODY_TYPE: Final = "application/vnd.api+json"
DEFAULT_VERSION: Final = "v3.0"

CERTIFICATION: Final = "certification"
LOG: Final = "log"
TPM_QUOTE: Final = "tpm_quote"
IMA_LOG: Final = "ima_log"
UEFI_LOG: Final = "uefi_log"
TEXT: Final = "text/plain"
BINARY: Final = "application/octet-stream"

POP_CLASS: Final = "pop"
TPM_POP: Final = "tpm_pop"
GOOD: Final = "pass"

MAX_CHALLENGE: Final = 64
"""Bytes; qualifying data of a TPM is no longer than its largest digest (TPM 2.0 Part 2 §10.4.2)."""
MAX_ITEMS: Final = 8
"""There are three kinds of evidence; more than a few of them is no request of a verifier."""
MAX_SECONDS: Final = 7 * 24 * 3600
"""A longer wait until the next attestation is not believed: it would end attestation."""
MAX_TOKEN: Final = 4096
MAX_ENTRIES: Final = 1 << 40


class BadAnswer(ValueError):  # noqa: N818 - a fact about the peer's message
    """A verifier's answer is not what the interface says; the text says where, without quoting it."""


# --- what the agent has and sends -----------------------------------------------------------------------------------


class CertificationKey(msgspec.Struct, frozen=True, kw_only=True):
    """The AK as it is offered. `public` is base64 of the bare TPMT_PUBLIC, unlike in a registration."""

    key_class: str = "asymmetric"
    key_algorithm: str
    key_size: int
    server_identifier: str
    local_identifier: str
    public: str
    allowable_hash_algorithms: tuple[str, ...]
    allowable_signature_schemes: tuple[str, ...]


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a node can give evidence of: its key, the PCRs of the key's bank, and how long its logs are now.

    `boot_time` is ISO 8601 with a zone, or None when it is not known.
    """

    key: CertificationKey
    hash_algorithm: str
    signature_scheme: str
    pcrs: tuple[int, ...]
    uefi_version: str
    uefi_entries: int
    ima_entries: int
    boot_time: str | None


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of evidence, as its `data` member is spelled."""

    evidence_class: str
    evidence_type: str
    data: Mapping[str, str | int]


def base64_text(data: bytes) -> str:
    """Return bytes as base64 text, the spelling of everything binary in these messages."""
    return base64.b64encode(data).decode("ascii")


def _body(kind: str, attributes: object, **more: str) -> bytes:
    return msgspec.json.encode({"data": {"type": kind, **more, "attributes": attributes}})


def sessions_path(version: str) -> str:
    """Return the path that opens a session."""
    return f"/{version}/sessions"


def session_path(version: str, session: str) -> str:
    """Return the path of one session, whose id `decode_session` has checked."""
    return f"/{version}/sessions/{session}"


def attestations_path(version: str, agent_id: str) -> str:
    """Return the path that begins an attestation. The id needs no quoting."""
    return f"/{version}/agents/{agent_id}/attestations"


def encode_session_request(agent_id: str) -> bytes:
    """Encode the wish for a session that is proven by the TPM."""
    offered = [{"authentication_class": POP_CLASS, "authentication_type": TPM_POP}]
    return _body("session", {"agent_id": agent_id, "authentication_supported": offered})


def encode_session_proof(session: str, agent_id: str, message: bytes, signature: bytes) -> bytes:
    """Encode the proof of possession: TPMS_ATTEST and TPMT_SIGNATURE of TPM2_Certify of the AK by itself."""
    proof = {
        "authentication_class": POP_CLASS,
        "authentication_type": TPM_POP,
        "data": {"message": base64_text(message), "signature": base64_text(signature)},
    }
    return _body("session", {"agent_id": agent_id, "authentication_provided": [proof]}, id=session)


def encode_capabilities(having: Capabilities) -> bytes:
    """Encode the offer of evidence. Only the bank that the AK's signatures hash with is offered."""
    quote = {
        "component_version": "2.0",
        "hash_algorithms": [having.hash_algorithm],
        "signature_schemes": [having.signature_scheme],
        "available_subjects": {having.hash_algorithm: having.pcrs},
        "certification_keys": [having.key],
    }
    boot = {
        "evidence_version": having.uefi_version,
        "entry_count": having.uefi_entries,
        "supports_partial_access": False,
        "appendable": False,
        "formats": [BINARY],
    }
    ima = {
        "entry_count": having.ima_entries,
        "supports_partial_access": True,
        "appendable": True,
        "formats": [TEXT],
    }
    attributes: dict[str, object] = {
        "evidence_supported": [
            {"evidence_class": CERTIFICATION, "evidence_type": TPM_QUOTE, "capabilities": quote},
            {"evidence_class": LOG, "evidence_type": UEFI_LOG, "capabilities": boot},
            {"evidence_class": LOG, "evidence_type": IMA_LOG, "capabilities": ima},
        ]
    }
    if having.boot_time is not None:
        attributes["system_info"] = {"boot_time": having.boot_time}
    return _body("attestation", attributes)


def collected_quote(message: bytes, signature: bytes, pcr_blob: bytes) -> Collected:
    """Return a quote as evidence: TPMS_ATTEST, TPMT_SIGNATURE and the PCR values beside them."""
    data = {
        "subject_data": base64_text(pcr_blob),
        "message": base64_text(message),
        "signature": base64_text(signature),
    }
    return Collected(evidence_class=CERTIFICATION, evidence_type=TPM_QUOTE, data=data)


def collected_ima_log(lines: str) -> Collected:
    """Return whole lines of the IMA log as evidence."""
    data: dict[str, str | int] = {"entry_count": lines.count("\n"), "entries": lines}
    return Collected(evidence_class=LOG, evidence_type=IMA_LOG, data=data)


def collected_uefi_log(log: str) -> Collected:
    """Return the firmware's log (base64) as evidence."""
    return Collected(evidence_class=LOG, evidence_type=UEFI_LOG, data={"entries": log})


def encode_evidence(collected: Sequence[Collected]) -> bytes:
    """Encode the evidence, in the order in which it was asked for."""
    return _body("attestation", {"evidence_collected": collected})


def encode_no_evidence() -> bytes:
    """Encode the document that says that the evidence asked for cannot be had."""
    return _body("error", {"evidence_collected": []})


# --- what it is answered --------------------------------------------------------------------------------------------


class OpenSession(msgspec.Struct, frozen=True, kw_only=True):
    """A session whose challenge is still to be answered."""

    id: str
    challenge: bytes


class QuoteRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The quote that a verifier wants. `pcrs` are those of the bank `hash_algorithm`."""

    challenge: bytes
    signature_scheme: str
    hash_algorithm: str
    pcrs: tuple[int, ...]


class LogRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The log that a verifier wants: from which entry on, and at most how many (None: all)."""

    evidence_type: str
    starting_offset: int
    entry_count: int | None


class UnknownRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Evidence of a kind that this agent does not have."""

    evidence_type: str


Requested = QuoteRequest | LogRequest | UnknownRequest


class _SessionParameters(msgspec.Struct, frozen=True):
    challenge: str


class _Authentication(msgspec.Struct, frozen=True):
    authentication_type: str
    chosen_parameters: _SessionParameters


class _OpenAttributes(msgspec.Struct, frozen=True):
    authentication_requested: tuple[_Authentication, ...]


class _OpenData(msgspec.Struct, frozen=True):
    id: str
    attributes: _OpenAttributes


class _Open(msgspec.Struct, frozen=True):
    data: _OpenData


class _OutcomeAttributes(msgspec.Struct, frozen=True):
    evaluation: str
    token: str | None = None


class _OutcomeData(msgspec.Struct, frozen=True):
    attributes: _OutcomeAttributes


class _Outcome(msgspec.Struct, frozen=True):
    data: _OutcomeData


class _Chosen(msgspec.Struct, frozen=True):
    challenge: str | None = None
    signature_scheme: str | None = None
    hash_algorithm: str | None = None
    selected_subjects: dict[str, tuple[int, ...] | None] | None = None
    starting_offset: int | None = None
    entry_count: int | None = None


class _Wanted(msgspec.Struct, frozen=True):
    evidence_class: str
    evidence_type: str
    chosen_parameters: _Chosen | None = None


class _RequestAttributes(msgspec.Struct, frozen=True):
    evidence_requested: tuple[_Wanted, ...]


class _RequestData(msgspec.Struct, frozen=True):
    attributes: _RequestAttributes


class _Request(msgspec.Struct, frozen=True):
    data: _RequestData


class _Meta(msgspec.Struct, frozen=True):
    seconds_to_next_attestation: float


class _Accepted(msgspec.Struct, frozen=True):
    meta: _Meta


class _Error(msgspec.Struct, frozen=True):
    code: str = ""
    title: str = ""
    detail: str = ""


class _Errors(msgspec.Struct, frozen=True):
    errors: tuple[_Error, ...]


class Refusal(msgspec.Struct, frozen=True):
    """What a verifier says when it refuses: the code of the first error ("" when there is none), and all details."""

    code: str
    text: str


T = TypeVar("T")


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise BadAnswer(f"unreadable answer: {type(problem).__name__}: {str(problem)[:200]}") from problem


def _challenge(text: str) -> bytes:
    """Return the bytes of a challenge; text that is not base64 stands for itself, as deployed agents take it."""
    try:
        challenge = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        challenge = text.encode("utf-8", "replace")
    if not 0 < len(challenge) <= MAX_CHALLENGE:
        raise BadAnswer(f"unreadable answer: a challenge of {len(challenge)} bytes")
    return challenge


def decode_session(body: bytes) -> OpenSession:
    """Decode the answer to the wish for a session. Raises BadAnswer."""
    data = _decode(body, _Open).data
    if not _is_name(data.id, 128):
        raise BadAnswer("unreadable answer: the session's id cannot stand in a path")
    for offered in data.attributes.authentication_requested:
        if offered.authentication_type == TPM_POP:
            return OpenSession(id=data.id, challenge=_challenge(offered.chosen_parameters.challenge))
    raise BadAnswer("unreadable answer: no proof that a TPM can give is asked for")


def decode_session_outcome(body: bytes) -> str | None:
    """Decode the answer to the proof: the token, or None when the proof was not accepted. Raises BadAnswer."""
    attributes = _decode(body, _Outcome).data.attributes
    if attributes.evaluation != GOOD:
        return None
    token = attributes.token
    if not token or len(token) > MAX_TOKEN or not all("!" <= c <= "~" for c in token):
        raise BadAnswer("unreadable answer: there is no token that can stand in a header")
    return token


def decode_requested(body: bytes) -> tuple[Requested, ...]:
    """Decode the answer to the capabilities: what is asked for, in order. Raises BadAnswer."""
    wanted = _decode(body, _Request).data.attributes.evidence_requested
    if len(wanted) > MAX_ITEMS:
        raise BadAnswer(f"unreadable answer: {len(wanted)} pieces of evidence are asked for")
    return tuple(_requested(one) for one in wanted)


def _requested(wanted: _Wanted) -> Requested:
    chosen = wanted.chosen_parameters or _Chosen()
    match wanted.evidence_class, wanted.evidence_type:
        case (_, "tpm_quote"):
            return _quote_request(chosen)
        case (_, "ima_log" | "uefi_log"):
            start, count = chosen.starting_offset or 0, chosen.entry_count
            if not 0 <= start <= MAX_ENTRIES or (count is not None and not 0 <= count <= MAX_ENTRIES):
                raise BadAnswer("unreadable answer: an offset or count of log entries is out of range")
            return LogRequest(evidence_type=wanted.evidence_type, starting_offset=start, entry_count=count)
    return UnknownRequest(evidence_type=wanted.evidence_type)


def _quote_request(chosen: _Chosen) -> QuoteRequest:
    if chosen.challenge is None or chosen.signature_scheme is None or chosen.hash_algorithm is None:
        raise BadAnswer("unreadable answer: a quote without challenge, scheme or hash is asked for")
    subjects = chosen.selected_subjects or {}
    return QuoteRequest(
        challenge=_challenge(chosen.challenge),
        signature_scheme=chosen.signature_scheme,
        hash_algorithm=chosen.hash_algorithm,
        pcrs=tuple(sorted(set(subjects.get(chosen.hash_algorithm) or ()))),
    )


def decode_accepted(body: bytes) -> float | None:
    """Decode the answer to accepted evidence: seconds until the next attestation; None when it does not tell."""
    try:
        seconds = _decode(body, _Accepted).meta.seconds_to_next_attestation
    except BadAnswer:
        return None
    return seconds if 0 <= seconds <= MAX_SECONDS else None


def decode_refusal(body: bytes) -> Refusal:
    """Decode a refusal as far as it can be read; never raises."""
    try:
        errors = _decode(body, _Errors).errors
    except BadAnswer:
        return Refusal("", body[:512].decode("utf-8", "replace"))
    text = " ".join(one.detail or one.title for one in errors[:MAX_ITEMS])
    return Refusal(errors[0].code if errors else "", text)


def retry_after(text: str, now: float) -> float | None:
    """Return how many seconds a `Retry-After` header asks to wait: a number, or a date; None for anything else."""
    if text.isascii() and text.isdecimal() and len(text) <= 9:
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return max(moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp() - now, 0.0)


def _is_name(text: str, limit: int) -> bool:
    return 0 < len(text) <= limit and text.isascii() and text.replace("-", "").replace("_", "").isalnum()
