"""The secure folder: memory or nothing, and no link in its place."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from limeguard.agent.secure_store import SecureMountError, mounted_type, prepare_secure_store

NOBODY = 65534


def may_mount() -> bool:
    """Whether this process may mount: root in a container often may not."""
    if os.geteuid() != 0:
        return False
    probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return probe.returncode == 0


needs_mount = pytest.mark.skipif(not may_mount(), reason="needs root that may mount")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    while os.path.ismount(tmp_path / "secure"):
        subprocess.run(["umount", str(tmp_path / "secure")], check=True)


MOUNTINFO = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:39 / /var/lib/keylime/secure rw,relatime - tmpfs tmpfs rw,size=1024k,mode=700
41 22 0:40 / /a\\040b rw - ramfs none rw
42 22 0:41 / /twice rw shared:7 master:3 - tmpfs tmpfs rw
43 22 8:2 / /twice rw - ext4 /dev/sdb1 rw
"""


def test_the_file_system_at_a_path_is_read_from_mountinfo() -> None:
    assert mounted_type(MOUNTINFO, Path("/var/lib/keylime/secure")) == "tmpfs"
    assert mounted_type(MOUNTINFO, Path("/var/lib/keylime")) is None
    assert mounted_type(MOUNTINFO, Path("/a b")) == "ramfs"
    assert mounted_type(MOUNTINFO, Path("/twice")) == "ext4"
    assert mounted_type("garbage\n\n - \n", Path("/")) is None


@needs_mount
def test_a_tmpfs_is_mounted_once_and_handed_over(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    store = prepare_secure_store(folder, "256k", (NOBODY, NOBODY))
    assert store.usable
    found = store.path.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (NOBODY, NOBODY, 0o700)
    assert os.statvfs(store.path).f_blocks * os.statvfs(store.path).f_frsize == 256 * 1024
    assert f'Directory "{folder}/secure" created.' in caplog.text
    assert prepare_secure_store(folder, "256k", None) == store
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    assert sum(f" {folder}/secure " in line for line in lines) == 1


@needs_mount
def test_another_file_system_is_an_error_with_the_known_text(folder: Path) -> None:
    (folder / "secure").mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", str(folder / "secure")], check=True)
    known = (
        f"Secure mount error: Secure storage location {folder}/secure already mounted on wrong file system type: ramfs"
    )
    with pytest.raises(SecureMountError) as problem:
        prepare_secure_store(folder, "1m", None)
    assert str(problem.value).startswith(known)


# trust: no-ambient-files
@needs_mount
def test_a_link_in_its_place_is_not_mounted_over(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "secure").symlink_to(folder / "elsewhere")
    with pytest.raises(SecureMountError, match="link"):
        prepare_secure_store(folder, "1m", None)
    assert not os.path.ismount(folder / "elsewhere")


# trust: secret
def test_without_root_there_is_no_store_and_a_sentence_that_helps(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    store = prepare_secure_store(folder, "1m", None)
    assert not store.usable
    assert f"mount -t tmpfs -o size=1m,mode=0700,uid=1000 tmpfs {folder}/secure" in caplog.text


# trust: secret
def test_a_mount_that_fails_leaves_no_store(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(folder))
    assert not prepare_secure_store(folder, "1m", None).usable
    assert "payloads will be refused" in caplog.text


# trust: hygiene
@pytest.mark.parametrize("size", ["", "1m,exec", "-1", "1 m", "1mm", "m"])
def test_a_size_that_is_none_is_refused(folder: Path, size: str) -> None:
    with pytest.raises(SecureMountError, match="secure_size"):
        prepare_secure_store(folder, size, None)
