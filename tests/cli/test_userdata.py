"""`keylime_userdata_encrypt`: its two files, its messages, and files that only their owner reads."""

import base64
import stat
from pathlib import Path

import pytest

from limeguard.cli.userdata import main
from limeguard.crypto.keysplit import combine, decrypt_payload


def test_a_file_is_encrypted_and_its_key_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """# trust: secret."""
    source = tmp_path / "payload"
    source.write_bytes(b"hello\n")
    assert main([str(source)], folder=tmp_path) == 0
    assert (
        capsys.readouterr().out == "Writing keys to content_keys.txt\nWriting encrypted data to content_payload.txt\n"
    )
    key, v, u = (base64.b64decode(line) for line in (tmp_path / "content_keys.txt").read_text().splitlines())
    assert combine(u, v) == key
    assert len(key) == 32
    blob = base64.b64decode((tmp_path / "content_payload.txt").read_text(), validate=True)
    assert decrypt_payload(key, blob) == b"hello\n"
    for name in ("content_keys.txt", "content_payload.txt"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_the_published_payload_comes_out(tmp_path: Path) -> None:
    parts = iter((bytes(range(32)), b"\xaa" * 32, bytes(range(0x40, 0x50))))
    source = tmp_path / "payload"
    source.write_bytes(b"hello keylime\n")
    main([str(source)], folder=tmp_path, randomness=lambda _: next(parts))
    expected = "QEFCQ0RFRkdISUpLTE1OT13nerfzfzxu4GcKmPtmF3YKo3UpIxb3Ua5vWTkGlw=="
    assert (tmp_path / "content_payload.txt").read_text() == expected


def test_without_a_file_the_usage_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 255
    assert capsys.readouterr().out == "Please pass in a file input file to encrypt\n"
    assert main([str(tmp_path / "none")]) == 255
    assert capsys.readouterr().out.endswith(" not found.\nPlease pass in a file input file to encrypt\n")


def test_links_are_replaced_and_not_followed(tmp_path: Path) -> None:
    """# trust: no-ambient-files."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    work = tmp_path / "work"
    work.mkdir()
    (work / "content_keys.txt").symlink_to(victim)
    assert main([str(victim)], folder=work) == 0
    assert victim.read_text() == "mine"


def test_a_shared_directory_will_do(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    tmp_path.chmod(0o1777)
    assert main([str(tmp_path / "f")], folder=tmp_path) == 0
    tmp_path.chmod(0o777)
    assert main([str(tmp_path / "f")], folder=tmp_path) == 1
