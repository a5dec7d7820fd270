"""Which PCR values a log makes, and what a quote proves of it."""

import json
import struct
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.boot_logs import (
    SECURITY,
    X509,
    agile_log,
    boot_option,
    image,
    node,
    old_record,
    quoted,
    record,
    samples,
    separator,
    spec_id,
    utf16,
    variable,
)
from tests.fakes.shared import SHARED, shared_path
from tests.fakes.vectors import FOLDER

from limeguard.crypto.hashes import SHA1, SHA256, SHA384, SHA512, SM3_256, HashAlgorithm, hash_by_name
from limeguard.evidence.bootlog import event_types as ev
from limeguard.evidence.bootlog.enriched import enriched
from limeguard.evidence.bootlog.log import MAX_LOG, parse_boot_log
from limeguard.evidence.bootlog.replay import (
    BOOT_PCRS,
    DataProof,
    ReplayedBootLog,
    ReplayFault,
    boot_aggregates,
    prove,
    replay,
    replay_all,
)

VM = FOLDER / "bootlog" / "vm"
CONFIG = ev.EV_EFI_VARIABLE_DRIVER_CONFIG


def fold(bank: HashAlgorithm, start: bytes, *values: bytes) -> bytes:
    for value in values:
        start = bank.digest(start + bank.digest(value))
    return start


def proven(data: bytes, bank: HashAlgorithm = SHA256) -> ReplayedBootLog:
    result = prove(parse_boot_log(data), quoted(data, bank))
    assert isinstance(result, ReplayedBootLog)
    return result


def proof_of(data: bytes) -> tuple[DataProof, bytes | None]:
    event = proven(data).events[-1]
    return event.proof, event.content


@pytest.mark.parametrize("log", sorted(VM.glob("*.bin")), ids=lambda path: path.stem)
def test_replay_gives_the_pcrs_of_virtual_machines_in_every_bank(log: Path) -> None:
    expected = json.loads((VM / f"{log.stem}.pcrs.json").read_text())
    banks = replay_all(parse_boot_log(log.read_bytes()))
    assert {bank.name for bank in banks} == set(expected)
    for bank, pcrs in banks.items():
        for pcr, value in expected[bank.name].items():
            assert pcrs.get(int(pcr), bytes(bank.size)).hex() == value, (bank.name, pcr)


def test_replay_gives_the_pcrs_of_every_captured_machine() -> None:
    shared_path("fixtures/vm")
    seen = 0
    for log in sorted((SHARED / "fixtures/vm").rglob("uefi.bin")):
        data = log.read_bytes()
        if not data:  # a boot loader that keeps the log from the kernel
            continue
        pcrs = json.loads((log.parent / "pcrs.json").read_text())
        for bank, values in replay_all(parse_boot_log(data)).items():
            assert {pcr: value.hex() for pcr, value in values.items()} == {
                pcr: pcrs[bank.name][str(pcr)] for pcr in values
            }, log
        seen += 1
    assert seen > 20


def test_replay_gives_the_recorded_pcrs_and_aggregates_of_real_machines() -> None:
    folder = shared_path("fixtures/upstream/event-logs")
    expected = json.loads(shared_path("fixtures/upstream/expected.json").read_text())["event_logs"]
    compared = 0
    for name, said in expected.items():
        if not (said["keylime_parse"]["ok"] or said["keylime_parse"].get("crash")):
            continue
        banks = replay_all(parse_boot_log((folder / name).read_bytes()))
        for bank_name, pcrs in said.get("replayed_pcrs", {}).items():
            bank = hash_by_name(bank_name)
            assert bank is not None
            assert {pcr: banks[bank][int(pcr)].hex() for pcr in pcrs} == pcrs, name
            compared += len(pcrs)
        for bank_name, aggregates in said.get("boot_aggregates", {}).items():
            bank = hash_by_name(bank_name)
            assert bank is not None
            assert [value.hex() for value in boot_aggregates(banks[bank], bank)] == aggregates
    assert compared > 250


