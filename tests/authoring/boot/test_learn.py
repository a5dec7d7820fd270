"""Policies from logs, differences in words, reference states, names of files."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.boot_logs import (
    SEPARATORS,
    SHIM,
    Event,
    agile_log,
    image,
    quoted,
    utf16,
    variable,
)
from tests.fakes.shared import shared_path
from tests.fakes.vectors import FOLDER

from limeguard.appraisal.boot import appraise_boot
from limeguard.authoring.boot.changes import changes
from limeguard.authoring.boot.images import authenticode_pieces, names_of
from limeguard.authoring.boot.learn import Named, check_learned, extended, learn
from limeguard.authoring.boot.refstate import Strictness, reference_state
from limeguard.authoring.policy.collected import SourceError
from limeguard.crypto.hashes import SHA256
from limeguard.evidence.bootlog import event_types as ev
from limeguard.evidence.bootlog.enriched import enriched
from limeguard.evidence.bootlog.log import parse_boot_log
from limeguard.policy.boot import parse_boot_policy
from limeguard.policy.boot.rules import BootDocument, Certificate, Known, Signatures, Variables, encode_boot_document

VM = FOLDER / "bootlog" / "vm"


def vm(*names: str) -> list[Named]:
    return [Named(name, parse_boot_log((VM / f"{name}.bin").read_bytes())) for name in names]


def words(before: BootDocument, after: BootDocument) -> list[str]:
    return [change.words for change in changes(before, after)]


def hand_made(*events: Event, on: bool = True) -> bytes:
    config = (7, ev.EV_EFI_VARIABLE_DRIVER_CONFIG, variable("SecureBoot", bytes([on])))
    return agile_log(config, *SEPARATORS, *events)


def learned(*logs: bytes, **options: Any) -> BootDocument:
    return learn([Named(str(number), parse_boot_log(log)) for number, log in enumerate(logs)], **options)


def accepted(document: BootDocument, log: bytes) -> bool:
    return not appraise_boot(log, quoted(log), parse_boot_policy(encode_boot_document(document))).findings


# --- learning -------------------------------------------------------------------------------------------------------


def test_a_policy_of_many_machines_accepts_each_and_says_what_they_have_in_common() -> None:
    logs = vm("grub-shim", "uki", "sdboot-off", "direct", "newer-kernel")
    document = learn(logs)
    assert list(check_learned(document, logs)) == []
    assert document.secure_boot == "any"
    assert document.must_occur == ["boot_applications", "initrds"]
    assert document.unknown_events == {"1": "allow", "5": "allow"}
    assert 12 in document.pcrs


def test_what_differs_in_a_second_log_of_one_kind_is_united() -> None:
    first = hand_made((4, ev.EV_EFI_BOOT_SERVICES_APPLICATION, image(b""), b"kernel 1"))
    second = hand_made((4, ev.EV_EFI_BOOT_SERVICES_APPLICATION, image(b""), b"kernel 2"))
    both = learned(first, second)
    assert accepted(both, first)
    assert accepted(both, second)
    assert not accepted(learned(first), second)
    assert len(both.boot_applications) == 2


def sbat(text: bytes) -> Event:
    return 7, ev.EV_EFI_VARIABLE_AUTHORITY, variable("SbatLevel", text, SHIM)


def test_the_least_level_of_shim_is_kept_and_a_lower_one_is_refused() -> None:
    # trust: fail-closed
    newer, older = (hand_made(sbat(text)) for text in (b"sbat,1,2024010900\nshim,4\n", b"sbat,1,2023012900\nshim,2\n"))
    document = learned(newer, older)
    assert document.sbat_level == {"sbat": 2023012900, "shim": 2}
    assert accepted(document, newer)
    assert not accepted(learned(newer), older)
    assert accepted(learned(older), newer)
    assert not accepted(learned(newer), hand_made())


def test_a_level_that_not_all_have_is_listed_and_not_required() -> None:
    with_level, without = hand_made(sbat(b"sbat,1,2024010900\n")), hand_made()
    document = learned(with_level, without)
    assert document.sbat_level == {}
    assert accepted(document, with_level)
    assert accepted(document, without)


def test_revocations_are_those_that_all_machines_have() -> None:
    document = learn(vm("grub-shim", "uki"))
    assert isinstance(document.variables.dbx, Signatures)
    assert document.variables.dbx.match == "at least"
    assert isinstance(document.variables.PK, Signatures)
    assert document.variables.PK.match == "at most"
    alone = learn(vm("uki")).variables.PK
    assert isinstance(alone, Signatures)
    assert alone.match == "exactly"


def test_a_command_line_is_taken_literally_and_covers_what_the_kernels_stub_measures() -> None:
    line = "root=LABEL=a quiet (1)"
    options = f"{line}\0"
    tag = struct.pack("<II", 0x8F3B22ED, 26) + b"LOADED_IMAGE::LoadOptions\0"
    log = hand_made((12, ev.EV_IPL, utf16(options)), (9, ev.EV_EVENT_TAG, tag, utf16(options)))
    document = learned(log)
    assert document.command_lines == [re.escape(line)]
    assert document.boot_files == []
    assert accepted(document, log)
    other = hand_made((9, ev.EV_EVENT_TAG, tag, utf16(options)))
    assert accepted(document, other), "a stub without a boot loader measures the same bytes"
    evil = hand_made((12, ev.EV_IPL, utf16(options)), (9, ev.EV_EVENT_TAG, tag, utf16("init=/bin/sh\0")))
    assert not accepted(document, evil)


def test_a_version_of_four_zero_bytes_is_not_taken_for_a_separator() -> None:
    log = agile_log(
        (0, ev.EV_S_CRTM_VERSION, bytes(4)),
        (7, ev.EV_EFI_VARIABLE_DRIVER_CONFIG, variable("SecureBoot", b"\1")),
        *SEPARATORS,
    )
    assert accepted(learned(log), log)
    without = hand_made()
    twice = hand_made((0, ev.EV_SEPARATOR, bytes(4)))
    assert not accepted(learned(without), twice)


def test_data_that_its_digest_contradicts_is_kept_apart() -> None:
    log = hand_made((5, ev.EV_EFI_ACTION, b"Something odd", b"something else"))
    document = learned(log)
    assert document.events["5"][0].any_data
    assert accepted(document, log)


def test_pcrs_can_be_passed_over_and_nothing_is_learned_from_nothing() -> None:
    document = learn(vm("direct"), allow=[1])
    assert document.unknown_events == {"1": "allow"}
    assert "1" not in document.events
    with pytest.raises(SourceError):
        learn([])


def test_a_policy_in_use_grows_and_keeps_what_was_decided() -> None:
    old = hand_made(
        (4, ev.EV_EFI_BOOT_SERVICES_APPLICATION, image(b""), b"kernel 1"), (12, ev.EV_IPL, utf16("root=a v=1\0"))
    )
    new = hand_made(
        (4, ev.EV_EFI_BOOT_SERVICES_APPLICATION, image(b""), b"kernel 2"),
        (12, ev.EV_IPL, utf16("root=a v=2\0")),
        (1, ev.EV_EFI_HANDOFF_TABLES, bytes(8), b"tables"),
    )
    base = msgspec.structs.replace(
        learned(old), command_lines=[r"root=a v=\d"], unknown_events={"1": "allow"}, description="ours"
    )
    document = extended(base, learned(new))
    assert accepted(document, old)
    assert accepted(document, new)
    assert not accepted(base, new)
    assert len(document.boot_applications) == 2
    assert document.command_lines == base.command_lines
    assert "1" not in document.events
    assert (document.description, document.unknown_events) == ("ours", {"1": "allow"})
    assert extended(document, learned(new)) == document
    assert not accepted(extended(base, learned(new)), hand_made(on=False))


# --- differences ----------------------------------------------------------------------------------------------------


def known(what: str, letter: str) -> Known:
    return Known(what, sha256=letter * 64)


def test_differences_are_said_in_words() -> None:
    before = BootDocument(
        limeguard_boot_policy=1,
        variables=Variables(dbx=Signatures("at least", images=["aa" * 32])),
        sbat_level={"sbat": 2023012900},
        boot_applications=[known("shim 15.7 (shimx64.efi)", "a"), known("grub 2.06", "b")],
        initrds=[known("/initrd.img-6.1", "c")],
        command_lines=[r"root=LABEL=a\ quiet"],
        authorities=[Certificate("11" * 32, "CN=Old")],
    )
    after = BootDocument(
        limeguard_boot_policy=1,
        secure_boot="any",
        variables=Variables(dbx=Signatures("at least", images=["aa" * 32, "bb" * 32, "cc" * 32, "dd" * 32])),
        sbat_level={"sbat": 2024010900},
        boot_applications=[known("shim 15.8 (shimx64.efi)", "d"), known("grub 2.06", "b"), known("kernel 6.1", "e")],
        initrds=[known("/initrd.img-6.1", "f")],
        command_lines=[r"root=LABEL=a\ debug"],
        authorities=[Certificate("22" * 32, "CN=New")],
        unknown_events={"1": "allow"},
    )
    assert words(before, after) == [
        "Secure Boot: on -> any",
        "PCRs whose unknown events are passed over: none -> 1",
        "dbx gained 3 entries",
        "authority gone: CN=Old (sha256 111111111111…)",
        "new authority: CN=New (sha256 222222222222…)",
        "shim's revocation level: 2023012900 -> 2024010900",
        "boot application: shim 15.7 (shimx64.efi) -> shim 15.8 (shimx64.efi) (aaaaaaaaaaaa… -> dddddddddddd…)",
        "new boot application: kernel 6.1 (eeeeeeeeeeee…)",
        "initrd /initrd.img-6.1 changed: cccccccccccc… -> ffffffffffff…",
        "command line: lost quiet; gained debug",
    ]
    assert words(before, before) == []
    assert "dbx lost 3 entries" in words(after, before)


def test_a_database_that_is_compared_no_longer_is_said() -> None:
    bare = BootDocument(limeguard_boot_policy=1)
    with_db = BootDocument(limeguard_boot_policy=1, variables=Variables(db=Signatures("at most")))
    assert words(with_db, bare) == ["db is no longer compared"]
    exact = BootDocument(limeguard_boot_policy=1, variables=Variables(db=Signatures("exactly")))
    assert words(with_db, exact) == ["db is compared as 'exactly', was 'at most'"]


def test_a_bank_more_is_no_change() -> None:
    one = BootDocument(limeguard_boot_policy=1, mok=[known("MokList", "a")])
    two = BootDocument(limeguard_boot_policy=1, mok=[Known("MokList", sha256="a" * 64, sha384="b" * 96)])
    assert words(one, two) == []


@settings(deadline=None)
@given(data=st.data())
def test_no_change_of_a_list_goes_unsaid(data: st.DataObject) -> None:
    names = st.lists(st.sampled_from("abcdef"), unique=True)
    before, after = (
        BootDocument(
            limeguard_boot_policy=1,
            firmware=[known(data.draw(st.sampled_from(["x", "y y"])), one) for one in data.draw(names)],
        )
        for _ in range(2)
    )
    digests = [{one.sha256 for one in document.firmware} for document in (before, after)]
    found = list(changes(before, after))
    assert {one.before for one in found if one.before} == digests[0] - digests[1]
    assert {one.after for one in found if one.after} == digests[1] - digests[0]


# --- reference states -----------------------------------------------------------------------------------------------


def test_reference_states_are_those_of_keylime() -> None:
    upstream = shared_path("fixtures/upstream")
    paths = sorted((upstream / "mb-refstates").glob("from-*.json"))
    assert len(paths) == 15
    for path in paths:
        log = parse_boot_log((upstream / "event-logs" / f"{path.stem.removeprefix('from-')}.bin").read_bytes())
        made = reference_state(enriched(log), without_secure_boot=True)
        assert json.dumps(made) == json.dumps(json.loads(path.read_text()))


def test_a_log_without_secure_boot_needs_the_option() -> None:
    decoded = enriched(parse_boot_log((VM / "grub-off.bin").read_bytes()))
    with pytest.raises(SourceError, match="SecureBoot disabled, but -i flag was not set"):
        reference_state(decoded, without_secure_boot=False)
    assert reference_state(decoded, without_secure_boot=True)["has_secureboot"] is False


def test_a_log_without_events_or_without_a_state_is_refused() -> None:
    with pytest.raises(SourceError, match="No events"):
        reference_state({"events": []}, without_secure_boot=True)
    decoded = enriched(parse_boot_log(agile_log(*SEPARATORS)))
    assert "kernels" not in reference_state(decoded, without_secure_boot=True)
    with pytest.raises(SourceError, match="Cannot determine"):
        reference_state(decoded, without_secure_boot=True, strictness=Strictness(needs_secure_boot_state=True))


# --- names of files -------------------------------------------------------------------------------------------------

SBAT = b"sbat,1,SBAT Version,sbat,1,https://x\nshim,4,UEFI shim,shim,1,https://y\nshim.debian,1,Debian,shim,15.8,https://z\n"


def pe_image(body: bytes = b"code", sbat: bytes = SBAT, certificates: bytes = b"") -> bytes:
    """Return a small PE32+ image of two sections."""
    start, optional_size, count = 0x40, 240, 2
    headers = 0x400
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", start) + b"PE\0\0"
    head += struct.pack("<HHIIIHH", 0x8664, count, 0, 0, 0, optional_size, 0x2022)
    body, sbat = body.ljust(512, b"\0"), sbat.ljust(512, b"\0")
    optional = bytearray(optional_size)
    struct.pack_into("<H", optional, 0, 0x20B)
    struct.pack_into("<I", optional, 60, headers)
    struct.pack_into("<I", optional, 64, 0xDEADBEEF)
    struct.pack_into("<II", optional, 144, headers + 1024 if certificates else 0, len(certificates))
    sections = b"".join(
        struct.pack("<8sIIIIIIHHI", name, 512, 0, 512, at, 0, 0, 0, 0, 0)
        for name, at in ((b".sbat", headers + 512), (b".text", headers))
    )
    return (head + bytes(optional) + sections).ljust(headers, b"\0") + body + sbat + certificates


def digest_of(data: bytes) -> bytes:
    pieces = authenticode_pieces(data)
    assert pieces is not None
    return SHA256.digest(b"".join(pieces))


def test_a_signature_and_a_checksum_do_not_change_what_is_measured() -> None:
    plain, signed = pe_image(), pe_image(certificates=b"signature" * 10)
    resigned = bytearray(signed)
    resigned[-5] ^= 1
    resigned[0x40 + 24 + 64] ^= 1
    assert digest_of(plain) == digest_of(signed) == digest_of(bytes(resigned))
    assert digest_of(pe_image(b"other")) != digest_of(plain)


def test_files_are_named_with_their_version(tmp_path: Path) -> None:
    path = tmp_path / "shimx64.efi"
    path.write_bytes(pe_image())
    assert set(names_of(path).values()) == {"shim 15.8 (shimx64.efi)"}
    assert digest_of(pe_image()).hex() in names_of(path)
    path.write_bytes(b"not an image")
    assert names_of(path)[SHA256.digest(b"not an image").hex()] == "shimx64.efi"
    with pytest.raises(SourceError):
        names_of(tmp_path / "absent")


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, 1500))
def test_no_file_breaks_the_reader_of_images(data: bytes, cut: int) -> None:
    authenticode_pieces(data)
    authenticode_pieces(b"MZ" + data)
    authenticode_pieces(pe_image()[:cut])


def test_a_learned_policy_uses_the_names() -> None:
    logs = vm("grub-shim")
    digest = learn(logs).boot_applications[0].sha256
    assert isinstance(digest, str)
    assert learn(logs, names={digest: "shim 16.1"}).boot_applications[0].what == "shim 16.1"
    assert msgspec.json.decode(encode_boot_document(learn(logs)), type=BootDocument) == learn(logs)
