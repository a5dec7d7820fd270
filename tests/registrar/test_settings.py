"""The registrar's options as Keylime's files and variables set them."""

from pathlib import Path

import pytest

from limeguard.registrar.settings import RegistrarSettings, load_registrar_settings
from limeguard.settings import SettingsError, Sources

SHIPPED = """[registrar]
version = 2.6
ip = 127.0.0.1
port = 8890
tls_port = 8891
tls_dir = default
server_key = default
server_key_password =
server_cert = default
cert_subject_alternative_names =
trusted_client_ca = default
authorization_provider = simple
database_url = sqlite
database_pool_sz_ovfl = 5,10
auto_migrate_db = True
max_workers = 16
durable_attestation_import =
persistent_store_url =
transparency_log_url =
time_stamp_authority_url =
time_stamp_authority_certs_path =
persistent_store_format = json
persistent_store_encoding =
transparency_log_sign_algo = sha256
signed_attributes = ek_tpm,aik_tpm,ekcert
tpm_identity = default
malformed_cert_action = warn
"""


def sources(tmp_path: Path, text: str) -> Sources:
    path = tmp_path / "registrar.conf"
    path.write_text(text)
    return Sources({"KEYLIME_REGISTRAR_CONFIG": str(path), "KEYLIME_DIR": str(tmp_path)}, ())


def test_every_shipped_option_is_known_and_its_default_is_ours(tmp_path: Path) -> None:
    loaded = load_registrar_settings(sources(tmp_path, SHIPPED))
    assert not loaded.warnings
    assert loaded.settings == RegistrarSettings(work_dir=tmp_path)
    assert loaded.settings.database == f"sqlite:///{tmp_path}/reg_data.sqlite"


def test_another_tpm_under_a_known_id_is_refused_by_default() -> None:
    """# trust: bound-identity."""
    assert not RegistrarSettings().allow_reregistration_with_new_tpm


def test_letting_another_tpm_in_is_warned_of(tmp_path: Path) -> None:
    loaded = load_registrar_settings(sources(tmp_path, "[registrar]\nallow_reregistration_with_new_tpm = yes\n"))
    assert "take over the id" in str(loaded.warnings[0])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("tls_port = 8890", "two different ports"),
        ("tpm_identity = iak_idevid", "not supported by this version"),
        ("durable_attestation_import = x", "not supported by this version"),
        ("malformed_cert_action = shrug", "write one of warn, reject, ignore"),
        ("server_cert =", "empty"),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path: Path, line: str, reason: str) -> None:
    """# trust: default-safe."""
    with pytest.raises(SettingsError, match=reason):
        load_registrar_settings(sources(tmp_path, f"[registrar]\n{line}\n"))


@pytest.mark.parametrize(("tls_dir", "expected"), [("default", "cv_ca"), ("generate", "reg_ca"), ("mine", "mine")])
def test_the_tls_directory_follows_keylimes_rules(tmp_path: Path, tls_dir: str, expected: str) -> None:
    files = load_registrar_settings(sources(tmp_path, f"[registrar]\ntls_dir = {tls_dir}\n")).settings.tls_files
    assert files.server
    assert files.server.key == tmp_path / expected / "server-private.pem"
    assert files.client_cas == (tmp_path / "cv_ca/cacert.crt",)
    assert files.client is None
