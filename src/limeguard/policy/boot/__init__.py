"""Measured boot policies: the text of `mb_policy` and the name beside it, to a frozen policy.

Two languages share the one place that the wire has. A reference state is Keylime's: the policy's name chooses what it
means. A document with the member `limeguard_boot_policy` is ours, and says itself what a node may boot.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from limeguard.evidence.bootlog.replay import BOOT_PCRS as BOOT_PCRS
from limeguard.policy.boot.checks import RejectAll, Rule
from limeguard.policy.boot.example import RELEVANT, example_test, parse_reference_state
from limeguard.policy.boot.rules import MARK, BootRules, parse_boot_rules
from limeguard.policy.errors import PolicyError

ACCEPT_ALL: Final = "accept-all"
REJECT_ALL: Final = "reject-all"
EXAMPLE: Final = "example"
NAMES: Final = (ACCEPT_ALL, REJECT_ALL, EXAMPLE)
"""The policies that reference states can be judged by."""
OWN_NAME: Final = "limeguard"
"""How a document of our own format is reported; it may be named so, or with the default name."""
MAX_TEXT: Final = 8 << 20
"""Characters of a policy. A revocation list of a thousand digests has some 200 KB."""

Judge = Rule | BootRules | None
"""A test of the decoded log, rules of our own, or None where replay alone decides."""


@dataclass(frozen=True, slots=True)
class BootPolicy:
    """A policy as it is in force.

    `active` is false for `{}`, which asks for nothing: no PCR is compared and no log is judged. `required` are the PCRs
    that have to be quoted and that the log has to account for. `checksum` is of name and text. `invalid` says why the
    text is no policy at all, so that nothing can satisfy it.
    """

    name: str
    checksum: str
    text: str
    active: bool
    required: frozenset[int]
    judge: Judge
    invalid: str = ""

    @property
    def mask(self) -> int:
        """The PCRs to quote as a bit mask: all of a boot log, as Keylime's tenant asks for them."""
        return sum(1 << pcr for pcr in BOOT_PCRS) if self.active else 0


def parse_boot_policy(text: str, name: str = ACCEPT_ALL) -> BootPolicy:
    """Parse what is given at enrolment. Raises PolicyError that lists every problem.

    An unknown name acts as `reject-all` and is reported so, as in Keylime.
    """
    document = _document(text)
    checksum = _checksum(text, name)
    if not document:
        return BootPolicy(name, checksum, text, active=False, required=frozenset(), judge=None)
    if MARK in document:
        if name not in {ACCEPT_ALL, OWN_NAME}:
            raise PolicyError(
                f"a policy with the member {MARK} judges by itself: name it {OWN_NAME}, not {name[:80]!r}"
            )
        rules = parse_boot_rules(document)
        return BootPolicy(OWN_NAME, checksum, text, active=True, required=rules.pcrs, judge=rules)
    if name == ACCEPT_ALL:
        return BootPolicy(name, checksum, text, active=True, required=BOOT_PCRS, judge=None)
    if name == EXAMPLE:
        test = example_test(parse_reference_state(document))
        return BootPolicy(name, checksum, text, active=True, required=RELEVANT, judge=test)
    why = "reject all" if name == REJECT_ALL else f"there is no policy of the name {name[:80]!r}"
    return BootPolicy(REJECT_ALL, checksum, text, active=True, required=BOOT_PCRS, judge=RejectAll(why))


def stored_boot_policy(text: str, name: str = ACCEPT_ALL) -> BootPolicy:
    """Return the policy of a text that is stored already, perhaps by another verifier. Never raises.

    What cannot be read becomes a policy that nothing satisfies: with Keylime's verdict where the text is a reference
    state with faults, and invalid where it is not an object at all.
    """
    try:
        return parse_boot_policy(text, name)
    except PolicyError as problem:
        why = "; ".join(problem.problems)
    checksum = _checksum(text, name)
    try:
        document = _document(text)
    except PolicyError:
        return BootPolicy(name, checksum, text, active=True, required=BOOT_PCRS, judge=RejectAll(why), invalid=why)
    shown = OWN_NAME if MARK in document else name
    required = RELEVANT if name == EXAMPLE else BOOT_PCRS
    return BootPolicy(shown, checksum, text, active=True, required=required, judge=RejectAll(f"policy: {why}"))


def _checksum(text: str, name: str) -> str:
    """Return what tells policies apart, by every character of both."""
    parts = (part.encode("utf-8", "surrogatepass") for part in (name, text))
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def _document(text: str) -> Mapping[str, Any]:
    if len(text) > MAX_TEXT:
        raise PolicyError(f"the policy has {len(text)} characters, at most {MAX_TEXT} are allowed")
    repeated: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            repeated.extend(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return members

    try:
        document = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as problem:
        raise PolicyError(f"the policy is not JSON: {problem}") from None
    if not isinstance(document, dict):
        raise PolicyError("the policy is not a JSON object")
    if MARK in document and repeated:
        raise PolicyError(*(f"the member {name[:80]!r} is written more than once" for name in repeated))
    return document
