"""What agents are asked: fair and unique nonces, the exact request line, and the pauses between tries."""

import os
import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limeguard.policy.pcrs import parse_tpm_policy
from limeguard.verifier.challenge import (
    MAX_PAUSE,
    NONCE_BYTES,
    NONCE_LENGTH,
    QuoteRequest,
    ask,
    make_nonce,
    retry_delay,
)

LETTERS = set(string.ascii_letters + string.digits)


def test_the_request_line_is_the_one_that_agents_know() -> None:
    request = QuoteRequest("1234567890ABCDEFHIJK", "0x408000", partial=False, ima_ml_entry=7, api_version="2.6")
    assert request.path == "/v2.6/quotes/integrity?nonce=1234567890ABCDEFHIJK&mask=0x408000&partial=0&ima_ml_entry=7"


def test_a_round_asks_for_the_pcrs_of_the_policy() -> None:
    policy = parse_tpm_policy('{"15": ["' + "00" * 32 + '"], "mask": "0x8000"}')
    request = ask(policy, bytes(range(NONCE_BYTES)), partial=True, api_version="2.1")
    assert request.path == f"/v2.1/quotes/integrity?nonce={request.nonce}&mask=0x8000&partial=1&ima_ml_entry=0"


@given(st.binary(min_size=NONCE_BYTES, max_size=NONCE_BYTES).filter(lambda data: sum(b >= 248 for b in data) < 40))
def test_a_nonce_is_twenty_letters_and_digits(random: bytes) -> None:
    nonce = make_nonce(random)
    assert len(nonce) == NONCE_LENGTH
    assert set(nonce) <= LETTERS


def test_every_character_of_a_nonce_is_equally_likely() -> None:
    # trust: fresh
    counted = Counter(make_nonce(bytes([value]) * NONCE_BYTES)[0] for value in range(248))
    assert set(counted) == LETTERS
    assert set(counted.values()) == {4}


def test_bytes_that_would_favour_some_characters_are_dropped() -> None:
    # trust: fresh
    assert make_nonce(bytes([250]) * 44 + bytes(range(20))) == make_nonce(bytes(range(20)) + bytes(44))


def test_too_few_random_bytes_are_our_own_fault() -> None:
    # trust: fail-closed
    for random in (b"", bytes(19), bytes([255]) * NONCE_BYTES):
        with pytest.raises(ValueError, match="too few"):
            make_nonce(random)


def test_a_million_nonces_are_unique() -> None:
    # trust: fresh
    assert len({make_nonce(os.urandom(NONCE_BYTES)) for _ in range(1_000_000)}) == 1_000_000


@pytest.mark.parametrize(
    ("attempt", "interval", "exponential", "seconds"),
    [
        (1, 2, True, 2),
        (2, 2, True, 4),
        (5, 2, True, 32),
        (5, 2, False, 2),
        (3, 1, True, 1),
        (3, 0.5, True, 0.5),
        (3, 0, True, 0),
        (2, 1.5, True, 2.25),
        (10**9, 2, True, MAX_PAUSE),
        (10**9, 1e300, True, MAX_PAUSE),
        (1, 1e300, False, MAX_PAUSE),
    ],
)
def test_pauses_grow_as_the_power_of_the_interval(
    attempt: int, interval: float, exponential: bool, seconds: float
) -> None:
    assert retry_delay(attempt, interval, exponential=exponential) == seconds


@given(st.integers(1, 10**6), st.floats(0, 1e12), st.booleans())
def test_pauses_are_bounded(attempt: int, interval: float, exponential: bool) -> None:
    # trust: bounded
    assert 0 <= retry_delay(attempt, interval, exponential=exponential) <= MAX_PAUSE
