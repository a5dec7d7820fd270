"""Judging answers of a software TPM: what is trusted, and which finding each lie leads to."""

from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace as with_fields

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.fakes.boot_logs import agile_log, separator

from limeguard.appraisal import appraise as module
from limeguard.appraisal import findings as kinds
from limeguard.appraisal.appraise import Evidence, Expected, appraise, required_checks, unreadable
from limeguard.appraisal.boot import BootMemo
from limeguard.appraisal.clock import Since
from limeguard.appraisal.findings import FindingKind
from limeguard.appraisal.history import NO_HISTORY, History
from limeguard.appraisal.ima.history import NO_IMA, ImaHistory
from limeguard.appraisal.verdict import IDENTITY_CHECKS, Appraisal, Check, Outcome
from limeguard.crypto.hashes import SHA256, SHA384
from limeguard.crypto.keys import spki_pem
from limeguard.evidence.bootlog.log import parse_boot_log
from limeguard.evidence.bootlog.replay import replay
from limeguard.evidence.tpm.structures import ClockInfo
from limeguard.policy.boot import parse_boot_policy
from limeguard.policy.pcrs import PcrPolicy, from_operator
from limeguard.simulator.softtpm import SoftNode, private_key

NONCE = "1234567890ABCDEFHIJK"
NOW = 1_767_607_200.0
PCR_BLOB = 2
"""The part of a quote text that holds the PCR values."""
ALL_HASHES = ("sha512", "sha384", "sha256")
ALL_KEYS = ("rsa", "rsa3072", "ecc", "ecc384", "ecc521")
ALL_SCHEMES = ("rsassa", "rsapss", "ecdsa")
KINDS_OF_KEY = [
    ("rsa2048", "sha256"),
    ("rsa3072", "sha384"),
    ("ecc256", "sha256"),
    ("ecc384", "sha384"),
    ("ecc521", "sha512"),
]


@dataclass
class Case:
    """A node, what is expected of it, what is known of it, and its answer; tests change one of them."""

    node: SoftNode
    expected: Expected
    evidence: Evidence
    history: History = NO_HISTORY
    now: float = NOW

    def judge(self) -> Appraisal:
        return appraise(self.evidence, self.expected, self.history, self.now)


def expect(node: SoftNode, policy: PcrPolicy) -> Expected:
    return Expected(
        ak=node.ak.area,
        nonce=NONCE.encode(),
        accept_hash=ALL_HASHES,
        accept_enc=ALL_KEYS,
        accept_sign=ALL_SCHEMES,
        pcrs=policy,
        required_selection=policy.requested,
        identity_only_allowed=True,
    )


def answer(node: SoftNode, policy: PcrPolicy, nonce: str = NONCE) -> Evidence:
    """Return the node's honest answer."""
    said = node.integrity_answer(nonce, policy.mask_text)
    return Evidence(
        quote=said["quote"],
        hash_alg=said["hash_alg"],
        enc_alg=said["enc_alg"],
        sign_alg=said["sign_alg"],
        public_key=said["pubkey"],
    )


def policy_of(node: SoftNode, *pcrs: int) -> PcrPolicy:
    return PcrPolicy({pcr: frozenset({node.pcrs[pcr]}) for pcr in pcrs}, sum(1 << pcr for pcr in pcrs))


def case(kind: str = "ecc256", hash_name: str = "sha256", pcrs: tuple[int, ...] = (15, 22)) -> Case:
    node = SoftNode.create(kind, hash_name)
    policy = policy_of(node, *pcrs)
    return Case(node, expect(node, policy), answer(node, policy))


def found(appraisal: Appraisal) -> list[FindingKind]:
    return [finding.kind for finding in appraisal.findings]


# --- trust ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "hash_name"), KINDS_OF_KEY)
def test_an_honest_node_is_trusted(kind: str, hash_name: str) -> None:
    honest = case(kind, hash_name)
    appraisal = honest.judge()
    assert appraisal.findings == ()
    assert appraisal.outcome is Outcome.TRUSTED
    assert appraisal.required == appraisal.ran == IDENTITY_CHECKS | {Check.PCR_POLICY}
    assert appraisal.history == History(clock=honest.node.clock, public_key=honest.node.pubkey)
    assert appraisal.since is Since.FIRST
    assert appraisal.new_key
    assert not appraisal.identity_only
    assert appraisal.quoted is not None
    assert set(appraisal.quoted.values) == {15, 16, 22}


