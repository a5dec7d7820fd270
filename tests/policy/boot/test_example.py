"""The policy `example` against states and logs of real machines: 80 changes of each, with Keylime's verdict."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fakes.shared import shared_path

from limeguard.policy.boot import (
    BOOT_PCRS,
    EXAMPLE,
    OWN_NAME,
    REJECT_ALL,
    BootPolicy,
    parse_boot_policy,
    stored_boot_policy,
)
from limeguard.policy.boot.checks import (
    MAX_REASON,
    AcceptAll,
    And,
    AtMost,
    Collector,
    Each,
    Equal,
    Field,
    KeysPresent,
    Members,
    Once,
    Or,
    RejectAll,
    Rule,
    any_digest,
    dispatch,
    evaluate,
    fields,
    pattern,
)
from limeguard.policy.boot.example import example_test, parse_reference_state
from limeguard.policy.errors import PolicyError

LOGS = ("keylime-el9-kvm-secureboot", "tpm2tools-event-bootorder", "tpm2tools-event-moklisttrusted")


def _variations() -> list[tuple[str, str]]:
    path = Path(__file__).parents[4] / "shared/fixtures/upstream/expected.json"
    if not path.exists():
        return [("shared data is absent", "")]
    found = json.loads(path.read_text())["example_policy_variations"]
    return [(log.removesuffix(".bin"), one["id"]) for log, ones in found.items() for one in ones]


@pytest.fixture(scope="module")
def upstream() -> Path:
    return shared_path("fixtures/upstream")


@pytest.fixture(scope="module")
def expected(upstream: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((upstream / "expected.json").read_text())
    return document


def reached(document: Any, path: list[Any]) -> Any:
    for step in path:
        document = document[step]
    return document


def change_state(state: Any, operations: list[dict[str, Any]]) -> None:
    for one in operations:
        *parents, last = one["path"]
        match one["op"]:
            case "set":
                reached(state, parents)[last] = one["value"]
            case "remove":
                reached(state, parents).pop(last, None)
            case "insert":
                reached(state, one["path"]).insert(one["index"], one["value"])
            case "append":
                reached(state, one["path"]).append(one["value"])
            case "reverse":
                reached(state, one["path"]).reverse()
            case other:
                raise AssertionError(other)


def change_log(log: dict[str, Any], operations: list[dict[str, Any]]) -> None:
    events = log["events"]

    def at(number: int) -> int:
        return next(index for index, event in enumerate(events) if event["EventNum"] == number)

    for one in operations:
        match one["op"]:
            case "copy_after":
                events.insert(at(one["EventNum"]) + 1, copy.deepcopy(events[at(one["EventNum"])]))
            case "drop":
                events[:] = [event for event in events if event["EventNum"] not in one["EventNums"]]
            case "append":
                events.append(one["event"])
            case "update":
                events[at(one["EventNum"])].update(one["fields"])
            case other:
                raise AssertionError(other)


def loaded(upstream: Path, stem: str) -> tuple[dict[str, Any], dict[str, Any]]:
    state = json.loads((upstream / f"mb-refstates/from-{stem}.json").read_text())
    return state, json.loads((upstream / f"event-logs/parsed/{stem}.json").read_text())


def judged(state: object, log: object) -> str:
    policy = stored_boot_policy(json.dumps(state), EXAMPLE)
    assert callable(policy.judge)
    return evaluate(policy.judge, log)


@pytest.mark.parametrize(("stem", "name"), _variations())
def test_each_variation_has_the_verdict_of_keylime(
    upstream: Path, expected: dict[str, Any], stem: str, name: str
) -> None:
    cases = expected["example_policy_variations"][f"{stem}.bin"]
    case = next(one for one in cases if one["id"] == name)
    state, log = loaded(upstream, stem)
    change_state(state, case["refstate_ops"])
    change_log(log, case["log_ops"])
    assert (judged(state, log) == "") is case["accepted"], judged(state, log)


# --- reference states -----------------------------------------------------------------------------------------------


def test_every_problem_of_a_reference_state_is_named() -> None:
    with pytest.raises(PolicyError) as caught:
        parse_boot_policy(json.dumps({"pk": 5, "kek": [{}], "db": [], "dbx": [], "kernels": [{}]}), EXAMPLE)
    text = "\n".join(caught.value.problems)
    for said in (
        "scrtm_and_bios is missing",
        "pk is not a list",
        "kek[0].SignatureOwner is not a GUID",
        "mokdig is missing",
        "kernels[0].shim_authcode_sha256",
        "kernels[0].kernel_cmdline is not a pattern",
    ):
        assert said in text


@pytest.mark.parametrize("text", ["", "null", "[]", "5", '"x"', "{", "[" * 100_000])
def test_a_text_that_is_no_object_satisfies_nothing(text: str) -> None:
    # trust: fail-closed
    with pytest.raises(PolicyError):
        parse_boot_policy(text)
    policy = stored_boot_policy(text)
    assert policy.active
    assert policy.invalid
    assert isinstance(policy.judge, RejectAll)


def test_an_empty_object_asks_for_nothing() -> None:
    policy = parse_boot_policy("{}", EXAMPLE)
    assert not policy.active
    assert policy.required == frozenset()
    assert policy.mask == 0


def test_an_unknown_name_rejects_and_is_reported_as_reject_all() -> None:
    # trust: fail-closed
    policy = parse_boot_policy('{"a": 1}', "no-such-policy")
    assert policy.name == REJECT_ALL
    assert isinstance(policy.judge, RejectAll)
    assert policy.required == BOOT_PCRS
    assert policy.mask == 0xFBFF


def test_a_stored_state_with_faults_is_rejected_under_its_name() -> None:
    # trust: fail-closed
    policy: BootPolicy = stored_boot_policy('{"kernels": []}', EXAMPLE)
    assert policy.name == EXAMPLE
    assert not policy.invalid
    assert isinstance(policy.judge, RejectAll)
    assert "pk is missing" in policy.judge.why
    assert stored_boot_policy('{"limeguard_boot_policy": 99}').name == OWN_NAME


def test_the_checksum_is_of_name_and_text() -> None:
    texts = {parse_boot_policy(text, name).checksum for text in ("{}", "{ }") for name in ("accept-all", "example")}
    assert len(texts) == 4
    odd = [("\ud800", "a"), ("?", "a"), ("b", "a\0"), ("\0b", "a")]
    assert len({stored_boot_policy(text, name).checksum for text, name in odd}) == 4


def test_a_command_line_pattern_takes_linear_time(upstream: Path) -> None:
    # trust: bounded
    state, log = loaded(upstream, LOGS[0])
    state["kernels"][0]["kernel_cmdline"] = "(a+)+$"
    for event in log["events"]:
        if "kernel_cmdline" in str(event.get("Event")):
            event["Event"]["String"] = "kernel_cmdline: " + "a" * 50_000 + "b"
    assert "does not match" in judged(state, log)


def test_a_pattern_that_cannot_be_linear_is_refused_with_its_place(upstream: Path) -> None:
    state, _ = loaded(upstream, LOGS[0])
    state["kernels"][0]["kernel_cmdline"] = r"(a)\1"
    with pytest.raises(PolicyError, match=r"kernels\[0\].kernel_cmdline .*Invalid regex"):
        parse_boot_policy(json.dumps(state), EXAMPLE)


# --- hostile logs ---------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_log_makes_the_test_fail_with_an_exception(data: st.DataObject, upstream: Path) -> None:
    # trust: fail-closed
    state, log = loaded(upstream, LOGS[0])
    test = example_test(parse_reference_state(state))
    event = data.draw(st.sampled_from(log["events"]))
    for name in data.draw(st.lists(st.sampled_from(["Event", "Digests", "PCRIndex", "EventType"]), min_size=1)):
        event[name] = data.draw(JSON)
    if isinstance(event.get("Event"), dict):
        event["Event"]["VariableData"] = data.draw(JSON)
    assert len(evaluate(test, log)) <= MAX_REASON


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(JSON)
def test_a_log_of_any_shape_is_rejected(log: object) -> None:
    # trust: fail-closed
    policy = parse_boot_policy(json.dumps(_least_state()), EXAMPLE)
    assert callable(policy.judge)
    assert evaluate(policy.judge, log) != ""
    assert evaluate(policy.judge, {"events": log}) != ""


def _least_state() -> dict[str, Any]:
    empty = ("pk", "kek", "db", "dbx", "mokdig", "mokxdig", "kernels", "scrtm_and_bios")
    return {name: [] for name in empty}


# --- the language ---------------------------------------------------------------------------------------------------


def passes(test: Rule, subject: object) -> bool:
    return evaluate(test, subject) == ""


def test_an_empty_choice_refuses_and_an_empty_demand_passes() -> None:
    # trust: empty-is-not-valid
    assert not passes(Or(()), 1)
    assert not passes(any_digest([]), {"Digests": [{"AlgorithmId": "sha256", "Digest": ""}]})
    assert passes(And(()), 1)
    assert passes(Each(RejectAll("no")), [])


def test_lists_fields_and_choices() -> None:
    assert passes(fields(a=Equal(1), b=Equal("x")), {"a": 1, "b": "x", "c": 0})
    assert not passes(fields(a=Equal(1)), {"a": True})
    assert not passes(Field("a", AcceptAll()), [])
    assert not passes(Each(AcceptAll()), {})
    assert passes(Members((Equal(1), Equal(2))), [1, 2])
    assert not passes(Members((Equal(1),)), [1, 2])
    assert not passes(Members((Equal(1), Equal(2))), [1])
    choice = dispatch(("a",), ((1,), AcceptAll()), (("x",), RejectAll("no")))
    assert passes(choice, {"a": 1})
    refusals: tuple[object, ...] = ({"a": "x"}, {"a": 2}, {}, [], {"a": []}, {"a": {}})
    for refused in refusals:
        assert not passes(choice, refused)
    with pytest.raises(ValueError, match="chosen twice"):
        dispatch(("a",), ((1,), AcceptAll()), ((1,), AcceptAll()))


def test_what_passes_once_passes_again_in_another_evaluation_only() -> None:
    once = Each(Once(AcceptAll()))
    assert passes(once, [1])
    assert passes(once, [1])
    assert evaluate(once, [1, 2]) == "[1] test was already run once"
    assert passes(Each(AtMost(2)), [1, 2])
    assert not passes(Each(AtMost(2)), [1, 2, 3])


def test_what_is_collected_is_judged_at_the_end_and_forgotten() -> None:
    collector = Collector(("a", "b"), fields(a=Members((Equal(1), Equal(2))), b=Equal("never")))
    test = And((collector.start, Each(collector.into("a")), collector.finish))
    assert evaluate(test, [1, 2]) == "b is [], not 'never'"
    collector = Collector(("a",), fields(a=Members((Equal(1),))))
    test = And((collector.start, Each(collector.into("a")), collector.finish))
    assert passes(test, [1])
    assert passes(test, [1])


def test_patterns_match_whole_texts_as_pythons_fullmatch_does() -> None:
    assert passes(pattern("a|ab"), "ab")
    assert not passes(pattern("a"), "ab")
    assert not passes(pattern("a.b"), "a\nb")
    assert passes(pattern("(?s:a.b)"), "a\nb")
    assert not passes(pattern(".*"), 5)
    assert passes(pattern(".*"), "\udc80")
    assert passes(pattern("(?=ab).*"), "abc")
    assert not passes(pattern("(?!ab).*"), "abc")


def test_keys_that_must_be_present_must_be_in_the_one_list() -> None:
    one = {"SignatureOwner": "o", "SignatureData": "d"}
    test = KeysPresent(frozenset({"t"}), frozenset({("o", "d")}))
    good = {"SignatureType": "t", "Keys": [one]}
    assert passes(test, [good])
    refusals: tuple[object, ...] = (
        [],
        [good, good],
        [{**good, "SignatureType": "u"}],
        [{**good, "Keys": [{**one, "more": 1}]}],
    )
    for refused in refusals:
        assert not passes(test, refused)
    assert not passes(test, [{**good, "Keys": []}])
    assert not passes(test, [{**good, "Keys": 1}])


def test_reasons_are_short() -> None:
    # trust: bounded
    assert len(evaluate(RejectAll("x" * 10**6), 1)) == MAX_REASON
    assert len(evaluate(Equal("a"), "b" * 10**6)) < 200
