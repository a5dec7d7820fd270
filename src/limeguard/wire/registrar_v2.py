"""The registrar's HTTP interface: every JSON key of registration, activation, lists and records, on the server's side.

Decides what a well-formed message is and how answers are spelled. Must not know what is done with them: whether a key
or certificate is good is decided by the registrar. Keylime REST API, registrar.
"""

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from limeguard.crypto.chains import CertificateError, first_certificate
from limeguard.wire import versions
from limeguard.wire.envelope import SUCCESS, BadRequest, envelope
from limeguard.wire.verifier_v2 import valid_id

VERSION: Final = "/version"
ROOT_V3: Final = "/v3"
NODES: Final = "/v2/agents"
NODE: Final = "/v2/agents/{agent_id}"
ACTIVATE: Final = "/v2/agents/{agent_id}/activate"
NODES_V3: Final = "/v3/agents"
NODE_V3: Final = "/v3/agents/{agent_id}"
ACTIVATE_V3: Final = "/v3/agents/{agent_id}/activate"

INVALID: Final = "Could not register agent with invalid data"
BAD_ID: Final = "agent_id is not valid: it has 1 to 80 letters, digits, underscores, dots and hyphens"
OTHER_IDENTITY: Final = "Agent re-registration with different TPM identity is forbidden for security reasons"
UNAVAILABLE: Final = "Service Unavailable"
NO_CERTIFICATE: Final = "disabled"
"""What an agent without HTTPS sends in place of its certificate."""

MAX_BODY: Final = 2 * 1024 * 1024
"""Bytes of a body: more than all members of a registration may have together."""
MAX_BINARY: Final = 4096
"""Bytes of a TPM structure; the largest, a certification signed with RSA-4096, has under one thousand."""
MAX_CERTIFICATES: Final = 256 * 1024
"""Characters of a certificate member, which may hold a whole chain."""
MAX_TAG: Final = 128
_HOST = re.compile(r"[A-Za-z0-9_.:%\[\]-]{1,255}")
_PORT = re.compile(r"[0-9]{1,5}")

Text = str | None | UnsetType
Binary = bytes | None | UnsetType
T = TypeVar("T")


class MalformedBody(ValueError):  # noqa: N818 - a fact about the message
    """The body cannot be read, or a member without which it has no meaning is missing: answered without text."""


class UnknownNode(BadRequest):
    """There is no registration to answer from."""

    def __init__(self, agent_id: str, what: str = "not found") -> None:
        super().__init__(f"Agent with ID '{agent_id}' {what}", 404)


class RegistrationBody(msgspec.Struct, frozen=True, kw_only=True):
    """Body of a registration as sent. Unknown members are ignored; binary members are base64 or hex."""

    agent_id: Text = UNSET
    aik_tpm: Text = UNSET
    ek_tpm: Text = UNSET
    ekcert: Text = UNSET
    iak_tpm: Text = UNSET
    idevid_tpm: Text = UNSET
    iak_cert: Text = UNSET
    idevid_cert: Text = UNSET
    iak_attest: Text = UNSET
    iak_sign: Text = UNSET
    mtls_cert: Text = UNSET
    ip: Text = UNSET
    port: int | str | UnsetType | None = UNSET


class RegistrationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A registration with its members decoded. UNSET is a member that was absent, None one that was null or empty.

    Keys are TPM2B_PUBLIC, certificates the DER of the first one given; `mtls_cert` may be the text `disabled`.
    """

    aik_tpm: Binary = UNSET
    ek_tpm: Binary = UNSET
    ekcert: Binary = UNSET
    iak_tpm: Binary = UNSET
    idevid_tpm: Binary = UNSET
    iak_cert: Binary = UNSET
    idevid_cert: Binary = UNSET
    iak_attest: Binary = UNSET
    iak_sign: Binary = UNSET
    mtls_cert: bytes | str | UnsetType | None = UNSET
    ip: Text = UNSET
    port: int | UnsetType | None = UNSET

    @property
    def touches_identity(self) -> bool:
        """Whether any member about keys or their certificates is there, as Keylime counts registrations."""
        members = (
            self.ek_tpm,
            self.ekcert,
            self.aik_tpm,
            self.iak_tpm,
            self.iak_cert,
            self.idevid_tpm,
            self.idevid_cert,
        )
        return any(member is not UNSET for member in members)


class ActivationBody(msgspec.Struct, frozen=True):
    """Body of an activation: hex of the proof that the challenge was opened."""

    auth_tag: str


class VersionResults(msgspec.Struct, frozen=True):
    """Results of `GET /version`."""

    current_version: str
    supported_versions: tuple[str, ...]


class ChallengeResults(msgspec.Struct, frozen=True):
    """Results of a registration: base64 of the credential blob."""

    blob: str


class IdsResults(msgspec.Struct, frozen=True):
    """Results of the list: every id, activated or not."""

    uuids: tuple[str, ...]


class RecordResults(msgspec.Struct, frozen=True, kw_only=True):
    """Results of reading one registration; `ekcert` is base64 of the DER whatever form it came in."""

    agent_id: str
    ek_tpm: str | None
    ekcert: str | None
    aik_tpm: str
    mtls_cert: str | None
    ip: str | None
    port: int | None
    regcount: int


def check_id(agent_id: str) -> None:
    """Refuse what cannot be a node's id. Raises BadRequest."""
    if not valid_id(agent_id):
        raise BadRequest(BAD_ID)


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise MalformedBody from None


