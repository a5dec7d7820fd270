"""The tenant's options as Keylime's files and variables set them."""

from pathlib import Path

import pytest

from limeguard.settings import SettingsError, Sources
from limeguard.tenant.settings import TenantSettings, load_tenant_settings

SHIPPED = """[tenant]
version = 2.6
verifier_ip = 127.0.0.1
verifier_port = 8881
registrar_ip = 127.0.0.1
registrar_port = 8891
tls_dir = default
enable_agent_mtls = True
client_key = default
client_key_password =
client_cert = default
trusted_server_ca = default
tpm_cert_store = /var/lib/keylime/tpm_cert_store
max_payload_size = 1048576
accept_tpm_hash_algs = ['sha512', 'sha384', 'sha256']
accept_tpm_encryption_algs = ['ecc', 'rsa']
accept_tpm_signing_algs = ['ecschnorr', 'rsassa']
exponential_backoff = True
retry_interval = 2
max_retries = 5
request_timeout = 60
require_ek_cert = True
ek_check_script =
mb_refstate =
"""


def sources(tmp_path: Path, text: str) -> Sources:
    path = tmp_path / "tenant.conf"
    path.write_text(text)
    return Sources({"KEYLIME_TENANT_CONFIG": str(path), "KEYLIME_DIR": str(tmp_path)}, ())


def test_every_shipped_option_is_known_and_its_default_is_ours(tmp_path: Path) -> None:
    loaded = load_tenant_settings(sources(tmp_path, SHIPPED))
    assert not loaded.warnings
    assert loaded.settings == TenantSettings(work_dir=tmp_path)


def test_the_defaults_are_safe() -> None:
    """# trust: default-safe, downgrade."""
    settings = TenantSettings()
    assert settings.require_ek_cert
    assert settings.enable_agent_mtls
    assert "sha1" not in settings.accept_tpm_hash_algs


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("tls_dir = generate", "makes no certificates"),
        ("accept_tpm_hash_algs = []", "accepts no node"),
        ("accept_tpm_hash_algs = sha256", "write it in brackets"),
        ("trusted_server_ca =", "no CA is named"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, line: str, reason: str) -> None:
    """# trust: empty-is-not-valid."""
    with pytest.raises(SettingsError, match=reason):
        load_tenant_settings(sources(tmp_path, f"[tenant]\n{line}\n"))


@pytest.mark.parametrize(
    "line", ["require_ek_cert = False", "enable_agent_mtls = False", "accept_tpm_hash_algs = ['sha1']"]
)
def test_what_weakens_trust_is_warned_of(tmp_path: Path, line: str) -> None:
    """# trust: downgrade."""
    assert load_tenant_settings(sources(tmp_path, f"[tenant]\n{line}\n")).warnings


def test_the_clients_files_are_the_verifiers_by_default(tmp_path: Path) -> None:
    files = TenantSettings(work_dir=tmp_path).tls_files
    assert files.client
    assert files.client.certificate == tmp_path / "cv_ca/client-cert.crt"
    assert files.server_cas == (tmp_path / "cv_ca/cacert.crt",)
