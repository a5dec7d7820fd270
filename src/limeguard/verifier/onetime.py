"""Evidence verified on request, for anybody: nothing is stored, no node is looked up, and little is done at once.

Decides how much work is taken on, and turns policies as they were brought into what appraisal needs.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Final

from limeguard.appraisal.findings import (
    BOOT_LOG_BASE64,
    BOOT_POLICY_UNUSABLE,
    HASH_NOT_ACCEPTED,
    INVALID_QUOTE,
    MISSING_PARAMETER,
    MISSING_POLICY,
    PCR_BANK,
    PCR_VALUE,
    PCRS_MISSING,
    TEE_KINDS,
    Finding,
)
from limeguard.appraisal.onetime import BroughtEvidence, BroughtExpectation, appraise_brought
from limeguard.appraisal.runtime import RuntimeExpected
from limeguard.appraisal.verdict import Outcome
from limeguard.crypto.hashes import hash_by_name
from limeguard.policy.boot import BootPolicy, parse_boot_policy
from limeguard.policy.errors import PolicyError
from limeguard.policy.pcrs import MASK, PcrPolicy, from_operator
from limeguard.verifier.enrolment import parse_ak
from limeguard.verifier.policies import unwrap
from limeguard.wire.agent_v2 import BadAnswer, decode_boot_log
from limeguard.wire.envelope import BadRequest
from limeguard.wire.evidence_v2 import (
    NO_POLICY,
    EvidenceResult,
    Failure,
    MissingParameter,
    TpmEvidence,
    decode_evidence,
    encode_incomplete,
    encode_result,
    nonces,
    policy_text,
)

MAX_EVIDENCE: Final = 16 * 1024 * 1024
"""Bytes of a request: a measurement list of 100,000 lines, and the policy that lists as many files."""
AT_ONCE: Final = 2
"""Verifications at the same time. They share the processor with the rounds of all nodes."""
MAX_WAITING: Final = 16
"""Requests that may wait for their turn; whoever comes then is asked to come again."""
BUSY: Final = "Too many verifications are waiting; try again later"
NO_TEE: Final = "invalid tee argument: this version verifies no evidence of trusted execution environments"
UNPROCESSED: Final = "Internal Server Error: Failed to process attestation data"

_TEE: Final = {kind.id: kind for kind in TEE_KINDS}
_QUOTE_EVENT: Final = "qoute_validation.quote_validation"

Answer = tuple[int, bytes]


class BusyError(Exception):
    """Too much is waiting already."""


class OneTime:
    """Verifies evidence that somebody brings."""

    def __init__(self, boot_policy_name: str, *, violations_found: bool) -> None:
        """Judge boot logs by the policy of that name; `violations_found` makes violations in IMA logs findings."""
        self._boot_policy_name = boot_policy_name
        self._violations_found = violations_found
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    async def verify(self, body: bytes) -> Answer:
        """Return status and body of the answer. Raises BadRequest, BusyError, and whatever is our own fault."""
        if self._waiting >= MAX_WAITING:
            raise BusyError(BUSY)
        self._waiting += 1
        try:
            async with self._turns:
                return await asyncio.to_thread(self._verified, body)
        finally:
            self._waiting -= 1

    def _verified(self, body: bytes) -> Answer:
        try:
            evidence, data = decode_evidence(body)
        except MissingParameter as missing:
            kind = MISSING_PARAMETER if missing.kind == "tpm" else _TEE["tee.missing-parameter"]
            return 400, encode_incomplete(Failure(kind.event_id, missing.failure))
        if not isinstance(evidence, TpmEvidence):
            refused = Failure(_TEE["tee.kind"].event_id, {"message": NO_TEE})
            return 200, encode_result(EvidenceResult(valid=False, claims={}, failures=(refused,)))
        pcrs = _pcr_policy(policy_text(evidence.tpm_policy))
        findings = self._judged(evidence, pcrs)
        if findings is None:
            return 400, encode_incomplete(Failure(MISSING_POLICY.event_id, {"message": NO_POLICY}))
        if findings:
            failures = tuple(Failure(one.event_id, _context(one, pcrs)) for one in findings)
            return 200, encode_result(EvidenceResult(valid=False, claims={}, failures=failures))
        return 200, encode_result(EvidenceResult(valid=True, claims=data))

    def _judged(self, evidence: TpmEvidence, pcrs: PcrPolicy) -> tuple[Finding, ...] | None:
        """Return what is wrong; None where no policy asks for anything."""
        try:
            boot_policy = self._boot_policy(policy_text(evidence.mb_policy))
        except PolicyError as problem:
            return (Finding(BOOT_POLICY_UNUSABLE, {"message": f"Invalid measured boot policy: {problem}"}),)
        runtime = self._runtime(policy_text(evidence.runtime_policy))
        if not pcrs.allowed and runtime is None and (boot_policy is None or not boot_policy.active):
            return None  # a quote alone says nothing that could be valid
        if hash_by_name(evidence.hash_alg) is None:
            return (Finding(HASH_NOT_ACCEPTED, {"message": f"unknown hash algorithm {evidence.hash_alg[:40]!r}"}),)
        try:
            ak = parse_ak(evidence.tpm_ak)
            log = decode_boot_log(evidence.mb_log) if evidence.mb_log else None
        except BadRequest as problem:
            return (Finding(INVALID_QUOTE, {"message": problem.status_text}),)
        except BadAnswer as problem:
            return (Finding(BOOT_LOG_BASE64, {"message": f"mb_log cannot be read: {problem}"}),)
        appraisal = appraise_brought(
            BroughtEvidence(quote=evidence.quote, ima_log=evidence.ima_measurement_list or "", boot_log=log),
            BroughtExpectation(
                ak=ak,
                nonces=nonces(evidence.nonce),
                hash_alg=evidence.hash_alg,
                pcrs=pcrs,
                runtime=runtime,
                boot_policy=boot_policy,
            ),
        )
        if appraisal.outcome is Outcome.INCOMPLETE:
            raise RuntimeError(f"required checks did not run: {', '.join(sorted(appraisal.not_run))}")
        return appraisal.findings

    def _boot_policy(self, text: str) -> BootPolicy | None:
        return parse_boot_policy(text, self._boot_policy_name) if text else None

    def _runtime(self, text: str) -> RuntimeExpected | None:
        if not text:
            return None
        try:
            policy = unwrap(text)
        except PolicyError as problem:
            raise BadRequest("; ".join(problem.problems[:20])) from None
        keys = policy.verification_keys
        return RuntimeExpected(policy=policy, verification_keys=keys, violations_found=self._violations_found)


def _pcr_policy(text: str) -> PcrPolicy:
    """Read the PCR policy; a mask, which says what to quote, has no meaning for a quote that is there already."""
    try:
        document = json.loads(text or "{}")
        if isinstance(document, dict):
            document.pop(MASK, None)
        return from_operator(json.dumps(document))
    except (ValueError, RecursionError, PolicyError) as problem:
        problems = problem.problems if isinstance(problem, PolicyError) else (str(problem),)
        raise BadRequest(f"Exception error: tpm_policy cannot be used: {'; '.join(problems)}") from None


def _context(finding: Finding, pcrs: PcrPolicy) -> Mapping[str, Any]:
    """Return what is known of a finding, in the words that clients of this interface look for."""
    context = dict(finding.context)
    if finding.kind in {PCR_VALUE, PCR_BANK}:
        listed = sorted(value.hex() for value in pcrs.allowed.get(int(str(context["pcr"])), ()))
        return {"context": "PCR value is not in allowlist", "got": context["value"], "expected": listed}
    if finding.kind is PCRS_MISSING:
        return {"context": "PCRs are missing in quote", "data": context["missing"]}
    if finding.event_id == _QUOTE_EVENT:
        return {"message": "Quote data validation", "error": context.get("message", "")}
    return context
