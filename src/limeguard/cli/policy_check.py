"""`limeguard policy check`: a measurement list judged by a policy, offline, with the verifier's own judge."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from limeguard.appraisal.findings import Finding
from limeguard.appraisal.ima.entries import TENANT_KEYRING, Rules
from limeguard.appraisal.ima.measurements import ListAppraisal, appraise_entries, appraise_list, split_lines
from limeguard.authoring.policy.collected import SourceError
from limeguard.crypto.hashes import hash_by_name
from limeguard.evidence.ima.measurement_list import parse_binary
from limeguard.evidence.reader import MalformedEvidence
from limeguard.policy import dsse
from limeguard.policy.runtime import RuntimePolicy, compile_document, decode_policy, parse_runtime_policy
from limeguard.telemetry import clean


def check(options: argparse.Namespace) -> int:
    """Judge, print, and return 0 when nothing was found, 1 otherwise. Raises SourceError, PolicyError."""
    policy = _policy(options.policy)
    result = _judged(policy, _bytes(options.log), options)
    if options.json:
        print(json.dumps(_report(result)))
    else:
        _print(result, proven=bool(options.pcr))
    return int(bool(result.findings))


def _judged(policy: RuntimePolicy, text: bytes, options: argparse.Namespace) -> ListAppraisal:
    bank = hash_by_name(options.bank)
    if bank is None:
        raise SourceError(f"{options.bank} is not a bank that can be replayed")
    try:
        quoted = bytes.fromhex(options.pcr.removeprefix("0x")) if options.pcr else None
    except ValueError:
        quoted = b""
    if quoted is not None and len(quoted) != bank.size:
        raise SourceError(f"--pcr is not the hexadecimal value of a {bank.name} PCR, which has {bank.size} bytes")
    rules = Rules(policy, violations_found=not options.ignore_violations)
    keyrings = {TENANT_KEYRING: policy.verification_keys}
    if text[1:4] != b"\0\0\0":
        return appraise_list(split_lines(text), bank=bank, rules=rules, quoted=quoted, keyrings=keyrings)
    try:
        entries = parse_binary(text, policy.log_hash)
        return appraise_entries(entries, bank=bank, rules=rules, quoted=quoted, keyrings=keyrings)
    except MalformedEvidence as problem:
        raise SourceError(f"{options.log} is not a binary measurement list: {problem}") from None


def _policy(path: str) -> RuntimePolicy:
    text = _bytes(path)
    document = decode_policy(text)
    if dsse.is_envelope(document):
        return parse_runtime_policy(dsse.parse_envelope(document).payload)
    if isinstance(document, dict) and {"digests", "keyrings", "ima-buf", "excludes"} <= document.keys():
        return parse_runtime_policy(text) if "meta" in document else compile_document(document)
    return parse_runtime_policy(text)


def _bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as problem:
        raise SourceError(f"An error occurred: {problem}") from None


def _report(result: ListAppraisal) -> dict[str, object]:
    findings = [
        {"id": one.kind.id, "event_id": one.event_id, "context": dict(one.context), "advice": one.kind.advice}
        for one in result.findings
    ]
    return {
        "accepted": not result.findings,
        "matched_lines": result.matched,
        "pcr_after_all_lines": result.running.hex(),
        "padded_bank": result.padded,
        "findings": findings,
        "more_findings": result.more,
    }


def _print(result: ListAppraisal, *, proven: bool) -> None:
    for finding in result.findings:
        print("\n".join(_lines(finding)))
    for advice in dict.fromkeys(one.kind.advice for one in result.findings):
        print(f"- {advice}")
    if result.more:
        print("There are more findings: the rest of the list was not looked at.")
    if not result.findings:
        said = "and leads to the PCR" if proven else "(no --pcr was given, so nobody vouches for the list)"
        print(f"The list satisfies the policy {said}.")


def _lines(finding: Finding) -> Iterator[str]:
    """Yield a finding as an indented block; names and texts come from the list and are cleaned."""
    context = finding.context
    yield f"entry {context.get('entry', '?')}: {clean(context.get('message', finding.kind.id), 4_096)}"
    rows = {
        "file": context.get("path"),
        "digest seen": context.get("digest", context.get("got")),
        "digests allowed": context.get("expected", "none, the file is not listed" if "digest" in context else None),
        "signature": context.get("signature"),
        "remedy": context.get("remedy"),
    }
    for name, value in rows.items():
        if value is not None:
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            yield f"    {name:<16}{clean(shown, 8_192)}"
