"""Digests of the files in initial RAM disks."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import lz4.block
import lz4.frame
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.shared import shared_path

from limeguard.authoring.policy.collected import SourceError
from limeguard.authoring.policy.initrd import archive_digests, collect, image_digests, unpacked

Pack = Callable[[bytes], bytes]


def entry(name: bytes, data: bytes = b"", mode: int = 0o100644) -> bytes:
    values = [1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
    head = b"070701" + b"".join(f"{value:08x}".encode() for value in values) + name + b"\0"
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)


def archive(*entries: bytes) -> bytes:
    return b"".join(entries) + entry(b"TRAILER!!!", mode=0)


MAIN = archive(
    entry(b"bin", mode=0o040755),
    entry(b"./bin/a b", b"tool"),
    entry(b"/init", b"x" * 70_000),
    entry(b"link", b"init", mode=0o120777),
)
FILES = {"/bin/a_b": hashlib.sha256(b"tool").hexdigest(), "/init": hashlib.sha256(b"x" * 70_000).hexdigest()}
EARLY = archive(entry(b"kernel/x86/microcode/GenuineIntel.bin", b"micro")) + b"\0" * 300


def legacy(data: bytes) -> bytes:
    packed: bytes = lz4.block.compress(data, store_size=False)
    return b"\x02\x21\x4c\x18" + len(packed).to_bytes(4, "little") + packed


PACKERS: dict[str, Pack] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "zstd": zstandard.ZstdCompressor().compress,
    "lz4": lz4.frame.compress,
    "lz4-legacy": legacy,
}


@pytest.mark.parametrize("early", [b"", EARLY], ids=["alone", "behind-microcode"])
@pytest.mark.parametrize("kind", PACKERS)
def test_each_format_gives_the_files_of_the_main_archive(kind: str, early: bytes) -> None:
    assert dict(image_digests(early + PACKERS[kind](MAIN), "sha256")) == FILES


def test_the_images_of_the_reference_give_its_digests() -> None:
    root = shared_path("fixtures/upstream")
    expected = json.loads((root / "expected.json").read_text())["initrds"]
    assert collect(str(root / "initrds"), "sha256") == expected["digests"]
    for name in expected["files"]:
        found = {path: [digest] for path, digest in image_digests((root / "initrds" / name).read_bytes(), "sha256")}
        assert found == expected["digests"], name


@pytest.mark.parametrize("damage", [MAIN[:-200], b"nothing of the kind", gzip.compress(MAIN)[:-30], b"\x89LZO\0\r\n"])
def test_a_damaged_image_is_one_sentence(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "initrd.img").write_bytes(damage)
    with pytest.raises(SourceError, match=r"initrd\.img cannot be read"):
        collect(str(tmp_path), "sha256")


def test_a_folder_that_is_not_there_is_refused() -> None:
    with pytest.raises(SourceError, match="cannot be listed"):
        collect("/nonexistent", "sha256")


@given(st.binary(max_size=300), st.integers(0, 600))
def test_noise_ends_in_an_error_or_in_files(noise: bytes, place: int) -> None:
    # trust: bounded
    changed = MAIN[:place] + noise + MAIN[place + len(noise) :]
    try:
        for name, _ in archive_digests(unpacked(io.BytesIO(b"070701" + changed[6:])), "sha256"):
            assert name.startswith("/")
    except (ValueError, EOFError):
        return
