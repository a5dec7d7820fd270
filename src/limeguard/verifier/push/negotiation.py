"""What an agent that pushes is asked for: from what it offers, what its node is held to, and what is proven already.

Pure. The words of its refusals are those of the wire, since agents' logs and operators' scripts show them.
"""

from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from limeguard.evidence.tpm.structures import PublicArea
from limeguard.wire.attestation_v3 import LogParameters, QuoteParameters, Requested
from limeguard.wire.jsonapi import Problem
from limeguard.wire.offer_v3 import (
    BINARY_FORMAT,
    CERTIFICATION,
    EVIDENCE,
    IMA_LOG,
    LOG,
    TEXT_FORMAT,
    TPM_QUOTE,
    UEFI_LOG,
    Invalid,
    KeyOffer,
    LogOffer,
    Offer,
    QuoteOffer,
    family_of,
)

CHALLENGE_BYTES: Final = 16
"""What every deployed agent can put into a quote, and more than anybody guesses."""
COMPONENT_VERSION: Final = "2.0"
BOOT_PCRS: Final = frozenset({*range(10), *range(11, 16)})
"""PCRs that a boot log explains."""
IMA_PCR: Final = 10
SHOWN_PCRS: Final = tuple(range(8))
"""PCRs that a node without policy quotes: they prove nothing that is asked, but a quote of none cannot be made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a node is held to. `pcrs` are those with values in its policy; `accept_*` are in order of preference."""

    ak: PublicArea
    accept_hash: tuple[str, ...]
    accept_sign: tuple[str, ...]
    pcrs: frozenset[int]
    boot_log: bool
    ima_log: bool

    @property
    def required(self) -> frozenset[int]:
        """The PCRs that a quote must hold; none for a node that is attested for its identity alone."""
        boot = BOOT_PCRS if self.boot_log else frozenset()
        return self.pcrs | boot | (frozenset({IMA_PCR}) if self.ima_log else frozenset())


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a node's IMA log is proven, in which boot (seconds since 1970), and after how many resets of its TPM."""

    next_entry: int
    boot_time: int
    reset_count: int | None


def starting_offset(progress: Progress, *, boot_time: float | None, entries: int, resets: int | None) -> int:
    """Return from where on the IMA log is needed; 0, a full replay, whenever it may be another log.

    `resets` is what the TPM said when the agent proved itself, None when not known here. A wall clock that was set
    back, a shorter log and a rebooted machine all lead to 0: a replay from the beginning is always sound.
    """
    if boot_time is None or int(boot_time) != progress.boot_time or progress.next_entry > entries:
        return 0
    if resets is not None and progress.reset_count is not None and resets != progress.reset_count:
        return 0
    return progress.next_entry


def negotiate(
    offer: Offer,
    wanted: Wanted,
    progress: Progress,
    challenge: bytes,
    resets: int | None,
    known: Requested | None = None,
) -> tuple[tuple[Requested, ...], int]:
    """Return what to ask for, and how many entries of the IMA log that is at least. Raises Invalid.

    `challenge` are fresh random bytes, used for nothing else. `known` is the quote that was asked for when the same
    was offered and wanted before: all but its challenge holds again.
    """
    requested = [_quote(offer.quote, wanted, challenge) if known is None else _quote_again(known, challenge)]
    if wanted.boot_log:
        requested.append(_uefi(offer.uefi))
    if not wanted.ima_log:
        return tuple(requested), 0
    if offer.boot_time is None:
        raise Invalid(Problem("/system_info/boot_time", "is required"))
    log = _ima(offer.ima)
    entries = log.capabilities.entry_count or 0
    offset = starting_offset(progress, boot_time=offer.boot_time, entries=entries, resets=resets)
    parameters = LogParameters(format=TEXT_FORMAT, starting_offset=offset)
    requested.append(Requested.make(LOG, IMA_LOG, log.raw, parameters))
    return tuple(requested), entries - offset


def _uefi(log: LogOffer | None) -> Requested:
    if log is None:
        raise Invalid(Problem(EVIDENCE, f"must contain a log item of type '{UEFI_LOG}' per agent policy"))
    if BINARY_FORMAT not in log.capabilities.formats:
        raise Invalid(Problem(EVIDENCE, f"must have '{UEFI_LOG}' with format '{BINARY_FORMAT}'"))
    return Requested.make(LOG, UEFI_LOG, log.raw, LogParameters(format=BINARY_FORMAT))


def _ima(log: LogOffer | None) -> LogOffer:
    if log is None:
        raise Invalid(Problem(EVIDENCE, f"must contain a log item of type '{IMA_LOG}' per agent policy"))
    if TEXT_FORMAT not in log.capabilities.formats or not log.capabilities.supports_partial_access:
        message = f"must have '{IMA_LOG}' with format '{TEXT_FORMAT}' and which supports partial access"
        raise Invalid(Problem(EVIDENCE, message))
    return log


# --- the quote ------------------------------------------------------------------------------------------------------


