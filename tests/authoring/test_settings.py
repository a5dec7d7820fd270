"""The options of the certificate authority."""

from pathlib import Path

import pytest

from limeguard.authoring.settings import CaSettings, load_ca_settings
from limeguard.settings import SettingsError, Sources

SHIPPED = """[ca]
version = 2.6
password = default
cert_country = US
cert_ca_name = Keylime Certificate Authority
cert_state = MA
cert_locality = Lexington
cert_organization = Keylime
cert_org_unit = 53
cert_ca_lifetime = 3650
cert_lifetime = 365
cert_bits = 2048
cert_crl_dist = http://localhost:38080/crl
"""


def sources(tmp_path: Path, text: str) -> Sources:
    path = tmp_path / "ca.conf"
    path.write_text(text)
    return Sources({"KEYLIME_CA_CONFIG": str(path), "KEYLIME_DIR": str(tmp_path)}, ())


def test_every_shipped_option_is_known_and_its_default_is_ours(tmp_path: Path) -> None:
    loaded = load_ca_settings(sources(tmp_path, SHIPPED))
    assert not loaded.warnings
    assert loaded.settings == CaSettings(work_dir=tmp_path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("cert_country = USA", "two letters"),
        ("cert_bits = 1024", "refused by TLS libraries"),
        ("cert_lifetime = 0", "1 to 36500"),
        ("cert_crl_dist = ftp://x", "http"),
        ("cert_ca_name =", "1 to 64"),
    ],
)
def test_what_makes_no_usable_certificate_is_refused(tmp_path: Path, line: str, reason: str) -> None:
    """# trust: downgrade."""
    with pytest.raises(SettingsError, match=reason):
        load_ca_settings(sources(tmp_path, f"[ca]\n{line}\n"))


def test_the_password_does_not_show(tmp_path: Path) -> None:
    """# trust: secret."""
    assert "hunter2" not in repr(load_ca_settings(sources(tmp_path, "[ca]\npassword = hunter2\n")))