def test_a_node_without_pcr_values_is_attested_for_identity_only_and_shown_so() -> None:
    # trust: empty-is-not-valid
    appraisal = case(pcrs=()).judge()
    assert appraisal.trusted
    assert appraisal.identity_only
    assert appraisal.required == IDENTITY_CHECKS


def test_identity_alone_is_not_trusted_unless_it_is_allowed() -> None:
    # trust: empty-is-not-valid
    bare = case(pcrs=())
    bare.expected = replace(bare.expected, identity_only_allowed=False)
    appraisal = bare.judge()
    assert appraisal.outcome is Outcome.INCOMPLETE
    assert appraisal.not_run == {Check.PCR_POLICY}


def test_a_quote_of_pcrs_that_nobody_judges_is_identity_only() -> None:
    # trust: empty-is-not-valid
    node = SoftNode.create("ecc256")
    policy = PcrPolicy({}, 0x8000)
    appraisal = appraise(answer(node, policy), expect(node, policy), NO_HISTORY, NOW)
    assert appraisal.trusted
    assert appraisal.identity_only


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"required_selection": frozenset({10, 15, 16, 22})}, Check.IMA_LOG),
    ],
)
def test_what_is_not_judged_yet_is_never_trusted(changes: dict[str, object], check: Check) -> None:
    # trust: empty-is-not-valid, fail-closed
    honest = case()
    honest.expected = replace(honest.expected, **changes)
    appraisal = honest.judge()
    assert not appraisal.trusted
    assert check in appraisal.not_run
    assert appraisal.history.public_key is None
    assert not appraisal.new_key


BOOT_LOG = agile_log(*(separator(pcr) for pcr in range(8)))
MEASURED = "0xfbff"


def booted(policy_text: str = '{"a": 1}') -> Case:
    """Return a node that booted with BOOT_LOG and sends it, under a boot policy."""
    node = SoftNode.create("ecc256")
    for pcr, value in replay(parse_boot_log(BOOT_LOG), SHA256).items():
        node.pcrs[pcr] = value
    policy = PcrPolicy({}, int(MEASURED, 16))
    expected = replace(expect(node, policy), boot_policy=parse_boot_policy(policy_text), boot_memo=BootMemo())
    return Case(node, expected, replace(answer(node, policy), boot_log=BOOT_LOG))


def test_a_boot_log_that_the_quote_vouches_for_is_judged() -> None:
    case = booted()
    appraisal = case.judge()
    assert appraisal.trusted
    assert Check.BOOT_LOG in appraisal.required & appraisal.ran
    assert not appraisal.identity_only


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        (None, kinds.PCR_LOG_MISSING),
        (b"", kinds.BOOT_LOG_MALFORMED),
        (BOOT_LOG[:-1], kinds.BOOT_LOG_MALFORMED),
        (agile_log(*(separator(pcr) for pcr in range(7))), kinds.BOOT_REPLAY),
        (agile_log(separator(0), banks=(SHA384,)), kinds.BOOT_LOG_BANK),
    ],
)
def test_a_boot_log_that_is_absent_or_another_costs_trust(log: bytes | None, kind: FindingKind) -> None:
    # trust: fail-closed
    case = booted()
    case.evidence = replace(case.evidence, boot_log=log)
    appraisal = case.judge()
    assert not appraisal.trusted
    assert kind in found(appraisal)


def test_a_boot_policy_rejects_what_the_quote_vouches_for() -> None:
    # trust: fail-closed
    appraisal = booted('{"limeguard_boot_policy": 1}').judge()
    assert found(appraisal) == [kinds.BOOT_REJECTED]
    assert appraisal.findings[0].event_id == "measured_boot.policy_limeguard"
    assert appraisal.findings[0].context["message"] == "no event on PCR 7 says whether Secure Boot is on"
    assert appraisal.history.public_key is None


def test_an_empty_boot_policy_is_no_check() -> None:
    # trust: empty-is-not-valid
    appraisal = booted("{}").judge()
    assert appraisal.trusted
    assert Check.BOOT_LOG not in appraisal.required | appraisal.ran
    assert appraisal.identity_only


def test_a_boot_policy_whose_pcrs_are_not_quoted_is_a_finding() -> None:
    # trust: fail-closed
    case = booted()
    policy = PcrPolicy({}, 0xF)
    case.expected = replace(case.expected, required_selection=policy.requested)
    case.evidence = replace(answer(case.node, policy), boot_log=BOOT_LOG)
    appraisal = case.judge()
    assert found(appraisal) == [kinds.BOOT_PCRS_MISSING]
    assert Check.BOOT_LOG in appraisal.not_run


