"""Properties of judging lists: the shortcut agrees with the judge, and noise from a node is never an exception."""

import hashlib
import json
from binascii import unhexlify

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.appraisal.ima.test_devices import policy as device_policy
from tests.fakes.soft_ima import SoftKernel, policy_for

from limeguard.appraisal.ima.batches import clean_batch, clean_line
from limeguard.appraisal.ima.devices import NO_DEVICES, DeviceStates
from limeguard.appraisal.ima.entries import Rules, judge
from limeguard.appraisal.ima.history import ImaHistory
from limeguard.appraisal.ima.measurements import appraise_list, nothing_new, split_lines
from limeguard.crypto.hashes import SHA1, SHA256
from limeguard.evidence.ima.measurement_list import fits, parse_binary, parse_line
from limeguard.evidence.reader import MalformedEvidence
from limeguard.policy.excludes import compile_excludes
from limeguard.policy.runtime import RuntimePolicy, compile_document
from limeguard.simulator.machine import digest_of
from limeguard.simulator.softtpm import SoftNode

NAMES = ("/a", "/b", "/c d", "/é")
POLICY = compile_document(policy_for("/a", "/b", "/é"), "one")
NODE = SoftNode.create("ecc256")


def line(name: str, digest: str, template: str, pcr: str, column: str) -> bytes:
    kernel = SoftKernel(NODE)
    kernel.measure(name, digest, b"" if template == "ima-sig" else None)
    _, good, _, rest = kernel.lines[0].split(" ", 3)
    return f"{pcr} {column or good} {template} {rest}".encode()


lines = st.builds(
    line,
    st.sampled_from(NAMES),
    st.sampled_from([digest_of(name) for name in NAMES]),
    st.sampled_from(["ima-ng", "ima-sig"]),
    st.sampled_from(["10", "10", "10", "11", " 10", "1"]),
    st.sampled_from(["", "", "", "f" * 40, "0" * 40, "a" * 38]),
)
noise = st.one_of(st.binary(max_size=80), st.text(max_size=60).map(str.encode))


@given(st.one_of(lines, noise), st.integers(0, 200), st.integers(0, 255))
@settings(max_examples=600, deadline=None)
def test_the_shortcut_agrees_with_the_judge(text: bytes, place: int, byte: int) -> None:
    # trust: fail-closed
    changed = bytearray(text)
    if place < len(changed):
        changed[place] = byte
    for one in (text, bytes(changed)):
        if b"\n" in one or not one:
            continue
        known: dict[bytes, bytes] = {}
        appraise_list([one], bank=SHA256, rules=Rules(POLICY), quoted=None, keyrings={}, known=known)
        short = clean_line(one, POLICY, SHA256, SHA1)
        if one in known or short is not None:
            entry = parse_line(one)
            assert fits(entry, SHA1)
            assert judge(entry, 0, SHA1.digest(entry.data), Rules(POLICY), {}, {}).findings == ()
            assert short in {None, SHA256.digest(entry.data)}
            assert known.get(one) in {None, SHA256.digest(entry.data)}


plain = st.builds(
    line, st.just("/a"), st.just(digest_of("/a")), st.just("ima-ng"), st.just("10"), st.sampled_from(["", "", "A"])
)


