"""Options that contradict each other are refused before anything else happens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limeguard.tenant.errors import ArgumentError, TenantError
from limeguard.tenant.request import COMMANDS, Request, check_arguments, check_request, valid_agent_id


@pytest.mark.parametrize(
    ("request_", "fragment"),
    [
        (Request(command="addruntimepolicy"), "runtime_policy is required to add a runtime policy"),
        (Request(command="addallowlist"), "runtime_policy is required to add a runtime policy"),
        (Request(exclude="x"), "--exclude means nothing without"),
        (Request(allowlist="a", allowlist_url="http://a"), "--allowlist-url name the same thing twice"),
        (Request(runtime_policy="a", runtime_policy_url="http://a"), "--runtime-policy-url name the same thing twice"),
        (Request(runtime_policy_url="http://a"), "needs --runtime-policy-checksum"),
        (Request(runtime_policy_checksum="ab"), "needs --runtime-policy or"),
    ],
)
def test_contradicting_options_are_argument_errors(request_: Request, fragment: str) -> None:
    with pytest.raises(ArgumentError, match=fragment):
        check_arguments(request_)


@pytest.mark.parametrize(
    ("request_", "fragment"),
    [
        (Request(file="f", cert="c"), "each name a payload"),
        (Request(file="f", key="k"), "each name a payload"),
        (Request(payload="p"), "needs the key file"),
        (Request(verify=True), "--verify needs a payload key"),
        (Request(include="d"), "--include adds files"),
        (Request(agent_id="a/b"), "The agent ID set via agent uuid parameter use invalid characters"),
        (Request(command="bogus"), "Invalid command specified: bogus"),
    ],
)
def test_impossible_requests_are_refused_with_one_message(request_: Request, fragment: str) -> None:
    check_arguments(request_)
    with pytest.raises(TenantError, match=fragment):
        check_request(request_)


@pytest.mark.parametrize("command", sorted(COMMANDS - {"addruntimepolicy", "addallowlist"}))
def test_every_command_is_known(command: str) -> None:
    check_arguments(Request(command=command))
    check_request(Request(command=command))


# trust: hygiene
@pytest.mark.parametrize("text", ["", ".", "..", "a/b", "a b", "a\n", "é", "a?b", "a#b", "a" * 81, "%2e", "a\x00"])
def test_ids_that_could_leave_the_path_are_refused(text: str) -> None:
    assert not valid_agent_id(text)


@given(st.text(max_size=100))
def test_accepted_ids_are_plain_words(text: str) -> None:
    if valid_agent_id(text):
        assert text.isascii()
        assert all(c.isalnum() or c in "_.-" for c in text)


def test_the_older_name_wins_when_a_policy_is_shown() -> None:
    assert Request(allowlist_name="a", runtime_policy_name="b").policy_name == "a"
    assert Request(runtime_policy_name="b").policy_name == "b"
