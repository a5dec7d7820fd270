"""From settings to contexts: a fresh site makes its files, and its programs trust each other."""

import ssl
from pathlib import Path

import pytest

from limeguard.authoring.ca import CaError
from limeguard.cli.tls_files import agents_tls, prepare_tls, server_tls, servers_tls
from limeguard.registrar.settings import RegistrarSettings
from limeguard.settings import Sources, TlsFiles
from limeguard.tenant.settings import TenantSettings
from limeguard.verifier.settings import VerifierSettings


def sources(tmp_path: Path) -> Sources:
    conf = tmp_path / "ca.conf"
    conf.write_text("[ca]\npassword = secret\n")
    conf.chmod(0o600)
    return Sources({"KEYLIME_DIR": str(tmp_path), "KEYLIME_CA_CONFIG": str(conf)}, ())


def test_the_verifier_makes_what_registrar_and_tenant_use(tmp_path: Path) -> None:
    registrar = RegistrarSettings(work_dir=tmp_path)
    with pytest.raises(CaError, match="start the verifier first"):
        prepare_tls(registrar, sources(tmp_path))
    verifier = VerifierSettings(work_dir=tmp_path, cert_subject_alternative_names=("v.example",))
    files = prepare_tls(verifier, sources(tmp_path))
    assert prepare_tls(registrar, Sources({}, ())).server == files.server
    assert server_tls(files).verify_mode is ssl.CERT_OPTIONAL
    assert agents_tls(files).verify_mode is ssl.CERT_NONE
    assert servers_tls(TenantSettings(work_dir=tmp_path).tls_files).verify_mode is ssl.CERT_REQUIRED


def test_without_files_there_is_no_context(tmp_path: Path) -> None:
    """# trust: empty-is-not-valid."""
    for make in (server_tls, agents_tls, servers_tls):
        with pytest.raises(CaError, match="no key and certificate"):
            make(TlsFiles(tmp_path))
