"""The proof that an AK lives in the same TPM as an IAK: TPM2_Certify of the AK, signed by the IAK."""

import hashlib

from limeguard.evidence.tpm.quote import signature_is_good
from limeguard.evidence.tpm.structures import CertifyAttest, PublicArea, parse_attest, parse_signature


def certification_fault(iak: PublicArea, ak: PublicArea, agent_id: str, attest: bytes, signature: bytes) -> str | None:
    """Say why the proof is not good, or None when it is. Raises MalformedEvidence for what cannot be read.

    `attest` is a TPMS_ATTEST, `signature` a TPMT_SIGNATURE. Its extraData is SHA-256 of the id, or the id itself as
    agents before API 2.6 send it.
    """
    said = parse_attest(attest)
    if not isinstance(said, CertifyAttest):
        return "the attestation is not a certification"
    if said.extra_data not in {hashlib.sha256(agent_id.encode()).digest(), agent_id.encode()}:
        return "the certification is for another id"
    if said.name != ak.name:
        return "the certification is for another key"
    if not iak.restricted_signing:
        return "the IAK is not a restricted signing key"
    if not signature_is_good(iak, parse_signature(signature), attest):
        return "the certification was not signed by the IAK"
    return None
