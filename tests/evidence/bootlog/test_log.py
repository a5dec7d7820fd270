"""Logs from bytes to facts: what is read, and what is refused with a place and a reason."""

import hashlib
import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.boot_logs import CORPUS, agile_log, old_record, record, samples, spec_id, utf16, variable
from tests.fakes.shared import SHARED, shared_path

from limeguard.crypto.hashes import SHA1, SHA256, SHA384, SM3_256, HashAlgorithm
from limeguard.evidence.bootlog import event_types as ev
from limeguard.evidence.bootlog import log as bootlog
from limeguard.evidence.bootlog.log import parse_boot_log
from limeguard.evidence.reader import MalformedEvidence

DIGEST = {SHA256: bytes(32)}


def test_an_agile_log_gives_its_events_with_the_digests_of_each_bank() -> None:
    log = parse_boot_log(agile_log((7, ev.EV_SEPARATOR, bytes(4)), (8, ev.EV_IPL, b"x\0"), banks=(SHA1, SHA256)))
    assert log.banks == (SHA1, SHA256)
    assert log.spec_id is not None
    assert log.spec_id.algorithms == ((4, 20), (11, 32))
    assert [(event.event_num, event.pcr, event.type_name) for event in log.events] == [
        (0, 0, "EV_NO_ACTION"),
        (1, 7, "EV_SEPARATOR"),
        (2, 8, "EV_IPL"),
    ]
    assert log.events[2].data == b"x\0"
    assert log.events[2].digests == {
        SHA1: hashlib.sha1(b"x\0", usedforsecurity=False).digest(),
        SHA256: hashlib.sha256(b"x\0").digest(),
    }


def test_a_log_of_tcg_1_2_is_read_and_has_a_sha1_bank_alone() -> None:
    log = parse_boot_log(old_record(4, ev.EV_ACTION, b"Calling INT 19h") + old_record(0, ev.EV_SEPARATOR, bytes(4)))
    assert (log.spec_id, log.banks, len(log.events)) == (None, (SHA1,), 2)
    assert log.events[0].data == b"Calling INT 19h"


def test_a_log_with_nothing_after_its_spec_id_event_is_read() -> None:
    assert len(parse_boot_log(spec_id((SHA256,))).events) == 1


@pytest.mark.parametrize("counted", [True, False])
def test_vendor_information_is_read_also_where_the_event_does_not_count_it_in(counted: bool) -> None:
    data = spec_id((SHA256,), b"\xde\xad", counted=counted) + record(7, ev.EV_SEPARATOR, bytes(4), DIGEST)
    log = parse_boot_log(data)
    assert log.spec_id is not None
    assert log.spec_id.vendor_info == b"\xde\xad"
    assert log.events[1].type == ev.EV_SEPARATOR


def test_digests_may_come_in_any_order_and_some_may_be_missing() -> None:
    data = spec_id((SHA1, SHA256)) + record(1, 5, b"a", {SHA256: b"\1" * 32, SHA1: b"\2" * 20}) + record(1, 5, b"b", {})
    _, both, none = parse_boot_log(data).events
    assert (both.digests, none.digests) == ({SHA256: b"\1" * 32, SHA1: b"\2" * 20}, {})


def test_digests_of_unknown_algorithms_are_kept_apart() -> None:
    first = bytearray(spec_id((SHA256, SM3_256)))
    struct.pack_into("<HH", first, 64, 0x27, 32)  # SHA3-256 in place of SM3
    digests = struct.pack("<H", 0x0B) + b"\1" * 32 + struct.pack("<H", 0x27) + b"\2" * 32
    data = bytes(first) + struct.pack("<III", 1, 5, 2) + digests + struct.pack("<I", 1) + b"a"
    log = parse_boot_log(data)
    assert log.banks == (SHA256,)
    assert log.events[1].digests == {SHA256: b"\1" * 32}
    assert log.events[1].other_digests == ((0x27, b"\2" * 32),)


