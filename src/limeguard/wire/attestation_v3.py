"""The verifier's HTTP interface, version 3, attestations: capabilities offered, evidence asked for, evidence sent.

Decides what a well-formed message is, where in it a problem lies, and how answers are spelled. Must not know policies
or what evidence is worth. Keylime REST API, verifier, push model.
"""

import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from limeguard.evidence.reader import MalformedEvidence
from limeguard.evidence.tpm.quote import Quote, parse_quote
from limeguard.wire.jsonapi import Links, NotADocument, Problem, Resource, Version, decode_resource
from limeguard.wire.verifier_v3 import timestamp

ATTESTATION_TYPE: Final = "attestation"
CERTIFICATION: Final = "certification"
LOG: Final = "log"
TPM_QUOTE: Final = "tpm_quote"
UEFI_LOG: Final = "uefi_log"
IMA_LOG: Final = "ima_log"
TEXT_FORMAT: Final = "text/plain"
BINARY_FORMAT: Final = "application/octet-stream"

AWAITING: Final = "awaiting_evidence"
EVALUATING: Final = "evaluating_evidence"
COMPLETE: Final = "verification_complete"

MAX_ITEMS: Final = 32
MAX_NAMES: Final = 64
"""Algorithms, keys, banks or formats in one list: no TPM has as many."""
MAX_PCRS: Final = 64
MAX_ENTRIES: Final = 1 << 40
EVIDENCE: Final = "/evidence"
"""The collection is called so in pointers, whatever its name in the request."""

Names = tuple[str, ...]


class Invalid(Exception):  # noqa: N818 - an answer, not a fault
    """The attributes cannot be taken (422)."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(one.detail for one in problems))
        self.problems = problems


class NoEvidence(Exception):  # noqa: N818 - an answer, not a fault
    """The document carries no evidence (400 `invalid_request`), as an agent sends it that cannot answer."""


# --- what an agent offers -------------------------------------------------------------------------------------------


class KeyOffer(msgspec.Struct, frozen=True, kw_only=True):
    """A key that an agent can quote with."""

    key_class: str
    key_algorithm: str = ""
    key_size: int | None = None
    server_identifier: str | None = None
    local_identifier: str | None = None
    public: str | None = None
    allowable_signature_schemes: Names | None = None
    allowable_hash_algorithms: Names | None = None


class QuoteCapabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent can do for a quote."""

    component_version: str
    hash_algorithms: Names
    signature_schemes: Names
    available_subjects: dict[str, tuple[int, ...]]
    certification_keys: tuple[KeyOffer, ...]


class LogCapabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent can do with a log."""

    formats: Names
    entry_count: int | None = None
    supports_partial_access: bool = False


class _Item(msgspec.Struct, frozen=True):
    evidence_class: str
    evidence_type: str
    capabilities: Raw


class _Keys(msgspec.Struct, frozen=True):
    certification_keys: tuple[Raw, ...]


@dataclass(frozen=True, slots=True)
class QuoteOffer:
    """An offered quote: where it stands, what it can do, and the capabilities as sent."""

    position: int
    capabilities: QuoteCapabilities
    raw: Raw

    def key_as_sent(self, number: int) -> Raw:
        """Return a key as the agent spelled it: it is echoed whole."""
        return msgspec.json.decode(self.raw, type=_Keys).certification_keys[number]


@dataclass(frozen=True, slots=True)
class LogOffer:
    """An offered log: where it stands, what it can do, and the capabilities as sent."""

    position: int
    capabilities: LogCapabilities
    raw: Raw


@dataclass(frozen=True, slots=True)
class Offer:
    """What an agent offers. The first item of each type counts. `boot_time` is seconds since 1970."""

    quote: QuoteOffer | None
    uefi: LogOffer | None
    ima: LogOffer | None
    boot_time: float | None


_items = msgspec.json.Decoder(list[_Item]).decode
_quote_capabilities = msgspec.json.Decoder(QuoteCapabilities).decode
_log_capabilities = msgspec.json.Decoder(LogCapabilities).decode


def decode_request(body: bytes) -> Resource:
    """Return the resource of a request to attest. Raises NotADocument."""
    resource = decode_resource(body)
    if resource.type != ATTESTATION_TYPE:
        raise NotADocument(f"type is not {ATTESTATION_TYPE}")
    return resource


def read_offer(resource: Resource) -> Offer:
    """Read what an agent offers. Raises Invalid."""
    quote: QuoteOffer | None = None
    logs: dict[str, LogOffer] = {}
    problems: list[Problem] = []
    for position, item in enumerate(_offered(resource.attributes)):
        where = f"{EVIDENCE}/{position}"
        if (item.evidence_class, item.evidence_type) == (CERTIFICATION, TPM_QUOTE) and quote is None:
            capabilities = _capabilities(item.capabilities, where, problems)
            if capabilities is not None:
                quote = QuoteOffer(position, capabilities, item.capabilities)
        elif item.evidence_class == LOG and item.evidence_type in {UEFI_LOG, IMA_LOG}:
            log = _log(item, where, problems)
            if log is not None:
                logs.setdefault(item.evidence_type, LogOffer(position, log, item.capabilities))
        elif item.evidence_class not in {CERTIFICATION, LOG}:
            problems.append(Problem(f"{where}/evidence_class", "must be 'certification' or 'log'"))
    boot_time = _boot_time(resource.attributes.get("system_info"), problems)
    if problems:
        raise Invalid(*problems)
    return Offer(quote, logs.get(UEFI_LOG), logs.get(IMA_LOG), boot_time)


def _offered(attributes: Mapping[str, Raw]) -> list[_Item]:
    raw = _array(attributes, "evidence_supported")
    if raw is None:
        raise Invalid(Problem(EVIDENCE, "is required"))
    try:
        items = _items(raw)
    except msgspec.ValidationError as problem:
        raise Invalid(_item_problem(raw, str(problem))) from None
    if not items:
        raise Invalid(Problem(EVIDENCE, "is required"))
    if len(items) > MAX_ITEMS:
        raise Invalid(Problem(EVIDENCE, f"may have at most {MAX_ITEMS} elements"))
    return items


def _array(attributes: Mapping[str, Raw], name: str) -> Raw | None:
    raw = attributes.get(name)
    if raw is not None and not bytes(raw).startswith(b"["):
        raise Invalid(Problem(EVIDENCE, "must be an array"))
    return raw


def _item_problem(raw: Raw, fallback: str) -> Problem:
    """Say which member of which item is missing or of another type than it should be."""
    for position, item in enumerate(msgspec.json.decode(raw, type=list[object])):
        if not isinstance(item, dict):
            return Problem(EVIDENCE, "may only contain objects with key-value pairs")
        for name, kind in (("evidence_class", str), ("evidence_type", str), ("capabilities", dict), ("data", dict)):
            if name in item and not isinstance(item[name], kind):
                what = "must be a string" if kind is str else "must be an object"
                return Problem(f"{EVIDENCE}/{position}/{name}", what)
            if name not in item and name != "data":
                return Problem(f"{EVIDENCE}/{position}/{name}", "is required")
    return Problem(EVIDENCE, f"cannot be read ({fallback})")


def _capabilities(raw: Raw, where: str, problems: list[Problem]) -> QuoteCapabilities | None:
    where = f"{where}/capabilities"
    try:
        found = _quote_capabilities(raw)
    except msgspec.ValidationError as problem:
        problems.append(_member_problem(raw, where, _QUOTE_MEMBERS, str(problem)))
        return None
    problems += _quote_problems(found, where)
    return found


def _quote_problems(found: QuoteCapabilities, where: str) -> list[Problem]:
    problems = [
        Problem(f"{where}/{name}", f"may have at most {MAX_NAMES} elements")
        for name in ("hash_algorithms", "signature_schemes", "available_subjects", "certification_keys")
        if len(getattr(found, name)) > MAX_NAMES
    ]
    if any(bank not in found.hash_algorithms for bank in found.available_subjects):
        problems.append(
            Problem(f"{where}/available_subjects", "may only contain PCR banks for the given hash algorithms")
        )
    if any(
        len(pcrs) > MAX_PCRS or any(not 0 <= pcr < 32 for pcr in pcrs) for pcrs in found.available_subjects.values()
    ):
        problems.append(Problem(f"{where}/available_subjects", "may only contain numbers of PCRs"))
    families = {family_of(scheme) for scheme in found.signature_schemes}
    for number, key in enumerate(found.certification_keys):
        problems += _key_problems(key, f"{where}/certification_keys/{number}", families)
    return problems


def _key_problems(key: KeyOffer, where: str, families: set[str]) -> list[Problem]:
    if key.key_class not in {"asymmetric", "symmetric"}:
        return [Problem(f"{where}/key_class", "must be 'asymmetric' or 'symmetric'")]
    if key.server_identifier is None and key.local_identifier is None and key.public is None:
        return [Problem(f"{where}/server_identifier", "is required unless 'local_identifier' or 'public' is given")]
    if key.key_class == "asymmetric" and key.key_algorithm not in families:
        message = "must be compatible with a given signature schemes" if key.key_algorithm else "is required"
        return [Problem(f"{where}/key_algorithm", message)]
    return []


def family_of(scheme: str) -> str:
    """Return the key family of a signature scheme, as keys are offered: `ecdsa` and `ecschnorr` are of `ecc`."""
    return "ecc" if scheme.startswith("ec") else "rsa" if scheme.startswith("rsa") else scheme


def _log(item: _Item, where: str, problems: list[Problem]) -> LogCapabilities | None:
    where = f"{where}/capabilities"
    try:
        found = _log_capabilities(item.capabilities)
    except msgspec.ValidationError as problem:
        problems.append(_member_problem(item.capabilities, where, _LOG_MEMBERS, str(problem)))
        return None
    if found.entry_count is None:
        if found.supports_partial_access:
            problems.append(Problem(f"{where}/entry_count", "is required when supports_partial_access is true"))
        elif item.evidence_type == IMA_LOG:
            problems.append(Problem(f"{where}/entry_count", "is required"))
    elif not 0 <= found.entry_count <= MAX_ENTRIES:
        problems.append(Problem(f"{where}/entry_count", "must be a number of entries"))
    return found


_QUOTE_MEMBERS: Final[Mapping[str, type]] = {
    "component_version": str,
    "hash_algorithms": list,
    "signature_schemes": list,
    "available_subjects": dict,
    "certification_keys": list,
}
_LOG_MEMBERS: Final[Mapping[str, type]] = {"formats": list, "entry_count": int, "supports_partial_access": bool}
_KINDS: Final = {str: "a string", list: "an array", dict: "an object", int: "an integer", bool: "true or false"}


def _member_problem(raw: Raw, where: str, members: Mapping[str, type], fallback: str) -> Problem:
    """Say which member of capabilities is missing or of another type than it should be."""
    found = msgspec.json.decode(raw)
    if not isinstance(found, dict):
        return Problem(where, "must be an object")
    for name, kind in members.items():
        if name not in found and name in {"formats", *_QUOTE_MEMBERS}:
            suffix = " for tpm_quote evidence" if members is _QUOTE_MEMBERS else ""
            return Problem(f"{where}/{name}", f"is required{suffix}")
        if name in found and not isinstance(found[name], kind):
            return Problem(f"{where}/{name}", f"must be {_KINDS[kind]}")
    return Problem(where, f"cannot be read ({fallback})")


def _boot_time(raw: Raw | None, problems: list[Problem]) -> float | None:
    if raw is None:
        return None
    where = "/system_info/boot_time"
    info = msgspec.json.decode(raw)
    if not isinstance(info, dict):
        problems.append(Problem("/system_info", "must be an object"))
        return None
    text = info.get("boot_time")
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text) if isinstance(text, str) else None
        if at is not None and at.tzinfo is not None:
            return max(at.timestamp(), 0.0)
    except (ValueError, OverflowError):
        pass
    problems.append(Problem(where, "must be an ISO 8601 time with its offset"))
    return None


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
    raw = _array(resource.attributes, "evidence_collected")
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
