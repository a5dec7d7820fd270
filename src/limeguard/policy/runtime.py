"""Runtime policies: Keylime's JSON, version 1, checked in full and compiled for look-up.

Decides whether a document is a policy, and says everything that is wrong with it. Whether a measurement satisfies a
policy is decided in `appraisal`.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from limeguard.crypto.hashes import SHA1, HashAlgorithm, hash_by_name
from limeguard.policy.device_mapper import DevicePolicy, compile_devices, device_problems
from limeguard.policy.errors import MAX_PROBLEMS, PolicyError
from limeguard.policy.excludes import NO_EXCLUDES, Excludes, compile_excludes
from limeguard.policy.keyring import EMPTY_KEYRING, Keyring, parse_keyring

LOG_HASHES: Final = ("sha1", "sha256", "sha384", "sha512")
MAX_POLICY_BYTES: Final = 256 << 20
"""Bytes of a policy's text; a million files with two digests each have about 200 MB."""
_DIGEST: Final = re.compile("^[0-9a-f]{40,128}$")
_HIGHEST_GENERATOR: Final = 3
_SHOWN: Final = 200

Digest = bytes
Allowed = Mapping[bytes, Digest | tuple[Digest, ...]]
"""Name as the log has it (bytes) to its digest, or to several. One object instead of a tuple of one saves memory."""


@dataclass(frozen=True, slots=True, eq=False)
class RuntimePolicy:
    """A runtime policy, ready for look-ups. Never changed by judging; `checksum` is SHA-256 of its text, hex.

    Names are bytes as in the measurement list; digests are raw bytes of any algorithm. `log_hash` is the algorithm of
    the template digests in the ASCII list's second column; `devices` judges events of the device mapper.
    """

    digests: Allowed
    keyrings: Allowed
    ima_buf: Allowed
    excludes: Excludes = NO_EXCLUDES
    ignored_keyrings: frozenset[bytes] = frozenset()
    log_hash: HashAlgorithm = SHA1
    verification_keys: Keyring = EMPTY_KEYRING
    devices: DevicePolicy | None = None
    generator: int = 0
    checksum: str = field(default="", compare=False)

    @property
    def says_something(self) -> bool:
        """Whether the policy allows or excludes anything; the empty one that nodes without policy have does not.

        Keylime decides by `meta.generator`, so that a policy written as 0 or 1 goes unenforced in places.
        """
        return bool(
            self.digests
            or self.keyrings
            or self.ima_buf
            or self.excludes.patterns
            or self.ignored_keyrings
            or self.verification_keys.keys
            or self.devices is not None
        )


def empty_policy_document() -> dict[str, Any]:
    """Return a fresh empty policy as JSON values."""
    return {
        "meta": {"version": 1, "generator": 1},
        "release": 0,
        "digests": {},
        "excludes": [],
        "keyrings": {},
        "ima": {"ignored_keyrings": [], "log_hash_alg": "sha1", "dm_policy": None},
        "ima-buf": {},
        "verification-keys": "",
    }


EMPTY_POLICY_TEXT: Final = json.dumps(empty_policy_document())


def decode_policy(text: bytes | str) -> object:
    """Return the JSON value of a policy's text. Raises PolicyError."""
    if len(text) > MAX_POLICY_BYTES:
        raise PolicyError(f"the policy is longer than {MAX_POLICY_BYTES} bytes")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise PolicyError(f"Runtime policy is not valid JSON! {problem}") from None


def check_document(document: object) -> tuple[str, ...]:
    """Return what is wrong with a decoded policy, empty when it may be uploaded.

    The wording is that of JSON Schema validators, which scripts match; the place follows it.
    """
    if not isinstance(document, dict):
        return (_not_of_type(document, "object"),)
    return tuple(_problems(document))


def parse_runtime_policy(text: bytes | str) -> RuntimePolicy:
    """Compile a policy from its text. Raises PolicyError with all problems."""
    document = decode_policy(text)
    problems = check_document(document)
    if problems or not isinstance(document, dict):
        raise PolicyError(*problems)
    checksum = hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()
    return compile_document(document, checksum)


def compile_document(document: Mapping[str, Any], checksum: str = "") -> RuntimePolicy:
    """Compile a policy that `check_document` found nothing wrong with. Raises PolicyError for its regexes and keys.

    Takes a document that lacks `release` and `meta`, too: only what judging needs is read.
    """
    ima = document.get("ima") or {}
    return RuntimePolicy(
        digests=_allowed(document["digests"]),
        keyrings=_allowed(document["keyrings"]),
        ima_buf=_allowed(document["ima-buf"]),
        excludes=compile_excludes(document["excludes"]),
        ignored_keyrings=frozenset(_name(name) for name in ima.get("ignored_keyrings", ())),
        log_hash=hash_by_name(ima.get("log_hash_alg", "sha1")) or SHA1,
        verification_keys=parse_keyring(document.get("verification-keys") or ""),
        devices=None if ima.get("dm_policy") is None else compile_devices(ima["dm_policy"]),
        generator=(document.get("meta") or {}).get("generator", 0),
        checksum=checksum,
    )


def digests_of(entry: Digest | tuple[Digest, ...] | None) -> tuple[Digest, ...]:
    """Return the digests of one entry of an `Allowed` map as a tuple, empty for a name that is not in it."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, bytes) else entry


def _allowed(entries: Mapping[str, Sequence[str]]) -> Allowed:
    return {_name(name): _entry(values) for name, values in entries.items()}


def _name(name: str) -> bytes:
    """Return a name as the log's bytes: JSON carries a byte that is not UTF-8 as a lone surrogate."""
    return name.encode("utf-8", "surrogateescape")


