"""Documents of our own boot policy format: what is refused at the door, and what a good one compiles to."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limeguard.policy.boot import OWN_NAME, parse_boot_policy
from limeguard.policy.boot.rules import (
    BootDocument,
    BootRules,
    Known,
    boot_policy_schema,
    compile_boot_rules,
    encode_boot_document,
    literal,
)
from limeguard.policy.errors import PolicyError

D256 = "ab" * 32
BARE = {"limeguard_boot_policy": 1, "secure_boot": "any"}


def parsed(**members: Any) -> BootRules:
    policy = parse_boot_policy(json.dumps({**BARE, **members}))
    assert isinstance(policy.judge, BootRules)
    return policy.judge


def problems(**members: Any) -> str:
    with pytest.raises(PolicyError) as caught:
        parsed(**members)
    return "\n".join(caught.value.problems)


def test_the_member_that_marks_the_format_chooses_it_whatever_the_default_name() -> None:
    for name in ("accept-all", OWN_NAME):
        policy = parse_boot_policy(json.dumps(BARE), name)
        assert policy.name == OWN_NAME
        assert policy.active
        assert policy.required == {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14}
        assert policy.mask == 0xFBFF


@pytest.mark.parametrize("name", ["example", "reject-all", "other"])
def test_a_name_that_means_another_language_is_refused(name: str) -> None:
    with pytest.raises(PolicyError, match="judges by itself"):
        parse_boot_policy(json.dumps(BARE), name)


@pytest.mark.parametrize("version", [0, 2, "1", True, None, 1.5])
def test_another_version_is_refused(version: object) -> None:
    # trust: fail-closed
    with pytest.raises(PolicyError, match="version"):
        parse_boot_policy(json.dumps({"limeguard_boot_policy": version}))


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"pcrs": []}, "pcrs is empty"),
        ({"pcrs": [10, 16, 7]}, "does not account for [10, 16]"),
        ({"secureboot": "on"}, "secureboot"),
        ({"secure_boot": "yes"}, "secure_boot"),
        ({"secure_boot": "on", "pcrs": [4]}, "secure_boot is measured in PCR 7"),
        ({"authorities": [{"sha256": D256}], "pcrs": [4]}, "authorities is measured in PCR 7"),
        ({"signed_applications": True}, "signed_applications needs secure_boot on and authorities"),
        ({"secure_boot": "on", "values": {"7": [{"sha256": D256}]}}, "PCR 7 is compared as a whole"),
        (
            {"secure_boot": "on", "signed_applications": True, "authorities": [{"sha256": D256}], "pcrs": [4, 7]},
            "signed_applications needs PCR 14",
        ),
        ({"authorities": [{"sha256": D256}], "unknown_events": {"7": "allow"}}, "any authority would be allowed"),
        ({"firmware": [{"what": "x"}]}, "firmware[0] has no digest"),
        ({"firmware": [{"sha256": "zz"}]}, "firmware[0].sha256: 'zz' is not the hexadecimal form of 32 bytes"),
        ({"firmware": [{"sha384": D256}]}, "firmware[0].sha384"),
        ({"firmware": [{"md5": D256}]}, "md5"),
        ({"events": {"4": [{"sha256": "ab"}]}}, "events.4[0].sha256"),
        ({"events": {"10": []}}, "'10' is not the number of a PCR in pcrs"),
        ({"events": {"x": []}}, "'x' is not the number"),
        ({"unknown_events": {"12": "allow"}}, "'12' is not the number of a PCR in pcrs"),
        ({"unknown_events": {"1": "maybe"}}, "unknown_events"),
        ({"unknown_events": {"1": "allow"}, "values": {"1": [{"sha256": D256}]}}, "choose one"),
        ({"values": {"0": []}}, "values.0 lists nothing"),
        ({"command_lines": ["("]}, "command_lines[0]"),
        ({"command_lines": ["ok", r"(a)\1"]}, "command_lines[1]"),
        ({"must_occur": ["initrds"]}, "must_occur names initrds, which lists nothing"),
        ({"must_occur": ["nothing"]}, "must_occur"),
        ({"sbat_level": {"shim": 0}}, "sbat_level"),
        ({"variables": {"dbx": {"match": "perhaps"}}}, "match"),
        ({"variables": {"dbx": {"match": "at least", "images": ["12"]}}}, "variables.dbx.images[0]"),
        ({"variables": {"MokList": {"match": "at least"}}}, "MokList"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(members: dict[str, Any], said: str) -> None:
    assert said in problems(**members)


def test_a_member_that_is_written_twice_is_refused() -> None:
    # trust: fail-closed
    text = '{"limeguard_boot_policy": 1, "variables": {"db": 1, "db": 2}, "secure_boot": "on", "secure_boot": "any"}'
    with pytest.raises(PolicyError) as caught:
        parse_boot_policy(text)
    assert "'secure_boot' is written more than once" in str(caught.value)
    assert "'db' is written more than once" in str(caught.value)


def test_all_problems_are_named_together() -> None:
    text = problems(pcrs=[4, 30], firmware=[{"sha256": "1"}], command_lines=["["], must_occur=["mok"])
    for part in ("[30]", "firmware[0]", "command_lines[0]", "must_occur"):
        assert part in text


def test_digests_are_looked_up_by_bank_and_pcr() -> None:
    rules = parsed(
        initrds=[{"what": "initrd", "sha256": D256.upper(), "sha384": "cd" * 48, "any_data": True}], pcrs=[9]
    )
    digest = bytes.fromhex(D256)
    assert rules.listed["sha256", 9] == {digest: "initrd"}
    assert rules.listed["sha384", 9] == {b"\xcd" * 48: "initrd"}
    assert rules.sections["sha256", 9, digest] == {"initrds"}
    assert digest in rules.any_data
    assert rules.banks() == {"sha256", "sha384"}


def test_a_document_is_written_as_it_is_read() -> None:
    document = BootDocument(
        limeguard_boot_policy=1,
        secure_boot="off",
        firmware=[Known("a", sha256=D256)],
        command_lines=["a b"],
        unknown_events={"1": "allow"},
    )
    text = encode_boot_document(document)
    assert "[ 0, 1, 2," in text
    again = parse_boot_policy(text).judge
    assert isinstance(again, BootRules)
    assert again.document == document
    assert again == compile_boot_rules(document)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("root=/dev/sda", "root=/dev/sda"),
        (r"root\=a\ b\-c\.d", "root=a b-c.d"),
        (r"a\\b", r"a\b"),
        ("a.b", ""),
        (r"a\d", ""),
        ("a|b", ""),
        ("a*", ""),
        ("", ""),
    ],
)
def test_a_pattern_of_one_text_is_known_as_that_text(text: str, line: str) -> None:
    assert literal(text) == line


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 20) | st.text(max_size=5) | st.just(D256),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["sha256", "what", "7", "db", "match"]), inner, max_size=3)
    ),
    max_leaves=6,
)
MEMBERS = st.sampled_from(BootDocument.__struct_fields__)


@settings(deadline=None)
@given(st.dictionaries(MEMBERS, JSON, max_size=4))
def test_any_document_is_read_or_refused_with_reasons(members: dict[str, Any]) -> None:
    # trust: fail-closed
    with contextlib.suppress(PolicyError):
        parse_boot_policy(json.dumps({**BARE, **members}))


def test_the_schema_names_every_member_and_allows_no_other() -> None:
    schema = boot_policy_schema()
    top = schema["$defs"]["BootDocument"]
    assert set(top["properties"]) == set(BootDocument.__struct_fields__)
    assert top["additionalProperties"] is False
    assert top["required"] == ["limeguard_boot_policy"]
