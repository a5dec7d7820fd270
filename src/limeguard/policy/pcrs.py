"""PCR allowlists (`tpm_policy`): JSON text to a frozen policy, and back.

Decides what a usable policy is and refuses everything else with every problem named. Must not know any quote.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from limeguard.crypto import hashes
from limeguard.policy.errors import PolicyError as PolicyError  # noqa: PLC0414 - part of this interface

BINDING_PCR: Final = 16
"""Agents put their transport key here before each quote, so no other value can be asked of it."""
IMA_PCR: Final = 10
"""Grows with every file that the kernel measures, so no fixed value can be asked of it."""
PCR_COUNT: Final = 24
"""PCRs of the PC Client profile; agents cannot quote others."""
MAX_TEXT: Final = 1024 * 1024
"""Characters of a policy: thousands of accepted digests for every PCR stay below it."""
MASK: Final = "mask"

_NUMBER = re.compile(r"[0-9]{1,3}", re.ASCII)
_MASK = re.compile(r"(?:0[xX])?[0-9a-fA-F]{1,8}", re.ASCII)
_HEX = re.compile(r"(?:0[xX])?((?:[0-9a-fA-F]{2})+)", re.ASCII)
_SIZES = {algorithm.size: algorithm.name for algorithm in hashes.ALL if algorithm is not hashes.SM3_256}


@dataclass(frozen=True, slots=True)
class PcrPolicy:
    """PCR number to the values it may have (digests of any bank), and the PCRs to quote as a bit mask."""

    allowed: Mapping[int, frozenset[bytes]]
    mask: int

    @property
    def mask_text(self) -> str:
        """The mask as agents are asked with it, such as `0x408000`: the one spelling that all of them read."""
        return f"{self.mask:#x}"

    @property
    def requested(self) -> frozenset[int]:
        """The PCRs that a quote must hold: those of the mask and the one that binds the transport key."""
        return requested_pcrs(self.mask)


@lru_cache(maxsize=1024)
def requested_pcrs(mask: int) -> frozenset[int]:
    """Return the PCRs of a mask together with the binding PCR, which agents always add."""
    return frozenset(pcr for pcr in range(PCR_COUNT) if mask >> pcr & 1) | {BINDING_PCR}


def parse_tpm_policy(text: str) -> PcrPolicy:
    """Parse the form that servers store and exchange, where `mask` names the PCRs to quote. Raises PolicyError."""
    document = _document(text)
    problems: list[str] = []
    mask = _mask(document.pop(MASK, None), problems)
    allowed = _allowed(document, problems)
    if mask is not None:
        problems += [f"PCR {pcr} is listed but not in the mask {mask:#x}" for pcr in allowed if not mask >> pcr & 1]
    if problems or mask is None:
        raise PolicyError(*problems)
    return PcrPolicy(allowed, mask)


def from_operator(text: str) -> PcrPolicy:
    """Parse what an operator writes: PCR numbers and their values; the mask follows from them. Raises PolicyError."""
    document = _document(text)
    problems: list[str] = []
    if MASK in document:
        problems.append("mask is not written by hand: it follows from the PCRs that are listed")
        del document[MASK]
    allowed = _allowed(document, problems)
    if problems:
        raise PolicyError(*problems)
    return PcrPolicy(allowed, sum(1 << pcr for pcr in allowed))


def to_wire(policy: PcrPolicy) -> str:
    """Return the form that servers exchange: lower-case hex in lists, the mask last."""
    document: dict[str, object] = {
        str(pcr): sorted(value.hex() for value in policy.allowed[pcr]) for pcr in sorted(policy.allowed)
    }
    return json.dumps({**document, MASK: policy.mask_text})


def _document(text: str) -> dict[str, object]:
    if len(text) > MAX_TEXT:
        raise PolicyError(f"the policy has {len(text)} characters, at most {MAX_TEXT} are allowed")
    repeated: list[str] = []

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        members: dict[str, object] = {}
        for name, value in pairs:
            if name in members:
                repeated.append(f"{_shown(name)} is named more than once")
            members[name] = value
        return members

    try:
        document = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as problem:
        raise PolicyError(f"the policy is not JSON: {problem}") from None
    if not isinstance(document, dict):
        raise PolicyError("the policy is not a JSON object of PCR numbers and digests")
    if repeated:
        raise PolicyError(*repeated)
    return document


def _mask(value: object, problems: list[str]) -> int | None:
    if value is None:
        problems.append("mask is missing: it says which PCRs are quoted")
    elif not isinstance(value, str) or not _MASK.fullmatch(value):
        problems.append(f"mask {_shown(value)} is not a hexadecimal text such as 0x8000")
    elif (mask := int(value, 16)) >> PCR_COUNT:
        problems.append(f"mask {_shown(value)} names PCRs above {PCR_COUNT - 1}, which agents cannot quote")
    else:
        return mask
    return None


def _allowed(document: Mapping[str, object], problems: list[str]) -> dict[int, frozenset[bytes]]:
    allowed: dict[int, frozenset[bytes]] = {}
    for name, values in document.items():
        found = list(_key_problems(name))
        digests, wrong = _digests(values)
        problems += found + [f"PCR {_shown(name)}: {text}" for text in wrong]
        if not found and int(name) in allowed:
            problems.append(f"PCR {int(name)} is named more than once")
        if not found and not wrong:
            allowed[int(name)] = digests
    return allowed


def _key_problems(name: str) -> Iterator[str]:
    if not _NUMBER.fullmatch(name):
        yield f"{_shown(name)} is not a PCR number"
    elif int(name) == BINDING_PCR:
        yield f"PCR {BINDING_PCR} holds the agent's transport key and cannot be in a policy"
    elif int(name) == IMA_PCR:
        yield f"PCR {IMA_PCR} grows with every measured file and cannot have a fixed value: use a runtime policy"
    elif int(name) >= PCR_COUNT:
        yield f"PCR {int(name)} does not exist: agents quote 0 to {PCR_COUNT - 1}"


def _digests(values: object) -> tuple[frozenset[bytes], list[str]]:
    """Return the digests of one PCR and what is wrong with them."""
    texts = [values] if isinstance(values, str) else values
    if not isinstance(texts, list):
        return frozenset(), ["the value is neither a hexadecimal digest nor a list of them"]
    if not texts:
        return frozenset(), ["no digest is listed, so that no value could ever be right"]
    digests: set[bytes] = set()
    problems: list[str] = []
    for text in texts:
        match = _HEX.fullmatch(text) if isinstance(text, str) else None
        digest = bytes.fromhex(match[1]) if match else b""
        if len(digest) in _SIZES:
            digests.add(digest)
        else:
            sizes = ", ".join(f"{size} bytes ({name})" for size, name in _SIZES.items())
            problems.append(f"{_shown(text)} is not a hexadecimal digest of {sizes}")
    return frozenset(digests), problems


def _shown(value: object) -> str:
    """Return what was written, short and on one line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
