"""The proof a node gives before it is trusted with anything: a fresh quote over its transport key by its registered AK.

`prove` is the only maker of a `ProvenNode`, and secrets are handed to nothing else. Whether the quote is good is
decided by `appraisal`, here as everywhere.
"""

import string
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable
from dataclasses import dataclass

from limeguard.appraisal.appraise import Evidence, Expected, appraise
from limeguard.appraisal.findings import Finding
from limeguard.appraisal.history import History
from limeguard.appraisal.verdict import Appraisal
from limeguard.evidence.reader import MalformedEvidence
from limeguard.evidence.tpm.structures import PublicArea, parse_public_2b
from limeguard.policy.pcrs import from_operator
from limeguard.telemetry import clean
from limeguard.tenant.errors import TenantError
from limeguard.wire.agent_v2 import QuoteAnswer
from limeguard.wire.operator_view import Registration

BINDING_PCR = 16
"""The PCR into which an agent puts its transport key before each quote."""

NONCE_LENGTH = 20
_ALPHABET = string.ascii_letters + string.digits

Choose = Callable[[str], str]
"""Picks one character, each with the same chance, from the system's random source."""


@dataclass(frozen=True, slots=True)
class AcceptLists:
    """The algorithms that the operator accepts, by the names of Keylime's settings."""

    hashes: tuple[str, ...]
    encryption: tuple[str, ...]
    signing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProvenNode:
    """A node whose AK vouched for this transport key, moments ago. Made by `prove` alone."""

    agent_id: str
    transport_key: str


def make_nonce(choose: Choose) -> str:
    """Return 20 alphanumeric characters (119 bits): agents accept nothing else in a query."""
    return "".join(choose(_ALPHABET) for _ in range(NONCE_LENGTH))


def registered_ak(registration: Registration) -> PublicArea:
    """Return the AK that the registrar vouches for. Raises TenantError."""
    try:
        return parse_public_2b(b64decode(registration.attestation_key, validate=True))
    except (Base64Error, MalformedEvidence, ValueError) as problem:
        raise TenantError(f"The registrar's record has an unusable attestation key: {clean(problem)}") from problem


def unaccepted_algorithm(answer: QuoteAnswer, accept: AcceptLists) -> str | None:
    """Return what is not accepted, as `hash algorithm: sha1`, or None."""
    for kind, name, accepted in (
        ("hash", answer.hash_alg, accept.hashes),
        ("encryption", answer.enc_alg, accept.encryption),
        ("signing", answer.sign_alg, accept.signing),
    ):
        if not {name, *_SAME.get(name, ())} & set(accepted):
            return f"{kind} algorithm: {clean(name)}"
    return None


_SAME = {"rsa": ("rsa2048",), "rsa2048": ("rsa",), "ecc": ("ecc256",), "ecc256": ("ecc",)}
"""Two names of one thing: agents of API 2.5 and later add the size."""


def appraise_identity(answer: QuoteAnswer, ak: PublicArea, nonce: str, accept: AcceptLists, now: float) -> Appraisal:
    """Judge an identity quote: the signature, the nonce, the algorithms, and the transport key in PCR 16."""
    evidence = Evidence(
        quote=answer.quote,
        hash_alg=answer.hash_alg,
        enc_alg=answer.enc_alg,
        sign_alg=answer.sign_alg,
        public_key=answer.pubkey,
        ima_log=None,
        ima_entry=0,
        boot_log=None,
        boottime=0,
    )
    expected = Expected(
        ak=ak,
        nonce=nonce.encode("ascii"),
        accept_hash=accept.hashes,
        accept_enc=accept.encryption,
        accept_sign=accept.signing,
        pcrs=from_operator("{}"),
        required_selection=frozenset({BINDING_PCR}),
        identity_only_allowed=True,
    )
    return appraise(evidence, expected, History(clock=None, public_key=None), now)


def prove(agent_id: str, answer: QuoteAnswer, appraisal: Appraisal) -> ProvenNode | str:
    """Turn a trusted appraisal into the proof, or say what was found wrong."""
    if appraisal.trusted and answer.pubkey:
        return ProvenNode(agent_id, answer.pubkey)
    found = ", ".join(_told(finding) for finding in appraisal.findings)
    return found or "the appraisal was not complete"


def _told(finding: Finding) -> str:
    reason = finding.context.get("error", finding.context.get("message"))
    return clean(finding.event_id if reason is None else f"{finding.event_id}: {reason}")
