"""The registry of hash algorithms."""

import hashlib

import pytest

from limeguard.crypto.hashes import ALL, SM3_256, UnsupportedAlgorithmError, hash_by_name, hash_by_tpm_id


def test_names_and_numbers_lead_to_the_same_algorithm() -> None:
    for algorithm in ALL:
        assert hash_by_name(algorithm.name) is algorithm
        assert hash_by_tpm_id(algorithm.tpm_id) is algorithm
    assert hash_by_name("md5") is None
    assert hash_by_tpm_id(0) is None


def test_digests_are_those_of_the_standard_library() -> None:
    for algorithm in ALL:
        if algorithm is not SM3_256:
            assert algorithm.digest(b"abc") == hashlib.new(algorithm.name, b"abc").digest()
            assert algorithm.new().digest_size == algorithm.size


def test_what_cannot_be_computed_says_so() -> None:
    for attempt in (SM3_256.new, lambda: SM3_256.digest(b""), lambda: SM3_256.pyca):
        with pytest.raises(UnsupportedAlgorithmError):
            attempt()
