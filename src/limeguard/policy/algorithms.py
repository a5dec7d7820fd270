"""Accept lists of algorithms: which spellings mean the same, and what is on a list.

Decides whether a named algorithm is acceptable; whether the named one was really used is decided by appraisal.
"""

from functools import lru_cache
from typing import Final

from limeguard.crypto.hashes import hash_by_name
from limeguard.crypto.keys import ECDSA, ECSCHNORR, RSAPSS, RSASSA

DEFAULT_HASHES: Final = ("sha512", "sha384", "sha256")
DEFAULT_KEYS: Final = ("ecc", "rsa")
DEFAULT_SCHEMES: Final = ("ecschnorr", "rsassa")
"""What Keylime's tenant asks for when its settings say nothing; `ecdsa` is not among them."""

SCHEMES: Final = frozenset({RSASSA, RSAPSS, ECDSA, ECSCHNORR})

# Agents of API 2.5 and later name the size; older ones leave it out where it is the usual one.
_KEY_ALIASES: Final = {
    "rsa": "rsa2048",
    "ecc": "ecc256",
    "ecc_nist_p192": "ecc192",
    "ecc_nist_p224": "ecc224",
    "ecc_nist_p256": "ecc256",
    "ecc_nist_p384": "ecc384",
    "ecc_nist_p521": "ecc521",
}


def key_algorithm(name: str) -> str:
    """Return the spelling with size: `rsa` and `rsa2048` are one, so are `ecc`, `ecc256` and `ecc_nist_p256`."""
    return _KEY_ALIASES.get(name, name)


def hash_accepted(name: str, accepted: tuple[str, ...]) -> bool:
    """Say whether a hash algorithm is known and on the list."""
    return name in accepted and hash_by_name(name) is not None


def key_accepted(name: str, accepted: tuple[str, ...]) -> bool:
    """Say whether a key algorithm is on the list, in any spelling. `rsa` there is RSA-2048 alone, `ecc` P-256."""
    return key_algorithm(name) in _sized(accepted)


def scheme_accepted(name: str, accepted: tuple[str, ...]) -> bool:
    """Say whether a signature scheme is known and on the list."""
    return name in accepted and name in SCHEMES


@lru_cache(maxsize=256)
def _sized(accepted: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(key_algorithm, accepted))
