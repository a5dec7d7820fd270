"""Waits between tries grow as asked, and stay constant where growth is impossible."""

from limeguard.tenant.retry import Retry


def test_back_off_grows_with_each_attempt() -> None:
    assert [Retry(5, 2.0, exponential=True).delay(n) for n in (1, 2, 3)] == [2.0, 4.0, 8.0]


def test_a_base_that_does_not_grow_gives_a_constant_wait() -> None:
    retry = Retry(5, 0.5, exponential=True)
    assert retry.constant_despite_backoff
    assert [retry.delay(n) for n in (1, 2, 3)] == [0.5, 0.5, 0.5]


def test_without_back_off_the_wait_is_the_interval() -> None:
    retry = Retry(5, -3.0, exponential=False)
    assert not retry.constant_despite_backoff
    assert retry.delay(4) == 3.0
