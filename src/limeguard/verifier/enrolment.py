"""What may be enrolled: turns a well-formed request into a new node, or says why not.

Decides from the request alone. Must not know whether the node exists already, nor touch database or network.
"""

import binascii
import hashlib
import re
from base64 import b64decode
from dataclasses import dataclass, field, replace

from limeguard.crypto.chains import first_certificate
from limeguard.evidence.reader import MalformedEvidence
from limeguard.evidence.tpm.structures import PublicArea, parse_public_2b
from limeguard.policy.boot import BOOT_PCRS
from limeguard.policy.keyring import parse_keyring
from limeguard.policy.pcrs import PcrPolicy, PolicyError, parse_tpm_policy
from limeguard.store.node_record import Enrolled
from limeguard.wire import versions
from limeguard.wire.envelope import BadRequest
from limeguard.wire.verifier_v2 import NO_CERTIFICATES, EnrolmentRequest, port_number

IMA_PCR = 10
CERTIFICATE_DISABLED = "disabled"
CURRENT_AGENT_VERSION = "2.6"
SHARE_SIZES = (16, 32)
MAX_NAME = 255
"""Characters of a policy's name; the column has as many."""
MAX_TEXT = 64 * 1024
"""Characters of one text member; policies of PCR values, metadata, keys and certificates are far smaller."""

PCR_10_LISTED = (
    "Exception error: tpm_policy lists values of PCR 10, which changes with every measured file: "
    "give a runtime policy instead"
)

NO_PAYLOAD = (
    "Exception error: v is given, but a node that attests by itself has no way to get a payload: "
    "enrol it without payload, or with ip and port as a node that is polled"
)

_WORD = re.compile(r"[A-Za-z0-9_.-]{1,32}")
_HOST = re.compile(r"[A-Za-z0-9._-]{1,255}|\[?[0-9A-Fa-f:.]{2,64}(%[A-Za-z0-9._-]{1,32})?\]?")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewNode:
    """A node that may be enrolled: what supervision needs ready parsed, and the secrets that only the row keeps."""

    enrolled: Enrolled
    supported_version: str
    ak: PublicArea
    policy: PcrPolicy
    mtls_cert: str | None
    revocation_key: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What the verifier adds to an enrolment: its own id and address, and whether agents must have certificates.

    `push` says that nodes attest by themselves unless their enrolment says otherwise (`mode`).
    """

    verifier_id: str
    verifier_ip: str
    verifier_port: int
    certificate_required: bool
    push: bool = False


def examine(agent_id: str, request: EnrolmentRequest, site: Site, now: float) -> NewNode:
    """Return the new node. Raises BadRequest with the first thing wrong."""
    _refuse_unstorable(request)
    runtime_name = _runtime_name(agent_id, request)
    boot_name = _boot_name(agent_id, request)
    policy = quoting_logs(_policy(request.tpm_policy), ima=runtime_name is not None, boot=boot_name is not None)
    ak = parse_ak(request.ak_tpm)
    push = attests_by_itself(request, push_by_default=site.push)
    if push and request.v:
        raise BadRequest(NO_PAYLOAD)
    ip, port = (None, None) if push else _address(request)
    certificate = request.mtls_cert if request.mtls_cert not in ("", CERTIFICATE_DISABLED) else None
    return NewNode(
        enrolled=Enrolled(
            agent_id=agent_id,
            verifier_id=site.verifier_id,
            verifier_ip=request.verifier_ip or site.verifier_ip,
            verifier_port=port_number(request.verifier_port, "verifier_port") or site.verifier_port,
            ip=ip,
            port=port,
            v=_share(request.v),
            tpm_policy=request.tpm_policy,
            meta_data=request.metadata,
            has_mb_policy=request.mb_policy is not None,  # of a stored one, its row says it
            has_runtime_policy=False,  # said when the policy itself is at hand
            runtime_policy_name=runtime_name,
            mb_policy_name=boot_name,
            ima_keys=_ima_keys(request.ima_sign_verification_keys),
            accept_hash=request.accept_tpm_hash_algs,
            accept_enc=request.accept_tpm_encryption_algs,
            accept_sign=request.accept_tpm_signing_algs,
            ak_tpm=request.ak_tpm,
            certificate_sha256=None if certificate is None else _fingerprint(certificate),
            enrolled_at=now,
            push=push,
        ),
        supported_version=_version(request.supported_version),
        ak=ak,
        policy=policy,
        mtls_cert=request.mtls_cert,
        revocation_key=request.revocation_key or "",
    )


def parse_ak(text: str) -> PublicArea:
    """Read a base64 TPM2B_PUBLIC that must be a restricted signing key. Raises BadRequest."""
    try:
        ak = parse_public_2b(b64decode(text, validate=True))
    except (MalformedEvidence, binascii.Error, ValueError) as problem:
        raise BadRequest(f"Exception error: ak_tpm is not a base64 TPM2B_PUBLIC: {problem}") from None
    if not ak.restricted_signing:
        # Only a restricted key proves that what it signed came from the TPM (TPM 2.0 Part 1, attestation).
        raise BadRequest("Exception error: ak_tpm is not a restricted signing key")
    return ak


def _refuse_unstorable(request: EnrolmentRequest) -> None:
    for name in ("tpm_policy", "ak_tpm", "metadata", "revocation_key", "mtls_cert", "verifier_ip", "supported_version"):
        text = getattr(request, name) or ""
        if len(text) > MAX_TEXT:
            raise BadRequest(f"Exception error: {name} is longer than {MAX_TEXT} characters")
        if "\0" in text:  # not every database can hold it
            raise BadRequest(f"Exception error: {name} holds a NUL character")
    for names in (request.accept_tpm_hash_algs, request.accept_tpm_encryption_algs, request.accept_tpm_signing_algs):
        if not all(_WORD.fullmatch(name) for name in names):
            raise BadRequest("Exception error: an algorithm's name is no word of at most 32 letters and digits")


def _policy(text: str) -> PcrPolicy:
    try:
        policy = parse_tpm_policy(text)
    except PolicyError as problem:
        raise BadRequest(f"Exception error: tpm_policy cannot be used: {'; '.join(problem.problems)}") from None
    if IMA_PCR in policy.allowed:
        raise BadRequest(PCR_10_LISTED)
    return policy


def quoting_logs(policy: PcrPolicy, *, ima: bool, boot: bool) -> PcrPolicy:
    """Return the policy with the PCRs of the logs that are judged asked for: without them a quote proves nothing of it.

    Agents send the boot log where PCR 0 is asked for.
    """
    pcrs = {IMA_PCR} if ima else set()
    return replace(policy, mask=policy.mask | sum(1 << pcr for pcr in pcrs | (BOOT_PCRS if boot else frozenset())))


def _runtime_name(agent_id: str, request: EnrolmentRequest) -> str | None:
    """Return the name under which the node's runtime policy is stored; None when its IMA log is not to be judged.

    A mask with PCR 10 asks for it as well; without any policy no file is allowed then.
    """
    name = request.runtime_policy_name
    if name:
        if len(name) > MAX_NAME or "\0" in name:
            raise BadRequest(f"Exception error: runtime_policy_name is longer than {MAX_NAME} characters, or has a NUL")
        return name
    asked = request.runtime_policy or request.ima_sign_verification_keys or _quotes_ima(request.tpm_policy)
    return agent_id if asked else None


def _boot_name(agent_id: str, request: EnrolmentRequest) -> str | None:
    """Return the name under which the node's measured boot policy is stored; None when its boot is not judged."""
    name = request.mb_policy_name
    if not name:
        return agent_id if request.mb_policy else None
    if len(name) > MAX_NAME or "\0" in name:
        raise BadRequest(f"Exception error: mb_policy_name is longer than {MAX_NAME} characters, or has a NUL")
    return name


