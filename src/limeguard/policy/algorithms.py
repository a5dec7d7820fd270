"""Which algorithms an operator accepts, by the names of Keylime's settings."""

from collections.abc import Iterable
from typing import Final

_ALIASES: Final = {"rsa": "rsa2048", "ecc": "ecc256"}
"""The unsized names mean one size: `rsa` does not accept a key of 3072 bits."""


def normal_key_algorithm(name: str) -> str:
    """Return the sized name of a key algorithm."""
    return _ALIASES.get(name, name)


def key_algorithm_accepted(name: str, accepted: Iterable[str]) -> bool:
    """Say whether a key algorithm is on the list; `rsa` is `rsa2048` and `ecc` is `ecc256`, on both sides."""
    return normal_key_algorithm(name) in {normal_key_algorithm(one) for one in accepted}
