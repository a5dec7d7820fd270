"""Payloads, keys and packages: what is delivered opens with the two halves together and with nothing else."""

import base64
import io
import os
import zipfile
from pathlib import Path

import pytest

from limeguard.crypto import keysplit
from limeguard.tenant.errors import TenantError
from limeguard.tenant.payload import (
    NOTHING,
    CertificatePackage,
    Delivery,
    check_size,
    from_file,
    from_keys,
    from_package,
    included_files,
)

LIMIT = 1048576


def opened(delivery: Delivery) -> bytes:
    assert delivery.v is not None
    assert delivery.payload is not None
    return keysplit.decrypt_payload(keysplit.combine(delivery.u, delivery.v), delivery.payload)


def test_a_file_opens_with_both_halves(tmp_path: Path) -> None:
    path = tmp_path / "payload"
    path.write_bytes(b"top secret")
    delivery = from_file(path, os.urandom, LIMIT)
    assert opened(delivery) == b"top secret"
    assert delivery.key not in (delivery.u, delivery.v)


def test_each_delivery_has_a_fresh_key(tmp_path: Path) -> None:
    path = tmp_path / "payload"
    path.write_bytes(b"x")
    assert len({from_file(path, os.urandom, LIMIT).key for _ in range(20)}) == 20


# trust: secret
def test_no_delivery_shows_its_secrets_when_printed(tmp_path: Path) -> None:
    path = tmp_path / "payload"
    path.write_bytes(b"top secret")
    delivery = from_file(path, os.urandom, LIMIT)
    shown = repr(delivery)
    for secret in (delivery.key, delivery.u, delivery.v or b""):
        assert repr(secret)[2:-1] not in shown
        assert base64.b64encode(secret).decode() not in shown
    package = CertificatePackage({}, 1, "CN=x", "-----BEGIN PRIVATE KEY-----", b"cert")
    assert "PRIVATE" not in repr(package)


def test_a_payload_that_no_agent_would_take_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "payload"
    path.write_bytes(b"x" * 1000)
    with pytest.raises(TenantError, match=r"Payload size 1376 exceeds max size 1000"):
        from_file(path, os.urandom, 1000)
    with pytest.raises(TenantError, match=r"Payload size exceeds max size 999"):
        from_file(path, os.urandom, 999)


def test_nothing_delivers_nothing() -> None:
    check_size(NOTHING, 0)
    assert not NOTHING.has_key
    assert NOTHING.v is None


def write_keys(folder: Path, key: bytes, u: bytes, v: bytes) -> Path:
    path = folder / "content_keys.txt"
    path.write_text("".join(f"{base64.b64encode(part).decode()}\n" for part in (key, v, u)))
    return path


def test_keys_and_payload_of_the_encrypt_tool_are_taken_as_they_are(tmp_path: Path) -> None:
    key, v = os.urandom(32), os.urandom(32)
    keys = write_keys(tmp_path, key, keysplit.split(key, v), v)
    payload = tmp_path / "content_payload.txt"
    payload.write_bytes(base64.b64encode(keysplit.encrypt_payload(key, os.urandom(16), b"hello")))
    delivery = from_keys(keys, payload, LIMIT)
    assert opened(delivery) == b"hello"


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "has 0 lines"),
        (b"AA==\nAA==\n", "has 2 lines"),
        (b"!!\n!!\n!!\n", "not base64"),
        (b"AAAA\nAAAA\nAAAA\n", "keys have 3, 3 and 3 bytes"),
        (base64.b64encode(bytes(32)) + b"\n" + 2 * (base64.b64encode(b"\1" * 16) + b"\n"), "32, 16 and 16"),
        (base64.b64encode(b"\2" * 32) + b"\n" + 2 * (base64.b64encode(b"\1" * 32) + b"\n"), "not the halves"),
        (b"A" * 5000, "exceeds max size"),
    ],
)
def test_broken_key_files_are_refused(tmp_path: Path, content: bytes, fragment: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(TenantError, match=fragment):
        from_keys(path, None, LIMIT)


def test_a_payload_under_another_key_is_refused_before_delivery(tmp_path: Path) -> None:
    key, v = os.urandom(32), os.urandom(32)
    keys = write_keys(tmp_path, key, keysplit.split(key, v), v)
    payload = tmp_path / "payload"
    payload.write_bytes(base64.b64encode(keysplit.encrypt_payload(os.urandom(32), os.urandom(16), b"hello")))
    with pytest.raises(TenantError, match="not encrypted with the given key"):
        from_keys(keys, payload, LIMIT)


PACKAGE = CertificatePackage(
    files={"n1-cert.crt": b"cert", "n1-private.pem": b"key", "cacert.crt": b"ca"},
    serial=7,
    subject="CN=n1",
    revocation_key="PEM",
    notifier_certificate=b"notifier",
)


def test_a_package_is_a_stored_zip_with_everything_in_it() -> None:
    delivery = from_package(PACKAGE, {"autorun.sh": b"#!/bin/sh"}, os.urandom)
    archive = zipfile.ZipFile(io.BytesIO(opened(delivery)))
    assert set(archive.namelist()) == {
        "n1-cert.crt",
        "n1-private.pem",
        "cacert.crt",
        "RevocationNotifier-cert.crt",
        "autorun.sh",
    }
    assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
    assert {member.external_attr >> 16 & 0o777 for member in archive.infolist()} == {0o600}
    assert delivery.metadata == '{"cert_serial": 7, "subject": "CN=n1"}'
    assert delivery.revocation_key == "PEM"


def test_an_included_file_cannot_take_the_place_of_a_certificate() -> None:
    with pytest.raises(TenantError, match=r"cacert\.crt has the name"):
        from_package(PACKAGE, {"cacert.crt": b"evil"}, os.urandom)


def test_only_files_directly_in_the_folder_are_included(tmp_path: Path) -> None:
    (tmp_path / "autorun.sh").write_bytes(b"a")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_bytes(b"b")
    assert included_files(tmp_path, LIMIT) == {"autorun.sh": b"a"}


# trust: bounded
def test_the_sum_of_included_files_is_bounded(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(b"x" * 400)
    with pytest.raises(TenantError, match="exceeds max size"):
        included_files(tmp_path, 1000)


def test_a_missing_folder_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TenantError, match="is no directory"):
        included_files(tmp_path / "none", LIMIT)
    with pytest.raises(TenantError, match="cannot be read"):
        from_file(tmp_path / "none", os.urandom, LIMIT)
