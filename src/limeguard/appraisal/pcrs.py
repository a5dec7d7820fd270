"""Whether proven PCR values are the right ones: the binding of the transport key, and the policy's lists."""

from collections.abc import Iterator

from limeguard.appraisal.findings import (
    PCR_BANK,
    PCR_VALUE,
    PCRS_MISSING,
    TRANSPORT_KEY,
    TRANSPORT_KEY_UNQUOTED,
    Finding,
)
from limeguard.evidence.tpm.quote import QuotedPcrs
from limeguard.policy.pcrs import BINDING_PCR, PcrPolicy


def check_transport_key(quoted: QuotedPcrs, public_key: str) -> Finding | None:
    """Say what is wrong with the binding of the transport key (PEM text as sent) to the quote, or None.

    The agent resets PCR 16 and extends it with the digest of the text, so it holds H(zeros || H(text)).
    """
    value = quoted.values.get(BINDING_PCR)
    if value is None:
        return Finding(TRANSPORT_KEY_UNQUOTED, {"quoted": sorted(quoted.values)})
    bank = quoted.bank
    expected = bank.digest(bytes(bank.size) + bank.digest(public_key.encode()))
    if value == expected:
        return None
    return Finding(TRANSPORT_KEY, {"bank": bank.name, "value": value.hex(), "expected": expected.hex()})


def check_requested(quoted: QuotedPcrs, requested: frozenset[int]) -> Finding | None:
    """Say which PCRs were asked for and not quoted, or None. The binding PCR has a check of its own."""
    if requested <= quoted.values.keys():
        return None
    missing = sorted(requested - quoted.values.keys() - {BINDING_PCR})
    return Finding(PCRS_MISSING, {"bank": quoted.bank.name, "missing": missing}) if missing else None


def check_allowed(quoted: QuotedPcrs, policy: PcrPolicy) -> Iterator[Finding]:
    """Yield a finding for each quoted PCR whose value the policy does not list, PCR by PCR.

    Lists may hold digests of several banks; those of the quoted bank count. PCRs without a list are not judged.
    """
    for pcr in sorted(policy.allowed):
        value = quoted.values.get(pcr)
        if value is not None and value not in policy.allowed[pcr]:
            known = any(len(digest) == quoted.bank.size for digest in policy.allowed[pcr])
            kind = PCR_VALUE if known else PCR_BANK
            yield Finding(kind, {"pcr": pcr, "bank": quoted.bank.name, "value": value.hex()})
