"""Texts to values, and refusals that help."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limeguard.settings import kinds
from limeguard.settings.kinds import BadValue, Kind

ALL: list[Kind[object]] = [each for each in vars(kinds).values() if isinstance(each, Kind)] + [
    kinds.integer(0, 10),
    kinds.number(0),
    kinds.optional_number(0),
    kinds.choice("a", "b"),
    kinds.literal_list_of("x"),
]


@given(st.sampled_from(ALL), st.text(max_size=80))
def test_every_kind_gives_a_value_or_says_what_to_write(kind: Kind[object], text: str) -> None:
    """# trust: safe-parsing."""
    problem = ""
    try:
        kind.parse(text)
    except BadValue as refused:
        problem = str(refused)
    assert not problem or any(remedy in problem for remedy in ("write", "use only", "regular expression"))


@pytest.mark.parametrize(("text", "value"), [("True", True), ("ON", True), ("1", True), ("no", False), ("Off", False)])
def test_booleans_are_read_in_any_case(text: str, *, value: bool) -> None:
    assert kinds.BOOLEAN.parse(text) is value


@pytest.mark.parametrize("text", ['"True"', "ja", "", "2"])
def test_other_booleans_are_refused(text: str) -> None:
    with pytest.raises(BadValue):
        kinds.BOOLEAN.parse(text)


@pytest.mark.parametrize("text", ["", "8881.0", "0", "65536", '"8881"', "٣", "9" * 30])
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(BadValue):
        kinds.PORT.parse(text)


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "", "two"])
def test_intervals_are_finite_and_not_negative(text: str) -> None:
    with pytest.raises(BadValue):
        kinds.number(0).parse(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("['a', \"b\"]", ("a", "b")), ("[]", ()), ("[' a ']", ("a",)), ("[\n'a',\n'b']", ("a", "b"))],
)
def test_lists_are_python_literals_with_trimmed_elements(text: str, value: tuple[str, ...]) -> None:
    assert kinds.LIST.parse(text) == value


@pytest.mark.parametrize("text", ["", "a, b", "'a'", "[a]", "[1]", "{'a'}", "[" * 5000, "[__import__('os')]"])
def test_what_is_no_list_is_refused(text: str) -> None:
    """# trust: safe-parsing."""
    with pytest.raises(BadValue):
        kinds.LIST.parse(text)


@pytest.mark.parametrize("text", ["a, b", "a b", "[a,b]", "['a', \"b\"]", ' "a" ,b,'])
def test_agents_write_lists_as_they_like(text: str) -> None:
    assert kinds.LOOSE_LIST.parse(text) == ("a", "b")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("default", "default"),
        ("all", "all"),
        ("", ()),
        ("['a.crt', '/b.crt']", ("a.crt", "/b.crt")),
        ('"default"', "default"),
    ],
)
def test_trusted_authorities_are_a_word_or_a_list(text: str, value: str | tuple[str, ...]) -> None:
    assert kinds.TRUSTED.parse(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("::1", "::1"), ("[::1]", "::1"), ("0.0.0.0", "0.0.0.0"), ("host-1.example", "host-1.example")]
)
def test_addresses_are_numbers_or_names(text: str, value: str) -> None:
    assert kinds.ADDRESS.parse(text) == value


@pytest.mark.parametrize("text", ["", "1.2.3", "256.1.1.1", "a b", "http://a", "a/b", "-a", "a" * 300])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BadValue):
        kinds.ADDRESS.parse(text)


def test_severity_rules_keep_their_order() -> None:
    text = '[{"event_id": "ima.*", "severity_label": "error"}, {"event_id": ".*", "severity_label" : "alert"}]'
    assert kinds.SEVERITY_RULES.parse(text) == (("ima.*", "error"), (".*", "alert"))


@pytest.mark.parametrize("text", ["[{}]", '[{"event_id": "("}]', '[{"event_id": "(", "severity_label": "x"}]', '["x"]'])
def test_broken_severity_rules_are_refused(text: str) -> None:
    with pytest.raises(BadValue, match="rule 1"):
        kinds.SEVERITY_RULES.parse(text)


def test_a_refused_value_is_shown_escaped_and_bounded() -> None:
    """# trust: hygiene."""
    with pytest.raises(BadValue) as refused:
        kinds.ADDRESS.parse("\x1b[31m" + "x " * 500)
    assert "\x1b" not in str(refused.value)
    assert len(str(refused.value)) < 200
