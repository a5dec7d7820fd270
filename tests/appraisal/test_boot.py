"""Boot logs of real machines against policies: Keylime's verdicts, and ours of honest and of changed logs."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from time import process_time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fakes.boot_logs import quoted, record, samples
from tests.fakes.shared import shared_path
from tests.fakes.vectors import FOLDER

from limeguard.appraisal import boot as module
from limeguard.appraisal.boot import BootMemo, BootVerdict, appraise_boot
from limeguard.authoring.boot.learn import Named, learn
from limeguard.crypto.hashes import SHA1, SHA256, SHA384, HashAlgorithm, hash_by_name
from limeguard.evidence.bootlog import event_types as ev
from limeguard.evidence.bootlog.log import BootEvent, BootLog, parse_boot_log
from limeguard.evidence.bootlog.replay import DataProof, ReplayedBootLog, data_proof, prove
from limeguard.evidence.reader import MalformedEvidence
from limeguard.evidence.tpm.quote import QuotedPcrs
from limeguard.evidence.tpm.structures import ClockInfo
from limeguard.policy.boot import BOOT_PCRS, BootPolicy, parse_boot_policy, stored_boot_policy
from limeguard.policy.boot.rules import encode_boot_document

VM = FOLDER / "bootlog" / "vm"
SCENARIOS = sorted(path.stem for path in VM.glob("*.bin"))
SHA384_ALONE = "sha384"


def vm_log(name: str) -> bytes:
    return (VM / f"{name}.bin").read_bytes()


def vm_quote(name: str, bank_name: str | None = None) -> QuotedPcrs:
    """Return the PCRs that the machine's TPM really had."""
    banks = json.loads((VM / f"{name}.pcrs.json").read_text())
    chosen = bank_name or ("sha256" if "sha256" in banks else next(iter(banks)))
    bank = hash_by_name(chosen)
    assert bank is not None
    return quote_of(bank, {int(pcr): bytes.fromhex(value) for pcr, value in banks[chosen].items()})


def quote_of(bank: HashAlgorithm, values: dict[int, bytes]) -> QuotedPcrs:
    return QuotedPcrs(bank, values, {bank: values}, ClockInfo(1, 0, 0, safe=True), 0)


@cache
def learned(name: str) -> BootPolicy:
    return parse_boot_policy(encode_boot_document(learn([Named(name, parse_boot_log(vm_log(name)))])))


def judged(name: str, log: bytes, quote: QuotedPcrs | None = None) -> BootVerdict:
    return appraise_boot(log, quote or vm_quote(name), learned(name))


def ids(verdict: BootVerdict) -> list[str]:
    return [finding.event_id for finding in verdict.findings]


def said(verdict: BootVerdict) -> str:
    return "\n".join(str(finding.context.get("message")) for finding in verdict.findings)


# --- changing logs --------------------------------------------------------------------------------------------------


def rebuilt(original: bytes, events: list[BootEvent]) -> bytes:
    """Return the log with its first record and these events after it."""
    first = 32 + int.from_bytes(original[28:32], "little")
    return original[:first] + b"".join(record(one.pcr, one.type, one.data, one.digests) for one in events)


def events_of(data: bytes) -> list[BootEvent]:
    return list(parse_boot_log(data).events[1:])


def with_other_digest(event: BootEvent) -> BootEvent:
    return replace(
        event, digests={bank: digest[:-1] + bytes([digest[-1] ^ 1]) for bank, digest in event.digests.items()}
    )


def proof_in(event: BootEvent, bank: HashAlgorithm) -> DataProof:
    return data_proof(event, event.digests[bank], bank)[0]


def test_rebuilding_changes_nothing() -> None:
    for name in SCENARIOS:
        assert rebuilt(vm_log(name), events_of(vm_log(name))) == vm_log(name)


# --- our own format -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_learned_policy_accepts_the_machine_that_it_was_learned_from(name: str) -> None:
    verdict = judged(name, vm_log(name))
    assert verdict.findings == ()
    assert verdict.judged


