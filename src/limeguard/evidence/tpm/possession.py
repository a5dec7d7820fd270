"""Proof that somebody holds an attestation key now: TPM2_Certify of the key by itself over a challenge.

Only `verify_possession` makes a `Possession`, the proven form. TPM 2.0 Part 3 §18.2 (TPM2_Certify).
"""

from dataclasses import dataclass
from enum import Enum

from limeguard.evidence.reader import MalformedEvidence
from limeguard.evidence.tpm.quote import signature_is_good
from limeguard.evidence.tpm.structures import (
    CertifyAttest,
    ClockInfo,
    PublicArea,
    Signature,
    parse_attest,
    parse_signature,
)


class PossessionFault(Enum):
    """Why a proof proves nothing. The value is a sentence for people."""

    MALFORMED = "The proof is not a certification and its signature, as TPMs make them"
    KEY_NOT_RESTRICTED = "The key is not a restricted signing key, so its signature proves nothing about the TPM"
    WRONG_CHALLENGE = "The proof was made over another challenge"
    WRONG_KEY = "The proof certifies another key than the enrolled one"
    SCHEME_MISMATCH = "The signature's scheme or hash is not the one of the attestation key"
    NOT_ACCEPTED = "The signature's scheme or hash is not accepted for this node"
    BAD_SIGNATURE = "The signature was not made by the attestation key over this data"


@dataclass(frozen=True, slots=True)
class Possession:
    """What a good proof says of the TPM."""

    clock: ClockInfo


def verify_possession(
    message: bytes,
    signature: bytes,
    *,
    key: PublicArea,
    challenge: bytes,
    accepted_hashes: tuple[str, ...],
    accepted_schemes: tuple[str, ...],
) -> Possession | PossessionFault:
    """Say whether the holder of `key`, which comes from the enrolment, answered `challenge`, or why it proves nothing.

    Scheme and hash are those that the key itself is fixed to, and must be on the node's accept lists.
    """
    try:
        attest, signed = parse_attest(message), parse_signature(signature)
    except MalformedEvidence:
        return PossessionFault.MALFORMED
    if not isinstance(attest, CertifyAttest):
        return PossessionFault.MALFORMED
    fault = _wrong_key(attest, challenge, key) or _wrong_scheme(signed, key)
    if fault is not None:
        return fault
    if signed.hash_alg.name not in accepted_hashes or signed.scheme not in accepted_schemes:
        return PossessionFault.NOT_ACCEPTED
    if not signature_is_good(key, signed, message):
        return PossessionFault.BAD_SIGNATURE
    return Possession(attest.clock_info)


def _wrong_key(attest: CertifyAttest, challenge: bytes, key: PublicArea) -> PossessionFault | None:
    if not key.restricted_signing:
        return PossessionFault.KEY_NOT_RESTRICTED
    if attest.extra_data != challenge:
        return PossessionFault.WRONG_CHALLENGE
    return None if attest.name == key.name else PossessionFault.WRONG_KEY


def _wrong_scheme(signed: Signature, key: PublicArea) -> PossessionFault | None:
    scheme = key.scheme
    if scheme is None or (scheme.name == signed.scheme and scheme.hash_alg is signed.hash_alg):
        return None
    return PossessionFault.SCHEME_MISMATCH