def _entry(values: Sequence[str]) -> Digest | tuple[Digest, ...]:
    # A value of odd length passes Keylime's schema and equals no digest, so it has no place in the table.
    digests = tuple(dict.fromkeys(bytes.fromhex(value) for value in values if len(value.rstrip("\n")) % 2 == 0))
    return digests[0] if len(digests) == 1 else digests


def _problems(document: Mapping[str, Any]) -> Iterator[str]:
    for name in ("meta", "release", "digests", "excludes", "keyrings", "ima", "ima-buf", "verification-keys"):
        if name not in document:
            yield f"'{name}' is a required property"
    if "meta" in document:
        yield from _meta_problems(document["meta"])
    if "release" in document:
        yield from _integer_problems(document["release"], "release")
    for name in ("digests", "keyrings", "ima-buf"):
        if name in document:
            yield from _map_problems(document[name], name)
    if "excludes" in document:
        yield from _exclude_problems(document["excludes"])
    if "ima" in document:
        yield from _ima_problems(document["ima"])
    if "verification-keys" in document:
        yield from _key_problems(document["verification-keys"])


def _meta_problems(meta: object) -> Iterator[str]:
    if not isinstance(meta, dict):
        yield _not_of_type(meta, "object", "meta")
        return
    for name in ("version", "generator"):
        if name not in meta:
            yield f"'{name}' is a required property (meta)"
        else:
            highest = _HIGHEST_GENERATOR if name == "generator" else None
            yield from _integer_problems(meta[name], f"meta.{name}", highest)
    if "timestamp" in meta and not isinstance(meta["timestamp"], str):
        yield _not_of_type(meta["timestamp"], "string", "meta.timestamp")


def _integer_problems(value: object, place: str, highest: int | None = None) -> Iterator[str]:
    whole = isinstance(value, float) and value.is_integer()
    if isinstance(value, bool) or not (isinstance(value, int) or whole):
        yield _not_of_type(value, "integer", place)
    elif isinstance(value, int | float) and value < 0:
        yield f"{value} is less than the minimum of 0 ({place})"
    elif highest is not None and isinstance(value, int | float) and value > highest:
        yield f"{value} is greater than the maximum of {highest} ({place})"


def _map_problems(entries: object, place: str) -> Iterator[str]:
    if not isinstance(entries, dict):
        yield _not_of_type(entries, "object", place)
        return
    for name, values in entries.items():
        if not isinstance(values, list):
            yield _not_of_type(values, "array", f"{place}, {_short(name)}")
        elif not values:
            yield f"[] should be non-empty ({place}, {_short(name)})"
        elif not _encodable(name):
            yield f"{_short(name)} has characters that no file name has ({place})"
        else:
            yield from (problem for value in values for problem in _digest_problems(value, place, name))


def _digest_problems(value: object, place: str, name: str) -> Iterator[str]:
    if not isinstance(value, str):
        yield _not_of_type(value, "string", f"{place}, {_short(name)}")
    elif not _DIGEST.search(value):
        yield f"{_short(value)} does not match '^[0-9a-f]{{40,128}}$' ({place}, {_short(name)})"


def _encodable(name: str) -> bool:
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _exclude_problems(excludes: object) -> Iterator[str]:
    if not isinstance(excludes, list):
        yield _not_of_type(excludes, "array", "excludes")
        return
    strings = [pattern for pattern in excludes if isinstance(pattern, str)]
    for value in excludes:
        if not isinstance(value, str):
            yield _not_of_type(value, "string", "excludes")
    try:
        compile_excludes(strings)
    except PolicyError as problem:
        yield from (
            f"{text} Exclude list regex is misformatted. Please correct the issue and try again."
            for text in problem.problems[:MAX_PROBLEMS]
        )


def _ima_problems(ima: object) -> Iterator[str]:
    if not isinstance(ima, dict):
        yield _not_of_type(ima, "object", "ima")
        return
    for name in ("ignored_keyrings", "log_hash_alg", "dm_policy"):
        if name not in ima:
            yield f"'{name}' is a required property (ima)"
    ignored = ima.get("ignored_keyrings", [])
    if not isinstance(ignored, list):
        yield _not_of_type(ignored, "array", "ima.ignored_keyrings")
    else:
        yield from (
            _not_of_type(name, "string", "ima.ignored_keyrings") for name in ignored if not isinstance(name, str)
        )
    algorithm = ima.get("log_hash_alg", LOG_HASHES[0])
    if algorithm not in LOG_HASHES:
        yield f"{_short(algorithm)} is not one of {list(LOG_HASHES)!r} (ima.log_hash_alg)"
    if ima.get("dm_policy") is not None:
        yield from device_problems(ima["dm_policy"])


def _key_problems(text: object) -> Iterator[str]:
    if not isinstance(text, str):
        yield _not_of_type(text, "string", "verification-keys")
        return
    try:
        parse_keyring(text)
    except PolicyError as problem:
        yield from (f"{reason} (verification-keys)" for reason in problem.problems)


def _not_of_type(value: object, kind: str, place: str = "") -> str:
    return f"{_short(value)} is not of type '{kind}'{f' ({place})' if place else ''}"


def _short(value: object) -> str:
    """Return a value as validators print it, cut where nobody reads on."""
    if isinstance(value, dict | list) and len(value) > _SHOWN:
        return f"a value with {len(value)} members"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
