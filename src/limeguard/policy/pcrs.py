"""Static PCR policies (`tpm_policy`): for each PCR the digests that are allowed.

Two forms: what an operator writes, `{"15": "00…"}`, and what travels and is stored, which adds the mask of all PCRs that
are to be quoted, `{"15": ["00…"], "mask": "0x8000"}`.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from limeguard.policy.errors import PolicyError as PolicyError  # noqa: PLC0414 - part of this interface

IMA_PCR: Final = 10
BINDING_PCR: Final = 16
"""Every quote binds the agent's transport key into this PCR, so no policy may name it."""
PCRS: Final = 24
DIGEST_SIZES: Final = (20, 32, 48, 64)
MAX_DIGESTS: Final = 10_000
"""Digests for one PCR."""
MAX_TEXT: Final = 4 * 1024 * 1024

_MASK = re.compile(r"(0[xX])?[0-9a-fA-F]{1,8}")


@dataclass(frozen=True, slots=True)
class PcrPolicy:
    """Allowed digests by PCR, and the mask of PCRs to quote (bit n is PCR n)."""

    allowed: Mapping[int, frozenset[bytes]]
    mask: int

    @property
    def asked(self) -> int:
        """The PCRs that a quote must cover: the mask and every PCR with allowed digests."""
        return self.mask | sum(1 << pcr for pcr in self.allowed)


def parse_tpm_policy(text: str) -> PcrPolicy:
    """Read the form that travels. Raises PolicyError with every problem."""
    document = _document(text)
    problems: list[str] = []
    mask = _mask(document.pop("mask", None), problems)
    allowed = _allowed(document, {BINDING_PCR}, problems)
    if problems:
        raise PolicyError(*problems)
    return PcrPolicy(allowed, sum(1 << pcr for pcr in allowed) if mask is None else mask)


def from_operator(text: str) -> PcrPolicy:
    """Read what an operator wrote: PCR 10 and 16 belong to others, the mask is made here. Raises PolicyError."""
    document = _document(text)
    document.pop("mask", None)
    problems: list[str] = []
    allowed = _allowed(document, {IMA_PCR, BINDING_PCR}, problems)
    if problems:
        raise PolicyError(*problems)
    return PcrPolicy(allowed, sum(1 << pcr for pcr in allowed))


def to_wire(policy: PcrPolicy) -> str:
    """Write the form that travels."""
    document: dict[str, object] = {
        str(pcr): sorted(digest.hex() for digest in digests) for pcr, digests in sorted(policy.allowed.items())
    }
    return json.dumps({**document, "mask": hex(policy.mask)})


def pcrs_of_mask(mask: int) -> frozenset[int]:
    """Return the PCR numbers of a mask."""
    return frozenset(n for n in range(PCRS) if mask >> n & 1)


def _document(text: str) -> dict[str, object]:
    if len(text) > MAX_TEXT:
        raise PolicyError(f"the PCR policy has {len(text)} characters, at most {MAX_TEXT} are allowed")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise PolicyError(f"the PCR policy is not JSON: {problem}") from None
    if not isinstance(document, dict):
        raise PolicyError('the PCR policy is not a JSON object such as {"15": ["00…"]}')
    return document


def _mask(value: object, problems: list[str]) -> int | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _MASK.fullmatch(value):
        problems.append('mask is not a hexadecimal text such as "0x8000"')
        return None
    mask = int(value, 16)
    if mask >> PCRS:
        problems.append(f"mask {value} names PCRs beyond {PCRS - 1}")
    return mask


def _allowed(document: Mapping[str, object], reserved: set[int], problems: list[str]) -> dict[int, frozenset[bytes]]:
    allowed: dict[int, frozenset[bytes]] = {}
    for key, value in document.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= 2 and int(key) < PCRS):
            problems.append(f"{key[:40]!r} is not a PCR number from 0 to {PCRS - 1}")
        elif int(key) in reserved:
            problems.append(f"PCR {int(key)} is reserved, remove it from the policy")
        elif int(key) in allowed:
            problems.append(f"PCR {int(key)} stands twice")
        else:
            allowed[int(key)] = _digests(int(key), value, problems)
    return allowed


def _digests(pcr: int, value: object, problems: list[str]) -> frozenset[bytes]:
    values: Iterable[object] = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    listed = list(values)
    if not listed or len(listed) > MAX_DIGESTS:
        problems.append(f"PCR {pcr} needs a digest or a list of 1 to {MAX_DIGESTS} digests")
        return frozenset()
    digests = [_digest(one) for one in listed]
    if None in digests:
        problems.append(f"PCR {pcr} has a value that is not a hexadecimal digest of {_sizes()} bytes")
    return frozenset(digest for digest in digests if digest is not None)


def _digest(value: object) -> bytes | None:
    if not isinstance(value, str):
        return None
    text = value.strip().lower().removeprefix("0x")
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        return None
    return digest if len(digest) in DIGEST_SIZES else None


def _sizes() -> str:
    return ", ".join(map(str, DIGEST_SIZES[:-1])) + f" or {DIGEST_SIZES[-1]}"