def broken_spec_id(at: int, layout: str, *values: int) -> bytes:
    data = bytearray(spec_id((SHA1, SHA256)))
    struct.pack_into(layout, data, at, *values)
    return bytes(data)


def after(*parts: bytes) -> bytes:
    return b"".join((spec_id((SHA256,)), *parts))


REFUSED = {
    "empty": (b"", "is empty"),
    "truncated head of the first record": (b"\0" * 31, "event 0.header: needs 32 bytes, 31 are left"),
    "truncated data": (old_record(0, 5, b"abc")[:-1], "event 0.data: needs 3 bytes, 2 are left"),
    "length beyond any": (struct.pack("<II20sI", 0, 5, bytes(20), 0xFFFFFFFF), "event 0.size: says 4294967295"),
    "no such PCR": (old_record(32, 5, b"abc"), "event 0.pcr: 32 is not a PCR"),
    "no such PCR later": (after(record(32, 5, b"", DIGEST)), "event 1.pcr: 32 is not a PCR"),
    "no such PCR of an event that is not extended": (after(record(99, 3, b"", DIGEST)), "event 1.pcr: 99 is not a PCR"),
    "confidential guest": (broken_spec_id(0, "<I", 1), "event 0.pcr: is 1: .*CCEL"),
    "spec id with a digest": (broken_spec_id(8, "<I", 1), "event 0.digest: is not zero"),
    "short first event": (old_record(0, 3, b"StartupLocality\0\3", bytes(20)), "event 0.data: has 17 bytes"),
    "another signature": (broken_spec_id(32, "<I", 1), "event 0.signature"),
    "no algorithms": (broken_spec_id(56, "<I", 0), "numberOfAlgorithms: is 0"),
    "algorithms that are not there": (broken_spec_id(56, "<I", 3), "algorithms: 3 need 40 bytes"),
    "too many algorithms": (broken_spec_id(56, "<I", 0xFFFFFFFF), "numberOfAlgorithms: is 4294967295"),
    "an algorithm twice": (broken_spec_id(64, "<H", 4), "algorithms: .*sha1 has 20 bytes|stands twice"),
    "size of a digest": (broken_spec_id(62, "<H", 32), "a digest of sha1 has 20 bytes, not 32"),
    "size of an unknown digest": (broken_spec_id(60, "<HH", 0x27, 65), "65 bytes is longer than any"),
    "vendor size": (broken_spec_id(68, "<B", 9), "vendorInfoSize: 9 bytes after 37 do not make"),
    "truncated later head": (after(b"\0" * 11), "event 1.header: needs 12 bytes, 11 are left"),
    "truncated size": (after(record(0, 5, b"", DIGEST)[:-1]), "event 1.size: needs 4 bytes, 3 are left"),
    "truncated digest": (after(record(0, 5, b"", DIGEST)[:-5]), "event 1.digests: needs 32 bytes, 31 are left"),
    "many digests": (after(struct.pack("<III", 0, 5, 0xFFFFFFFF)), "event 1.digests: are 4294967295, the log has 1"),
    "digest of another algorithm": (after(record(0, 5, b"", {SHA384: bytes(48)})), "algorithm 0x000c is not in"),
    "digest twice": (
        spec_id((SHA1, SHA256))
        + struct.pack("<III", 0, 5, 2)
        + 2 * (struct.pack("<H", 11) + bytes(32))
        + struct.pack("<I", 0),
        "event 1.digests: algorithm 0x000b stands twice",
    ),
    "short variable": (agile_log((7, ev.EV_EFI_VARIABLE_DRIVER_CONFIG, bytes(31))), "does not fit in 31 bytes"),
    "variable whose name is too long": (
        agile_log((7, ev.EV_EFI_VARIABLE_BOOT2, struct.pack("<16sQQ", bytes(16), 2**63, 0))),
        "does not fit in 32 bytes",
    ),
    "variable whose data is too long": (
        agile_log((7, ev.EV_EFI_VARIABLE_AUTHORITY, variable("db", b"ab")[:-1])),
        "does not fit in 37 bytes",
    ),
    "image load": (agile_log((4, ev.EV_EFI_BOOT_SERVICES_APPLICATION, bytes(31))), "an image load has 32 bytes"),
    "driver load": (agile_log((2, ev.EV_EFI_RUNTIME_SERVICES_DRIVER, b"")), "an image load has 32 bytes"),
    "blob": (agile_log((0, ev.EV_EFI_PLATFORM_FIRMWARE_BLOB, bytes(15))), "a firmware blob has 16 bytes"),
    "contents": (agile_log((0, ev.EV_S_CRTM_CONTENTS, b"text")), "a firmware blob has 16 bytes"),
    "h-crtm": (agile_log((0, ev.EV_EFI_HCRTM_EVENT, b"HCRTM\0")), "is not HCRTM"),
    "secure boot": (
        agile_log((7, ev.EV_EFI_VARIABLE_DRIVER_CONFIG, variable("SecureBoot", b"\1\0"))),
        "SecureBoot has 2 bytes",
    ),
    "secure boot whose name has a NUL": (
        agile_log((7, ev.EV_EFI_VARIABLE_DRIVER_CONFIG, variable("SecureBoot\0", b"\1\0"))),
        "SecureBoot has 2 bytes",
    ),
    "list trusted": (
        agile_log((7, ev.EV_EFI_VARIABLE_AUTHORITY, variable("MokListTrusted", b"\1\0"))),
        "MokListTrusted has 2 bytes",
    ),
    "boot order": (agile_log((1, ev.EV_EFI_VARIABLE_BOOT, variable("BootOrder", b"\1"))), "BootOrder has 1 bytes"),
    "short table": (agile_log((5, ev.EV_EFI_GPT_EVENT, bytes(99))), "a partition table has 100 bytes at least"),
    "table with too little": (
        agile_log((5, ev.EV_EFI_GPT_EVENT, bytes(92) + struct.pack("<Q", 2**60))),
        f"{2**60} partitions do not make 100 bytes",
    ),
    "table with too much": (agile_log((5, ev.EV_EFI_GPT_EVENT, bytes(101))), "0 partitions do not make 101 bytes"),
}