def test_an_event_of_no_action_extends_nothing() -> None:
    digest = {SHA256: b"\1" * 32}
    data = spec_id((SHA256,)) + record(3, ev.EV_NO_ACTION, b"hint", digest) + record(4, ev.EV_ACTION, b"a", digest)
    assert replay(parse_boot_log(data), SHA256) == {
        0: bytes(32),
        3: bytes(32),
        4: SHA256.digest(bytes(32) + b"\1" * 32),
    }


def test_the_startup_locality_is_where_pcr_0_starts() -> None:
    data = agile_log((0, ev.EV_NO_ACTION, b"StartupLocality\0\x03"), separator(0))
    assert replay(parse_boot_log(data), SHA256)[0] == fold(SHA256, bytes(31) + b"\3", bytes(4))
    for other in (b"StartupLocality\0", b"StartupLocality\0\0", b"StartupLocality\0\3\3"):
        data = agile_log((0, ev.EV_NO_ACTION, other), separator(0))
        assert replay(parse_boot_log(data), SHA256)[0] == fold(SHA256, bytes(32), bytes(4))
    data = agile_log((1, ev.EV_NO_ACTION, b"StartupLocality\0\x03"), separator(1))
    assert replay(parse_boot_log(data), SHA256)[1] == fold(SHA256, bytes(32), bytes(4))


# trust: replayed-before-believed
def test_a_startup_locality_after_events_does_not_undo_them() -> None:
    honest = agile_log((0, ev.EV_NO_ACTION, b"StartupLocality\0\x03"), separator(0))
    forged = agile_log(
        (0, ev.EV_S_CRTM_VERSION, b"what I like"), (0, ev.EV_NO_ACTION, b"StartupLocality\0\x03"), separator(0)
    )
    result = prove(parse_boot_log(forged), quoted(honest))
    assert isinstance(result, ReplayedBootLog)
    assert 0 in result.differing
    assert not [event for event in result.events if event.event.pcr == 0]


def test_an_hcrtm_event_sets_the_locality_to_four() -> None:
    data = agile_log((0, ev.EV_EFI_HCRTM_EVENT, b"HCRTM"), (0, ev.EV_NO_ACTION, b"StartupLocality\0\x03"), separator(0))
    assert replay(parse_boot_log(data), SHA256)[0] == fold(SHA256, bytes(31) + b"\4", b"HCRTM", bytes(4))


def test_a_digest_counts_in_its_own_bank_alone() -> None:
    data = spec_id((SHA1, SHA256)) + record(7, ev.EV_SEPARATOR, bytes(4), {SHA1: SHA1.digest(bytes(4))})
    log = parse_boot_log(data)
    assert replay(log, SHA256)[7] == bytes(32)
    assert replay(log, SHA1)[7] == fold(SHA1, bytes(20), bytes(4))
    result = prove(log, quoted(data, SHA256))
    assert isinstance(result, ReplayedBootLog)
    assert result.events == ()


def test_a_bank_that_is_not_in_the_log_or_cannot_be_computed_is_said() -> None:
    log = parse_boot_log(agile_log(separator(7)))
    assert prove(log, quoted(agile_log(separator(7), banks=(SHA384,)), SHA384)) is ReplayFault.BANK_NOT_IN_LOG
    chinese = parse_boot_log(spec_id((SM3_256,)))
    faked = quoted(agile_log(separator(7)))
    assert replay_all(chinese) == {}
    assert prove(chinese, type(faked)(SM3_256, {}, {}, faked.clock, 0)) is ReplayFault.BANK_NOT_COMPUTABLE


@pytest.mark.parametrize("bank", [SHA1, SHA256, SHA384, SHA512])
def test_a_quote_of_the_replayed_values_proves_every_event(bank: HashAlgorithm) -> None:
    data = agile_log(
        separator(7), (8, ev.EV_IPL, b"grub_cmd: x\0", b"x"), banks=(SHA1, bank) if bank is not SHA1 else (bank,)
    )
    result = proven(data, bank)
    assert result.confirmed == BOOT_PCRS
    assert (result.differing, result.unquoted) == (frozenset(), frozenset())
    assert [event.digest for event in result.events] == [bank.digest(bytes(4)), bank.digest(b"x")]
    first = result.proven(1)
    assert first is not None
    assert first.event.data == bytes(4)
    assert (result.proven(0), result.proven(3)) == (None, None)


