"""PCR policies: what is accepted, what is refused and how, and the way to the wire and back."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limeguard.policy.errors import MAX_PROBLEMS
from limeguard.policy.pcrs import (
    BINDING_PCR,
    IMA_PCR,
    MAX_TEXT,
    PCR_COUNT,
    PcrPolicy,
    PolicyError,
    from_operator,
    parse_tpm_policy,
    requested_pcrs,
    to_wire,
)

ZEROS = "00" * 32

free_pcrs = st.integers(0, PCR_COUNT - 1).filter(lambda pcr: pcr not in {IMA_PCR, BINDING_PCR})
digests = st.sampled_from((20, 32, 48, 64)).flatmap(lambda size: st.binary(min_size=size, max_size=size))
lists = st.dictionaries(free_pcrs, st.frozensets(digests, min_size=1, max_size=4), max_size=6)
masks = st.integers(0, (1 << PCR_COUNT) - 1)


def policies() -> st.SearchStrategy[PcrPolicy]:
    return st.builds(lambda allowed, mask: PcrPolicy(allowed, mask | sum(1 << p for p in allowed)), lists, masks)


def problems_of(text: str) -> tuple[str, ...]:
    with pytest.raises(PolicyError) as refused:
        parse_tpm_policy(text)
    return refused.value.problems


def test_the_stored_form_is_read() -> None:
    policy = parse_tpm_policy(json.dumps({"15": [ZEROS, "FF" * 20], "22": "0x" + "ab" * 48, "mask": "0x408400"}))
    assert policy.mask == 0x408400
    assert policy.mask_text == "0x408400"
    assert policy.allowed == {15: {bytes(32), b"\xff" * 20}, 22: {b"\xab" * 48}}


def test_a_mask_is_enough() -> None:
    assert parse_tpm_policy('{"mask": "0x0"}') == PcrPolicy({}, 0)
    assert parse_tpm_policy('{"mask": "400"}').mask == 0x400


def test_the_mask_of_an_operator_follows_from_the_list() -> None:
    policy = from_operator(json.dumps({"15": ZEROS, "0": [ZEROS]}))
    assert policy.mask == 0x8001
    assert json.loads(to_wire(policy)) == {"0": [ZEROS], "15": [ZEROS], "mask": "0x8001"}


def test_no_policy_of_an_operator_is_the_empty_mask() -> None:
    assert to_wire(from_operator("{}")) == '{"mask": "0x0"}'


def test_the_binding_pcr_is_always_requested() -> None:
    assert requested_pcrs(0) == {16}
    assert parse_tpm_policy('{"mask": "0x8001"}').requested == {0, 15, 16}


@given(policies())
def test_every_policy_survives_the_wire(policy: PcrPolicy) -> None:
    assert parse_tpm_policy(to_wire(policy)) == policy


@given(policies())
def test_a_mask_is_spelled_as_every_agent_reads_it(policy: PcrPolicy) -> None:
    assert policy.mask_text.startswith("0x")
    assert int(policy.mask_text.removeprefix("0x"), 16) == policy.mask


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, "mask is missing"),
        ({"mask": 1024}, "mask 1024 is not"),
        ({"mask": "0xg"}, "is not a hexadecimal text"),
        ({"mask": ""}, "is not a hexadecimal text"),
        ({"mask": "0x1000000"}, "above 23"),
        ({"mask": "0xfffffffff"}, "is not a hexadecimal text"),
        ({"mask": " 0x1"}, "is not a hexadecimal text"),
        ({"mask": "0x8000", "15": []}, "no digest is listed"),
        ({"mask": "0x8000", "15": None}, "neither a hexadecimal digest nor a list"),
        ({"mask": "0x8000", "15": {"a": 1}}, "neither a hexadecimal digest nor a list"),
        ({"mask": "0x8000", "15": ["0" * 63]}, "is not a hexadecimal digest"),
        ({"mask": "0x8000", "15": ["zz" * 32]}, "is not a hexadecimal digest"),
        ({"mask": "0x8000", "15": ["00" * 31]}, "is not a hexadecimal digest"),
        ({"mask": "0x8000", "15": ["0x"]}, "is not a hexadecimal digest"),
        ({"mask": "0x8000", "15": [7]}, "is not a hexadecimal digest"),
        ({"mask": "0x8000", "15": [ZEROS + "\n"]}, "is not a hexadecimal digest"),
        ({"mask": "0x10400", "16": [ZEROS]}, "transport key"),
        ({"mask": "0x400", "10": [ZEROS]}, "runtime policy"),
        ({"mask": "0x0", "24": [ZEROS]}, "does not exist"),
        ({"mask": "0x0", "-1": [ZEROS]}, "is not a PCR number"),
        ({"mask": "0x0", "٣": [ZEROS]}, "is not a PCR number"),
        ({"mask": "0x0", "1e1": [ZEROS]}, "is not a PCR number"),
        ({"mask": "0x0", "": [ZEROS]}, "is not a PCR number"),
        ({"mask": "0x1", "15": [ZEROS]}, "listed but not in the mask 0x1"),
        ({"mask": "0x8000", "15": [ZEROS], "015": [ZEROS]}, "PCR 15 is named more than once"),
    ],
)
def test_junk_is_refused_with_its_problem(document: dict[str, object], words: str) -> None:
    assert any(words in problem for problem in problems_of(json.dumps(document)))


def test_all_problems_are_listed_together() -> None:
    found = problems_of(json.dumps({"mask": "0xz", "16": [ZEROS], "99": ["1"], "15": [], "x": 1}))
    assert len(found) == 7


def test_the_list_of_problems_is_bounded() -> None:
    # trust: bounded
    found = problems_of(json.dumps({"mask": "0x0", **{f"x{n}": [] for n in range(500)}}))
    assert len(found) == MAX_PROBLEMS + 1
    assert found[-1] == f"and {1000 - MAX_PROBLEMS} more"


def test_a_long_value_is_not_repeated_in_full() -> None:
    # trust: bounded, hygiene
    (problem,) = problems_of(json.dumps({"mask": "0x8000", "15": ["\x1b\n" * 100_000]}))
    assert len(problem) < 300
    assert "\n" not in problem
    assert "\x1b" not in problem


def test_repeated_members_are_refused() -> None:
    assert problems_of(f'{{"mask": "0x8000", "15": ["{ZEROS}"], "mask": "0x8001"}}') == (
        "'mask' is named more than once",
    )


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '"x"', "{", "[" * 100_000, '{"a":' * 100_000, "\ud800", "9" * 10_000]
)
def test_what_is_no_json_object_is_refused(text: str) -> None:
    # trust: safe-parsing
    assert len(problems_of(text)) == 1


def test_a_policy_that_is_too_long_is_refused_unread() -> None:
    # trust: bounded
    assert "at most" in problems_of(" " * (MAX_TEXT + 1))[0]


def test_an_operator_writes_no_mask() -> None:
    with pytest.raises(PolicyError, match="mask is not written by hand"):
        from_operator('{"mask": "0x8000"}')


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    # trust: safe-parsing
    for parse in (parse_tpm_policy, from_operator):
        with contextlib.suppress(PolicyError):
            assert isinstance(parse(text), PcrPolicy)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just(ZEROS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["mask", "0", "10", "15", "16", "24", "a"]), json_values))
def test_no_junk_becomes_a_policy_that_lists_nothing(document: dict[str, object]) -> None:
    # trust: empty-is-not-valid
    try:
        policy = parse_tpm_policy(json.dumps(document))
    except PolicyError:
        return
    assert set(policy.allowed) == {int(name) for name in document if name != "mask"}
    assert all(policy.allowed.values())
    assert all(policy.mask >> pcr & 1 for pcr in policy.allowed)
