"""What a payload may do: unpack within bounds below its folder, and run the operator's script there."""

import io
import os
import stat
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limeguard.agent import payload as module
from limeguard.agent.payload import (
    PayloadOptions,
    PayloadProcessor,
    PayloadRefused,
    unpack_zip,
)
from limeguard.agent.secure_store import SecureStore
from limeguard.agent.shares import Combined
from limeguard.crypto.keysplit import encrypt_payload

KEY = bytes(range(32))
OPTIONS = PayloadOptions(key_name="derived_tci_key", payload_name="decrypted_payload", unpack=True, script="autorun.sh")


def archive(*files: tuple[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as made:
        for name, content in files:
            made.writestr(name, content)
    return packed.getvalue()


def sealed(plain: bytes) -> Combined:
    return Combined(KEY, encrypt_payload(KEY, bytes(16), plain))


def processor(folder: Path, options: PayloadOptions = OPTIONS, *, usable: bool = True) -> PayloadProcessor:
    (folder / "secure").mkdir(exist_ok=True)
    return PayloadProcessor(SecureStore(folder / "secure", usable), options)


async def test_a_payload_is_unpacked_and_its_script_run_where_it_lies(tmp_path: Path) -> None:
    script = b"#!/bin/sh\npwd > where\necho done\n"
    await processor(tmp_path).process(sealed(archive(("autorun.sh", script), ("data/x", b"1"))))
    folder = tmp_path / "secure" / "unzipped"
    assert (folder / "where").read_text().strip() == str(folder)
    assert (folder / "derived_tci_key").read_bytes() == KEY
    assert (folder / "data" / "x").read_bytes() == b"1"


# trust: secret
async def test_everything_written_is_private(tmp_path: Path) -> None:
    os.umask(0o077)
    await processor(tmp_path).process(sealed(archive(("autorun.sh", b"true\n"), ("data/x", b"1"))))
    for path in (tmp_path / "secure" / "unzipped").rglob("*"):
        assert not path.stat().st_mode & 0o077, path


# trust: secret
async def test_without_memory_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(PayloadRefused, match="not a tmpfs"):
        await processor(tmp_path, usable=False).process(sealed(b"secret"))
    assert not list((tmp_path / "secure").iterdir())


async def test_a_payload_under_another_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PayloadRefused, match="decrypted"):
        await processor(tmp_path).process(Combined(bytes(32), encrypt_payload(KEY, bytes(16), b"plain")))
    with pytest.raises(PayloadRefused, match="decrypted"):
        await processor(tmp_path).process(Combined(KEY, b"short"))


async def test_a_key_without_payload_leaves_the_folder_alone(tmp_path: Path) -> None:
    await processor(tmp_path).process(Combined(KEY, None))
    assert not list((tmp_path / "secure").iterdir())


async def test_a_later_payload_starts_with_an_empty_folder(tmp_path: Path) -> None:
    worker = processor(tmp_path)
    await worker.process(sealed(archive(("old", b"1"))))
    await worker.process(sealed(archive(("new", b"2"))))
    assert {path.name for path in worker.folder.iterdir()} == {"new", "derived_tci_key", "decrypted_payload"}


async def test_what_is_no_zip_is_kept_and_ends_the_steps(tmp_path: Path) -> None:
    worker = processor(tmp_path)
    with pytest.raises(PayloadRefused, match="not a ZIP"):
        await worker.process(sealed(b"plain text"))
    assert (worker.folder / "decrypted_payload").read_bytes() == b"plain text"


async def test_unpacking_can_be_turned_off(tmp_path: Path) -> None:
    options = PayloadOptions(key_name="k", payload_name="p", unpack=False, script="")
    worker = processor(tmp_path, options)
    await worker.process(sealed(b"plain text"))
    assert (worker.folder / "p").read_bytes() == b"plain text"
    assert (worker.folder / "k").read_bytes() == KEY


async def test_a_failing_script_does_not_stop_the_steps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    worker = processor(tmp_path)
    await worker.process(sealed(archive(("autorun.sh", b"exit 3\n"), ("action_list", b"act"), ("act", b"true"))))
    assert "ended with status 3" in caplog.text
    assert (worker.folder / "act").stat().st_mode & stat.S_IXUSR


# trust: hygiene
async def test_a_script_name_with_shell_characters_is_one_word(tmp_path: Path) -> None:
    folder = tmp_path / "a b;touch pwned"
    folder.mkdir()
    worker = processor(folder)
    await worker.process(sealed(archive(("autorun.sh", b"#!/bin/sh\ntouch ran\n"))))
    assert (worker.folder / "ran").exists()
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("text", [b"one,two", b"one two", b"one\ntwo\n", b"one, two\n"])
async def test_actions_become_executable_however_they_are_separated(tmp_path: Path, text: bytes) -> None:
    worker = processor(tmp_path)
    await worker.process(sealed(archive(("action_list", text), ("one", b"true"), ("two", b"true"))))
    for name in ("one", "two"):
        assert (worker.folder / name).stat().st_mode & 0o777 == 0o700


async def test_an_action_that_leads_elsewhere_ends_the_steps(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("x")
    outside.chmod(0o600)
    worker = processor(tmp_path)
    with pytest.raises(PayloadRefused, match="action_list"):
        await worker.process(sealed(archive(("action_list", b"../../outside"))))
    assert outside.stat().st_mode & 0o777 == 0o600


def test_the_execute_bit_of_the_archive_is_kept(tmp_path: Path) -> None:
    entry = zipfile.ZipInfo("tool")
    entry.external_attr = (stat.S_IFREG | 0o755) << 16
    unpack_zip(archive((entry, b"#!/bin/sh\n"), ("plain", b"")), tmp_path)
    assert (tmp_path / "tool").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "plain").stat().st_mode & 0o777 == 0o600


# trust: no-ambient-files
@pytest.mark.parametrize("name", ["../up", "/etc/x", "a/../../up", "..", "a\\..\\b", "./"])
def test_an_entry_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "unzipped"
    folder.mkdir()
    with pytest.raises(PayloadRefused):
        unpack_zip(archive(("first", b"1"), (name, b"2")), folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["unzipped"]


# trust: no-ambient-files
def test_a_link_in_the_archive_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(PayloadRefused, match="other than plain files"):
        unpack_zip(archive((link, b"/etc/passwd")), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_entry_twice_is_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        double = archive(("a", b"1"), ("a", b"2"))
    with pytest.raises(PayloadRefused, match="twice"):
        unpack_zip(double, tmp_path)


# trust: bounded
def test_a_bomb_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    bomb = archive(("zeros", bytes(32 * 1024 * 1024)), compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 64 * 1024
    with pytest.raises(PayloadRefused, match="more than is allowed"):
        unpack_zip(bomb, tmp_path)
    assert not list(tmp_path.iterdir())


# trust: bounded
def test_too_many_entries_or_too_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PayloadRefused, match="entries"):
        unpack_zip(archive(*((f"f{number}", b"") for number in range(1025))), tmp_path)
    monkeypatch.setattr(module, "MAX_UNPACKED", 10)
    with pytest.raises(PayloadRefused, match="more than is allowed"):
        unpack_zip(archive(("a", b"x" * 11)), tmp_path)


# trust: bounded
def test_an_archive_that_lies_about_its_sizes_is_refused(tmp_path: Path) -> None:
    honest = archive(("zeros", bytes(100_000)), compression=zipfile.ZIP_DEFLATED)
    size = (100_000).to_bytes(4, "little")
    assert honest.count(size) == 2
    with pytest.raises(PayloadRefused):
        unpack_zip(honest.replace(size, (10).to_bytes(4, "little")), tmp_path)


# trust: safe-parsing
@given(data=st.binary(max_size=400), flips=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=6))
def test_any_bytes_unpack_or_are_refused(
    data: bytes, flips: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("zip")
    with pytest.raises(PayloadRefused):
        unpack_zip(data, folder)
    spoilt = bytearray(archive(("a", b"content of a"), ("b/c", b"more"), compression=zipfile.ZIP_DEFLATED))
    for place, value in flips:
        spoilt[place % len(spoilt)] = value
    try:
        unpack_zip(bytes(spoilt), folder)
    except PayloadRefused:
        pass
    except OSError:
        pass  # a name the file system cannot take
    assert all(folder in path.parents for path in folder.rglob("*"))


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "/etc/passwd", "x" * 300])
def test_configured_names_must_be_plain(bad: str) -> None:
    assert OPTIONS.bad_name is None
    assert PayloadOptions(key_name=bad, payload_name="p", unpack=True, script="").bad_name == bad