@pytest.mark.parametrize("name", ["grub-shim", "bank-sha384", "newer-kernel"])
def test_a_learned_policy_holds_in_each_bank_of_the_log(name: str) -> None:
    assert judged(name, vm_log(name), vm_quote(name, "sha384")).findings == ()


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_machine_passes_under_the_policy_of_another_kind(name: str) -> None:
    others = [
        other for other in SCENARIOS if vm_log(other) != vm_log(name) and vm_quote(other).bank is vm_quote(name).bank
    ]
    for other in others:
        assert judged(other, vm_log(name), vm_quote(name)).findings, other


def changed_digests(name: str) -> Iterator[tuple[BootEvent, bytes]]:
    events = events_of(vm_log(name))
    for index, event in enumerate(events):
        yield event, rebuilt(vm_log(name), [*events[:index], with_other_digest(event), *events[index + 1 :]])


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_changed_digest_is_refused_and_the_event_is_named(name: str) -> None:
    # trust: fail-closed
    policy = learned(name).required
    for event, log in changed_digests(name):
        if event.pcr in policy:
            verdict = judged(name, log)
            assert ids(verdict)[0] == f"measured_boot.invalid_pcr_{event.pcr}"
            assert f"event {event.event_num} (PCR {event.pcr}, {event.type_name}" in said(verdict)


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_was_measured_and_is_not_listed_is_refused_and_the_event_is_named(name: str) -> None:
    # trust: fail-closed
    for event, log in changed_digests(name):
        if event.pcr in learned(name).required:
            verdict = judged(name, log, quoted(log, vm_quote(name).bank))
            assert "measured_boot.policy_limeguard" in ids(verdict)
            assert f"event {event.event_num} (PCR {event.pcr}, {event.type_name}" in said(verdict)


@pytest.mark.parametrize("name", SCENARIOS)
def test_rewritten_data_beside_kept_digests_is_refused_where_a_digest_covers_it(name: str) -> None:
    # trust: fail-closed
    events, bank = events_of(vm_log(name)), vm_quote(name).bank
    for index, event in enumerate(events):
        if event.pcr not in learned(name).required or not event.data:
            continue
        at = max(len(event.data) - 3, 0)  # labels stand first, and a closing NUL is not measured
        lie = replace(event, data=event.data[:at] + bytes([event.data[at] ^ 1]) + event.data[at + 1 :])
        try:
            log = rebuilt(vm_log(name), [*events[:index], lie, *events[index + 1 :]])
            parse_boot_log(log)
        except ValueError:
            continue  # the log cannot be read, which is refused in any case
        verdict = judged(name, log)
        if proof_in(event, bank) is DataProof.HINT:
            assert verdict.findings == (), "nothing may depend on what no digest covers"
        elif event.type != ev.EV_EFI_VARIABLE_BOOT or proof_in(event, bank) is DataProof.WHOLE:
            assert f"event {event.event_num} (PCR {event.pcr}, {event.type_name}" in said(verdict)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_dropped_event_is_refused_and_the_pcr_is_named(name: str) -> None:
    # trust: fail-closed
    events = events_of(vm_log(name))
    for index, event in enumerate(events):
        if event.pcr not in learned(name).required:
            continue
        verdict = judged(name, rebuilt(vm_log(name), [*events[:index], *events[index + 1 :]]))
        assert ids(verdict)[0] == f"measured_boot.invalid_pcr_{event.pcr}"
        if event.type == ev.EV_EFI_VARIABLE_DRIVER_CONFIG:
            assert "the log has no event about" in said(verdict) or "an event is missing from" in said(verdict)
        elif event.pcr != 7:
            assert "an event is missing from the log" in said(verdict) or "never names it" in said(verdict)


@pytest.mark.parametrize("name", SCENARIOS)
def test_duplicated_and_reordered_events_are_refused_and_named(name: str) -> None:
    # trust: fail-closed
    events = events_of(vm_log(name))
    for index, event in enumerate(events):
        if event.pcr not in learned(name).required:
            continue
        twice = judged(name, rebuilt(vm_log(name), [*events[: index + 1], *events[index:]]))
        assert f"measured_boot.invalid_pcr_{event.pcr}" in ids(twice)
        assert "was never measured" in said(twice)
        later = next((at for at in range(index + 1, len(events)) if events[at].pcr == event.pcr), None)
        if later is None or events[later].digests == event.digests:
            continue
        order = [*events]
        order[index], order[later] = order[later], order[index]
        swapped = judged(name, rebuilt(vm_log(name), order))
        assert f"measured_boot.invalid_pcr_{event.pcr}" in ids(swapped)
        assert f"event {event.event_num} (PCR {event.pcr}" in said(swapped)


