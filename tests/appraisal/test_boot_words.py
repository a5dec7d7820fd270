"""What sentences say of events and certificates, whatever a node puts into them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.boot_logs import agile_log, device_path, file_node, image, quoted, samples, variable
from tests.fakes.vectors import FOLDER

from limeguard.appraisal.boot_facts import configured, entries, sbat_level
from limeguard.appraisal.boot_words import MAX_WORDS, certificate_words, image_words, named, says_what, words
from limeguard.evidence.bootlog import event_types as ev
from limeguard.evidence.bootlog.layouts import Variable, split_variable
from limeguard.evidence.bootlog.log import parse_boot_log
from limeguard.evidence.bootlog.replay import ReplayedBootLog, prove


def certificates() -> list[bytes]:
    data = (FOLDER / "bootlog" / "vm" / "grub-shim.bin").read_bytes()
    replayed = prove(parse_boot_log(data), quoted(data))
    assert isinstance(replayed, ReplayedBootLog)
    found = [configured(event) for event in replayed.events]
    held = [one for pair in found if pair for one in entries(pair[1].content) or ()]
    return [one.certificate for one in held if one.certificate]


CERTIFICATES = certificates()


def test_certificates_are_named_by_their_subject() -> None:
    assert any("CN=Microsoft Corporation UEFI CA 2011" in certificate_words(one) for one in CERTIFICATES)
    assert certificate_words(b"no certificate") == ""


@settings(deadline=None)
@given(
    st.sampled_from(CERTIFICATES), st.lists(st.tuples(st.integers(0, 299), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_no_certificate_breaks_a_sentence(der: bytes, changes: list[tuple[int, int]]) -> None:
    # trust: fail-closed
    changed = bytearray(der)
    for at, value in changes:
        changed[at] = value
    assert len(certificate_words(bytes(changed))) <= MAX_WORDS


def test_a_certificate_of_an_unknown_version_breaks_no_sentence() -> None:
    # trust: fail-closed
    der = CERTIFICATES[0]
    at = der.index(b"\xa0\x03\x02\x01\x02") + 4
    assert certificate_words(der[:at] + b"\x07" + der[at + 1 :]) == ""


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("HD(1)/File(\\EFI\\debian\\shimx64.efi)", "shim \\EFI\\debian\\shimx64.efi"),
        ("File(\\EFI\\systemd\\systemd-bootx64.efi)", "systemd-boot \\EFI\\systemd\\systemd-bootx64.efi"),
        ("File(\\a.efi)", "\\a.efi"),
        ("FvVol(x)/FvFile(y)", "FvVol(x)/FvFile(y)"),
        ("", "from memory"),
    ],
)
def test_images_are_named_by_role_and_file(path: str, said: str) -> None:
    assert image_words(path) == said


def test_words_are_safe_and_short() -> None:
    # trust: hygiene
    assert words("a\x1b[2Jb\nc\u202ed") == "a [2Jb c d"
    assert len(words("x" * 1000)) == MAX_WORDS


def test_an_event_is_named_by_number_pcr_type_and_what_it_says() -> None:
    data = agile_log(
        (4, ev.EV_EFI_BOOT_SERVICES_APPLICATION, image(device_path(file_node("\\EFI\\grubx64.efi"))), b"grub"),
        (7, ev.EV_EFI_VARIABLE_DRIVER_CONFIG, variable("SecureBoot", b"\1")),
        (6, 0x12345, b""),
    )
    said = [named(event) for event in parse_boot_log(data).events[1:]]
    assert said == [
        "event 1 (PCR 4, EV_EFI_BOOT_SERVICES_APPLICATION, GRUB \\EFI\\grubx64.efi)",
        "event 2 (PCR 7, EV_EFI_VARIABLE_DRIVER_CONFIG, SecureBoot: on)",
        "event 3 (PCR 6, Unknown event type 0x12345)",
    ]


def test_every_kind_of_event_can_be_named() -> None:
    for data in samples().values():
        for event in parse_boot_log(data).events:
            assert len(says_what(event)) <= MAX_WORDS


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_a_revocation_level_is_read_from_any_bytes(content: bytes) -> None:
    # trust: fail-closed
    variable_of = split_variable(variable("SbatLevel", content, bytes.fromhex("50ab5d6046e00043abb63dd810dd8b23")))
    assert isinstance(variable_of, Variable)
    level = sbat_level("SbatLevel", variable_of)
    assert level is not None
    assert all(number >= 0 for number in level.values())


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_a_database_is_read_to_its_end_or_not_at_all(content: bytes) -> None:
    # trust: fail-closed
    found = entries(content)
    assert found is None or content or found == ()