# trust: replayed-before-believed
def test_events_of_a_pcr_with_another_value_are_not_believed() -> None:
    data = agile_log(separator(7), separator(4))
    result = prove(parse_boot_log(data), quoted(data, pcr7=b"\1" * 32))
    assert isinstance(result, ReplayedBootLog)
    assert result.differing == {7}
    assert [event.event.pcr for event in result.events] == [4]


# trust: empty-is-not-valid
def test_a_pcr_that_the_log_never_extends_must_be_zero() -> None:
    data = agile_log(separator(7))
    result = prove(parse_boot_log(data), quoted(data, pcr11=b"\1" * 32))
    assert isinstance(result, ReplayedBootLog)
    assert result.differing == {11}


# trust: empty-is-not-valid
def test_pcrs_that_are_not_quoted_are_named_and_their_events_are_not_believed() -> None:
    data = agile_log(separator(7), separator(4))
    whole = quoted(data)
    values = {pcr: value for pcr, value in whole.values.items() if pcr != 7}
    result = prove(parse_boot_log(data), type(whole)(SHA256, values, {SHA256: values}, whole.clock, 0))
    assert isinstance(result, ReplayedBootLog)
    assert result.unquoted == {7}
    assert [event.event.pcr for event in result.events] == [4]


def test_pcrs_that_are_not_the_boot_logs_are_left_alone() -> None:
    data = agile_log((10, ev.EV_ACTION, b"a"), (16, ev.EV_ACTION, b"a"))
    result = proven(data)
    assert result.events == ()
    assert 10 not in result.confirmed | result.differing | result.unquoted


# trust: replayed-before-believed
@settings(deadline=None)
@given(st.data())
def test_no_change_of_a_log_keeps_the_values_but_for_what_digests_do_not_cover(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([name for name in samples() if name not in ("old", "vendor")]))
    honest = samples()[name]
    log = parse_boot_log(honest)
    bank = log.banks[0]
    records = [(event.pcr, event.type, event.data, dict(event.digests)) for event in log.events[1:]]
    change = data.draw(st.sampled_from(["drop", "repeat", "swap", "move", "digest"]))
    at = data.draw(st.integers(0, len(records) - 1))
    pcr, kind, content, digests = records[at]
    if kind == ev.EV_NO_ACTION:
        return
    if change == "drop":
        del records[at]
    elif change == "repeat":
        records.insert(at, records[at])
    elif change == "swap":
        other = next((n for n in range(at + 1, len(records)) if records[n][0] == pcr), at)
        if records[other][3][bank] == digests[bank]:
            return
        records[at], records[other] = records[other], records[at]
    elif change == "move":
        records[at] = ((pcr + 1) % 8, kind, content, digests)
    else:
        records[at] = (pcr, kind, content, digests | {bank: bytes(bank.size)})
    changed = parse_boot_log(spec_id(log.banks) + b"".join(record(*one) for one in records))
    result = prove(changed, quoted(honest, bank))
    assert isinstance(result, ReplayedBootLog)
    assert pcr in result.differing
    assert not [event for event in result.events if event.event.pcr == pcr]


WHOLE = {
    "separator": (7, ev.EV_SEPARATOR, bytes(4)),
    "secure boot": (7, CONFIG, variable("SecureBoot", b"\1")),
    "authority": (7, ev.EV_EFI_VARIABLE_AUTHORITY, variable("db", bytes(20), SECURITY)),
    "partitions": (5, ev.EV_EFI_GPT_EVENT, bytes(100)),
    "action": (5, ev.EV_EFI_ACTION, b"Exit Boot Services Invocation"),
    "version": (0, ev.EV_S_CRTM_VERSION, utf16("1.2")),
    "command line of a stub": (12, ev.EV_IPL, utf16("quiet\0")),
    "boot option": (1, ev.EV_EFI_VARIABLE_BOOT, variable("Boot0001", boot_option("disk", b""))),
}