@pytest.mark.parametrize("name", SCENARIOS)
def test_appended_events_are_refused_whether_measured_or_not(name: str) -> None:
    # trust: fail-closed
    events, bank = events_of(vm_log(name)), vm_quote(name).bank
    digests = {one: one.digest(b"evil") for one in events[0].digests}
    for pcr in sorted(learned(name).required):
        log = rebuilt(vm_log(name), [*events, BootEvent(len(events) + 1, pcr, ev.EV_IPL, digests, b"evil")])
        number = f"event {len(events) + 1} (PCR {pcr}, EV_IPL"
        invented, measured = judged(name, log), judged(name, log, quoted(log, bank))
        assert ids(invented) == [
            f"measured_boot.invalid_pcr_{pcr}",
            *["measured_boot.policy_limeguard"] * (len(ids(invented)) - 1),
        ]
        assert set(ids(measured)) == {"measured_boot.policy_limeguard"}
        assert number in said(measured)


def test_a_separator_measured_by_an_attacker_does_not_hide_that_secure_boot_is_off() -> None:
    # trust: fail-closed
    events = events_of(vm_log("grub-off"))
    fake = next(one for one in events_of(vm_log("grub-shim")) if b"S\0e\0c\0u\0r\0e\0B\0o\0o\0t\0" in one.data)
    digests = {bank: digest for bank, digest in fake.digests.items() if bank in events[0].digests}
    log = rebuilt(vm_log("grub-off"), [*events, replace(fake, digests=digests)])
    policy = parse_boot_policy('{"limeguard_boot_policy": 1, "pcrs": [7], "secure_boot": "on"}')
    verdict = appraise_boot(log, quoted(log), policy)
    assert "says that Secure Boot is off" in said(verdict)


def test_an_event_is_not_allowed_by_another_type_or_another_pcr() -> None:
    # trust: fail-closed
    events = events_of(vm_log("grub-shim"))
    digests = {bank: bank.digest(b"evil") for bank in events[0].digests}
    for event_type in ev.NAMES:
        if event_type == ev.EV_NO_ACTION:
            continue
        evil = BootEvent(99, 4, event_type, digests, bytes(64))
        try:
            log = rebuilt(vm_log("grub-shim"), [*events, evil])
            parse_boot_log(log)
        except ValueError:
            continue
        assert "PCR 4" in said(judged("grub-shim", log, quoted(log))), event_type


def test_digests_of_another_bank_satisfy_nothing() -> None:
    # trust: fail-closed
    document = json.loads(encode_boot_document(learn([Named("a", parse_boot_log(vm_log("grub-shim")))])))
    text = json.dumps(document, indent=0)
    only = "\n".join(line for line in text.splitlines() if '"sha384"' not in line).replace(",\n}", "\n}")
    policy = parse_boot_policy(only)
    assert appraise_boot(vm_log("grub-shim"), vm_quote("grub-shim"), policy).findings == ()
    verdict = appraise_boot(vm_log("grub-shim"), vm_quote("grub-shim", "sha384"), policy)
    assert said(verdict) == "the policy lists no sha384 digests, only sha256: let the agent quote one of these banks"