def decode_registration(body: bytes, path_id: str | None) -> tuple[str, RegistrationRequest]:
    """Read a registration: the id, from the path before the body, and the request.

    An empty body is one without members. Raises MalformedBody, BadRequest.
    """
    try:
        given = _decode(body or b"{}", RegistrationBody)
        agent_id = path_id if path_id is not None else given.agent_id
        if not isinstance(agent_id, str) or not agent_id:
            raise MalformedBody
        check_id(agent_id)
        return agent_id, _request(given)
    except (msgspec.ValidationError, CertificateError, _Unreadable):
        raise BadRequest(INVALID) from None


def _request(given: RegistrationBody) -> RegistrationRequest:
    return RegistrationRequest(
        aik_tpm=_binary(given.aik_tpm),
        ek_tpm=_binary(given.ek_tpm),
        ekcert=_certificate(given.ekcert),
        iak_tpm=_binary(given.iak_tpm),
        idevid_tpm=_binary(given.idevid_tpm),
        iak_cert=_certificate(given.iak_cert),
        idevid_cert=_certificate(given.idevid_cert),
        iak_attest=_binary(given.iak_attest),
        iak_sign=_binary(given.iak_sign),
        mtls_cert=given.mtls_cert if given.mtls_cert == NO_CERTIFICATE else _certificate(given.mtls_cert),
        ip=_host(given.ip),
        port=_port(given.port),
    )


class _Unreadable(ValueError):  # noqa: N818 - a fact about the message
    """A member is not what its name says."""


def _binary(text: Text) -> Binary:
    if not isinstance(text, str):
        return text
    if not text:
        return None
    if len(text) > 2 * MAX_BINARY:
        raise _Unreadable
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        try:
            data = binascii.unhexlify(text.removeprefix("0x"))
        except (binascii.Error, ValueError):
            raise _Unreadable from None
    if not 0 < len(data) <= MAX_BINARY:
        raise _Unreadable
    return data


def _certificate(text: Text) -> Binary:
    if not isinstance(text, str):
        return text
    if not text:
        return None
    if len(text) > MAX_CERTIFICATES:
        raise _Unreadable
    try:
        return first_certificate(text)
    except UnicodeError:
        raise _Unreadable from None


def _host(text: Text) -> Text:
    if not isinstance(text, str) or not text:
        return None if text == "" else text
    if _HOST.fullmatch(text) is None:
        raise _Unreadable
    return text


def _port(given: int | str | UnsetType | None) -> int | UnsetType | None:
    if isinstance(given, str):
        if not given:
            return None
        if _PORT.fullmatch(given) is None:
            raise _Unreadable
        given = int(given)
    if isinstance(given, int) and not 1 <= given <= 65535:
        raise _Unreadable
    return given


def decode_activation(body: bytes) -> str:
    """Read an activation: the proof as sent. Raises MalformedBody."""
    try:
        return _decode(body or b"{}", ActivationBody).auth_tag
    except msgspec.ValidationError:
        raise MalformedBody from None


def pem(der: bytes) -> str:
    """Return a certificate as PEM text: lines of 64 characters, LF, a newline at the end."""
    text = base64.b64encode(der).decode("ascii")
    lines = "\n".join(text[start : start + 64] for start in range(0, len(text), 64))
    return f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n"


def b64(data: bytes | None) -> str | None:
    """Return base64 text, None for None."""
    return None if data is None else base64.b64encode(data).decode("ascii")


def taken(agent_id: str) -> str:
    """Return what is said when another registration of the id was quicker."""
    return (
        f"Agent with UUID '{agent_id}' cannot be registered. This UUID is already in use or a concurrent registration "
        "is in progress."
    )


def wrong_proof(agent_id: str, tag: str, *, deleted: bool) -> str:
    """Return what is said about a proof that does not match; `deleted`: the registration is gone with it."""
    begin = f"Auth tag '{tag[:MAX_TAG]}' for agent '{agent_id}' does not match expected value."
    if deleted:
        end = "The agent has been deleted from the database and will need to be restarted to reattempt registration"
        return f"{begin} {end}"
    return f"{begin} The agent stays registered because it has proved its identity before"


def encode_versions() -> bytes:
    """Encode the versions that this server advertises."""
    return envelope(200, SUCCESS, VersionResults(versions.CURRENT, versions.SUPPORTED))


def encode_challenge(blob: bytes) -> bytes:
    """Encode the answer to a registration."""
    return envelope(200, SUCCESS, ChallengeResults(base64.b64encode(blob).decode("ascii")))


def encode_ids(ids: Sequence[str]) -> bytes:
    """Encode the list of ids."""
    return envelope(200, SUCCESS, IdsResults(tuple(ids)))


def encode_record(record: RecordResults) -> bytes:
    """Encode one registration."""
    return envelope(200, SUCCESS, record)
