"""Two dialects of configuration text."""

from hypothesis import given
from hypothesis import strategies as st

from limeguard.settings.parsing import parse_ini, parse_toml


def values(entries: object) -> dict[str, str | None]:
    return {f"{e.section}.{e.option}": e.text for e in entries}  # type: ignore[attr-defined]  # a test helper


def test_ini_entries_keep_their_lines() -> None:
    document = parse_ini("# head\n[verifier]\nport = 1\n\n[revocations]\nPort: 2\n", "f")
    assert [(e.section, e.option, e.text, e.origin.line) for e in document.entries] == [
        ("verifier", "port", "1", 3),
        ("revocations", "port", "2", 6),
    ]


def test_percent_signs_and_inline_comments_are_part_of_the_value() -> None:
    document = parse_ini("[verifier]\nuuid = %(x)s # really\n", "f")
    assert values(document.entries) == {"verifier.uuid": "%(x)s # really"}


def test_an_option_set_twice_is_reported_with_its_line_and_the_rest_is_read() -> None:
    document = parse_ini("[verifier]\nport = 1\nport = 2\nip = x\n", "f")
    assert [str(p) for p in document.problems] == [
        "f:3: [verifier] port: set a second time in this file; keep one of the two"
    ]
    assert values(document.entries)["verifier.ip"] == "x"


def test_every_line_that_is_no_option_is_reported() -> None:
    document = parse_ini("[verifier]\nnothing\nport = 1\nnothing more\n", "f")
    assert [p.origin.line for p in document.problems] == [2, 4]


def test_text_before_the_first_section_is_reported() -> None:
    assert "begin with a [section]" in str(parse_ini("port = 1\n", "f").problems[0])


def test_toml_values_become_text() -> None:
    document = parse_toml('[agent]\na = "x"\nb = 1\nc = true\nd = ["y", "z"]\ne = { f = 1 }\n', "f")
    assert values(document.entries) == {
        "agent.a": "x",
        "agent.b": "1",
        "agent.c": "true",
        "agent.d": "[y, z]",
        "agent.e": None,
    }


def test_every_value_without_quotes_is_reported_by_line_with_what_to_write() -> None:
    document = parse_toml(
        "[agent]\nip = 10.0.0.1\nport = 9002\nenable_agent_mtls = False\nuuid = hash_ek # id\nx =\n", "f"
    )
    assert [(p.origin.line, p.option) for p in document.problems] == [
        (2, "[agent] ip"),
        (4, "[agent] enable_agent_mtls"),
        (5, "[agent] uuid"),
        (6, "[agent] x"),
    ]
    assert 'write ip = "10.0.0.1"' in document.problems[0].text
    assert "write enable_agent_mtls = false" in document.problems[1].text
    assert values(document.entries)["agent.port"] == "9002"


def test_a_password_without_quotes_is_not_repeated() -> None:
    """# trust: secret."""
    document = parse_toml("[agent]\ntpm_ownerpassword = hunter2\n", "f")
    assert "hunter2" not in str(document.problems[0])


def test_other_toml_errors_name_the_line() -> None:
    document = parse_toml('[agent]\na = "x\nb = 1\n', "f")
    assert document.problems[0].origin.line == 2
    assert not document.entries


@given(st.text(max_size=300))
def test_any_text_is_read_or_reported(text: str) -> None:
    """# trust: safe-parsing."""
    for parse in (parse_ini, parse_toml):
        document = parse(text, "f")
        assert all(str(problem) for problem in document.problems)


@given(
    st.lists(st.sampled_from(["[agent]", "a = 1", "a = x", "b = [", "c = 'y'", "=", "a", '"', "d = 1.2.3"]), max_size=8)
)
def test_any_mixture_of_lines_is_read_or_reported(lines: list[str]) -> None:
    """# trust: safe-parsing."""
    for parse in (parse_ini, parse_toml):
        document = parse("\n".join(lines), "f")
        assert document.entries or document.problems or not any("=" in line for line in lines)