def test_a_log_whose_digests_of_an_unquoted_bank_are_good_and_of_the_quoted_bank_are_not_is_refused() -> None:
    # trust: fail-closed
    changed = [
        replace(
            one, digests={bank: bank.digest(b"evil") if bank is SHA384 else good for bank, good in one.digests.items()}
        )
        if one.type == ev.EV_EFI_BOOT_SERVICES_APPLICATION
        else one
        for one in events_of(vm_log("grub-shim"))
    ]
    log = rebuilt(vm_log("grub-shim"), changed)
    assert judged("grub-shim", log, quoted(log, SHA256)).findings == ()
    verdict = judged("grub-shim", log, quoted(log, SHA384))
    assert "which boot_applications does not list" in said(verdict)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_mutation_of_a_log_keeps_the_quote_and_the_trust(data: st.DataObject) -> None:
    # trust: fail-closed
    name = data.draw(st.sampled_from(["grub-shim", "uki", "direct"]))
    log = bytearray(vm_log(name))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(log) - 1))
        log[at] ^= data.draw(st.integers(1, 255))
    verdict = judged(name, bytes(log))
    if not verdict.findings and bytes(log) != vm_log(name):
        # What may change is what no digest covers: other banks, types, labels, hints.
        judged_pcrs = learned(name).required
        assert digests_in(bytes(log), judged_pcrs) == digests_in(vm_log(name), judged_pcrs)


def digests_in(log: bytes, pcrs: frozenset[int]) -> dict[int, list[bytes]]:
    found: dict[int, list[bytes]] = {}
    for one in parse_boot_log(log).events:
        if one.type != ev.EV_NO_ACTION and one.pcr in pcrs:
            found.setdefault(one.pcr, []).append(one.digests[SHA256])
    return found


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_a_tpm_vouches_for_is_judged_and_raises_nothing(data: st.DataObject) -> None:
    # trust: fail-closed
    name = data.draw(st.sampled_from(["grub-shim", "uki", "sdboot-off"]))
    events = events_of(vm_log(name))
    at = data.draw(st.integers(0, len(events) - 1))
    content = data.draw(st.binary(max_size=80) | st.sampled_from(events).map(lambda one: one.data))
    number = data.draw(st.sampled_from(sorted(set(ev.NAMES) - {ev.EV_NO_ACTION})))
    digests = {bank: bank.digest(content) for bank in events[at].digests}
    events[at] = BootEvent(events[at].event_num, data.draw(st.integers(0, 15)), number, digests, content)
    log = rebuilt(vm_log(name), events)
    try:
        parse_boot_log(log)
    except MalformedEvidence:
        return
    quote = quoted(log, vm_quote(name).bank)
    assert judged(name, log, quote).judged
    assert appraise_boot(log, quote, EXAMPLE_STATE).findings


EXAMPLE_STATE = parse_boot_policy(
    json.dumps({name: [] for name in ("pk", "kek", "db", "dbx", "mokdig", "mokxdig", "kernels", "scrtm_and_bios")}),
    "example",
)


# --- Keylime's verdicts ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def upstream() -> Path:
    return shared_path("fixtures/upstream")