@given(
    st.lists(plain, min_size=1, max_size=6), st.integers(0, 6 * 130), st.one_of(st.binary(max_size=3), st.just(b" "))
)
@settings(max_examples=1_500, deadline=None)
def test_a_batch_is_clean_only_when_every_line_of_it_is(batch: list[bytes], place: int, noise: bytes) -> None:
    # trust: fail-closed
    assert clean_batch([plain_line()] * len(batch), POLICY, SHA256, SHA1) is not None
    # Noise moves what follows: a part of one line comes where its neighbour's should be.
    text = b"\n".join(batch)
    changed = split_lines(text[:place] + noise + text[place + len(noise) // 2 :])
    for lines_given in (batch, changed):
        found = clean_batch(lines_given, POLICY, SHA256, SHA1)
        one_by_one = [clean_line(one, POLICY, SHA256, SHA1) for one in lines_given]
        assert found in (None, one_by_one)
        assert found is None or None not in one_by_one


def plain_line() -> bytes:
    return line("/a", digest_of("/a"), "ima-ng", "10", "")


def test_a_batch_knows_names_with_several_digests_and_other_hashes() -> None:
    document = policy_for("/a")
    document["digests"]["/a"].insert(0, "ab" * 32)
    several = compile_document(document, "several")
    one = SHA256.digest(parse_line(plain_line()).data)
    assert clean_batch([plain_line()] * 3, several, SHA256, SHA1) == [one] * 3
    assert clean_batch([plain_line()] * 3, compile_document(policy_for("/b"), "other"), SHA256, SHA1) is None
    assert clean_batch([plain_line()] * 3, POLICY, SHA256, SHA256) is None
    long = line("/" + "x" * 5_000, digest_of("/a"), "ima-ng", "10", "")
    assert clean_batch([long], POLICY, SHA256, SHA1) is None


# A batch may not hide that a line lends a part to its neighbour, or that the quoted value lies inside it.
def test_the_quoted_value_is_found_inside_a_batch() -> None:
    text = [plain_line()] * 600
    fold = bytes(32)
    for _ in range(300):
        fold = SHA256.digest(fold + SHA256.digest(parse_line(text[0]).data))
    assert appraise_list(text, bank=SHA256, rules=Rules(POLICY), quoted=fold, keyrings={}).matched == 300


@given(st.lists(st.one_of(lines, noise), max_size=12))
@settings(max_examples=300, deadline=None)
def test_the_memo_changes_no_verdict(texts: list[bytes]) -> None:
    # trust: fail-closed
    text = split_lines(b"\n".join(texts))
    known: dict[bytes, bytes] = {}
    runs = [
        appraise_list(text, bank=SHA256, rules=Rules(POLICY), quoted=bytes(32), keyrings={}, known=known)
        for _ in range(2)
    ]
    fresh = appraise_list(text, bank=SHA256, rules=Rules(POLICY), quoted=bytes(32), keyrings={})
    assert runs[0] == runs[1] == fresh


@given(st.binary(max_size=400))
@settings(max_examples=400, deadline=None)
def test_binary_noise_is_refused_with_a_place(data: bytes) -> None:
    if data:
        with pytest.raises(MalformedEvidence) as refused:
            list(parse_binary(data + b"x"))
        assert refused.value.place


def test_a_name_with_line_ends_is_one_entry() -> None:
    kernel = SoftKernel(NODE)
    forged = f"/a\n10 {'0' * 40} ima-ng sha256:{'0' * 64} /b\n\n"
    kernel.measure(forged)
    policy = compile_document(policy_for(forged), "two")
    texts = split_lines(f"{kernel.lines[0]}\n".encode())
    assert len(texts) == 4
    extended = unhexlify(hashlib.sha256(parse_line(kernel.lines[0].encode()).data).hexdigest())
    quoted = SHA256.digest(bytes(32) + extended)
    result = appraise_list(texts, bank=SHA256, rules=Rules(policy), quoted=quoted, keyrings={})
    assert (result.findings, result.matched) == ((), 4)


@given(st.sampled_from([r"(a+)+$", r"(a|a)*b", r"(.*)*x", r"(?!/x)(a|aa)+$"]), st.integers(1_000, 4_000))
@settings(max_examples=20, deadline=2_000)
def test_excludes_take_no_more_than_linear_time(pattern: str, length: int) -> None:
    # trust: bounded
    assert not compile_excludes([pattern]).match(b"a" * length + b"!")


def test_judging_leaves_the_policy_as_it_was() -> None:
    # trust: bound-identity
    document = policy_for("/a")
    text = json.dumps(document)
    policy = compile_document(document, "three")
    before = dict(policy.digests)
    entry = parse_line(line("boot_aggregate", "ab" * 32, "ima-ng", "10", ""))
    allowed = Rules(policy, boot_aggregates=(bytes.fromhex("ab" * 32),))
    assert judge(entry, 0, SHA1.digest(entry.data), allowed, {}, {}).findings == ()
    assert judge(entry, 0, SHA1.digest(entry.data), Rules(policy), {}, {}).findings != ()
    assert (dict(policy.digests), json.dumps(document)) == (before, text)


def test_a_hostile_list_costs_no_more_than_its_first_findings() -> None:
    # trust: bounded
    texts = [b"10 " + b"0" * 39 + b"1 ima-ng sha256:" + b"a" * 64 + b" /x%d" % number for number in range(200_000)]
    result = appraise_list(texts, bank=SHA256, rules=Rules(POLICY), quoted=bytes([1] * 32), keyrings={})
    assert len(result.findings) == 1_000
    assert result.more
    assert result.history.next_entry == 0


DEVICE_POLICY = device_policy()
VALUES = [bytes(32), b"\1" * 32, b"\2" * 32]
histories = st.builds(
    ImaHistory,
    next_entry=st.integers(0, 3),
    pcr=st.sampled_from([None, *VALUES]),
    progress=st.one_of(st.none(), st.sampled_from([(0, 0), (3, 3), (2, 5)])),
    devices=st.sampled_from([NO_DEVICES, DeviceStates("other", {})]),
)


@given(histories, st.sampled_from(VALUES), st.sampled_from([None, POLICY, DEVICE_POLICY]))
@settings(max_examples=400, deadline=None)
def test_an_answer_without_lines_comes_to_what_the_judge_says_of_it(
    history: ImaHistory, quoted: bytes, policy: RuntimePolicy | None
) -> None:
    # trust: fail-closed
    judged = appraise_list([], bank=SHA256, rules=Rules(policy), quoted=quoted, history=history, keyrings={})
    short = nothing_new(history, quoted, Rules(policy))
    if short is not None:
        assert history.next_entry
        assert not judged.findings
        assert short == judged.history
    elif policy is POLICY and history.next_entry:
        assert judged.findings or judged.history.pcr != history.pcr
