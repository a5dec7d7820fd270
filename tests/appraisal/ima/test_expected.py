"""Reference results of Keylime 7.14 for measurement lists, with the differences that are intended."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.shared import shared_path

from limeguard.appraisal.ima.entries import TENANT_KEYRING, Rules
from limeguard.appraisal.ima.history import NO_IMA, ImaHistory
from limeguard.appraisal.ima.measurements import ListAppraisal, appraise_list, split_lines
from limeguard.crypto.hashes import hash_by_name
from limeguard.policy.errors import PolicyError
from limeguard.policy.keyring import Keyring, parse_keyring
from limeguard.policy.runtime import RuntimePolicy, compile_document

INTENDED = {
    "keyring-excluded": "a key on an excluded keyring is tolerated but never learned: nobody vouched for it",
    "keyring-nopolicy": "without a policy no key is learned",
    "replay-templates-invalid-sha1": "more templates are known here, a custom one among them",
}
REFUSED = {
    "syn-excl-9": "a list of excludes with an invalid pattern is refused at upload, not ignored",
    "syn-excl-7": "a list of excludes with an invalid pattern is refused at upload, not ignored",
    "syn-excl-10": "a list of excludes with an invalid pattern is refused at upload, not ignored",
}


@cache
def reference() -> dict[str, Any]:
    """Return the reference results."""
    document: dict[str, Any] = json.loads((root() / "expected.json").read_text())
    return document


def root() -> Path:
    """Return the folder of the reference data, or skip."""
    return shared_path("fixtures/upstream")


def cases() -> list[str]:
    """Return the ids of the cases; one that says what is missing where the data is not there."""
    path = Path(__file__).parents[4] / "shared/fixtures/upstream/expected.json"
    return [case["id"] for case in json.loads(path.read_text())["ima"]] if path.exists() else ["shared data is absent"]


def policy_of(case: dict[str, Any]) -> RuntimePolicy | None:
    """Compile the policy of a case."""
    if case.get("policy_file"):
        return compile_document(json.loads((root() / case["policy_file"]).read_text()), case["id"])
    return None if case.get("policy") is None else compile_document(case["policy"], case["id"])


def lines_of(case: dict[str, Any]) -> list[bytes]:
    """Return the lines of a case."""
    if "log" in case:
        return split_lines((root() / case["log"]).read_bytes())
    return [line.encode("utf-8", "surrogateescape") for line in case["lines"]]


def keyrings_of(case: dict[str, Any]) -> dict[bytes, Keyring] | None:
    """Return the keyrings object of a case."""
    given = case.get("keyrings")
    if given is None:
        return None
    rings = {}
    for name, text in given.items():
        rings[TENANT_KEYRING if name == "tenant" else name.encode()] = parse_keyring(text)
    return rings


def evaluate(
    case: dict[str, Any], step: dict[str, Any], history: ImaHistory, keyrings: dict[bytes, Keyring] | None
) -> ListAppraisal:
    """Judge one step of a case as Keylime's shipped settings do: violations are no findings."""
    bank = hash_by_name(case["bank"])
    assert bank is not None
    quoted = step.get("quoted_pcr10")
    aggregates = tuple(
        bytes.fromhex(value) for values in (case.get("boot_aggregates") or {}).values() for value in values
    )
    return appraise_list(
        lines_of(step),
        bank=bank,
        rules=Rules(policy_of(case), aggregates, violations_found=False),
        quoted=None if quoted is None else bytes.fromhex(quoted),
        history=history,
        keyrings=keyrings,
    )


def steps(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the steps of a case; most have one."""
    yield from case.get("steps") or [case]


@pytest.mark.parametrize("case_id", cases())
def test_verdict_is_the_reference_one(case_id: str) -> None:
    root()
    case = next(one for one in reference()["ima"] if one["id"] == case_id)
    if case_id in REFUSED:
        with pytest.raises(PolicyError):
            policy_of(case)
        return
    history = NO_IMA
    keyrings = {} if "steps" in case else keyrings_of(case)
    for step in steps(case):
        result = evaluate(case, step, history, keyrings)
        expected = step["expect"]
        if case_id in INTENDED:
            continue
        assert [finding.event_id for finding in result.findings] == expected["failures"]
        assert result.running.hex() == expected["running_hash"]
        history = NO_IMA if result.findings else result.history
        if "next_entry" in expected:
            assert history.next_entry == expected["next_entry"]
        if "learned" in expected and result.matched is not None:
            learned = {name.decode(): list(ring.keys) for name, ring in history.keyrings.items()}
            assert learned == {name: ids for name, ids in expected["learned"].items() if name != "tenant_keyring"}
