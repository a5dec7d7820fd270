"""The directory that a server makes for itself: what is made, what is kept, and what is refused."""

import logging
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from limeguard.authoring.ca import CaError
from limeguard.authoring.settings import CaSettings
from limeguard.authoring.tls_dir import generate_tls_dir, require_tls_dir, server_names
from limeguard.registrar.settings import RegistrarSettings
from limeguard.verifier.settings import VerifierSettings
from limeguard.web.tls import client_context, server_context


def test_everything_is_made_once_and_then_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """# trust: secret."""
    caplog.set_level(logging.INFO)
    files = VerifierSettings(work_dir=tmp_path, server_key_password="hunter2").tls_files
    generate_tls_dir(files, CaSettings(password="x"), ("localhost", "127.0.0.1", "verifier.example"))
    made = {path.name: path.read_bytes() for path in files.directory.iterdir()}
    own = {f"{name}-{kind}" for name in ("server", "client") for kind in ("cert.crt", "public.pem", "private.pem")}
    assert set(made) == own | {"cacert.crt", "ca-public.pem", "cacrl.der", "cacrl.pem", "private.yml"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files.directory.iterdir()} == {0o640}
    assert b"ENCRYPTED" in made["server-private.pem"]
    assert b"ENCRYPTED" not in made["client-private.pem"]
    assert caplog.messages == [
        f"Generating new CA, keys, and certificates in {tmp_path}/cv_ca",
        f"use keylime_ca -d {tmp_path}/cv_ca to manage this CA",
    ]
    caplog.clear()
    generate_tls_dir(files, CaSettings(), ())
    assert {path.name: path.read_bytes() for path in files.directory.iterdir()} == made
    assert f"Existing CA certificate found in {tmp_path}/cv_ca, not generating a new one" in caplog.messages
    _contexts_work(files.directory)
    _half_a_pair_is_refused(tmp_path, files.directory)


def _contexts_work(directory: Path) -> None:
    ca = [directory / "cacert.crt"]
    key = directory / "server-private.pem"
    server = server_context(directory / "server-cert.crt", key, "hunter2", ca, require_client=False)
    client = client_context(directory / "client-cert.crt", directory / "client-private.pem", "", ca, system_store=True)
    assert server.verify_mode is ssl.CERT_OPTIONAL
    assert client.verify_mode is ssl.CERT_REQUIRED
    certificate = x509.load_pem_x509_certificate((directory / "server-cert.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["localhost", "127.0.0.1", "verifier.example"]


def _half_a_pair_is_refused(work_dir: Path, directory: Path) -> None:
    (directory / "client-cert.crt").unlink()
    with pytest.raises(CaError, match="is there without"):
        generate_tls_dir(VerifierSettings(work_dir=work_dir).tls_files, CaSettings(password="x"), ())


def test_the_word_default_as_password_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """# trust: default-safe."""
    (tmp_path / "reg_ca").mkdir()
    (tmp_path / "reg_ca/cacert.crt").write_text("operator's own")
    for name in ("server-private.pem", "server-cert.crt"):
        (tmp_path / "reg_ca" / name).write_text("operator's own")
    generate_tls_dir(RegistrarSettings(work_dir=tmp_path, tls_dir="generate").tls_files, CaSettings(), ())
    assert "has the password 'default'" in caplog.text


def test_a_directory_that_must_be_there_is_asked_for(tmp_path: Path) -> None:
    files = RegistrarSettings(work_dir=tmp_path).tls_files
    with pytest.raises(CaError, match="start the verifier first"):
        require_tls_dir(files)
    files.directory.mkdir()
    require_tls_dir(files)


def test_a_server_is_known_by_its_names_and_the_address_it_binds() -> None:
    names = server_names("10.1.2.3", ("extra.example", "10.0.0.9", "localhost"))
    assert names[0] == "localhost"
    assert {"127.0.0.1", "::1", "10.1.2.3", "extra.example", "10.0.0.9"} <= set(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_any_address_is_no_name(address: str) -> None:
    assert address not in server_names(address, ())


@given(st.text(max_size=20))
def test_any_bind_address_is_taken_or_left(address: str) -> None:
    assert all(name.isascii() for name in server_names(address, ()))
