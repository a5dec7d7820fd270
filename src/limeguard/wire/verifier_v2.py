"""The verifier's HTTP interface, version 2: every JSON key of enrolment, node status, lists and the identity check.

Decides what a well-formed message is and how answers are spelled. Must not know what is done with them: whether a
policy can be judged, or a node exists, is decided by the verifier. Keylime REST API, verifier.
"""

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from limeguard.wire.envelope import BadRequest, envelope

ROOT: Final = "/v2"
NODES: Final = "/v2/agents"
NODE: Final = "/v2/agents/{agent_id}"
REACTIVATE: Final = "/v2/agents/{agent_id}/reactivate"
STOP: Final = "/v2/agents/{agent_id}/stop"
RUNTIME_POLICIES: Final = "/v2/allowlists"
RUNTIME_POLICY: Final = "/v2/allowlists/{name}"
BOOT_POLICIES: Final = "/v2/mbpolicies"
BOOT_POLICY: Final = "/v2/mbpolicies/{name}"
VERIFY_IDENTITY: Final = "/v2/verify/identity"

MAX_ID: Final = 80
# Of ASCII alone: paths are not percent-decoded, so no other letter in an id could ever be asked for.
_ID = re.compile(r"[\w.-]{1,80}", re.ASCII)

BAD_ID: Final = "agent_id not not valid"  # spelled so on the wire since the first versions
UNKNOWN_NODE: Final = "agent id not found"
OTHER_VERIFIER: Final = "agent id associated to this verifier"  # sic
NO_BODY: Final = "Expected non zero content length"
NO_CERTIFICATE: Final = "mTLS certificate for agent is required!"
NO_CERTIFICATES: Final = (None, "", "disabled")
NO_ROW: Final = "Exception error: No row was found when one was required"

_FIRST_KEYS: Final = (
    "tpm_policy",
    "metadata",
    "ima_sign_verification_keys",
    "revocation_key",
    "accept_tpm_hash_algs",
    "accept_tpm_encryption_algs",
    "accept_tpm_signing_algs",
    "ak_tpm",
)
_LAST_KEYS: Final = ("mb_policy_name", "mb_policy")
MAX_ALGORITHMS: Final = 32

Algorithms = tuple[str, ...]


class EnrolmentRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /v2/agents/{agent_id}`, as the peer sends it. Unknown members are ignored."""

    tpm_policy: str
    ak_tpm: str
    runtime_policy: str
    mb_policy_name: str | None
    mb_policy: str | None
    metadata: str | None
    ima_sign_verification_keys: str | None
    revocation_key: str | None
    accept_tpm_hash_algs: Algorithms
    accept_tpm_encryption_algs: Algorithms
    accept_tpm_signing_algs: Algorithms
    v: str | None = None
    cloudagent_ip: str | None = None
    cloudagent_port: int | str | None = None
    verifier_ip: str | None = None
    verifier_port: int | str | None = None
    mtls_cert: str | None = None
    runtime_policy_name: str | None = None
    runtime_policy_key: str | None = None
    supported_version: str | None = None

    def __repr__(self) -> str:
        """Tell nothing: the body carries key material."""
        return "EnrolmentRequest(...)"


class AgentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """`results` of a node's status, in the order of the wire. Times are whole seconds since 1970, 0 is never."""

    operational_state: int
    v: str | None
    ip: str | None
    port: int | None
    tpm_policy: str
    meta_data: str | None
    has_mb_refstate: int
    has_runtime_policy: int
    accept_tpm_hash_algs: Algorithms
    accept_tpm_encryption_algs: Algorithms
    accept_tpm_signing_algs: Algorithms
    hash_alg: str
    enc_alg: str
    sign_alg: str
    verifier_id: str
    verifier_ip: str
    verifier_port: int
    severity_level: int | None
    last_event_id: str | None
    attestation_count: int
    last_received_quote: int
    last_successful_attestation: int
    attestation_status: str
    attestation_period: str
    maximum_attestation_interval: str

    def __repr__(self) -> str:
        """Tell nothing: `v` is a key share."""
        return "AgentStatus(...)"


class AgentIds(msgspec.Struct, frozen=True):
    """`results` of the plain list: each id stands in an array of its own."""

    uuids: tuple[tuple[str], ...]


class RuntimePolicyNames(msgspec.Struct, frozen=True):
    """`results` of the list of runtime policies; the key has a blank in it."""

    names: tuple[str, ...] = msgspec.field(name="runtimepolicy names")


class RuntimePolicyAnswer(msgspec.Struct, frozen=True):
    """`results` of one runtime policy: its text as uploaded. The misspelt member is part of the wire."""

    name: str
    tmp_policy: None
    runtime_policy: str


class RuntimePolicyUpload(msgspec.Struct, frozen=True):
    """Body that stores a runtime policy: base64 of its text, and of the key that signed it."""

    runtime_policy: str
    runtime_policy_key: str | None = None
    tpm_policy: str | None = None


def policy_exists(name: str) -> str:
    """Return the refusal of an enrolment that brings a policy under a name that is taken."""
    return (
        f"IMA policy with name {name} already exists. "
        "Please use a different name or delete the allowlist from the verifier."
    )


class BootPolicyNames(msgspec.Struct, frozen=True):
    """`results` of the list of measured boot policies; the key has a blank in it."""

    names: tuple[str, ...] = msgspec.field(name="mbpolicy names")


class BootPolicyAnswer(msgspec.Struct, frozen=True):
    """`results` of one measured boot policy: its text as uploaded."""

    name: str
    mb_policy: str | None


class BootPolicyUpload(msgspec.Struct, frozen=True):
    """Body that stores a measured boot policy: its text, or null where nothing is asked of the boot."""

    mb_policy: str | None


def boot_policy_exists(name: str) -> str:
    """Return the refusal of an enrolment that brings a measured boot policy under a name that is taken."""
    return (
        f"mb_policy with name {name} already exists. "
        "Please use a different name or delete the mb_policy from the verifier."
    )


class IdentityResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """`results` of the identity check: `valid` is 1 or 0, `reason` says why not."""

    valid: int
    reason: str | None = None


class IdentityQuestion(msgspec.Struct, frozen=True):
    """Query of `GET /v2/verify/identity`."""

    agent_uuid: str
    quote: str
    nonce: str
    hash_alg: str


def valid_id(agent_id: str) -> bool:
    """Say whether the text can be a node's id: word characters, dots and hyphens, at most 80."""
    return _ID.fullmatch(agent_id) is not None


def check_id(agent_id: str) -> None:
    """Refuse what cannot be a node's id. Raises BadRequest."""
    if not valid_id(agent_id):
        raise BadRequest(BAD_ID)


def decode_enrolment(body: bytes, *, certificate_required: bool) -> EnrolmentRequest:
    """Read an enrolment. Raises BadRequest with the text of the first thing wrong, in the order of the wire contract.

    `certificate_required`: nodes that are to be polled are refused without an mTLS certificate (null or `disabled`).
    """
    if not body:
        raise BadRequest(NO_BODY)
    members = _object(body)
    _require(members, _FIRST_KEYS)
    polled = members.get("cloudagent_ip") or members.get("cloudagent_port")
    if certificate_required and polled and members.get("mtls_cert") in NO_CERTIFICATES:
        raise BadRequest(NO_CERTIFICATE)
    policy = members.get("runtime_policy")
    if not isinstance(policy, str):
        shown = type(policy).__name__
        raise BadRequest(f"Exception error: argument should be a bytes-like object or ASCII string, not '{shown}'")
    _require(members, _LAST_KEYS)
    try:
        request = msgspec.convert(members, EnrolmentRequest, strict=True)
    except (msgspec.ValidationError, RecursionError) as problem:
        raise BadRequest(f"Exception error: {problem}") from None
    for algorithms in (
        request.accept_tpm_hash_algs,
        request.accept_tpm_encryption_algs,
        request.accept_tpm_signing_algs,
    ):
        if len(algorithms) > MAX_ALGORITHMS:
            raise BadRequest(f"Exception error: a list of more than {MAX_ALGORITHMS} algorithms")
    return request


def port_number(value: int | str | None, what: str) -> int | None:
    """Read a port sent as number or text, None when absent. Raises BadRequest."""
    if value is None or value == "":
        return None
    if isinstance(value, str) and not re.fullmatch(r"[0-9]{1,5}", value):
        raise BadRequest(f"Exception error: invalid literal for int() with base 10: {value[:40]!r}")
    number = int(value)
    if not 0 < number < 65536:
        raise BadRequest(f"Exception error: {what} is not a port: {number}")
    return number


def decode_identity_question(query: Mapping[str, str]) -> IdentityQuestion:
    """Read the query of an identity check. Raises BadRequest naming the first missing parameter."""
    for name in ("agent_uuid", "quote", "nonce", "hash_alg"):
        if name not in query:
            raise BadRequest(f"missing query parameter '{name}'")
    return IdentityQuestion(query["agent_uuid"], query["quote"], query["nonce"], query["hash_alg"])


def decode_boot_policy(body: bytes) -> BootPolicyUpload:
    """Read the body that stores a measured boot policy. Raises BadRequest."""
    if not body:
        raise BadRequest(NO_BODY)
    members = _object(body)
    _require(members, ("mb_policy",))  # one that was forgotten must not switch the check off
    try:
        return msgspec.convert(members, BootPolicyUpload, strict=True)
    except (msgspec.ValidationError, RecursionError) as problem:
        raise BadRequest(f"Exception error: {problem}") from None


def encode_status(status: AgentStatus) -> bytes:
    """Encode the answer to a question for one node."""
    return envelope(200, "Success", status)


def encode_ids(agent_ids: tuple[str, ...]) -> bytes:
    """Encode the plain list."""
    return envelope(200, "Success", AgentIds(tuple((i,) for i in agent_ids)))


def encode_bulk(statuses: Mapping[str, AgentStatus]) -> bytes:
    """Encode the list with a full status for each id."""
    return envelope(200, "Success", dict(statuses))


def encode_identity(result: IdentityResult) -> bytes:
    """Encode the outcome of an identity check."""
    return envelope(200, "Success", result)


def encode_runtime_policy_names(names: tuple[str, ...]) -> bytes:
    """Encode the list of runtime policies."""
    return envelope(200, "Success", RuntimePolicyNames(names))


def encode_boot_policy_names(names: tuple[str, ...]) -> bytes:
    """Encode the list of measured boot policies."""
    return envelope(200, "Success", BootPolicyNames(names))


def encode_boot_policy(name: str, text: str | None) -> bytes:
    """Encode one measured boot policy."""
    return envelope(200, "Success", BootPolicyAnswer(name, text))


def _object(body: bytes) -> dict[str, object]:
    try:
        members = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as problem:
        raise BadRequest(f"Exception error: {problem}") from None
    if not isinstance(members, dict):
        raise BadRequest(f"Exception error: the body is a JSON {type(members).__name__}, not an object")
    return members


def _require(members: dict[str, object], keys: tuple[str, ...]) -> None:
    for key in keys:
        if key not in members:
            raise BadRequest(f"Exception error: '{key}'")


def identity_refused(error: str) -> IdentityResult:
    """Return the outcome of an identity check that failed; the reason is JSON text in a JSON string."""
    context = {"message": "Quote data validation", "error": error}
    return IdentityResult(0, msgspec.json.encode(context).decode())