@pytest.mark.parametrize("name", WHOLE)
def test_data_that_its_digest_covers_is_proven(name: str) -> None:
    assert proof_of(agile_log(WHOLE[name])) == (DataProof.WHOLE, WHOLE[name][2])


# trust: replayed-before-believed
@pytest.mark.parametrize("name", WHOLE)
def test_rewritten_data_beside_an_honest_digest_is_not_proven(name: str) -> None:
    pcr, kind, content = WHOLE[name]
    proof, proven_content = proof_of(agile_log((pcr, kind, bytes((content[0] ^ 1,)) + content[1:], content)))
    assert proof in (DataProof.CONTRADICTED, DataProof.HINT)
    assert (proof is DataProof.HINT) == (kind in (ev.EV_EFI_VARIABLE_AUTHORITY, ev.EV_EFI_VARIABLE_BOOT))
    assert proven_content is None


@pytest.mark.parametrize(
    ("data", "hashed", "content"),
    [
        (b"grub_cmd: set a=1\0", b"set a=1", b"set a=1"),
        (b"grub_cmd: set a=1\0", b"set a=1\0", b"set a=1"),
        (b"kernel_cmdline: /vmlinuz ro quiet", b"/vmlinuz ro quiet", b"/vmlinuz ro quiet"),
        (utf16("quiet\0"), utf16("quiet\0"), utf16("quiet\0")[:-1]),
        (utf16("quiet\0")[:-1], utf16("quiet\0"), utf16("quiet")),
    ],
)
def test_of_a_command_the_content_is_proven_and_its_label_is_not(data: bytes, hashed: bytes, content: bytes) -> None:
    assert proof_of(agile_log((8, ev.EV_IPL, data, hashed))) == (DataProof.CONTENT, content)
    assert proof_of(agile_log((8, ev.EV_IPL, data, b"another"))) == (DataProof.CONTRADICTED, None)


def test_of_a_boot_variable_some_firmware_proves_the_content_alone() -> None:
    data = variable("BootOrder", b"\1\0")
    assert proof_of(agile_log((1, ev.EV_EFI_VARIABLE_BOOT, data, b"\1\0"))) == (DataProof.CONTENT, b"\1\0")
    assert proof_of(agile_log((1, ev.EV_EFI_VARIABLE_BOOT, data, b"\2\0"))) == (DataProof.HINT, None)


def test_the_name_of_a_section_is_proven_and_its_content_is_not_in_the_log() -> None:
    name = utf16(".linux\0")
    assert proof_of(agile_log((11, ev.EV_IPL, name, b".linux\0"))) == (DataProof.WHOLE, name)
    assert proof_of(agile_log((11, ev.EV_IPL, name, b"the kernel"))) == (DataProof.HINT, None)


# trust: replayed-before-believed
@pytest.mark.parametrize(
    ("pcr", "kind", "data"),
    [
        (9, ev.EV_IPL, b"/vmlinuz\0"),
        (14, ev.EV_IPL, b"MokList\0"),
        (4, ev.EV_EFI_BOOT_SERVICES_APPLICATION, bytes(32)),
        (0, ev.EV_EFI_PLATFORM_FIRMWARE_BLOB, bytes(16)),
        (9, ev.EV_EVENT_TAG, b"Linux initrd"),
        (0, ev.EV_POST_CODE, b"ACPI DATA"),
        (1, 0x12345, b"unknown"),
    ],
)
def test_data_that_names_a_file_is_a_hint_even_if_the_file_holds_that_very_text(
    pcr: int, kind: int, data: bytes
) -> None:
    assert proof_of(agile_log((pcr, kind, data))) == (DataProof.HINT, None)


# trust: replayed-before-believed
def test_events_after_a_separator_are_marked_also_where_it_is_disguised() -> None:
    for kind, data in ((ev.EV_SEPARATOR, bytes(4)), (ev.EV_EVENT_TAG, b"anything")):
        log = agile_log((7, CONFIG, variable("PK", b"")), (7, kind, data, bytes(4)), (7, CONFIG, variable("db", b"")))
        assert [event.after_separator for event in proven(log).events] == [False, False, True]
    log = agile_log(separator(4, b"\xff" * 4), (4, ev.EV_ACTION, b"a"), (5, ev.EV_ACTION, b"a"))
    assert [event.after_separator for event in proven(log).events] == [False, True, False]


