"""Quotes: what an agent says its PCRs hold, and which of it an attestation key vouches for.

`parse_quote` gives what was said. Only `verify_quote` makes a `QuotedPcrs`, the proven form; judgement takes nothing
else.
"""

import binascii
from base64 import b64encode
from collections.abc import Mapping
from enum import Enum
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from limeguard.crypto.hashes import HashAlgorithm
from limeguard.crypto.keys import ECDSA, verify_ecdsa, verify_rsa
from limeguard.evidence.reader import MalformedEvidence
from limeguard.evidence.tpm.pcrblob import PcrValues, parse_pcr_blob
from limeguard.evidence.tpm.structures import (
    ClockInfo,
    PcrSelection,
    PublicArea,
    QuoteAttest,
    Signature,
    parse_attest,
    parse_signature,
)

MAX_QUOTE: Final = 64 * 1024
"""Characters of a quote string: five banks of 24 PCRs with an RSA-4096 signature stay below 15,000."""


class Quote(msgspec.Struct, frozen=True):
    """A quote as said: the signed bytes, what they parse to, the signature, and the PCR values beside them."""

    signed: bytes
    attest: QuoteAttest
    signature: Signature
    selections: tuple[PcrSelection, ...]
    values: PcrValues


class QuoteFault(Enum):
    """Why a quote proves nothing. The value is a sentence for people."""

    KEY_NOT_RESTRICTED = "The key is not a restricted signing key, so its signature proves nothing about the TPM"
    HASH_NOT_ACCEPTED = "The hash algorithm of the signature or of the PCR bank is not accepted"
    SCHEME_MISMATCH = "The signature's scheme or hash is not the one of the attestation key"
    BAD_SIGNATURE = "The signature was not made by the attestation key over this data"
    WRONG_NONCE = "The nonce from the attestation differs from the expected nonce"
    NO_PCRS = "The quote selects no PCRs"
    SELECTION_MISMATCH = "The PCRs that the TPM quoted are not the ones whose values were sent"
    WRONG_PCR_DIGEST = "The digest of the sent PCR values is not the one that the TPM quoted"


class QuotedPcrs(msgspec.Struct, frozen=True):
    """PCR values that a key vouches for. `values` are those of `bank`; every quoted bank is in `banks`."""

    bank: HashAlgorithm
    values: Mapping[int, bytes]
    banks: PcrValues
    clock: ClockInfo
    firmware_version: int


def parse_quote(text: str) -> Quote:
    """Parse `r` base64(TPMS_ATTEST) `:` base64(TPMT_SIGNATURE) `:` base64(PCR blob). Raises MalformedEvidence."""
    if not text.startswith("r"):
        raise MalformedEvidence("quote", "does not begin with 'r'")
    if len(text) > MAX_QUOTE:
        raise MalformedEvidence("quote", f"has {len(text)} characters, at most {MAX_QUOTE} are allowed")
    parts = text[1:].split(":")
    if len(parts) != 3:
        raise MalformedEvidence("quote", f"has {len(parts)} parts, three are needed")
    try:
        signed, signature, blob = (binascii.a2b_base64(part, strict_mode=True) for part in parts)
    except ValueError as problem:
        raise MalformedEvidence("quote", f"is not base64: {problem}") from None
    attest = parse_attest(signed)
    if not isinstance(attest, QuoteAttest):
        raise MalformedEvidence("TPMS_ATTEST.type", "is a certification, not a quote")
    return Quote(signed, attest, parse_signature(signature), *parse_pcr_blob(blob))


def build_quote_string(attest: bytes, signature: bytes, pcr_blob: bytes) -> str:
    """Join the three marshalled parts of a quote."""
    return "r" + ":".join(b64encode(part).decode() for part in (attest, signature, pcr_blob))


def verify_quote(
    quote: Quote, *, key: PublicArea, nonce: bytes, accepted_hashes: frozenset[str]
) -> QuotedPcrs | QuoteFault:
    """Say which PCR values the key vouches for, or why it vouches for none.

    `key` comes from the registrar, never from the agent. `accepted_hashes` are names; they bind the signature's hash
    and every bank (a PCR in a weak bank is worth no more than that bank). Checked in this order: the key is a
    restricted signing key (TPM 2.0 Part 1 §23.2), algorithms, signature, nonce, selection, PCR digest.
    """
    signature, attest = quote.signature, quote.attest
    if not key.restricted_signing:
        return QuoteFault.KEY_NOT_RESTRICTED
    if signature.hash_alg.name not in accepted_hashes:
        return QuoteFault.HASH_NOT_ACCEPTED
    scheme = key.scheme
    if scheme is not None and (scheme.name != signature.scheme or scheme.hash_alg is not signature.hash_alg):
        return QuoteFault.SCHEME_MISMATCH
    if not signature_is_good(key, signature, quote.signed):
        return QuoteFault.BAD_SIGNATURE
    if attest.extra_data != nonce:
        return QuoteFault.WRONG_NONCE
    return _proven_values(quote, accepted_hashes)


def signature_is_good(key: PublicArea, signature: Signature, data: bytes) -> bool:
    """Say whether the key made the signature over `data`. A scheme of the other key family is never good."""
    public, value = key.key, signature.value
    if isinstance(value, bytes):
        return isinstance(public, rsa.RSAPublicKey) and verify_rsa(
            public, signature.scheme, signature.hash_alg, value, data
        )
    if signature.scheme != ECDSA or not isinstance(public, ec.EllipticCurvePublicKey):
        return False
    return verify_ecdsa(public, signature.hash_alg, value, data)


def _proven_values(quote: Quote, accepted_hashes: frozenset[str]) -> QuotedPcrs | QuoteFault:
    attest = quote.attest
    selected = [s for s in attest.selection if s.pcrs]
    if not selected:
        return QuoteFault.NO_PCRS
    # The digest alone does not bind PCR numbers: the TPM's own selection must name the very PCRs that were sent.
    if selected != [s for s in quote.selections if s.pcrs]:
        return QuoteFault.SELECTION_MISMATCH
    values: list[bytes] = []
    for selection in selected:
        if selection.bank.name not in accepted_hashes:
            return QuoteFault.HASH_NOT_ACCEPTED
        values += quote.values[selection.bank].values()
    if quote.signature.hash_alg.digest(b"".join(values)) != attest.pcr_digest:
        return QuoteFault.WRONG_PCR_DIGEST
    bank = quote.signature.hash_alg if quote.signature.hash_alg in quote.values else selected[0].bank
    return QuotedPcrs(bank, quote.values[bank], quote.values, attest.clock_info, attest.firmware_version)
