"""What changed from one runtime policy to another, in words of the policy. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

MAPS: Final = ("digests", "keyrings", "ima-buf")
LISTS: Final = ("excludes",)


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield one record a change: `change` (added, removed, changed), `member`, `name`, and the values on both sides."""
    for member in MAPS:
        yield from _in_map(member, before.get(member, {}), after.get(member, {}))
    for member in LISTS:
        yield from _in_list(member, before.get(member, []), after.get(member, []))
    old, new = before.get("ima", {}), after.get("ima", {})
    yield from _in_list("ima.ignored_keyrings", old.get("ignored_keyrings", []), new.get("ignored_keyrings", []))
    for name, (left, right) in {
        "ima.log_hash_alg": (old.get("log_hash_alg"), new.get("log_hash_alg")),
        "verification-keys": (before.get("verification-keys"), after.get("verification-keys")),
    }.items():
        if left != right:
            yield {"change": "changed", "member": name, "name": "", "before": [left], "after": [right]}


def _in_map(
    member: str, before: Mapping[str, Sequence[str]], after: Mapping[str, Sequence[str]]
) -> Iterator[dict[str, Any]]:
    for name in {**before, **after}:
        old, new = sorted(set(before.get(name, ()))), sorted(set(after.get(name, ())))
        if old != new:
            change = "added" if name not in before else "removed" if name not in after else "changed"
            yield {"change": change, "member": member, "name": name, "before": old, "after": new}


def _in_list(member: str, before: Sequence[str], after: Sequence[str]) -> Iterator[dict[str, Any]]:
    for name in dict.fromkeys((*before, *after)):
        if (name in before) != (name in after):
            change = "added" if name in after else "removed"
            yield {"change": change, "member": member, "name": name, "before": [], "after": []}
