"""The verifier's HTTP interface, version 3: what an agent that pushes offers as evidence.

Decides what a well-formed offer is, and where in it a problem lies. Must not know policies. Keylime REST API, verifier,
push model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec
from msgspec import Raw

from limeguard.wire.jsonapi import NotADocument, Problem, Resource, decode_resource

ATTESTATION_TYPE: Final = "attestation"
CERTIFICATION: Final = "certification"
LOG: Final = "log"
TPM_QUOTE: Final = "tpm_quote"
UEFI_LOG: Final = "uefi_log"
IMA_LOG: Final = "ima_log"
TEXT_FORMAT: Final = "text/plain"
BINARY_FORMAT: Final = "application/octet-stream"

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
    raw = array_of(attributes, "evidence_supported")
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


def array_of(attributes: Mapping[str, Raw], name: str) -> Raw | None:
    """Return an attribute that must be an array, None when it is missing. Raises Invalid."""
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
