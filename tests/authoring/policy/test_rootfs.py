"""Digests of a root file system."""

import hashlib
import os
from pathlib import Path

import pytest

from limeguard.authoring.policy import rootfs
from limeguard.authoring.policy.collected import SourceError

ME = os.getuid()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("usr/bin/a", "usr/bin/with blank", "etc/b", "var/log/c", "opt/skip/d", "tmp/e"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "usr/bin/link").symlink_to("a")
    os.mkfifo(tmp_path / "usr/pipe")
    return tmp_path


def test_regular_files_are_hashed_under_the_names_that_the_kernel_logs(tree: Path) -> None:
    found = rootfs.scan(str(tree), "sha256", workers=2, owner=ME)
    assert set(found) == {"/usr/bin/a", "/usr/bin/with_blank", "/etc/b", "/opt/skip/d"}
    assert found["/usr/bin/with_blank"] == [hashlib.sha256(b"usr/bin/with blank").hexdigest()]


def test_named_directories_are_left_out(tree: Path) -> None:
    found = rootfs.scan(str(tree), "sha1", skip=[str(tree / "opt/skip"), "/elsewhere"], workers=1, owner=ME)
    assert "/opt/skip/d" not in found
    assert found["/etc/b"] == [hashlib.sha1(b"etc/b").hexdigest()]  # noqa: S324


def test_leaving_the_root_out_leaves_nothing(tree: Path) -> None:
    assert rootfs.scan(str(tree), "sha256", skip=[str(tree)], workers=1, owner=ME) == {}


def test_files_of_other_owners_are_left_out(tree: Path) -> None:
    assert rootfs.scan(str(tree), "sha256", workers=1, owner=ME + 1) == {}


def test_progress_is_told_and_many_files_keep_their_order(tmp_path: Path) -> None:
    for number in range(1_000):
        (tmp_path / f"f{number:04}").write_text(str(number))
    heard: list[int] = []
    found = rootfs.scan(str(tmp_path), "sha256", workers=2, owner=ME, progress=heard.append)
    assert list(found) == [f"/f{number:04}" for number in range(1_000)]
    assert heard == sorted(heard)
    assert heard[-1] == 1_000


def test_what_is_no_directory_is_refused() -> None:
    with pytest.raises(SourceError, match="is not a directory"):
        rootfs.scan("/nonexistent", "sha256")