# trust: safe-parsing
@pytest.mark.parametrize("name", REFUSED)
def test_a_malformed_log_is_refused_with_its_place_and_reason(name: str) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(MalformedEvidence, match=reason) as problem:
        parse_boot_log(data)
    assert problem.value.place.startswith("boot log")


def test_what_only_resembles_a_refused_event_is_read() -> None:
    log = parse_boot_log(
        agile_log(
            (7, ev.EV_EFI_VARIABLE_AUTHORITY, variable("SecureBoot", b"\1\0")),
            (7, ev.EV_EFI_VARIABLE_DRIVER_CONFIG, variable("MokListTrusted", b"\1\0")),
            (1, ev.EV_EFI_VARIABLE_DRIVER_CONFIG, variable("BootOrder", b"\1")),
            (7, ev.EV_EFI_VARIABLE_DRIVER_CONFIG, variable("x", b"ab") + b"more"),
            (31, ev.EV_ACTION, b""),
            (7, ev.EV_EFI_VARIABLE_DRIVER_CONFIG, bytes(16) + struct.pack("<QQ", 1, 1) + b"\x00\xd8" + b"x"),
        )
    )
    assert len(log.events) == 7


# trust: bounded
def test_limits_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    data = agile_log(*((0, ev.EV_ACTION, b"abcd"),) * 3)
    for name, limit, reason in (
        ("MAX_LOG", len(data) - 1, f"at most {len(data) - 1} are allowed"),
        ("MAX_EVENTS", 3, "more than 3 events"),
        ("MAX_EVENT_DATA", 3, "at most 3 are allowed"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(bootlog, name, limit)
            with pytest.raises(MalformedEvidence, match=reason):
                parse_boot_log(data)
        assert len(parse_boot_log(data).events) == 4
    old = old_record(0, 5, b"a") * 3
    monkeypatch.setattr(bootlog, "MAX_EVENTS", 2)
    with pytest.raises(MalformedEvidence, match="more than 2 events"):
        parse_boot_log(old)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_log_or_are_refused(data: bytes) -> None:
    for given_ in (data, spec_id((SHA256,)) + data, old_record(0, 5, b"") + data):
        try:
            log = parse_boot_log(given_)
        except MalformedEvidence:
            continue
        assert sum(len(event.data) for event in log.events) <= len(given_)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 31),
            st.integers(0, 2**32 - 1).filter(lambda kind: kind not in ev.NAMES or kind in (1, 5, 0xD, 0x11)),
            st.binary(max_size=40),
        ),
        max_size=12,
    ),
    st.sets(st.sampled_from((SHA1, SHA256, SHA384))).filter(bool),
)
def test_what_was_written_is_read_and_every_cut_is_noticed(
    events: list[tuple[int, int, bytes]], banks: set[HashAlgorithm]
) -> None:
    data = agile_log(*events, banks=tuple(banks))
    log = parse_boot_log(data)
    assert [(event.pcr, event.type, event.data) for event in log.events[1:]] == events
    assert all(event.digests == {b: b.digest(event.data) for b in banks} for event in log.events[1:])
    for end in range(len(spec_id(tuple(banks))) + 1, len(data), 7):
        try:
            shorter = parse_boot_log(data[:end])
        except MalformedEvidence:
            continue
        assert log.events[: len(shorter.events)] == shorter.events
        assert len(shorter.events) < len(log.events)


