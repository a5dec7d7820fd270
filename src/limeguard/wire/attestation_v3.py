"""The verifier's HTTP interface, version 3, attestations: evidence asked for, evidence sent, and what is said of both.

Decides what well-formed evidence is, where in it a problem lies, and how answers are spelled. Must not know policies or
what evidence is worth. Keylime REST API, verifier, push model.
"""

import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from limeguard.evidence.reader import MalformedEvidence
from limeguard.evidence.tpm.quote import Quote, parse_quote
from limeguard.wire.jsonapi import Links, Problem, Resource, Version
from limeguard.wire.offer_v3 import ATTESTATION_TYPE, EVIDENCE, IMA_LOG, Invalid, array_of
from limeguard.wire.verifier_v3 import timestamp

AWAITING: Final = "awaiting_evidence"
EVALUATING: Final = "evaluating_evidence"
COMPLETE: Final = "verification_complete"


class NoEvidence(Exception):  # noqa: N818 - an answer, not a fault
    """The document carries no evidence (400 `invalid_request`), as an agent sends it that cannot answer."""


# --- what is asked for ----------------------------------------------------------------------------------------------


class QuoteParameters(msgspec.Struct, frozen=True, kw_only=True):
    """How to make a quote. It must not have a member `format`: deployed agents tell logs by that."""

    signature_scheme: str
    challenge: str
    hash_algorithm: str
    selected_subjects: dict[str, tuple[int, ...] | None]
    certification_key: Raw | UnsetType = UNSET


