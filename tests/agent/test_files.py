"""Files are whole or absent, private, and no link of another user is followed."""

import os
from pathlib import Path

import pytest

from limeguard.agent.files import UnsafeFile, open_own_folder, read_file, write_private

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make files of another user")
STRANGER = 65534


# trust: secret
def test_a_written_file_is_private_whatever_stood_there(tmp_path: Path) -> None:
    target = tmp_path / "key.pem"
    target.write_text("old")
    target.chmod(0o644)
    write_private(target, b"new")
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key.pem"]


# trust: no-ambient-files
def test_a_link_is_replaced_and_what_it_named_stays(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    link = tmp_path / "key.pem"
    link.symlink_to(victim)
    write_private(link, b"new")
    assert victim.read_text() == "precious"
    assert not link.is_symlink()
    assert link.read_bytes() == b"new"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "key.pem"
    target.write_text("old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_private(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["key.pem"]
    assert target.read_text() == "old"


def test_an_absent_file_is_none(tmp_path: Path) -> None:
    assert read_file(tmp_path / "none", limit=10) is None
    assert read_file(tmp_path / "nowhere" / "none", limit=10) is None


# trust: bounded
def test_a_file_beyond_its_bound_is_refused(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 11)
    with pytest.raises(UnsafeFile, match="larger"):
        read_file(tmp_path / "big", limit=10)


# trust: bounded
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnsafeFile, match="regular"):
        read_file(tmp_path / "pipe", limit=10)
    with pytest.raises(UnsafeFile, match="regular"):
        read_file(tmp_path, limit=10)


# trust: secret
def test_a_secret_that_others_may_read_is_closed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "key.pem").write_text("secret")
    (tmp_path / "key.pem").chmod(0o644)
    assert read_file(tmp_path / "key.pem", limit=100, secret=True) == b"secret"
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    assert "readable by others" in caplog.text


# trust: no-ambient-files
@needs_root
def test_a_link_in_a_strangers_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "shadow").write_text("root's own")
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "server-cert.crt").symlink_to(tmp_path / "shadow")
    assert read_file(folder / "server-cert.crt", limit=100) == b"root's own"
    os.chown(folder, STRANGER, STRANGER)
    with pytest.raises(UnsafeFile, match="link"):
        read_file(folder / "server-cert.crt", limit=100)


# trust: no-ambient-files
def test_a_link_in_a_folder_open_to_all_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "shadow").write_text("ours")
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o1777)
    (folder / "data").symlink_to(tmp_path / "shadow")
    with pytest.raises(UnsafeFile, match="link"):
        read_file(folder / "data", limit=100)


# trust: no-ambient-files
def test_a_folder_is_opened_itself_and_not_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.close(open_own_folder(tmp_path / "real"))
    with pytest.raises(UnsafeFile):
        open_own_folder(tmp_path / "link")
    with pytest.raises(FileNotFoundError):
        open_own_folder(tmp_path / "none")
