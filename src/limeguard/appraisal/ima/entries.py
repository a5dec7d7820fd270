"""One entry of the measurement list against the runtime policy: findings, or none.

Decides in the order that Keylime does, so that the same entry has the same event id. Knows nothing of PCRs being
reached; the caller does not believe a clean entry before replay has vouched for it.
"""

from dataclasses import dataclass, replace
from typing import Final

from limeguard.appraisal.findings import (
    IMA_DIGEST,
    IMA_KEY,
    IMA_NOT_ALLOWED,
    IMA_OTHER_PCR,
    IMA_SIGNATURE,
    IMA_TEMPLATE_HASH,
    IMA_TOMTOU,
    ContextValue,
    Finding,
)
from limeguard.appraisal.ima.devices import Change, Devices, judge_event
from limeguard.appraisal.ima.history import Keyrings
from limeguard.appraisal.ima.signatures import verifies
from limeguard.crypto.keys import PublicKey
from limeguard.evidence.ima.device_mapper import EVENTS
from limeguard.evidence.ima.templates import Entry
from limeguard.policy.keyring import (
    KeyUnreadableError,
    UnsupportedKeyTypeError,
    load_public_key,
)
from limeguard.policy.runtime import Allowed, RuntimePolicy, digests_of

IMA_PCR: Final = b"10"
MAX_SHOWN: Final = 16
"""Digests that a finding lists as allowed; a path with more is listed by its first."""
ALL_KEYRINGS: Final = b"*"
BOOT_AGGREGATE: Final = b"boot_aggregate"
TENANT_KEYRING: Final = b"tenant_keyring"
_DEVICE_EVENTS: Final = frozenset(name.encode() for name in EVENTS)


@dataclass(frozen=True, slots=True)
class Judged:
    """What an entry came to. `learned` is a key that the policy vouches for: keyring, id, key.

    `devices` is what an event of the device mapper changes in the record of devices, findings or none.
    `constant` says that the same line has the same verdict on each node with this policy.
    """

    findings: tuple[Finding, ...] = ()
    learned: tuple[bytes, int, PublicKey] | None = None
    constant: bool = True
    devices: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Rules:
    """What entries are judged by.

    `policy` None accepts every name, as replay without appraisal does. `boot_aggregates` are further values of
    `boot_aggregate` that the boot log proves. `violations_found` makes a violation a finding.
    """

    policy: RuntimePolicy | None
    boot_aggregates: tuple[bytes, ...] = ()
    violations_found: bool = True


def judge(
    entry: Entry, number: int, log_digest: bytes, rules: Rules, keyrings: Keyrings | None, devices: Devices
) -> Judged:
    """Judge entry `number` (0-based in the whole list), whose template data hashes to `log_digest`.

    `keyrings` None: signatures are not looked at, as in a one-shot verification. `devices` is the record that earlier
    events of the device mapper made.
    """
    findings: list[Finding] = []
    if entry.pcr.strip() != IMA_PCR:
        text = f"IMA entry {number} is for PCR {_said(entry.pcr)}, not for PCR 10"
        findings.append(Finding(IMA_OTHER_PCR, {"message": text, "expected": "10", "got": _said(entry.pcr)}))
    if entry.violates(len(log_digest)):
        if rules.violations_found:
            text = f"A violation was measured (ToMToU or open writers): {_said(entry.name)}"
            findings.append(Finding(IMA_TOMTOU, {"message": text, "path": _said(entry.name), "entry": number}))
        return Judged(tuple(findings))
    if log_digest != entry.template_digest:
        text = f"IMA template hash of entry {number} does not match: {_said(entry.name)}"
        expected, got = log_digest.hex(), entry.template_digest.hex()
        context: dict[str, ContextValue] = {
            "message": text,
            "expected": expected,
            "got": got,
            "path": _said(entry.name),
            "entry": number,
        }
        return Judged((*findings, Finding(IMA_TEMPLATE_HASH, context)))
    if entry.buffer is not None:
        judged = _buffer(entry, entry.buffer, number, rules.policy, devices)
    else:
        judged = _measured(entry, number, rules, keyrings)
    return replace(judged, findings=(*findings, *judged.findings)) if findings else judged