class LogParameters(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of a log to send, and how."""

    format: str
    starting_offset: int | UnsetType = UNSET


Parameters = QuoteParameters | LogParameters


@dataclass(frozen=True, slots=True)
class Requested:
    """One piece of evidence that was asked for, how (also as answers say it), and what the agent had offered for it."""

    evidence_class: str
    evidence_type: str
    capabilities: Raw
    parameters: Parameters
    chosen: Raw

    @classmethod
    def make(cls, evidence_class: str, evidence_type: str, capabilities: Raw, parameters: Parameters) -> "Requested":
        """Return the request with its parameters encoded: three answers say them."""
        return cls(evidence_class, evidence_type, capabilities, parameters, Raw(msgspec.json.encode(parameters)))


class AskedFor(msgspec.Struct, frozen=True):
    """One piece of evidence that is asked for."""

    evidence_class: str
    evidence_type: str
    chosen_parameters: Raw


class SystemInfo(msgspec.Struct, frozen=True):
    """When the machine was started."""

    boot_time: str


# --- what an agent sends --------------------------------------------------------------------------------------------


class _QuoteData(msgspec.Struct, frozen=True):
    message: str
    signature: str
    subject_data: str


class LogData(msgspec.Struct, frozen=True):
    """A log, or a part of it."""

    entries: str | None = None
    entry_count: int | None = None


class _Collected(msgspec.Struct, frozen=True):
    evidence_class: str
    evidence_type: str
    data: Raw


@dataclass(frozen=True, slots=True)
class Collected:
    """Evidence as sent: the quote, base64-decoded boot log, text of the IMA log; and each item's data as sent."""

    quote_text: str
    quote: Quote
    boot_log: bytes | None
    ima_log: str | None
    raw: tuple[Raw, ...]


_collected = msgspec.json.Decoder(list[_Collected]).decode
_quote_data = msgspec.json.Decoder(_QuoteData).decode
_log_data = msgspec.json.Decoder(LogData).decode


def read_evidence(resource: Resource, requested: Sequence[Requested], entries_due: int) -> Collected:
    """Read evidence that answers what was requested. Raises NoEvidence, Invalid.

    `entries_due` is how many entries of the IMA log there are at least from where it was asked for.
    """
    if resource.type != ATTESTATION_TYPE:
        raise NoEvidence
    raw = array_of(resource.attributes, "evidence_collected")
    if raw is None:
        raise Invalid(Problem(EVIDENCE, "is required"))
    try:
        items = _collected(raw)
    except msgspec.ValidationError as problem:
        raise Invalid(_collected_problem(raw, str(problem))) from None
    if len(items) != len(requested):
        raise Invalid(Problem(EVIDENCE, "must contain a number of elements equal to that which were requested"))
    if any(item.evidence_type != wanted.evidence_type for item, wanted in zip(items, requested, strict=True)):
        raise Invalid(Problem(EVIDENCE, "must appear in the same order as the evidence requested"))
    quote_text, quote, boot_log, ima_log = "", None, None, None
    for position, (item, wanted) in enumerate(zip(items, requested, strict=True)):
        where = f"{EVIDENCE}/{position}/data"
        if isinstance(wanted.parameters, QuoteParameters):
            quote_text, quote = _sent_quote(item.data, wanted.parameters, where)
        elif wanted.evidence_type == IMA_LOG:
            ima_log = _sent_entries(item.data, where, entries_due)
        else:
            boot_log = _sent_log(item.data, where)
    if quote is None:
        raise Invalid(Problem(EVIDENCE, "must contain a quote"))
    return Collected(quote_text, quote, boot_log, ima_log, tuple(item.data for item in items))


def _collected_problem(raw: Raw, fallback: str) -> Problem:
    for position, item in enumerate(msgspec.json.decode(raw, type=list[object])):
        if not isinstance(item, dict):
            return Problem(EVIDENCE, "may only contain objects with key-value pairs")
        for name in ("evidence_class", "evidence_type", "data"):
            if name not in item:
                return Problem(f"{EVIDENCE}/{position}/{name}", "is required")
    return Problem(EVIDENCE, f"cannot be read ({fallback})")


def _sent_quote(raw: Raw, asked: QuoteParameters, where: str) -> tuple[str, Quote]:
    try:
        data = _quote_data(raw)
    except msgspec.ValidationError as problem:
        raise Invalid(_data_problem(raw, where, ("message", "signature", "subject_data"), str(problem))) from None
    text = f"r{data.message}:{data.signature}:{data.subject_data}"
    try:
        quote = parse_quote(text)
    except MalformedEvidence as problem:
        raise Invalid(_unreadable(data, where, problem)) from None
    banks = {bank.name: values for bank, values in quote.values.items()}
    wanted = asked.selected_subjects.get(asked.hash_algorithm) or ()
    if not set(wanted) <= set(banks.get(asked.hash_algorithm, ())):
        raise Invalid(Problem(f"{where}/subject_data", "must contain at least the PCRs requested"))
    return text, quote


def _unreadable(data: _QuoteData, where: str, malformed: MalformedEvidence) -> Problem:
    for name in ("message", "signature", "subject_data"):
        try:
            binascii.a2b_base64(getattr(data, name), strict_mode=True)
        except ValueError as problem:
            return Problem(f"{where}/{name}", f"must be base64 ({problem})")
    return Problem(f"{where}/{_member_of(malformed.place)}", f"cannot be read ({malformed})")


def _member_of(place: str) -> str:
    if place.startswith("TPMS_ATTEST"):
        return "message"
    return "signature" if place.startswith("TPMT_SIGNATURE") else "subject_data"


def _data_problem(raw: Raw, where: str, names: Sequence[str], fallback: str) -> Problem:
    found = msgspec.json.decode(raw)
    if not isinstance(found, dict):
        return Problem(where, "must be an object")
    for name in names:
        if found.get(name) is None:
            return Problem(f"{where}/{name}", "is required")
        if not isinstance(found[name], str):
            return Problem(f"{where}/{name}", "must be a string")
    return Problem(where, f"cannot be read ({fallback})")


def _sent_entries(raw: Raw, where: str, due: int) -> str:
    try:
        text = _log_data(raw).entries or ""
    except msgspec.ValidationError as problem:
        raise Invalid(Problem(f"{where}/entries", f"cannot be read ({problem})")) from None
    if text.count("\n") < due:
        message = (
            f"must contain at least {due} entries based on the total reported log length and chosen starting offset"
        )
        raise Invalid(Problem(f"{where}/entries", message))
    return text


def _sent_log(raw: Raw, where: str) -> bytes:
    try:
        text = _log_data(raw).entries
    except msgspec.ValidationError as problem:
        raise Invalid(Problem(f"{where}/entries", f"cannot be read ({problem})")) from None
    if text is None:
        raise Invalid(Problem(f"{where}/entries", "is required"))
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as problem:
        raise Invalid(Problem(f"{where}/entries", f"must be base64 ({problem})")) from None


# --- answers --------------------------------------------------------------------------------------------------------


class ShownClock(msgspec.Struct, frozen=True):
    """What a quote says of the TPM's clock."""

    clock: int
    reset_count: int
    restart_count: int
    safe: int


class QuoteMeta(msgspec.Struct, frozen=True):
    """What a quote says, in words."""

    pcrs: dict[str, dict[str, str]]
    clock_info: ShownClock


class ShownQuote(msgspec.Struct, frozen=True):
    """A quote as it was sent, and what it says."""

    message: str
    signature: str
    subject_data: str
    meta: QuoteMeta


class Shown(msgspec.Struct, frozen=True):
    """One piece of evidence in an answer: all that was said about it."""

    evidence_class: str
    evidence_type: str
    capabilities: Raw
    chosen_parameters: Raw
    data: Raw | UnsetType = UNSET


class AttestationAttributes(msgspec.Struct, frozen=True, kw_only=True):
    """`attributes` of an attestation."""

    stage: str
    evaluation: str | UnsetType = UNSET
    failure_reason: str | UnsetType = UNSET
    evidence_requested: tuple[AskedFor, ...] | UnsetType = UNSET
    evidence: tuple[Shown, ...] | UnsetType = UNSET
    system_info: SystemInfo | UnsetType = UNSET
    capabilities_received_at: str
    challenges_expire_at: str | UnsetType = UNSET
    evidence_received_at: str | UnsetType = UNSET
    verification_completed_at: str | UnsetType = UNSET


class AttestationResource(msgspec.Struct, frozen=True, kw_only=True):
    """One attestation: index, attributes, and where it is."""

    id: str
    attributes: AttestationAttributes
    links: Links
    type: str = ATTESTATION_TYPE


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """An attestation whose attributes were encoded before."""

    id: str
    attributes: Raw
    links: Links
    type: str = ATTESTATION_TYPE


class NextAttestation(msgspec.Struct, frozen=True):
    """How long to wait."""

    seconds_to_next_attestation: int


class AttestationDocument(msgspec.Struct, frozen=True, kw_only=True):
    """An answer about one attestation."""

    data: AttestationResource
    meta: NextAttestation | UnsetType = UNSET
    links: Links
    jsonapi: Version = Version()


class _KeptDocument(msgspec.Struct, frozen=True, kw_only=True):
    data: _Kept | tuple[_Kept, ...]
    links: Links
    jsonapi: Version = Version()


class AttestationList(msgspec.Struct, frozen=True, kw_only=True):
    """An answer about all attestations of a node."""

    data: tuple[AttestationResource, ...]
    links: Links
    jsonapi: Version = Version()


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationView:
    """What answers say of an attestation. Times are seconds since 1970, None while unset."""

    stage: str
    requested: tuple[Requested, ...]
    boot_time: float | None
    created_at: float
    expires_at: float
    received_at: float | None = None
    completed_at: float | None = None
    evaluation: str | None = None
    failure_reason: str | None = None
    shown: tuple[Shown, ...] | None = None


_encode = msgspec.json.Encoder().encode


def show(requested: Sequence[Requested], collected: Collected) -> tuple[Shown, ...]:
    """Return evidence as answers show it: everything as it was sent, and what a quote says in words beside it."""
    return tuple(
        Shown(
            wanted.evidence_class,
            wanted.evidence_type,
            wanted.capabilities,
            wanted.chosen,
            _shown_quote(raw, collected.quote) if isinstance(wanted.parameters, QuoteParameters) else raw,
        )
        for wanted, raw in zip(requested, collected.raw, strict=True)
    )


def without_logs(shown: Sequence[Shown], limit: int) -> tuple[Shown, ...]:
    """Return the evidence as it is kept: logs of more than `limit` bytes are left out."""
    return tuple(
        msgspec.structs.replace(one, data=_LEFT_OUT) if isinstance(one.data, Raw) and _size(one.data) > limit else one
        for one in shown
    )


_LEFT_OUT: Final = Raw(msgspec.json.encode(LogData()))


def _size(raw: Raw) -> int:
    return len(memoryview(raw))


def _shown_quote(raw: Raw, quote: Quote) -> Raw:
    data, clock = _quote_data(raw), quote.attest.clock_info
    pcrs = {
        bank.name: {str(pcr): f"0x{value.hex()}" for pcr, value in values.items()}
        for bank, values in quote.values.items()
        if values
    }
    shown = ShownClock(clock.clock, clock.reset_count, clock.restart_count, int(clock.safe))
    meta = QuoteMeta(pcrs, shown)
    return Raw(_encode(ShownQuote(data.message, data.signature, data.subject_data, meta)))


def encode_asked(view: AttestationView, index: int, path: str) -> bytes:
    """Encode the answer to an offer (201): what is asked for. `path` is that of the collection."""
    asked = tuple(AskedFor(one.evidence_class, one.evidence_type, one.chosen) for one in view.requested)
    attributes = AttestationAttributes(
        stage=view.stage,
        evidence_requested=asked,
        system_info=_system_info(view),
        capabilities_received_at=timestamp(view.created_at),
        challenges_expire_at=timestamp(view.expires_at),
    )
    resource = AttestationResource(id=str(index), attributes=attributes, links=Links(f"{path}/{index}"))
    return _encode(AttestationDocument(data=resource, links=Links(path)))


def encode_taken(view: AttestationView, index: int, path: str, seconds_to_next: int) -> bytes:
    """Encode the answer to evidence (202). `path` is that of the attestation."""
    attributes = AttestationAttributes(
        stage=EVALUATING,
        evidence=view.shown or (),
        system_info=_system_info(view),
        capabilities_received_at=timestamp(view.created_at),
        challenges_expire_at=timestamp(view.expires_at),
        evidence_received_at=_unless_none(view.received_at),
    )
    resource = AttestationResource(id=str(index), attributes=attributes, links=Links(path))
    return _encode(AttestationDocument(data=resource, meta=NextAttestation(seconds_to_next), links=Links(path)))


def encode_attributes(view: AttestationView) -> bytes:
    """Encode all that is known of an attestation."""
    unsent = tuple(Shown(one.evidence_class, one.evidence_type, one.capabilities, one.chosen) for one in view.requested)
    attributes = AttestationAttributes(
        stage=view.stage,
        evaluation=view.evaluation or "pending",
        failure_reason=UNSET if view.failure_reason is None else view.failure_reason,
        evidence=unsent if view.shown is None else view.shown,
        system_info=_system_info(view),
        capabilities_received_at=timestamp(view.created_at),
        challenges_expire_at=timestamp(view.expires_at),
        evidence_received_at=_unless_none(view.received_at),
        verification_completed_at=_unless_none(view.completed_at),
    )
    return _encode(attributes)


def encode_attestation(index: int, attributes: bytes, self_path: str, path: str) -> bytes:
    """Encode the answer to a question for one attestation; `attributes` come from `encode_attributes`."""
    kept = _Kept(id=str(index), attributes=Raw(attributes), links=Links(self_path))
    return _encode(_KeptDocument(data=kept, links=Links(path)))


def encode_attestations(found: Sequence[tuple[int, bytes]], path: str) -> bytes:
    """Encode the answer to a question for all attestations of a node."""
    kept = tuple(
        _Kept(id=str(index), attributes=Raw(attributes), links=Links(f"{path}/{index}")) for index, attributes in found
    )
    return _encode(_KeptDocument(data=kept, links=Links(path)))


def _unless_none(at: float | None) -> str | UnsetType:
    return UNSET if at is None else timestamp(at)


def _system_info(view: AttestationView) -> SystemInfo | UnsetType:
    return UNSET if view.boot_time is None else SystemInfo(timestamp(view.boot_time))