def test_a_boot_log_that_cannot_be_read_costs_trust_without_a_policy() -> None:
    # trust: fail-closed
    case = booted()
    case.expected = replace(case.expected, boot_policy=None)
    assert case.judge().trusted
    case.evidence = replace(case.evidence, boot_log=b"garbage")
    assert found(case.judge()) == [kinds.BOOT_LOG_MALFORMED]


def test_partial_answers_are_judged_with_the_key_that_is_known() -> None:
    honest = case()
    first = honest.judge()
    honest.evidence = replace(answer(honest.node, honest.expected.pcrs), public_key=None)
    honest.history = first.history
    appraisal = honest.judge()
    assert appraisal.trusted
    assert not appraisal.new_key
    assert appraisal.since is Since.SAME_BOOT


def test_a_proven_new_transport_key_is_reported_and_kept() -> None:
    honest = case()
    honest.history = History(public_key="the key before")
    appraisal = honest.judge()
    assert appraisal.trusted
    assert appraisal.new_key
    assert appraisal.history.public_key == honest.node.pubkey


def test_digests_of_other_banks_may_stand_in_the_list() -> None:
    honest = case(pcrs=(15,))
    both = PcrPolicy({15: frozenset({honest.node.pcrs[15], b"\x01" * 20, b"\x02" * 48})}, 0x8000)
    honest.expected = replace(honest.expected, pcrs=both)
    assert honest.judge().trusted


def test_more_pcrs_than_asked_for_are_ignored() -> None:
    honest = case(pcrs=(15,))
    wide = honest.node.integrity_answer(NONCE, "0x408003")
    honest.evidence = replace(honest.evidence, quote=wide["quote"])
    assert honest.judge().trusted


@pytest.mark.parametrize("spelling", ["ecc", "ecc256"])
def test_both_spellings_of_a_key_algorithm_are_one(spelling: str) -> None:
    honest = case()
    honest.evidence = replace(honest.evidence, enc_alg=spelling)
    assert honest.judge().trusted


# --- lies and changes -----------------------------------------------------------------------------------------------


def altered(part: int, position: int) -> Callable[[Case], None]:
    def alter(subject: Case) -> None:
        from tests.fakes.soft_agent import altered_part

        subject.evidence = replace(subject.evidence, quote=altered_part(subject.evidence.quote, part, position))

    return alter


def says(**changes: object) -> Callable[[Case], None]:
    def alter(subject: Case) -> None:
        subject.evidence = replace(subject.evidence, **changes)

    return alter


def expects(**changes: object) -> Callable[[Case], None]:
    def alter(subject: Case) -> None:
        subject.expected = replace(subject.expected, **changes)

    return alter


def other_ak(subject: Case) -> None:
    subject.evidence = answer(SoftNode.create("ecc256", number=7), subject.expected.pcrs)


def unrestricted_ak(subject: Case) -> None:
    area = subject.expected.ak
    subject.expected = replace(subject.expected, ak=with_fields(area, attributes=area.attributes & ~(1 << 16)))


def replayed(subject: Case) -> None:
    subject.evidence = answer(subject.node, subject.expected.pcrs, "AnswerOfAnEarlierDay")


def changed_pcr(subject: Case) -> None:
    subject.node.extend(15, bytes(32))
    subject.evidence = answer(subject.node, subject.expected.pcrs)


def fewer_pcrs(subject: Case) -> None:
    subject.evidence = replace(subject.evidence, quote=subject.node.quote(NONCE, {22}))


def no_binding_pcr(subject: Case) -> None:
    subject.evidence = replace(subject.evidence, quote=unbound(subject.node, {15, 22}))


def unbound(node: SoftNode, pcrs: set[int]) -> str:
    return node.ak.quote(NONCE.encode(), {pcr: node.pcrs[pcr] for pcr in pcrs}, node.ak.hash_alg.name, node.clock)


def swapped_key(subject: Case) -> None:
    other = SoftNode.create("ecc256", number=3)
    subject.evidence = replace(subject.evidence, public_key=other.pubkey)


def weak_key(subject: Case) -> None:
    from cryptography.hazmat.primitives.asymmetric import rsa

    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505 - that it is weak is the point
    subject.evidence = replace(subject.evidence, public_key=spki_pem(weak.public_key()))


def curve_key(subject: Case) -> None:
    subject.evidence = replace(subject.evidence, public_key=spki_pem(private_key("ecc256").public_key()))


