"""Severity rules: the first match of the whole id counts, doubt is of the worst."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limeguard.policy.errors import PolicyError
from limeguard.policy.severity import DEFAULT_LABELS, parse_severity

RULES = (
    (r"pcr_validation\.invalid_pcr_23", "warning"),
    (r"pcr_validation\..*", "error"),
    ("ima", "notice"),
    ("odd", "no such label"),
)


@pytest.mark.parametrize(
    ("event_id", "irrecoverable", "level"),
    [
        ("pcr_validation.invalid_pcr_23", False, (2, "warning")),
        ("pcr_validation.invalid_pcr_2", False, (3, "error")),
        ("pcr_validation.invalid_pcr_234", False, (3, "error")),
        ("ima", False, (1, "notice")),
        ("ima.pcr_mismatch", False, (6, "emergency")),
        ("odd", False, (6, "emergency")),
        ("ima", True, (6, "emergency")),
        ("pcr_validation." + "x" * 1000, False, (6, "emergency")),
    ],
)
def test_the_first_rule_for_the_whole_id_counts(event_id: str, irrecoverable: bool, level: tuple[int, str]) -> None:
    assert parse_severity(DEFAULT_LABELS, RULES).level(event_id, irrecoverable) == level


@given(st.text(), st.booleans())
def test_everything_is_of_the_worst_unless_the_operator_says_otherwise(event_id: str, irrecoverable: bool) -> None:
    assert parse_severity().level(event_id, irrecoverable) == (6, "emergency")


@given(st.text(max_size=50))
def test_what_cannot_be_undone_is_always_of_the_worst(event_id: str) -> None:
    rules = parse_severity(DEFAULT_LABELS, [(".*", "info")])
    assert rules.level(event_id, True) == (rules.highest, "emergency")


@pytest.mark.parametrize(
    ("labels", "policy", "words"),
    [
        ((), RULES, "no severity labels"),
        (("a", "b", "a"), (("x", "a"),), "'a' is named more than once"),
        (("", "b"), (("x", "b"),), "label is empty"),
        (DEFAULT_LABELS, (), "no rules"),
        (DEFAULT_LABELS, (("(", "info"),), "no regular expression"),
    ],
)
def test_unusable_rules_are_refused(labels: tuple[str, ...], policy: tuple[tuple[str, str], ...], words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        parse_severity(labels, policy)


def test_all_problems_of_rules_are_listed_together() -> None:
    with pytest.raises(PolicyError) as refused:
        parse_severity((), (("(", "a"), ("[", "a")))
    assert len(refused.value.problems) == 3