def test_the_corpus_is_what_the_builder_makes() -> None:
    assert {path.stem: path.read_bytes() for path in CORPUS.glob("*.bin")} == samples()


def test_every_event_type_is_in_the_corpus_or_has_no_layout() -> None:
    found = {event.type for data in samples().values() for event in parse_boot_log(data).events}
    plain = {kind for kind in ev.NAMES if kind < 0x80000000} | {ev.EV_EFI_HANDOFF_TABLES2}
    assert set(ev.NAMES) - plain - {ev.EV_EFI_RUNTIME_SERVICES_DRIVER} <= found


def test_names_are_those_of_the_profile() -> None:
    assert ev.NAMES[0x80000001] == "EV_EFI_VARIABLE_DRIVER_CONFIG"
    assert (len(ev.NAMES), ev.NAMES.get(0x13)) == (33, None)
    assert parse_boot_log(agile_log((0, 0x13, b"x"))).events[1].type_name == "Unknown event type"


def test_logs_of_real_machines_are_read_or_refused_as_expected() -> None:
    folder = shared_path("fixtures/upstream/event-logs")
    expected = json.loads(shared_path("fixtures/upstream/expected.json").read_text())["event_logs"]
    read, refused = {}, {}
    for path in sorted(folder.glob("*.bin")):
        try:
            read[path.name] = len(parse_boot_log(path.read_bytes()).events)
        except MalformedEvidence as problem:
            refused[path.name] = problem.place
    crashes_keylime = {name for name, said in expected.items() if said["keylime_parse"].get("crash")}
    fine = {name: said["events"] for name, said in expected.items() if said["keylime_parse"]["ok"]}
    assert read == fine | {name: expected[name].get("records", 1) for name in crashes_keylime}
    assert refused == {
        "ccel-tdx-unpadded.bin": "boot log.event 0.pcr",
        "keylime-bogus.bin": "boot log.event 0.size",
        "keylime-empty.bin": "boot log",
        "short-no-action.bin": "boot log.event 0.data",
        "tpm12-option-rom.bin": "boot log.event 60.pcr",
    }
    assert len(list((SHARED / "fixtures/upstream/event-logs").glob("*.bin"))) == len(read) + len(refused)


def test_text_that_is_not_text_is_no_reason_to_refuse() -> None:
    log = parse_boot_log(agile_log((8, ev.EV_IPL, b"\xff\xfe\x00\x80"), (12, ev.EV_IPL, utf16("a")[:-1] + b"\xd8")))
    assert log.events[1].data == b"\xff\xfe\x00\x80"