def clock_before(**changes: object) -> Callable[[Case], None]:
    def alter(subject: Case) -> None:
        subject.history = History(clock=replace(subject.node.clock, **changes))

    return alter


LIES: list[tuple[str, Callable[[Case], None], FindingKind]] = [
    ("no quote", says(quote=""), kinds.QUOTE_MALFORMED),
    ("no part", says(quote="r::"), kinds.QUOTE_MALFORMED),
    ("no base64", says(quote="r!:!:!"), kinds.QUOTE_MALFORMED),
    ("not ASCII", says(quote="r\ud800é:é:é"), kinds.QUOTE_MALFORMED),
    ("endless", says(quote="r" + "A" * 10**6), kinds.QUOTE_MALFORMED),
    ("magic", altered(0, 0), kinds.QUOTE_MALFORMED),
    ("type", altered(0, 5), kinds.QUOTE_MALFORMED),
    ("clock", altered(0, -50), kinds.QUOTE_SIGNATURE),
    ("signature", altered(1, -1), kinds.QUOTE_SIGNATURE),
    ("PCR value", altered(2, 150), kinds.QUOTE_PCR_DIGEST),
    ("PCR selection", altered(2, 7), kinds.QUOTE_MALFORMED),
    ("another TPM", other_ak, kinds.QUOTE_SIGNATURE),
    ("an unrestricted key", unrestricted_ak, kinds.QUOTE_KEY_UNFIT),
    ("replay", replayed, kinds.QUOTE_NONCE),
    ("no nonce expected", expects(nonce=b""), kinds.QUOTE_NONCE),
    ("late", expects(nonce_expires=NOW - 1), kinds.QUOTE_LATE),
    ("hash announced otherwise", says(hash_alg="sha384"), kinds.QUOTE_SCHEME),
    ("hash not accepted", expects(accept_hash=("sha512",)), kinds.HASH_NOT_ACCEPTED),
    ("unknown hash", says(hash_alg="md5"), kinds.HASH_NOT_ACCEPTED),
    ("no hash accepted", expects(accept_hash=()), kinds.HASH_NOT_ACCEPTED),
    ("key not accepted", expects(accept_enc=("rsa",)), kinds.KEY_NOT_ACCEPTED),
    ("key announced otherwise", says(enc_alg="rsa2048"), kinds.KEY_MISNAMED),
    ("no key accepted", expects(accept_enc=()), kinds.KEY_NOT_ACCEPTED),
    ("scheme not accepted", expects(accept_sign=("ecschnorr", "rsassa")), kinds.SCHEME_NOT_ACCEPTED),
    ("scheme announced otherwise", says(sign_alg="rsassa"), kinds.SCHEME_MISNAMED),
    ("null scheme", says(sign_alg="null"), kinds.SCHEME_NOT_ACCEPTED),
    ("no key known", says(public_key=None), kinds.NO_TRANSPORT_KEY),
    ("empty key", says(public_key=""), kinds.NO_TRANSPORT_KEY),
    ("no key at all", says(public_key="-----BEGIN PUBLIC KEY-----\nAAAA\n"), kinds.INVALID_DATA),
    ("a key too long", says(public_key="A" * 10**6), kinds.INVALID_DATA),
    ("a key that is no text", says(public_key="\ud800"), kinds.INVALID_DATA),
    ("a weak transport key", weak_key, kinds.INVALID_DATA),
    ("a curve as transport key", curve_key, kinds.INVALID_DATA),
    ("another transport key", swapped_key, kinds.TRANSPORT_KEY),
    ("PCR 16 missing", no_binding_pcr, kinds.TRANSPORT_KEY_UNQUOTED),
    ("PCR changed", changed_pcr, kinds.PCR_VALUE),
    ("PCR of the policy missing", fewer_pcrs, kinds.PCRS_MISSING),
    ("clock stands", clock_before(), kinds.CLOCK_BACKWARDS),
    ("clock goes back", clock_before(clock=10**12), kinds.CLOCK_BACKWARDS),
    ("fewer resets", clock_before(reset_count=9), kinds.CLOCK_RESETS),
    ("fewer restarts", clock_before(clock=1, restart_count=9), kinds.CLOCK_RESTARTS),
]