def _measured(entry: Entry, number: int, rules: Rules, keyrings: Keyrings | None) -> Judged:
    policy = rules.policy
    if policy is None:
        if keyrings is None or "sig" not in entry.template:
            return Judged(constant=False)
        if verifies(entry, keyrings.values()):
            return Judged(constant=False)
        text = f"Signature for file {_said(entry.name)} is not valid"
        return Judged((Finding(IMA_SIGNATURE, {"message": text, "path": _said(entry.name), "entry": number}),))
    allowed = policy.digests
    if entry.name == BOOT_AGGREGATE and rules.boot_aggregates:
        # What the boot log proves is valid beside what the policy lists, for this node and this evaluation only.
        allowed = {BOOT_AGGREGATE: (*digests_of(allowed.get(BOOT_AGGREGATE)), *rules.boot_aggregates)}
    finding = _check(entry, "digests", allowed, number, policy)
    if finding is None:
        return Judged(constant=allowed is policy.digests)
    if entry.signature is not None and keyrings is not None and verifies(entry, keyrings.values()):
        return Judged(constant=False)
    if entry.signature is not None and keyrings is not None:
        finding = Finding(finding.kind, {**finding.context, "signature": "not valid"})
    return Judged((finding,))


def _buffer(entry: Entry, buffer: bytes, number: int, policy: RuntimePolicy | None, devices: Devices) -> Judged:
    try:
        key, key_id = load_public_key(buffer)
    except UnsupportedKeyTypeError as problem:
        return Judged((Finding(IMA_KEY, {"message": str(problem), "path": _said(entry.name), "entry": number}),))
    except KeyUnreadableError:
        if policy is not None and policy.devices is not None and entry.name in _DEVICE_EVENTS:
            name = entry.name.decode("ascii")
            verdict = judge_event(name, entry.algorithm, entry.digest, buffer, policy.devices, devices)
            findings = tuple(Finding(item.kind, {**item.context, "entry": number}) for item in verdict.findings)
            return Judged(findings, constant=False, devices=verdict.changes)
        return _result(None if policy is None else _check(entry, "ima-buf", policy.ima_buf, number, policy))
    if policy is None or ALL_KEYRINGS in policy.ignored_keyrings or entry.name in policy.ignored_keyrings:
        return Judged()
    finding = _check(entry, "keyrings", policy.keyrings, number, policy)
    vouched = entry.digest in digests_of(policy.keyrings.get(entry.name))
    # A key on an excluded keyring is tolerated, but nobody vouched for it: it verifies nothing.
    learned = (entry.name, key_id, key) if vouched else None
    return Judged(() if finding is None else (finding,), learned, constant=False)


def _result(finding: Finding | None) -> Judged:
    return Judged() if finding is None else Judged((finding,))


def _check(entry: Entry, member: str, allowed: Allowed, number: int, policy: RuntimePolicy) -> Finding | None:
    """Look a name and its digest up in a member of the policy; the hash algorithm's name has no say, only the value."""
    listed = allowed.get(entry.name)
    if listed is not None and (listed == entry.digest if isinstance(listed, bytes) else entry.digest in listed):
        return None
    if policy.excludes.match(entry.name):
        return None
    path, digest = _said(entry.name), entry.digest.hex()
    context: dict[str, ContextValue] = {"path": path, "entry": number, "template": entry.template}
    context["algorithm"] = entry.algorithm[:20]
    context["remedy"] = f"if this is as it should be, add {digest} to {member} of {path} in the runtime policy"
    if listed is None:
        context |= {"message": f"File not found in allowlist: {path}", "digest": digest}
        return Finding(IMA_NOT_ALLOWED, context)
    known = [value.hex() for value in digests_of(listed)]
    context |= {"message": "Hash not found in runtime policy", "got": digest, "expected": known[:MAX_SHOWN]}
    return Finding(IMA_DIGEST, context)


def _said(text: bytes) -> str:
    """Return text of the log for people and JSON: a byte that is not UTF-8 is shown as its escape."""
    return text.decode("utf-8", "backslashreplace")[:4096]
