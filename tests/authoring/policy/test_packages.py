"""Digests of files from RPM repositories and Debian packages."""

import hashlib
import io
import json
import lzma
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.shared import shared_path

from limeguard.authoring.policy import deb, rpm
from limeguard.authoring.policy.collected import SourceError

REPOSITORIES = ("signed-rsa", "unsigned", "unsupported-compression", "filelist-ext-manual")


@pytest.mark.parametrize("name", REPOSITORIES)
def test_repositories_of_the_reference_give_its_digests(name: str) -> None:
    if name == "signed-rsa" and shutil.which("gpgv") is None:
        pytest.skip("needs gpgv")
    root = shared_path("fixtures/upstream")
    expected = json.loads((root / "expected.json").read_text())["rpm_repos"][name]["local"]
    assert rpm.local_repository(str(root / "rpm-repos" / name)) == expected["digests"]


def test_a_signature_that_is_not_the_key_s_is_refused(tmp_path: Path) -> None:
    # trust: fail-closed
    if shutil.which("gpgv") is None:
        pytest.skip("needs gpgv")
    source = shared_path("fixtures/upstream/rpm-repos/signed-rsa")
    shutil.copytree(source, tmp_path / "repo")
    repomd = tmp_path / "repo/repodata/repomd.xml"
    repomd.write_text(repomd.read_text() + "<!-- -->")
    with pytest.raises(SourceError, match="Invalid signature"):
        rpm.local_repository(str(tmp_path / "repo"))
    (tmp_path / "repo/repodata/repomd.xml.key").unlink()
    with pytest.raises(SourceError, match="missing"):
        rpm.local_repository(str(tmp_path / "repo"))
    with pytest.raises(SourceError, match="no RPM repository"):
        rpm.local_repository(str(tmp_path))


@given(st.integers(0, 6_000), st.binary(min_size=1, max_size=12))
@settings(max_examples=200, deadline=None)
def test_a_damaged_package_is_refused_or_read(place: int, noise: bytes) -> None:
    # trust: bounded
    package = shared_path("fixtures/upstream/rpm-repos/unsigned/DUMMY-foo-42.0.0-el42.noarch.rpm").read_bytes()
    try:
        list(rpm.package_digests(package[:place] + noise + package[place + len(noise) :]))
        list(rpm.package_digests(package[:place]))
    except ValueError:
        return


def ar(*members: tuple[bytes, bytes]) -> bytes:
    out = b"!<arch>\n"
    for name, data in members:
        out += (
            b"%-16b%-12d%-6d%-6d%-8b%-10d`\n" % (name, 0, 0, 0, b"100644", len(data)) + data + b"\n" * (len(data) % 2)
        )
    return out


def data_tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in (("./usr/bin/tool", b"tool"), ("./usr/share/a b", b"x" * 3_000_000)):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("./usr/bin/link")
        link.type, link.linkname = tarfile.SYMTYPE, "tool"
        archive.addfile(link)
    return out.getvalue()


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [(b"", bytes), (b".xz", lzma.compress), (b".zst", zstandard.ZstdCompressor().compress)],
    ids=["plain", "xz", "zstd"],
)
def test_files_of_debian_packages_are_hashed(tmp_path: Path, suffix: bytes, pack: Callable[[bytes], bytes]) -> None:
    package = ar((b"debian-binary", b"2.0\n"), (b"control.tar", b"odd"), (b"data.tar" + suffix, pack(data_tar())))
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool/tool_1_all.deb").write_bytes(package)
    assert deb.packages(str(tmp_path), "sha256") == {
        "/usr/bin/tool": [hashlib.sha256(b"tool").hexdigest()],
        "/usr/share/a_b": [hashlib.sha256(b"x" * 3_000_000).hexdigest()],
    }


@pytest.mark.parametrize(
    "package", [b"", b"!<arch>\n", ar((b"data.tar.xz", b"no")), ar((b"data.tar", b"x" * 600))[:400]]
)
def test_a_damaged_debian_package_is_one_sentence(tmp_path: Path, package: bytes) -> None:
    (tmp_path / "a.deb").write_bytes(package)
    with pytest.raises(SourceError, match=r"a\.deb cannot be read"):
        deb.packages(str(tmp_path), "sha256")
