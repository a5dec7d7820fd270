"""From sources to one policy: which algorithm, what is merged, and whether the result may be uploaded."""

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from limeguard.authoring.policy import deb, deb_remote, fetching, initrd, rootfs, rpm, rpm_remote
from limeguard.authoring.policy.collected import Digests, SourceError, merge
from limeguard.authoring.policy.texts import (
    AMBIGUOUS,
    Measured,
    algorithm_of,
    exclude_list,
    flat_allowlist,
    measurement_list,
    read_text,
)
from limeguard.crypto.keys import PublicKey
from limeguard.policy.errors import PolicyError
from limeguard.policy.excludes import compile_excludes
from limeguard.policy.keyring import (
    KeyUnreadableError,
    UnsupportedKeyTypeError,
    keyring_document,
    keyring_text,
    load_public_key,
)
from limeguard.policy.runtime import check_document, empty_policy_document
from limeguard.telemetry import get_logger

log = get_logger("keylime.policy")

KERNEL_LIST: Final = "/sys/kernel/security/ima/ascii_runtime_measurements"
NO_LIST: Final = "/dev/null"
DEFAULT_ALGORITHM: Final = "sha256"
LEGACY_GENERATOR: Final = 3
ABORTING: Final = "Aborting operation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a policy is to be made of; empty texts and lists are sources that are not used.

    `digests` stand for those of the measurement list, whose keys and buffers may be wanted all the same; their
    algorithms are not asked for then, as the tools before `keylime-policy` did not.
    """

    base_policy: str = ""
    allowlist: str = ""
    excludelist: str = ""
    measurements: str = NO_LIST
    keyrings: bool = False
    buffers: bool = False
    ignored_keyrings: Sequence[str] = ()
    verification_keys: Sequence[str] = ()
    algorithm: str = ""
    root: str = ""
    ramdisks: str = ""
    rpm_repository: str = ""
    rpm_url: str = ""
    deb_packages: str = ""
    deb_repository: deb_remote.DebSource | None = None
    workers: int = fetching.WORKERS
    digests: Digests | None = None
    skip: Sequence[str] = ()
    progress: rootfs.Progress | None = field(default=None, compare=False)


def build(request: Request, now: datetime) -> dict[str, Any]:
    """Return the policy. Raises SourceError with one sentence; nothing is made then."""
    document = empty_policy_document()
    base = _base(document, request.base_policy)
    listed = flat_allowlist(_read(request.allowlist)) if request.allowlist else {}
    measured = _measured(request.measurements)
    given = request.digests
    algorithm = _algorithm(request, base, listed, measured) if given is None else request.algorithm
    scanned: Digests = {}
    if request.root:
        scanned = rootfs.scan(request.root, algorithm, skip=request.skip, progress=request.progress)
    packed = initrd.collect(request.ramdisks, algorithm) if request.ramdisks else {}
    sources = [base, listed, measured.digests if given is None else given, scanned, packed]
    sources += _packages(request, algorithm, now)
    document["digests"] = _sorted(merge(sources))
    _add_excludes(document, request.excludelist)
    ignored = {*document["ima"]["ignored_keyrings"], *request.ignored_keyrings}
    document["ima"]["ignored_keyrings"] = sorted(ignored)
    _add_buffers(document, measured, request)
    if request.verification_keys:
        document["verification-keys"] = with_keys(document["verification-keys"], request.verification_keys)
    document["meta"] = {"version": 1, "generator": LEGACY_GENERATOR, "timestamp": str(now.replace(tzinfo=None))}
    problems = check_document(document)
    if problems:
        log.error("The policy would not be accepted: %s", "; ".join(problems[:10]))
        raise SourceError(ABORTING)
    return document


def _packages(request: Request, algorithm: str, now: datetime) -> Iterator[Digests]:
    """Yield what repositories say, those on this machine first."""
    if request.rpm_repository:
        yield rpm.local_repository(request.rpm_repository)
    if request.rpm_url:
        yield asyncio.run(rpm_remote.remote_repository(request.rpm_url, request.workers, request.progress))
    if request.deb_packages:
        yield deb.packages(request.deb_packages, algorithm)
    if request.deb_repository is not None:
        remote = deb_remote.remote_packages(request.deb_repository, algorithm, now, request.workers, request.progress)
        yield asyncio.run(remote)


def listing(document: Mapping[str, Any]) -> str:
    """Return digests as the older flat lists have them, the boot aggregate first."""
    digests: Mapping[str, Sequence[str]] = document["digests"]
    first = [name for name in digests if name == "boot_aggregate"]
    names = first + [name for name in digests if name != "boot_aggregate"]
    return "".join(f"{digest}  {name}\n" for name in names for digest in digests[name])


def _read(path: str) -> str:
    try:
        return read_text(path)
    except OSError as problem:
        raise SourceError(f"An error occurred: {problem}") from None


def _base(document: dict[str, Any], path: str) -> Digests:
    """Take over what a base policy says; return its digests."""
    if not path:
        return {}
    try:
        base = json.loads(_read(path))
    except (ValueError, RecursionError) as problem:
        raise SourceError(f"An error occurred while parsing a JSON object from file {path}: {problem}") from None
    if not isinstance(base, dict):
        raise SourceError(f"The base policy {path} is not a JSON object")
    ima = base.get("ima") if isinstance(base.get("ima"), dict) else {}
    assert isinstance(ima, dict)  # noqa: S101 - for the type checker: said by the line above
    document["excludes"] = base.get("excludes", [])
    document["keyrings"] = base.get("keyrings", {})
    document["ima-buf"] = base.get("ima-buf", {})
    document["verification-keys"] = base.get("verification-keys", "")
    document["ima"]["log_hash_alg"] = ima.get("log_hash_alg", "sha1")
    document["ima"]["ignored_keyrings"] = ima.get("ignored_keyrings", [])
    digests = base.get("digests", {})
    problems = check_document({**document, "digests": digests})
    if problems:
        log.error("The base policy %s cannot be used: %s", path, "; ".join(problems[:10]))
        raise SourceError(ABORTING)
    return merge([digests])


def _measured(path: str) -> Measured:
    if path == NO_LIST:
        return Measured()
    if not Path(path).is_file():
        raise SourceError(f"The IMA measurement list file '{path}' does not seem to exist")
    return measurement_list(_read(path))


def _algorithm(request: Request, base: Digests, listed: Digests, measured: Measured) -> str:
    """Return the algorithm on which all sources agree. Raises SourceError."""
    opinions: list[tuple[str, str | None]] = [("command line", request.algorithm or None)]
    for called, digests in (("base policy", base), ("allowlist", listed)):
        try:
            opinions.append((called, algorithm_of(digests)))
        except SourceError:
            raise _invalid(called) from None
    if request.measurements != NO_LIST and (measured.digests or measured.keyrings or measured.buffers):
        if measured.algorithm is None:
            raise _invalid("IMA measurement list")
        opinions.append(("IMA measurement list", measured.algorithm))
    chosen = ""
    for called, opinion in opinions:
        if opinion is None or opinion == chosen or {opinion, chosen} == AMBIGUOUS:
            continue
        if chosen:
            log.error("The digest algorithm in the %s does not match the previously set '%s' algorithm", called, chosen)
            raise SourceError(ABORTING)
        chosen = opinion
    return chosen or DEFAULT_ALGORITHM


def _invalid(called: str) -> SourceError:
    log.error("Invalid digest algorithm found in the %s", called)
    return SourceError(ABORTING)


def _sorted(digests: Digests) -> Digests:
    return {path: sorted(set(values)) for path, values in digests.items()}


def _add_excludes(document: dict[str, Any], path: str) -> None:
    patterns = exclude_list(_read(path)) if path else []
    try:
        compile_excludes(patterns)
    except PolicyError as problem:
        raise SourceError(f"Bad IMA exclude list rule {problem.problems[0]}") from None
    document["excludes"] = sorted({*document["excludes"], *patterns})


def _add_buffers(document: dict[str, Any], measured: Measured, request: Request) -> None:
    if request.keyrings:
        wanted = {name: keys for name, keys in measured.keyrings.items() if name not in request.ignored_keyrings}
        document["keyrings"] = _sorted(merge([document["keyrings"], wanted]))
    if request.buffers:
        document["ima-buf"] = _sorted(merge([document["ima-buf"], measured.buffers]))


def with_keys(text: str, paths: Sequence[str]) -> str:
    """Return a keyring text that holds the keys in these files as well; a file without key is named in the log."""
    keys: list[tuple[PublicKey, int]] = keyring_document(text) if text else []
    for path in paths:
        try:
            key = load_public_key(Path(path).read_bytes())
        except (OSError, KeyUnreadableError, UnsupportedKeyTypeError) as problem:
            log.error("No key in %s: %s", path, problem)  # noqa: TRY400
            continue
        if key[1] not in {key_id for _, key_id in keys}:
            keys.append(key)
    return keyring_text(keys)