@pytest.mark.parametrize(("alter", "kind"), [lie[1:] for lie in LIES], ids=[lie[0] for lie in LIES])
def test_each_lie_leads_to_its_finding(alter: Callable[[Case], None], kind: FindingKind) -> None:
    # trust: fail-closed, fresh, bound-identity, downgrade, clock-and-reset
    subject = case()
    alter(subject)
    appraisal = subject.judge()
    assert found(appraisal) == [kind]
    assert appraisal.outcome is Outcome.DISTRUSTED
    assert appraisal.history.public_key is None
    assert not appraisal.new_key


def test_sha1_counts_only_where_an_operator_accepts_it() -> None:
    # trust: downgrade
    subject = case("rsa2048", "sha1", (15,))
    assert found(subject.judge()) == [kinds.HASH_NOT_ACCEPTED]
    subject.evidence = replace(subject.evidence, hash_alg="sha256")
    assert found(subject.judge()) == [kinds.QUOTE_SCHEME]
    subject.evidence = replace(subject.evidence, hash_alg="sha1")
    subject.expected = replace(subject.expected, accept_hash=("sha1",))
    assert subject.judge().trusted


def test_a_weak_bank_behind_a_strong_signature_is_refused() -> None:
    # trust: downgrade
    subject = case(pcrs=())
    binding = b"\x00" * 20
    quote = subject.node.ak.quote(NONCE.encode(), {16: binding}, "sha1", subject.node.clock)
    subject.evidence = replace(subject.evidence, quote=quote)
    assert found(subject.judge()) == [kinds.QUOTE_HASH]


def test_the_clock_may_fall_back_when_the_tpm_was_reset() -> None:
    # trust: clock-and-reset
    subject = case()
    subject.node.clock = ClockInfo(3, 9, 0, safe=False)
    subject.evidence = answer(subject.node, subject.expected.pcrs)
    subject.history = History(clock=ClockInfo(10**9, 8, 5, safe=True), ima=ImaHistory(77, bytes(32)))
    appraisal = subject.judge()
    assert appraisal.trusted
    assert appraisal.since is Since.REBOOTED
    assert appraisal.history.clock == subject.node.clock
    assert appraisal.history.ima == NO_IMA


def test_the_same_answer_twice_is_not_trusted_twice() -> None:
    # trust: fresh, clock-and-reset
    subject = case()
    subject.history = subject.judge().history
    assert found(subject.judge()) == [kinds.CLOCK_BACKWARDS]


def test_a_proven_clock_is_kept_with_bad_pcrs_and_the_key_is_not() -> None:
    # trust: bound-identity
    subject = case()
    changed_pcr(subject)
    appraisal = subject.judge()
    assert appraisal.history == History(clock=subject.node.clock)
    assert not appraisal.new_key


def test_nothing_is_kept_of_a_quote_that_proves_nothing() -> None:
    # trust: bound-identity
    subject = case()
    subject.history = History(clock=ClockInfo(1, 1, 0, safe=True), public_key="known", ima=ImaHistory(4, bytes(32)))
    other_ak(subject)
    assert subject.judge().history == subject.history


def test_a_key_that_is_not_in_pcr_16_is_distrusted_also_when_it_was_known() -> None:
    # trust: bound-identity
    subject = case()
    subject.history = History(public_key=SoftNode.create("ecc256", number=3).pubkey)
    subject.evidence = replace(subject.evidence, public_key=None)
    (finding,) = subject.judge().findings
    assert finding.kind is kinds.TRANSPORT_KEY
    assert finding.event_id == "pcr_validation.invalid_pcr_16"


def test_pcr_16_is_compared_with_the_key_as_sent() -> None:
    # trust: bound-identity
    subject = case()
    assert subject.evidence.public_key is not None
    subject.evidence = replace(subject.evidence, public_key=subject.evidence.public_key.replace("\n", "\r\n"))
    assert found(subject.judge()) == [kinds.TRANSPORT_KEY]


def test_all_wrong_pcrs_are_found_in_keylimes_order() -> None:
    subject = case(pcrs=(1, 2, 15))
    listed = {pcr: frozenset({b"\x01" * 32}) for pcr in (1, 2)} | {15: frozenset({b"\x01" * 20})}
    subject.expected = replace(
        subject.expected, pcrs=PcrPolicy(listed, 0x8006), required_selection=frozenset({1, 2, 3, 15, 16})
    )
    swapped_key(subject)
    appraisal = subject.judge()
    assert [finding.event_id for finding in appraisal.findings] == [
        "pcr_validation.invalid_pcr_16",
        "pcr_validation.invalid_pcr_1",
        "pcr_validation.invalid_pcr_2",
        "pcr_validation.invalid_pcr_15",
        "pcr_validation.missing_pcrs",
    ]
    assert appraisal.findings[1].context == {"pcr": 1, "bank": "sha256", "value": "00" * 32}
    assert appraisal.findings[3].kind is kinds.PCR_BANK
    assert appraisal.findings[4].context == {"bank": "sha256", "missing": [3]}


