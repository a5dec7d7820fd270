"""Which id the node goes by, and the files that make it the same node after a restart.

Decides the id from the `uuid` option and reads and writes `agent_data.json`, the blobs of the AK. Knows no TPM library.
"""

import hashlib
import re
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from limeguard.agent.files import read_file, write_private
from limeguard.agent.templates import Algorithms
from limeguard.telemetry import clean, get_logger

log = get_logger("keylime_agent")

MAX_AGENT_DATA = 256 * 1024
MAX_ID = 64
"""A certificate's common name holds no more (RFC 5280 appendix A)."""
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
PRODUCT_UUID = Path("/sys/class/dmi/id/product_uuid")


class NoIdentity(Exception):  # noqa: N818 - a fact about the configuration
    """The node's id cannot be had in the way that the `uuid` option asks for; the text says what to do."""


def ek_hash(ek_pem: str) -> str:
    """Return the id made of the EK: SHA-256 of the PEM text with its last newline, in hex."""
    return hashlib.sha256(ek_pem.encode("ascii")).hexdigest()


def resolve_agent_id(option: str, ek_pem: str, env: Mapping[str, str], dmi: Path = PRODUCT_UUID) -> str:
    """Return the node's id for the `uuid` option.

    A literal UUID is normalised; `hash_ek`, `generate`, `dmidecode`, `hostname` and `environment` are modes. A mode
    that cannot be served raises NoIdentity and never falls back to a random id. Any other text gives a random id,
    with a warning, as the Rust agent does.
    """
    match option:
        case "hash_ek":
            return ek_hash(ek_pem)
        case "generate":
            return _random_id()
        case "dmidecode":
            return _from_firmware(dmi)
        case "hostname":
            return _checked(socket.getfqdn(), "The host name", "uuid = hostname")
        case "environment":
            return _from_environment(env)
        case "openstack":
            raise NoIdentity("uuid = openstack is not supported; set uuid to the instance's UUID.")
    try:
        return str(uuid.UUID(option))
    except ValueError:
        log.warning("uuid = %s is neither a UUID nor a mode; a random id is used until the next start", clean(option))
        return _random_id()


def _random_id() -> str:
    made = str(uuid.uuid4())
    log.info("Generated a new UUID: %s", made)
    return made


def _from_firmware(path: Path) -> str:
    try:
        return str(uuid.UUID(path.read_text("ascii").strip()))
    except (OSError, ValueError) as problem:
        raise NoIdentity(
            f"uuid = dmidecode needs {path} to hold a UUID ({clean(problem)}); set uuid to a literal."
        ) from problem


def _from_environment(env: Mapping[str, str]) -> str:
    given = env.get("KEYLIME_AGENT_UUID", "")
    if given in {"", "environment"}:
        raise NoIdentity("uuid = environment needs the variable KEYLIME_AGENT_UUID to be set to the node's id.")
    try:
        return str(uuid.UUID(given))
    except ValueError:
        return _checked(given, "The id in KEYLIME_AGENT_UUID", "uuid = environment")


def _checked(value: str, what: str, option: str) -> str:
    if not _ID.fullmatch(value):
        raise NoIdentity(f"{what} cannot be an id ({option}): use 1 to {MAX_ID} letters, digits, '.', '_' or '-'.")
    return value


@dataclass(frozen=True, slots=True)
class StoredKey:
    """The AK as the TPM gave it out: TPMT_PUBLIC and the content of TPM2B_PRIVATE, both without a size in front."""

    public: bytes
    private: bytes


class _AgentData(msgspec.Struct, frozen=True):
    ak_hash_alg: str
    ak_sign_alg: str
    ak_public: list[int]
    ak_private: list[int]
    ek_hash: list[int]


_HASH_NAMES = {"sha1": "Sha1", "sha256": "Sha256", "sha384": "Sha384", "sha512": "Sha512"}
_SCHEME_NAMES = {"rsassa": "RsaSsa", "rsapss": "RsaPss", "ecdsa": "EcDsa", "ecschnorr": "EcSchnorr"}


def load_stored_key(path: Path, algorithms: Algorithms, hash_of_ek: str) -> StoredKey | None:
    """Return the kept AK when it was made with these algorithms under this EK; else None, saying why in the log.

    Raises OSError and UnsafeFile when the file is there and cannot be read: making another AK then would lock the node
    out, because registrars refuse a changed AK.
    """
    data = read_file(path, limit=MAX_AGENT_DATA, secret=True)
    if data is None:
        return None
    try:
        kept = msgspec.json.decode(data, type=_AgentData)
        stored = StoredKey(bytes(kept.ak_public), bytes(kept.ak_private))
        kept_ek = bytes(kept.ek_hash).decode("ascii")
    except (msgspec.MsgspecError, ValueError) as problem:
        log.warning("%s cannot be read as agent data and will be replaced: %s", clean(path), clean(problem))
        return None
    if kept.ak_hash_alg != _HASH_NAMES[algorithms.hash] or kept.ak_sign_alg != _SCHEME_NAMES[algorithms.signing]:
        log.warning("The kept AK was made with other algorithms; a new one is made")
        return None
    if kept_ek != hash_of_ek:
        log.warning("The kept AK was made under another EK; a new one is made")
        return None
    return stored


def keep_key(path: Path, stored: StoredKey, algorithms: Algorithms, hash_of_ek: str) -> None:
    """Write `agent_data.json`, whole or not at all. Raises OSError."""
    record = _AgentData(
        ak_hash_alg=_HASH_NAMES[algorithms.hash],
        ak_sign_alg=_SCHEME_NAMES[algorithms.signing],
        ak_public=list(stored.public),
        ak_private=list(stored.private),
        ek_hash=list(hash_of_ek.encode("ascii")),
    )
    write_private(path, msgspec.json.encode(record))