@pytest.fixture(scope="module")
def expected(upstream: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((upstream / "expected.json").read_text())
    return document


def differs_on_purpose(case: dict[str, Any]) -> list[str] | None:
    """Return our findings where they are meant to differ from Keylime's."""
    if case["pcrs"] == "pcr5-missing" and case["policy_name"] == "accept-all":
        return ["measured_boot.missing_pcrs"]
    if case["bank"] == "sha1" and case["policy_name"] == "example" and not case["failures"]:
        return ["measured_boot.policy_example"]  # the reference state lists SHA-256 digests, which nobody quoted
    return None


def quote_for(case: dict[str, Any], log: bytes) -> QuotedPcrs:
    bank = hash_by_name(case["bank"])
    assert bank is not None
    parsed = parse_boot_log(log)
    base = quoted(log, bank) if bank in parsed.banks else quote_of(bank, {pcr: bytes(bank.size) for pcr in BOOT_PCRS})
    values = dict(base.values)
    match case["pcrs"]:
        case "pcr7-wrong":
            values[7] = b"\x11" * bank.size
        case "pcr11-extended":
            values[11] = b"\x11" * bank.size
        case "pcr5-missing":
            del values[5]
    return quote_of(bank, values)


def policy_for(case: dict[str, Any], upstream: Path) -> BootPolicy | None:
    match case["mb_policy"]:
        case "none":
            return None
        case "empty-object":
            return stored_boot_policy("{}", case["policy_name"])
    text = (upstream / f"mb-refstates/from-{case['log'].removesuffix('.bin')}.json").read_text()
    return stored_boot_policy(text, case["policy_name"])


def test_logs_and_policies_have_the_findings_of_keylime(upstream: Path, expected: dict[str, Any]) -> None:
    differing = 0
    for case in expected["measured_boot_checks"]:
        log = (upstream / "event-logs" / case["log"]).read_bytes()
        verdict = appraise_boot(log, quote_for(case, log), policy_for(case, upstream))
        ours = differs_on_purpose(case)
        differing += ours is not None
        assert ids(verdict) == (case["failures"] if ours is None else ours), case
    assert differing == 16


def test_logs_that_cannot_be_read_are_a_finding_with_or_without_a_policy(
    upstream: Path, expected: dict[str, Any]
) -> None:
    # trust: fail-closed
    for name in ("keylime-bogus", "keylime-empty", "short-no-action", "ccel-tdx-unpadded", "tpm12-option-rom"):
        log = (upstream / "event-logs" / f"{name}.bin").read_bytes()
        values = quote_of(SHA256, {pcr: bytes(32) for pcr in BOOT_PCRS})
        for policy in (None, stored_boot_policy('{"a": 1}')):
            assert ids(appraise_boot(log, values, policy)) == ["measured_boot.parser.tpm2_eventlog.error"]
        assert not expected["event_logs"][f"{name}.bin"]["keylime_parse"]["ok"]


def test_a_key_of_the_vendor_is_believed_only_where_the_digest_covers_it(upstream: Path) -> None:
    # trust: fail-closed
    stem = "keylime-el9-kvm-secureboot"
    original = (upstream / f"event-logs/{stem}.bin").read_bytes()
    policy = parse_boot_policy((upstream / f"mb-refstates/from-{stem}.json").read_text(), "example")
    assert appraise_boot(original, quoted(original), policy).findings == ()
    events = events_of(original)
    name = "vendor_db".encode("utf-16-le")
    at = next(at for at, one in enumerate(events) if one.type == ev.EV_EFI_VARIABLE_AUTHORITY and name in one.data)
    digests = {SHA256: SHA256.digest(b"another key was measured")}
    log = rebuilt(original, [*events[:at], replace(events[at], digests=digests), *events[at + 1 :]])
    assert ids(appraise_boot(log, quoted(log), policy)) == ["measured_boot.policy_example"]


def test_a_log_of_tcg_1_2_is_judged_in_its_one_bank() -> None:
    log = samples()["old"]
    policy = parse_boot_policy('{"limeguard_boot_policy": 1, "pcrs": [7], "secure_boot": "off"}')
    assert appraise_boot(log, quoted(log, SHA1), policy).findings == ()
    assert ids(appraise_boot(log, quote_of(SHA256, {}), policy)) == ["measured_boot.parser.invalid_pcrs_hashes"]


# --- quotes and policies around a log -------------------------------------------------------------------------------

ACCEPT = parse_boot_policy('{"a": 1}')


def test_quoted_pcrs_without_a_log_are_findings_one_by_one() -> None:
    # trust: fail-closed
    verdict = appraise_boot(None, vm_quote("direct"), ACCEPT)
    assert ids(verdict) == [f"pcr_validation.unused_pcr_{pcr}" for pcr in sorted(BOOT_PCRS)]
    assert not verdict.judged
    assert appraise_boot(None, vm_quote("direct"), None).findings == ()
    assert appraise_boot(None, vm_quote("direct"), parse_boot_policy("{}")).findings == ()


def test_a_policy_that_is_none_is_a_finding() -> None:
    # trust: fail-closed
    for log in (vm_log("direct"), None):
        assert ids(appraise_boot(log, vm_quote("direct"), stored_boot_policy("null"))) == [
            "pcr_validation.invalid_mb_policy"
        ]


def test_a_reference_state_with_faults_rejects_every_log() -> None:
    # trust: fail-closed
    verdict = appraise_boot(vm_log("direct"), vm_quote("direct"), stored_boot_policy('{"kernels": []}', "example"))
    assert ids(verdict) == ["measured_boot.policy_example"]
    assert "pk is missing" in said(verdict)


def test_an_empty_policy_judges_nothing() -> None:
    # trust: empty-is-not-valid
    verdict = appraise_boot(vm_log("direct"), vm_quote("direct"), parse_boot_policy("{}"))
    assert (verdict.findings, verdict.judged) == ((), False)


def test_pcrs_that_the_log_does_not_account_for_have_to_be_zero() -> None:
    values = {**vm_quote("grub-off").values, 15: b"\x22" * 32}
    verdict = appraise_boot(vm_log("grub-off"), quote_of(SHA256, values), ACCEPT)
    assert "measured_boot.invalid_pcr_15" in ids(verdict)
    assert "which never names it, leads to 0000" in said(verdict)


def test_data_that_its_digest_contradicts_is_not_shown_to_reference_states() -> None:
    # trust: fail-closed
    events = events_of(vm_log("grub-off"))
    at, off = next((at, one) for at, one in enumerate(events) if "SecureBoot" in one.data.decode("utf-16-le", "ignore"))
    lie = replace(off, data=off.data[:-1] + b"\x01")
    log = rebuilt(vm_log("grub-off"), [*events[:at], lie, *events[at + 1 :]])
    parsed = parse_boot_log(log)
    replayed = prove(parsed, vm_quote("grub-off"))
    assert isinstance(replayed, ReplayedBootLog)
    seen = next(one for one in module.quoted_view(parsed, replayed)["events"] if one["EventNum"] == off.event_num)
    assert "Event" not in seen


def test_a_log_full_of_what_is_refused_costs_little_and_is_cut() -> None:
    # trust: bounded
    events, bank = events_of(vm_log("direct")), vm_quote("direct").bank
    digests = {one: one.digest(b"evil") for one in events[0].digests}
    evil = [BootEvent(0, 4, ev.EV_EFI_VARIABLE_AUTHORITY, digests, bytes(32)) for _ in range(8_000)]
    log = rebuilt(vm_log("direct"), [*events, *evil])
    start = process_time()
    for quote in (quoted(log, bank), vm_quote("direct")):
        verdict = judged("direct", log, quote)
        assert 0 < len(verdict.findings) <= module.MAX_REFUSALS + 1
        assert all(len(str(finding.context)) < 4_000 for finding in verdict.findings)
    assert process_time() - start < 2


# --- the memo -------------------------------------------------------------------------------------------------------


def test_an_unchanged_log_is_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []

    def counting(data: bytes) -> BootLog:
        parsed.append(len(data))
        return parse_boot_log(data)

    monkeypatch.setattr(module, "parse_boot_log", counting)
    memo = BootMemo()
    for _ in range(3):
        assert appraise_boot(vm_log("uki"), vm_quote("uki"), learned("uki"), memo).findings == ()
    assert len(parsed) == 1


def test_a_remembered_verdict_is_for_one_log_policy_bank_and_quote() -> None:
    # trust: no-trust-by-association
    memo = BootMemo()
    good = appraise_boot(vm_log("grub-shim"), vm_quote("grub-shim"), learned("grub-shim"), memo)
    assert good.findings == ()
    wrong = quote_of(SHA256, {**vm_quote("grub-shim").values, 4: bytes(32)})
    assert appraise_boot(vm_log("grub-shim"), wrong, learned("grub-shim"), memo).findings
    assert appraise_boot(vm_log("grub-shim"), vm_quote("grub-shim"), learned("uki"), memo).findings
    assert appraise_boot(vm_log("uki"), vm_quote("grub-shim"), learned("grub-shim"), memo).findings
    fewer = quote_of(SHA256, {pcr: value for pcr, value in vm_quote("grub-shim").values.items() if pcr != 5})
    assert appraise_boot(vm_log("grub-shim"), fewer, learned("grub-shim"), memo).findings
    assert appraise_boot(vm_log("grub-shim"), vm_quote("grub-shim", "sha384"), learned("grub-shim"), memo).judged


def test_the_memo_is_bounded_and_keeps_what_is_asked_for() -> None:
    # trust: bounded
    memo = BootMemo(8)
    verdict = BootVerdict((), judged=True)
    for number in range(1000):
        memo.put((number,), verdict)
        memo.put(("kept",), memo.get(("kept",)) or verdict)
    assert memo.get((999,)) is verdict
    assert memo.get((0,)) is None
    assert len(memo._young) + len(memo._old) <= 8 + 2
