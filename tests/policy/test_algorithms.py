"""Accept lists: spellings of one algorithm are equal, and nothing unknown is accepted."""

import pytest

from limeguard.policy.algorithms import hash_accepted, key_accepted, key_algorithm, scheme_accepted


@pytest.mark.parametrize(
    ("name", "accepted", "good"),
    [
        ("rsa", ("rsa2048",), True),
        ("rsa2048", ("rsa",), True),
        ("ecc", ("ecc256",), True),
        ("ecc256", ("ecc",), True),
        ("ecc256", ("ecc_nist_p256",), True),
        ("ecc_nist_p384", ("ecc384",), True),
        ("rsa3072", ("rsa",), False),
        ("rsa3072", ("rsa", "rsa3072"), True),
        ("ecc384", ("ecc",), False),
        ("rsa1024", ("rsa", "ecc"), False),
        ("RSA", ("rsa",), False),
        ("", ("rsa",), False),
        ("rsa", (), False),
    ],
)
def test_key_algorithms_match_in_any_spelling(name: str, accepted: tuple[str, ...], good: bool) -> None:
    # trust: downgrade
    assert key_accepted(name, accepted) is good


@pytest.mark.parametrize(
    ("name", "accepted", "good"),
    [
        ("sha256", ("sha512", "sha256"), True),
        ("sha1", ("sha512", "sha256"), False),
        ("sha1", ("sha1",), True),
        ("md5", ("md5",), False),
        ("sha256", (), False),
    ],
)
def test_hashes_are_known_and_listed(name: str, accepted: tuple[str, ...], good: bool) -> None:
    # trust: downgrade
    assert hash_accepted(name, accepted) is good


@pytest.mark.parametrize(
    ("name", "accepted", "good"),
    [
        ("rsassa", ("ecschnorr", "rsassa"), True),
        ("ecdsa", ("ecschnorr", "rsassa"), False),
        ("null", ("null",), False),
        ("rsassa", (), False),
    ],
)
def test_schemes_are_known_and_listed(name: str, accepted: tuple[str, ...], good: bool) -> None:
    # trust: downgrade
    assert scheme_accepted(name, accepted) is good


def test_unknown_key_algorithms_keep_their_name() -> None:
    assert key_algorithm("ecc_sm2") == "ecc_sm2"
