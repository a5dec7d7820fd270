"""The agent's options as its TOML files and variables set them."""

from pathlib import Path

import pytest

from limeguard.agent.settings import AGENT, AgentSettings, load_agent_settings
from limeguard.settings import SettingsError, Sources, examine

SHIPPED = """[agent]
version = "2.4"
api_versions = "default"
uuid = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000"
ip = "127.0.0.1"
port = 9002
contact_ip = "127.0.0.1"
contact_port = 9002
registrar_ip = "127.0.0.1"
registrar_port = 8890
registrar_tls_enabled = false
registrar_tls_port = 8891
registrar_tls_ca_cert = "default"
registrar_api_versions = "default"
enable_agent_mtls = true
keylime_dir = "/var/lib/keylime"
server_key = "default"
server_cert = "default"
server_key_password = ""
payload_key = "default"
payload_key_password = ""
trusted_client_ca = "default"
enc_keyname = "derived_tci_key"
dec_payload_file = "decrypted_payload"
secure_size = "1m"
extract_payload_zip = true
payload_script = "autorun.sh"
enable_insecure_payload = false
allow_payload_revocation_actions = true
enable_revocation_notifications = false
revocation_notification_ip = "127.0.0.1"
revocation_notification_port = 8992
revocation_cert = "default"
revocation_actions = ""
revocation_actions_dir = "/usr/libexec/keylime"
tpm_hash_alg = "sha256"
tpm_encryption_alg = "rsa"
tpm_signing_alg = "rsassa"
ek_handle = "generate"
enable_iak_idevid = false
iak_idevid_template = "detect"
iak_idevid_asymmetric_alg = "rsa"
iak_idevid_name_alg = "sha256"
idevid_password = ""
idevid_handle = ""
iak_password = ""
iak_handle = ""
iak_cert = "default"
idevid_cert = "default"
tpm_ownerpassword = ""
run_as = "keylime:tss"
agent_data_path = "default"
ima_ml_path = "default"
measuredboot_ml_path = "default"
verifier_url = "https://localhost:8881"
verifier_tls_ca_cert = "default"
attestation_interval_seconds = 60
certification_keys_server_identifier = "ak"
uefi_logs_evidence_version = "2.1"
exponential_backoff_initial_delay = 10000
exponential_backoff_max_retries = 5
exponential_backoff_max_delay = 300000
tls_accept_invalid_certs = false
tls_accept_invalid_hostnames = false
"""


def sources(tmp_path: Path, text: str, **env: str) -> Sources:
    path = tmp_path / "agent.conf"
    path.write_text(text)
    return Sources({"KEYLIME_AGENT_CONFIG": str(path), **env}, ())


def test_every_shipped_option_is_known_and_its_default_is_ours(tmp_path: Path) -> None:
    loaded = load_agent_settings(sources(tmp_path, SHIPPED))
    assert not loaded.warnings
    assert loaded.settings == AgentSettings()


def test_the_defaults_are_safe() -> None:
    """# trust: default-safe."""
    settings = AgentSettings()
    assert settings.enable_agent_mtls
    assert not settings.enable_insecure_payload
    assert settings.ip == "127.0.0.1"
    assert settings.run_as == "keylime:tss"


def test_empty_values_mean_the_default_where_keylimes_templates_write_them(tmp_path: Path) -> None:
    text = (
        '[agent]\nagent_data_path = ""\nverifier_url = ""\ncertification_keys_server_identifier = ""\n'
        'uefi_logs_evidence_version = ""\nrevocation_actions = "[]"\nserver_key = ""\niak_idevid_template = ""\n'
    )
    settings = load_agent_settings(sources(tmp_path, text)).settings
    assert settings == AgentSettings()


def test_empty_values_mean_none_where_that_has_a_meaning(tmp_path: Path) -> None:
    text = '[agent]\nrun_as = ""\npayload_script = ""\niak_cert = ""\nidevid_cert = ""\n'
    settings = load_agent_settings(sources(tmp_path, text)).settings
    assert (settings.run_as, settings.payload_script, settings.iak_cert_file, settings.idevid_cert_file) == (
        "",
        "",
        None,
        None,
    )


def test_paths_are_below_the_working_directory_and_logs_below_the_root(tmp_path: Path) -> None:
    text = (
        '[agent]\nserver_key = "k.pem"\nserver_cert = "/abs/c.crt"\nima_ml_path = "tmp/ima"\n'
        'trusted_client_ca = "a.crt, /b.crt"\n'
    )
    settings = load_agent_settings(sources(tmp_path, text, KEYLIME_DIR="/srv/keylime")).settings
    assert settings.server_key_file == Path("/srv/keylime/k.pem")
    assert settings.server_cert_file == Path("/abs/c.crt")
    assert settings.payload_key_file == Path("/srv/keylime/payload-private.pem")
    assert settings.agent_data_file == Path("/srv/keylime/agent_data.json")
    assert settings.ima_log_file == Path("/tmp/ima")
    assert settings.boot_log_file == Path("/sys/kernel/security/tpm0/binary_bios_measurements")
    assert settings.trusted_client_ca_files == (Path("/srv/keylime/a.crt"), Path("/b.crt"))
    assert settings.revocation_cert_file == Path("/srv/keylime/secure/unzipped/RevocationNotifier-cert.crt")
    assert settings.registrar_ca_file == Path("/srv/keylime/cv_ca/cacert.crt")
    assert settings.iak_cert_file == Path("/srv/keylime/iak-cert.crt")
    assert settings.unzipped_dir == Path("/srv/keylime/secure/unzipped")


def test_payloads_without_tls_need_a_clear_word(tmp_path: Path) -> None:
    """# trust: default-safe."""
    with pytest.raises(SettingsError, match="'enable_insecure_payload' has to be set to 'True'"):
        load_agent_settings(sources(tmp_path, "[agent]\nenable_agent_mtls = false\n"))
    quiet = load_agent_settings(sources(tmp_path, '[agent]\nenable_agent_mtls = false\npayload_script = ""\n'))
    assert "without TLS" in str(quiet.warnings[0])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('tpm_encryption_alg = "ecc"', "does not go with"),
        ('tpm_hash_alg = "md5"', "write one of"),
        ('run_as = "keylime"', "user:group"),
        ('dec_payload_file = "../x"', "without a directory"),
        ('enc_keyname = ".."', "without a directory"),
        ('ek_handle = "0x123"', "0x81000000"),
        ("ip = 127.0.0.1", 'write ip = "127.0.0.1"'),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, line: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        load_agent_settings(sources(tmp_path, f"[agent]\n{line}\n"))


def test_variables_override_with_the_notice_that_users_match(tmp_path: Path) -> None:
    seen = examine(AGENT, sources(tmp_path, SHIPPED, KEYLIME_AGENT_REGISTRAR_IP="1.2.3.4"))
    assert seen.settings.registrar_ip == "1.2.3.4"
    assert "Environment configuration registrar_ip=1.2.3.4" in [notice.text for notice in seen.notices]


def test_passwords_stay_out_of_what_is_printed(tmp_path: Path) -> None:
    """# trust: secret."""
    text = '[agent]\ntpm_ownerpassword = "hunter2"\nserver_key_password = "hunter2"\niak_password = "hunter2"\n'
    assert "hunter2" not in repr(load_agent_settings(sources(tmp_path, text)))