def _quotes_ima(text: str) -> bool:
    try:
        return bool(parse_tpm_policy(text).mask >> IMA_PCR & 1)
    except PolicyError:
        return False


def _ima_keys(text: str | None) -> str | None:
    """Check the deprecated keyring of one node."""
    if not text:
        return None
    try:
        parse_keyring(text)
    except PolicyError as problem:
        raise BadRequest(
            f"Exception error: ima_sign_verification_keys cannot be used: {'; '.join(problem.problems)}"
        ) from None
    return text


def attests_by_itself(request: EnrolmentRequest, *, push_by_default: bool) -> bool:
    """Say whether the node pushes: it has no address, or it is enrolled where that is usual and has no certificate.

    Peers send an address with nodes that push, too, but such a node serves nothing and so has no certificate.
    """
    if not request.cloudagent_ip and not request.cloudagent_port:
        return True
    return push_by_default and request.mtls_cert in NO_CERTIFICATES


def _address(request: EnrolmentRequest) -> tuple[str, int]:
    port = port_number(request.cloudagent_port, "cloudagent_port")
    if not request.cloudagent_ip or port is None:
        raise BadRequest("Exception error: cloudagent_ip and cloudagent_port are required in pull mode")
    if not _HOST.fullmatch(request.cloudagent_ip):
        raise BadRequest("Exception error: cloudagent_ip is neither a host name nor an address")
    return request.cloudagent_ip, port


def _share(text: str | None) -> str | None:
    if not text:
        return None
    try:
        size = len(b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        size = 0
    if size not in SHARE_SIZES:
        raise BadRequest("Exception error: v is not the base64 of 16 or 32 bytes")
    return text


def _fingerprint(certificate: str) -> bytes:
    try:
        return hashlib.sha256(first_certificate(certificate)).digest()
    except ValueError as problem:
        raise BadRequest(f"Exception error: mtls_cert is not a PEM certificate: {problem}") from None


def _version(text: str | None) -> str:
    """Return the version to start with; negotiation finds the right one where the tenant named none that we know."""
    if text == "1.0":
        raise BadRequest("Exception error: agents of API version 1.0 are not supported")
    if text is None or text not in versions.SUPPORTED or text.startswith("3"):
        return CURRENT_AGENT_VERSION
    return text
