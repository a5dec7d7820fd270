"""Older forms of runtime policies, brought to version 1: flat allowlists and JSON allowlists."""

import json
from collections.abc import Mapping
from typing import Any, Final

from limeguard.policy.errors import PolicyError
from limeguard.policy.runtime import empty_policy_document

LEGACY: Final = 3
COMPATIBLE: Final = 2
_KEYRING: Final = "%keyring:"


def convert(text: str, timestamp: str | None = None) -> dict[str, Any]:
    """Return the policy that an older document says. Raises PolicyError for what is none of them."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return _dated(_flat(text), timestamp)
    if isinstance(document, dict) and document.get("hashes"):
        return _dated(_legacy(document), timestamp)
    if isinstance(document, dict) and document.get("digests"):
        raise PolicyError("this is a runtime policy already")
    raise PolicyError("this is neither a flat allowlist nor a JSON allowlist")


def upgrade(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a policy of a version below 1 on the present empty one; any other as it is."""
    meta = document.get("meta")
    version = meta.get("version", 0) if isinstance(meta, dict) else 0
    if isinstance(version, int) and version >= 1:
        return dict(document)
    policy = empty_policy_document()
    policy["meta"]["generator"] = COMPATIBLE
    return {
        **policy,
        **{name: value for name, value in document.items() if value and name in policy and name != "meta"},
    }


def exclude_lines(text: str) -> list[str]:
    """Return the patterns of an exclude file; empty lines and those that begin with `#` are none."""
    return [line for raw in text.splitlines() if (line := raw.strip()) and not line.startswith("#")]


def _dated(policy: dict[str, Any], timestamp: str | None) -> dict[str, Any]:
    policy["meta"] = {"version": 1, "generator": LEGACY, **({} if timestamp is None else {"timestamp": timestamp})}
    return policy


def _flat(text: str) -> dict[str, Any]:
    policy = empty_policy_document()
    for line in text.splitlines():
        parts = line.strip().split(maxsplit=1)
        if len(parts) == 2:
            digest, path = parts
            keyring = path.startswith(_KEYRING)
            entries = policy["keyrings" if keyring else "digests"]
            entries.setdefault(path.removeprefix(_KEYRING), []).append(digest)
    return policy


def _legacy(document: Mapping[str, Any]) -> dict[str, Any]:
    policy = empty_policy_document()
    policy["digests"] = document["hashes"]
    for name in ("release", "excludes", "keyrings", "ima", "ima-buf", "verification-keys"):
        if document.get(name):
            policy[name] = document[name]  # as a whole: half an `ima` is refused by the schema, not guessed at
    return policy