def test_a_listed_pcr_must_be_quoted_even_when_the_mask_forgot_it() -> None:
    # trust: empty-is-not-valid
    subject = case(pcrs=(15,))
    subject.expected = replace(subject.expected, pcrs=PcrPolicy({7: frozenset({bytes(32)})}, 0))
    assert found(subject.judge()) == [kinds.PCRS_MISSING]


def test_all_unaccepted_algorithms_are_found_together() -> None:
    subject = case()
    subject.expected = replace(subject.expected, accept_hash=(), accept_enc=(), accept_sign=())
    subject.evidence = replace(subject.evidence, public_key=None, sign_alg="x" * 1000)
    appraisal = subject.judge()
    assert [finding.event_id.partition(".")[2] for finding in appraisal.findings] == [
        "no_pubkey",
        "invalid_hash_alg",
        "invalid_enc_alg",
        "invalid_sign_alg",
    ]
    assert appraisal.ran == {Check.ALGORITHMS}
    assert appraisal.findings[3].context["announced"] == "x" * 64


def test_an_unreadable_answer_is_a_finding() -> None:
    appraisal = unreadable(case().expected, History(ima=ImaHistory(3, bytes(32))), "no member quote")
    assert appraisal.outcome is Outcome.DISTRUSTED
    assert appraisal.findings[0].event_id == "qoute_validation.invalid_data"
    assert appraisal.history == History(ima=ImaHistory(3, bytes(32)))


def test_our_own_fault_is_neither_trust_nor_distrust(monkeypatch: pytest.MonkeyPatch) -> None:
    # trust: fail-closed
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    for name in ("parse_quote", "verify_quote", "check_clock", "check_transport_key", "check_allowed"):
        subject = case()
        with monkeypatch.context() as patch:
            patch.setattr(module, name, broken)
            with pytest.raises(RuntimeError):
                subject.judge()


def test_required_checks_never_are_none() -> None:
    # trust: empty-is-not-valid
    assert required_checks(expect(SoftNode.create("ecc256"), from_operator("{}"))) == IDENTITY_CHECKS


words = st.sampled_from(["sha256", "rsa", "ecc256", "ecdsa", "rsassa", ""]) | st.text(max_size=20)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(
    st.text(max_size=200) | st.binary(max_size=200).map(lambda data: "r" + data.hex()),
    words,
    words,
    words,
    st.none() | st.text(max_size=50),
)
def test_junk_is_always_distrusted_and_never_a_fault(
    quote: str, hash_alg: str, enc_alg: str, sign_alg: str, public_key: str | None
) -> None:
    # trust: fail-closed, safe-parsing
    subject = case()
    subject.evidence = Evidence(
        quote=quote, hash_alg=hash_alg, enc_alg=enc_alg, sign_alg=sign_alg, public_key=public_key
    )
    assert subject.judge().outcome is Outcome.DISTRUSTED


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2), st.integers(0, 2000), st.integers(1, 255))
def test_no_altered_byte_of_a_quote_changes_what_is_believed(part: int, position: int, flip: int) -> None:
    # trust: bound-identity, fresh
    subject = case()
    honest = with_fields(subject, history=subject.history).judge().quoted
    parts = [bytearray(b64decode(text)) for text in subject.evidence.quote[1:].split(":")]
    parts[part][position % len(parts[part])] ^= flip
    quote = "r" + ":".join(b64encode(bytes(data)).decode() for data in parts)
    subject.evidence = replace(subject.evidence, quote=quote)
    altered_appraisal = subject.judge()
    if altered_appraisal.outcome is not Outcome.DISTRUSTED:
        # Only the unused slots of the PCR blob, which nothing signs and nobody reads, may hold anything.
        assert part == PCR_BLOB
        assert altered_appraisal.quoted == honest


def test_the_binding_is_the_digest_of_zeros_and_the_digest_of_the_key() -> None:
    # trust: bound-identity
    subject = case()
    quoted = subject.judge().quoted
    assert quoted is not None
    assert quoted.values[16] == SHA256.digest(bytes(32) + SHA256.digest(subject.node.pubkey.encode()))
