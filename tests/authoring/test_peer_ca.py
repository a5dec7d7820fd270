"""Keylime's own `keylime_ca` and ours on the same directory, in both directions."""

import os
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from tests.fakes.peer import peer_program

from limeguard.authoring.ca import CertificateAuthority
from limeguard.authoring.keystore import unseal
from limeguard.authoring.settings import CaSettings, load_ca_settings
from limeguard.settings import Sources
from limeguard.web.tls import client_context, server_context

pytestmark = pytest.mark.peer

CONF = """[ca]
version = 2.6
password = secret
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


class Peer:
    """Keylime's program on a working directory of its own."""

    def __init__(self, work_dir: Path) -> None:
        self.program = peer_program("keylime_ca")
        self.work_dir = work_dir
        self.conf = work_dir / "ca.conf"
        self.conf.write_text(CONF)

    def run(self, *argv: str) -> str:
        env = {**os.environ, "KEYLIME_DIR": str(self.work_dir), "KEYLIME_CA_CONFIG": str(self.conf)}
        done = subprocess.run([self.program, *argv], env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def ours(self) -> CertificateAuthority:
        return CertificateAuthority(directory=self.work_dir / "ca", settings=CaSettings(), password="secret")


@pytest.fixture
def peer(tmp_path: Path) -> Peer:
    return Peer(tmp_path)


def test_ours_goes_on_with_keylimes_directory(peer: Peer) -> None:
    peer.run("-c", "init")
    peer.run("-c", "create", "-n", "server")
    peer.run("-c", "revoke", "-n", "server")
    ours = peer.ours()
    assert [(each.name, each.serial, each.revoked) for each in ours.issued()] == [("server", 2, True)]
    assert ours.create("client").serial == 3
    ours.revoke("client")
    assert unseal((ours.directory / "private.yml").read_bytes(), "secret").revoked == (2, 3)


def test_keylime_goes_on_with_our_directory(peer: Peer) -> None:
    ours = peer.ours()
    ours.init()
    ours.create("server")
    ours.revoke("server")
    peer.run("-c", "create", "-n", "client")
    peer.run("-c", "pkg", "-n", "client")
    peer.run("-c", "revoke", "-n", "client")
    assert [(each.name, each.serial, each.revoked) for each in ours.issued()] == [
        ("server", 2, True),
        ("client", 3, True),
    ]
    assert ours.create("next").serial == 4
    directory = ours.directory
    cas = [directory / "cacert.crt"]
    server_context(directory / "client-cert.crt", directory / "client-private.pem", "", cas, require_client=True)
    client_context(directory / "server-cert.crt", directory / "server-private.pem", "", cas, system_store=False)


def test_profiles_are_the_same(peer: Peer) -> None:
    peer.run("-c", "init")
    peer.run("-c", "create", "-n", "node")
    theirs = peer.work_dir / "ca"
    ours = CertificateAuthority(directory=peer.work_dir / "ours", settings=CaSettings(), password="secret")
    ours.init()
    ours.create("node")
    for name in ("cacert.crt", "node-cert.crt"):
        assert _profile(theirs / name) == _profile(ours.directory / name)
    assert {path.name for path in theirs.iterdir()} == {path.name for path in ours.directory.iterdir()}


def _profile(path: Path) -> tuple[object, ...]:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    extensions = {(each.oid.dotted_string, each.critical) for each in certificate.extensions}
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    same = {
        each.oid.dotted_string: each.value.public_bytes()
        for each in certificate.extensions
        if not isinstance(each.value, x509.SubjectKeyIdentifier | x509.AuthorityKeyIdentifier)
    }
    return (certificate.subject, certificate.issuer, certificate.serial_number, lifetime, extensions, same)


def test_keylimes_settings_file_is_ours(peer: Peer) -> None:
    loaded = load_ca_settings(Sources({"KEYLIME_CA_CONFIG": str(peer.conf)}, ()))
    assert loaded.settings == CaSettings(password="secret")