def _quote(offer: QuoteOffer | None, wanted: Wanted, challenge: bytes) -> Requested:
    if offer is None:
        raise Invalid(Problem(EVIDENCE, f"must contain a certification item of type '{TPM_QUOTE}' per agent policy"))
    found = offer.capabilities
    if found.component_version != COMPONENT_VERSION:
        raise _unfit("check 'component_version'")
    schemes = [scheme for scheme in _schemes(wanted) if scheme in found.signature_schemes]
    if not schemes:
        raise _unfit("check 'signature_schemes'")
    hashes = [name for name in _hashes(wanted) if name in found.hash_algorithms]
    if not hashes:
        raise _unfit("check 'hash_algorithms'")
    subjects = _subjects(offer, wanted)
    scheme, number = _scheme_and_key(found.certification_keys, schemes, hashes, wanted)
    key = found.certification_keys[number]
    hash_name = next((name for name in hashes if subjects.get(name) and _allows_hash(key, name)), None)
    if hash_name is None:
        raise _unfit("check PCR banks in 'available_subjects'")
    parameters = QuoteParameters(
        signature_scheme=scheme,
        challenge=b64encode(challenge).decode(),
        hash_algorithm=hash_name,
        selected_subjects=subjects,
    )
    if _is_whole(key):
        parameters = QuoteParameters(
            signature_scheme=scheme,
            challenge=parameters.challenge,
            hash_algorithm=hash_name,
            selected_subjects=subjects,
            certification_key=offer.key_as_sent(number),
        )
    return Requested.make(CERTIFICATION, TPM_QUOTE, offer.raw, parameters)


def _quote_again(known: Requested, challenge: bytes) -> Requested:
    text = b64encode(challenge).decode()
    parameters = msgspec.structs.replace(known.parameters, challenge=text)
    return Requested.make(known.evidence_class, known.evidence_type, known.capabilities, parameters)


def _unfit(tip: str) -> Invalid:
    message = f"must have '{TPM_QUOTE}' with capabilities which are valid and satisfy agent policy ({tip})"
    return Invalid(Problem(EVIDENCE, message))


def _schemes(wanted: Wanted) -> tuple[str, ...]:
    """Return the accepted schemes: of those the one that the key is fixed to, since no other can be made with it."""
    scheme = wanted.ak.scheme
    if scheme is None:
        return tuple(name for name in wanted.accept_sign if family_of(name) == wanted.ak.type)
    return tuple(name for name in wanted.accept_sign if name == scheme.name)


def _hashes(wanted: Wanted) -> tuple[str, ...]:
    scheme = wanted.ak.scheme
    return tuple(name for name in wanted.accept_hash if scheme is None or name == scheme.hash_alg.name)


def _subjects(offer: QuoteOffer, wanted: Wanted) -> dict[str, tuple[int, ...] | None]:
    """Return for each offered bank the PCRs to quote of it; None for a bank that is not used."""
    available, required = offer.capabilities.available_subjects, wanted.required
    order = sorted(available, key=lambda bank: _preference(bank, wanted.accept_hash))
    chosen: dict[str, tuple[int, ...] | None] = {}
    for bank in order:
        there = frozenset(available[bank])
        pcrs = required or frozenset(SHOWN_PCRS) & there
        usable = bank in wanted.accept_hash and bool(pcrs) and pcrs <= there
        chosen[bank] = tuple(sorted(pcrs)) if usable else None
    if not any(bank in wanted.accept_hash for bank in available):
        where = f"{EVIDENCE}/{offer.position}/capabilities/available_subjects"
        raise Invalid(Problem(where, "must have a PCR bank for a hash algorithm allowable for agent"))
    if not any(chosen.values()):
        message = (
            f"must have '{TPM_QUOTE}' with capabilities which satisfy agent policy "
            "(check the correct numbered PCRs are given for an allowable PCR bank)"
        )
        raise Invalid(Problem(EVIDENCE, message))
    return chosen


def _preference(bank: str, accepted: tuple[str, ...]) -> int:
    return accepted.index(bank) if bank in accepted else len(accepted)


def _scheme_and_key(
    keys: tuple[KeyOffer, ...], schemes: list[str], hashes: list[str], wanted: Wanted
) -> tuple[str, int]:
    """Return the first scheme that a key can be used with, and the number of the best such key."""
    for scheme in schemes:
        usable = [number for number, key in enumerate(keys) if _usable(key, scheme, hashes)]
        if usable:
            return scheme, max(usable, key=lambda number: _rank(keys[number], wanted.ak))
    raise _unfit("check schemes and algorithms in 'certification_keys'")


def _usable(key: KeyOffer, scheme: str, hashes: list[str]) -> bool:
    fits = key.key_class == "asymmetric" and key.key_algorithm == family_of(scheme)
    allowed = key.allowable_signature_schemes is None or scheme in key.allowable_signature_schemes
    return fits and allowed and any(_allows_hash(key, name) for name in hashes)


def _allows_hash(key: KeyOffer, name: str) -> bool:
    return key.allowable_hash_algorithms is None or name in key.allowable_hash_algorithms


def _rank(key: KeyOffer, ak: PublicArea) -> int:
    """Return how sure it is that this is the enrolled key; agents send its public area with or without size."""
    if key.public is not None and _same_key(key.public, ak.raw):
        return 2
    return 1 if key.server_identifier == "ak" else 0


def _same_key(public: str, raw: bytes) -> bool:
    try:
        sent = b64decode(public, validate=True)
    except ValueError:
        return False
    return sent in (raw, len(raw).to_bytes(2, "big") + raw)


def _is_whole(key: KeyOffer) -> bool:
    """Say whether a key has all members without which deployed agents do not take it back."""
    return None not in (key.key_size, key.server_identifier, key.local_identifier, key.public) and bool(
        key.key_algorithm
    )


def checked_pcrs(requested: tuple[Requested, ...]) -> Iterator[int]:
    """Yield the PCRs that the quote was asked for."""
    for one in requested:
        if isinstance(one.parameters, QuoteParameters):
            yield from one.parameters.selected_subjects.get(one.parameters.hash_algorithm) or ()
