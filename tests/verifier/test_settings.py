"""The verifier's options as Keylime's files and variables set them."""

from pathlib import Path

import pytest

from limeguard.settings import SettingsError, Sources, examine
from limeguard.verifier.settings import VERIFIER, VerifierSettings, load_verifier_settings

SHIPPED = """[verifier]
version = 2.6
uuid = default
ip = "127.0.0.1"
port = 8881
registrar_ip = 127.0.0.1
registrar_port = 8891
enable_agent_mtls = True
tls_dir = generate
server_key = default
server_key_password =
server_cert = default
cert_subject_alternative_names =
trusted_client_ca = default
client_key = default
client_key_password =
client_cert = default
trusted_server_ca = default
authorization_provider = simple
database_url = sqlite
database_pool_sz_ovfl = 5,10
auto_migrate_db = True
num_workers = 0
max_workers = 16
exponential_backoff = True
retry_interval = 2
max_retries = 5
quote_interval = 2
max_upload_size = 104857600
request_timeout = 60.0
measured_boot_policy_name = accept-all
measured_boot_imports = []
measured_boot_evaluate = once
severity_labels = ["info", "notice", "warning", "error", "critical", "alert", "emergency"]
severity_policy = [{"event_id": ".*", "severity_label" : "emergency"}]
ignore_tomtou_errors = False
durable_attestation_import =
persistent_store_url =
transparency_log_url =
time_stamp_authority_url =
time_stamp_authority_certs_path =
persistent_store_format = json
persistent_store_encoding =
transparency_log_sign_algo = sha256
signed_attributes =
require_allow_list_signatures = False
mode = pull
challenge_lifetime = 1800
verification_timeout = 0
session_create_rate_limit_per_ip = 50
session_create_rate_limit_window_ip = 60
session_create_rate_limit_per_agent = 15
session_create_rate_limit_window_agent = 60
session_lifetime = 180
extend_token_on_attestation = True
auto_recover_attestation_failures = False
shutdown_drain_timeout = 10

[revocations]
enabled_revocation_notifications = ['agent']
zmq_ip = 127.0.0.1
zmq_port = 8992
webhook_url =
"""


def sources(tmp_path: Path, text: str, **env: str) -> Sources:
    path = tmp_path / "verifier.conf"
    path.write_text(text)
    return Sources({"KEYLIME_VERIFIER_CONFIG": str(path), "KEYLIME_DIR": str(tmp_path), **env}, ())


def test_every_shipped_option_is_known_and_its_default_is_ours(tmp_path: Path) -> None:
    loaded = load_verifier_settings(sources(tmp_path, SHIPPED))
    assert not loaded.warnings
    assert loaded.settings == VerifierSettings(work_dir=tmp_path)


def test_the_defaults_are_safe() -> None:
    """# trust: default-safe."""
    settings = VerifierSettings()
    assert settings.ip == "127.0.0.1"
    assert settings.enable_agent_mtls
    assert not settings.continue_after_failure
    assert settings.tls_files.client_cas


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("measured_boot_imports = ['my.policies']", "Python modules are not loaded into the verifier"),
        ("measured_boot_policy_name = mine", "write one of accept-all, reject-all, example, limeguard; modules"),
        ("measured_boot_evaluate = sometimes", "write one of once, always"),
        ("durable_attestation_import = keylime.da.examples.file", "records for durable attestation"),
        ("authorization_provider = opa", "write one of simple"),
        ("database_url =", "write sqlite or a URL"),
        ("trusted_client_ca =", "no CA is named"),
        ('severity_policy = [{"event_id": ".*", "severity_label": "huge"}]', "severity_labels does not name"),
    ],
)
def test_what_would_be_ignored_at_a_cost_is_refused(tmp_path: Path, line: str, reason: str) -> None:
    """# trust: default-safe."""
    with pytest.raises(SettingsError, match=reason):
        load_verifier_settings(sources(tmp_path, f"[verifier]\ntls_dir = default\n{line}\n"))


def test_generated_files_cannot_be_named_too(tmp_path: Path) -> None:
    text = "[verifier]\nserver_key = k.pem\ntrusted_client_ca = ['a.crt']\nclient_cert =\n"
    seen = examine(VERIFIER, sources(tmp_path, text))
    assert [problem.option for problem in seen.problems if "makes these files itself" in problem.text] == [
        "[verifier] server_key",
        "[verifier] client_cert",
        "[verifier] trusted_client_ca",
    ]


def test_files_are_found_by_keylimes_rules(tmp_path: Path) -> None:
    text = (
        "[verifier]\ntls_dir = tls\nserver_key = s.pem\nserver_key_password = pw\nserver_cert = /abs/s.crt\n"
        "trusted_client_ca = ['a.crt', '/b.crt']\n"
    )
    files = load_verifier_settings(sources(tmp_path, text)).settings.tls_files
    assert files.directory == tmp_path / "tls"
    assert files.server
    assert (files.server.key, files.server.certificate) == (tmp_path / "tls/s.pem", Path("/abs/s.crt"))
    assert files.server.password == "pw"
    assert "pw" not in repr(files)
    assert files.client_cas == (tmp_path / "tls/a.crt", Path("/b.crt"))
    assert files.server_cas == (tmp_path / "cv_ca/cacert.crt",)  # whatever tls_dir is


def test_all_trusts_less_than_it_says(tmp_path: Path) -> None:
    """# trust: default-safe."""
    loaded = load_verifier_settings(sources(tmp_path, "[verifier]\ntls_dir = default\ntrusted_client_ca = all\n"))
    assert loaded.settings.tls_files.client_cas == ()
    assert "does not turn verification off" in str(loaded.warnings[0])


def test_notices_go_where_the_section_says(tmp_path: Path) -> None:
    text = "[revocations]\nenabled_revocation_notifications = ['webhook']\nwebhook_url = https://u:hunter2@h/\n"
    loaded = load_verifier_settings(sources(tmp_path, text))
    assert loaded.settings.enabled_revocation_notifications == ("webhook",)
    assert loaded.settings.webhook_url == "https://u:hunter2@h/"
    assert "hunter2" not in str([*map(str, loaded.warnings), loaded.found, loaded.settings])


def test_a_webhook_without_url_is_warned_of(tmp_path: Path) -> None:
    loaded = load_verifier_settings(
        sources(tmp_path, "[revocations]\nenabled_revocation_notifications = ['webhook']\n")
    )
    assert ["no notice is posted" in warning.text for warning in loaded.warnings] == [True]


@pytest.mark.parametrize(
    ("configured", "url"),
    [("sqlite", "sqlite:///{}/cv_data.sqlite"), ("postgresql://u:p@h/d", "postgresql://u:p@h/d")],
)
def test_the_database_is_a_file_or_a_url(tmp_path: Path, configured: str, url: str) -> None:
    loaded = load_verifier_settings(sources(tmp_path, f"[verifier]\ndatabase_url = {configured}\n"))
    assert loaded.settings.database == url.format(tmp_path)


def test_trust_lasts_as_long_as_asked_or_is_derived(tmp_path: Path) -> None:
    assert VerifierSettings().trust_lifetime is None
    assert (
        load_verifier_settings(sources(tmp_path, "", KEYLIME_VERIFIER_TRUST_LIFETIME="30")).settings.trust_lifetime
        == 30
    )