def test_aggregates_are_given_when_their_pcrs_are_confirmed() -> None:
    data = agile_log(*(separator(pcr) for pcr in range(8)), (8, ev.EV_ACTION, b"a"), (9, ev.EV_ACTION, b"a"))
    result = proven(data)
    pcrs = replay(parse_boot_log(data), SHA256)
    eight, ten = (SHA256.digest(b"".join(pcrs[pcr] for pcr in range(count))) for count in (8, 10))
    assert result.aggregates() == (eight, ten)
    assert boot_aggregates({pcr: pcrs[pcr] for pcr in range(8)}, SHA256) == (eight,)
    assert boot_aggregates({pcr: pcrs[pcr] for pcr in range(1, 8)}, SHA256) == ()
    differing = prove(parse_boot_log(data), quoted(data, pcr9=bytes(32)))
    assert isinstance(differing, ReplayedBootLog)
    assert differing.aggregates() == ()


def test_data_proofs_of_real_machines_are_those_of_the_profile() -> None:
    folder = shared_path("fixtures/upstream/event-logs")
    expected = json.loads(shared_path("fixtures/upstream/expected.json").read_text())["event_logs"]
    counts: dict[str, set[str]] = {}
    for name, said in expected.items():
        if not said["keylime_parse"]["ok"]:
            continue
        data = (folder / name).read_bytes()
        for event in proven(data, parse_boot_log(data).banks[-1]).events:
            counts.setdefault(event.event.type_name, set()).add(event.proof.name)
    assert {kind: sorted(found) for kind, found in counts.items() if found != {"HINT"}} == {
        "EV_EFI_ACTION": ["WHOLE"],
        "EV_EFI_GPT_EVENT": ["WHOLE"],
        "EV_EFI_VARIABLE_AUTHORITY": ["HINT", "WHOLE"],
        "EV_EFI_VARIABLE_BOOT": ["CONTENT", "WHOLE"],
        "EV_EFI_VARIABLE_DRIVER_CONFIG": ["WHOLE"],
        "EV_IPL": ["CONTENT", "HINT", "WHOLE"],
        "EV_SEPARATOR": ["WHOLE"],
        "EV_S_CRTM_VERSION": ["WHOLE"],
    }


def test_a_log_of_tcg_1_2_is_proven_in_its_only_bank() -> None:
    data = old_record(4, ev.EV_SEPARATOR, bytes(4))
    assert [event.proof for event in proven(data, SHA1).events] == [DataProof.WHOLE]


LARGEST = {
    "entries": (7, CONFIG, variable("dbx", X509 + struct.pack("<III", 28 + 17 * 15000, 0, 17) + bytes(17 * 15000))),
    "lists": (7, CONFIG, variable("dbx", (X509 + struct.pack("<III", 45, 0, 17) + bytes(17)) * 5800)),
    "boot order": (1, ev.EV_EFI_VARIABLE_BOOT, variable("BootOrder", bytes(260_000))),
    "boot option": (1, ev.EV_EFI_VARIABLE_BOOT, variable("Boot0001", b"\1" * 260_000)),
    "name": (7, CONFIG, variable("a" * 130_000, b"")),
    "path": (4, ev.EV_EFI_BOOT_SERVICES_APPLICATION, image(node(9, 9, b"") * 65_000)),
    "text": (8, ev.EV_IPL, b"\xff" * 260_000),
    "no data": (8, ev.EV_IPL, b""),
}


# trust: bounded
@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_logs_cost_less_than_a_second(name: str) -> None:
    event = LARGEST[name]
    data = agile_log(*[event] * (4 if event[2] else 8000), banks=(SHA1, SHA256))
    assert len(data) < MAX_LOG
    start = time.thread_time()
    log = parse_boot_log(data)
    prove(log, quoted(data))
    enriched(log)
    assert time.thread_time() - start < 1
