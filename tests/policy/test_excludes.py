"""Exclude patterns mean what they mean in Python, in linear time; what cannot is refused."""

import re
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limeguard.policy.errors import PolicyError
from limeguard.policy.excludes import compile_excludes

PATTERNS = (
    "/tmp", "tmp", ".*tmp", "", "/x$", "/a|/x", "(?!/a|/b).*", "^(?!/usr/bin/).*x",
    r"\S+\.py[co]?$", r"/[\w-]+/\d{1,3}",
    r"/home/[^/]+/.*", r"[^\s/]+", "(a|b)*?c", "(?i:/X)", r"/boot/(?:a|b)*?c", r"[\W_]a", r"\D+", "[a-c]{2,}",
    r"/\.[^.].*",
    "(?=/a)/ab", r"a\b.b", "/[é-ü]", r"\\", "(?s:/a.b)", "/a.b",
)  # fmt: skip
NAMES = (
    "/tmp", "/tmpfoo", "/var/tmp/x", "/x", "/xy", "/a", "/usr/bin/x", "/usr/lib/x", "/foo.py", "/foo.pyc",
    "/aé-b/12",
    "/home/me/x", "aaaab", "/X", "/boot/ababc", "", "/x\n", "/\udc80x", "abc", "/a\nb", "/é", "\\", "a b", "-a", "/.x",
)  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_matches_what_python_matches(pattern: str) -> None:
    excludes = compile_excludes([pattern])
    for name in NAMES:
        wanted = bool(re.match(pattern, name))
        assert excludes.match(name.encode("utf-8", "surrogateescape")) is wanted, name


@given(st.text(alphabet="ab/.x*+?[]()|^$\\d{}12,-", max_size=12), st.text(alphabet="ab/.x1-\n", max_size=8))
def test_any_pattern_is_refused_or_means_what_it_means_in_python(pattern: str, name: str) -> None:
    try:
        excludes = compile_excludes([pattern])
    except PolicyError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert excludes.match(name.encode()) is bool(re.match(pattern, name))


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "missing )"),
        ("(?i)/X", "global flags"),
        (r"(a)\1", "Invalid regex"),
        ("a(?=b)", "look-around"),
        ("(?<=a)b", "look-around"),
        ("a++", "possessive"),
        ("(?>a)", "atomic"),
        ("a{2000}", "repetition"),
        ("x" * 5_000, "longer"),
        ("(" * 2_000 + ")" * 2_000, "Invalid regex"),
    ],
)
def test_what_cannot_be_matched_in_linear_time_is_refused_with_its_reason(pattern: str, reason: str) -> None:
    with pytest.raises(PolicyError, match=re.escape(reason)):
        compile_excludes(["/fine", pattern])


def test_every_bad_pattern_is_named() -> None:
    with pytest.raises(PolicyError) as refused:
        compile_excludes(["(", "/fine", "a++"])
    assert len(refused.value.problems) == 2


def test_any_pattern_of_a_list_excludes() -> None:
    excludes = compile_excludes(["/a", "(?!/b)/.x", "/c$"])
    assert [excludes.match(name) for name in (b"/ab", b"/zx", b"/b", b"/c", b"/cd")] == [True, True, False, True, False]
    assert excludes.pattern_for(b"/c") == "/c$"
    assert excludes.pattern_for(b"/d") is None
