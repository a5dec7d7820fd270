"""The policies that go with a node, from the operator's options: read, checked as far as this version can, made ready.

What is judged here is the PCR policy alone. Runtime and measured boot policies are passed on as they are, to a verifier
that judges them or refuses; a signed policy is passed on only after its signature was checked.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from limeguard.policy.keyring import KeyUnreadableError, UnsupportedKeyTypeError, keyring_text, load_public_key
from limeguard.policy.legacy import convert, exclude_lines
from limeguard.policy.pcrs import PcrPolicy, PolicyError, from_operator, to_wire
from limeguard.policy.runtime import check_document
from limeguard.tenant.errors import TenantError
from limeguard.tenant.payload import read_bounded
from limeguard.tenant.report import Report, info
from limeguard.tenant.request import Request
from limeguard.tenant.signed import check_signed_policy

MAX_POLICY = 64 * 1024 * 1024

IMA_PCR = 10
BOOT_PCRS = frozenset(range(16)) - {IMA_PCR}
DEFAULT_BOOT = "default"


@dataclass(frozen=True, slots=True)
class Policies:
    """What is sent: `tpm_policy` and `boot` as JSON text, `runtime` and `runtime_key` as the bytes of their files.

    `ima_keys` is the text of a keyring, "" for none.
    """

    tpm_policy: str
    runtime: bytes = b""
    runtime_name: str = ""
    runtime_key: bytes = b""
    boot: str | None = None
    boot_name: str = ""
    ima_keys: str = ""


@dataclass(frozen=True, slots=True)
class PolicyFiles:
    """What the options mean that name no file themselves.

    `downloaded` is the runtime policy of `--runtime-policy-url`, `default_boot` the file of the measured boot policy
    that is called `default`, "" for none.
    """

    downloaded: bytes | None = None
    default_boot: str = ""


def prepare(request: Request, files: PolicyFiles, report: Report) -> Policies:
    """Read and check every policy of a request. Raises TenantError."""
    _refuse_unjudged(request)
    pcrs = _pcr_policy(request)
    info(report, f"TPM PCR Mask from policy is {pcrs.mask:#x}")
    _refuse_overlap(request, pcrs)
    runtime, key = _runtime_policy(request, files)
    wanted = pcrs.mask | _mask_of_logs(request)
    if wanted != pcrs.mask:
        info(report, f"TPM PCR Mask automatically modified is {wanted:#x} to include IMA/Event log PCRs")
    return Policies(
        tpm_policy=to_wire(replace(pcrs, mask=wanted)),
        runtime=runtime,
        runtime_name=request.runtime_policy_name or request.allowlist_name or "",
        runtime_key=key,
        boot=_boot_policy(request, files),
        boot_name=request.mb_policy_name or "",
        ima_keys=_ima_keys(request),
    )


def _refuse_unjudged(request: Request) -> None:
    if request.allowlist_url:
        raise TenantError(
            "Allowlists are not downloaded, as nothing proves what they are: fetch the file and check it, then name it "
            "with --allowlist"
        )


def _pcr_policy(request: Request) -> PcrPolicy:
    if request.tpm_policy is not None and not request.tpm_policy.strip():
        raise TenantError("--tpm_policy is empty: leave it out to attest without a PCR policy")
    try:
        return from_operator("{}" if request.tpm_policy is None else request.tpm_policy)
    except PolicyError as problem:
        raise TenantError(f"--tpm_policy: {'; '.join(problem.problems)}") from problem


def _refuse_overlap(request: Request, pcrs: PcrPolicy) -> None:
    runtime = request.runtime_policy or request.runtime_policy_url or request.allowlist
    for given, log, taken in ((request.mb_policy, "measured boot", BOOT_PCRS), (runtime, "IMA", {IMA_PCR})):
        both = sorted(set(pcrs.allowed) & taken)
        if given and both:
            raise TenantError(
                f'WARNING: PCR {both[0]} is specified in "tpm_policy", but will in fact be used by {log}. '
                "Please remove it from policy"
            )


def _mask_of_logs(request: Request) -> int:
    mask = 0
    named = request.runtime_policy_name or request.allowlist_name
    if request.runtime_policy or request.runtime_policy_url or request.allowlist or named or request.ima_keys:
        mask |= 1 << IMA_PCR
    if request.mb_policy or request.mb_policy_name:
        mask |= sum(1 << pcr for pcr in BOOT_PCRS)
    return mask


def _runtime_policy(request: Request, files: PolicyFiles) -> tuple[bytes, bytes]:
    where = request.runtime_policy_url or request.runtime_policy
    if where is None and request.allowlist is not None:
        return _converted(request.allowlist, request.exclude), b""
    if where is None:
        return b"", b""
    content = files.downloaded
    if content is None:
        content = read_bounded(Path(where), MAX_POLICY, "Runtime policy")
    _check_sum(content, request.runtime_policy_checksum)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as problem:
        raise TenantError(f"Validation for runtime policy {where} failed! Error: {problem}") from problem
    if not isinstance(document, dict):
        raise TenantError(f"Validation for runtime policy {where} failed! Error: it is no JSON object")
    key = read_bounded(Path(request.runtime_policy_sig_key), MAX_POLICY) if request.runtime_policy_sig_key else b""
    check_signed_policy(document, key)
    return content, key


def _ima_keys(request: Request) -> str:
    """Return the keyring of the keys that the command line names."""
    keys = []
    for path in request.ima_keys:
        try:
            keys.append(load_public_key(read_bounded(Path(path), MAX_POLICY, "IMA signature verification key")))
        except (KeyUnreadableError, UnsupportedKeyTypeError) as problem:
            raise TenantError(f"The IMA signature verification key {path} cannot be used: {problem}") from problem
    return keyring_text(keys) if keys else ""


def _converted(allowlist: str, exclude: str | None) -> bytes:
    """Return the runtime policy that an allowlist and an exclude list of the older formats say."""
    try:
        policy = convert(_text(allowlist, "Allowlist"))
    except PolicyError as problem:
        raise TenantError(f"Allowlist {allowlist} cannot be used: {'; '.join(problem.problems)}") from problem
    if exclude is not None:
        policy["excludes"] = [*policy["excludes"], *exclude_lines(_text(exclude, "Exclude list"))]
    problems = check_document(policy)
    if problems:
        raise TenantError(f"Allowlist {allowlist} does not make a runtime policy: {'; '.join(problems[:5])}")
    return json.dumps(policy).encode()


def _text(path: str, what: str) -> str:
    return read_bounded(Path(path), MAX_POLICY, what).decode("utf-8", "surrogateescape")


def _check_sum(content: bytes, expected: str | None) -> None:
    calculated = hashlib.sha256(content).hexdigest()
    if expected is not None and calculated != expected.strip().lower():
        raise TenantError(f"Checksum of runtime policy does not match! Expected {expected}, Calculated {calculated}")


def _boot_policy(request: Request, files: PolicyFiles) -> str | None:
    if request.mb_policy is None:
        return None
    where = files.default_boot if request.mb_policy == DEFAULT_BOOT else request.mb_policy
    if not where:
        raise TenantError("--mb-policy has to name a file, or default where the setting mb_refstate names one")
    try:
        return json.dumps(json.loads(read_bounded(Path(where), MAX_POLICY, "Measured boot policy")))
    except (ValueError, RecursionError) as problem:
        raise TenantError(f"Measured boot policy {where} is not JSON: {problem}") from problem
