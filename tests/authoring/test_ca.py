"""The authority in its directory: profiles, serials, revocation, modes, links, and what OpenSSL thinks of it."""

import os
import shutil
import stat
import subprocess
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtensionOID
from tests.authoring.conftest import NOW, MakeAuthority

from limeguard.authoring.ca import CaError, CertificateAuthority, check_name
from limeguard.authoring.certificates import NETSCAPE_COMMENT
from limeguard.authoring.files import FilesError
from limeguard.authoring.keystore import KeyStoreError, unseal


def certificate(ca: CertificateAuthority, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((ca.directory / name).read_bytes())


def test_the_directory_has_keylimes_files_closed_to_strangers(site: CertificateAuthority) -> None:
    """# trust: secret."""
    names = {path.name for path in site.directory.iterdir()}
    own = {f"{name}-{kind}" for name in ("first", "second") for kind in ("cert.crt", "public.pem", "private.pem")}
    assert names == own | {"cacert.crt", "ca-public.pem", "cacrl.der", "cacrl.pem", "private.yml"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in site.directory.iterdir()} == {0o640}
    assert stat.S_IMODE(site.directory.stat().st_mode) == 0o700


def test_the_ca_certificate_has_keylimes_profile(site: CertificateAuthority) -> None:
    ca = certificate(site, "cacert.crt")
    assert ca.serial_number == 1
    assert [attribute.rfc4514_string() for attribute in ca.subject] == [
        "C=US",
        "CN=Keylime Certificate Authority",
        "ST=MA",
        "L=Lexington",
        "O=Keylime",
        "OU=53",
    ]
    assert ca.issuer == ca.subject
    assert (ca.not_valid_after_utc - ca.not_valid_before_utc).days == 3650
    assert {(each.oid, each.critical) for each in ca.extensions} == {
        (ExtensionOID.BASIC_CONSTRAINTS, True),
        (ExtensionOID.KEY_USAGE, True),
        (ExtensionOID.SUBJECT_KEY_IDENTIFIER, False),
        (ExtensionOID.AUTHORITY_KEY_IDENTIFIER, False),
        (ExtensionOID.CRL_DISTRIBUTION_POINTS, False),
    }
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_other_certificates_have_keylimes_profile_and_the_lifetime_that_was_asked_for(
    site: CertificateAuthority,
) -> None:
    leaf = certificate(site, "first-cert.crt")
    assert leaf.serial_number == 2
    assert leaf.subject.rfc4514_string() == "OU=53,O=Keylime,L=Lexington,ST=MA,CN=first,C=US"
    assert leaf.not_valid_before_utc == datetime.fromtimestamp(NOW, UTC)
    assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).days == 90
    assert {each.oid for each in leaf.extensions} == {
        NETSCAPE_COMMENT,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.CRL_DISTRIBUTION_POINTS,
    }
    comment = leaf.extensions.get_extension_for_oid(NETSCAPE_COMMENT).value
    assert isinstance(comment, x509.UnrecognizedExtension)
    assert comment.value == b"SSL Server"
    ca = certificate(site, "cacert.crt")
    identifier = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert identifier.key_identifier == ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    leaf.verify_directly_issued_by(ca)


def test_names_and_addresses_stand_in_the_certificate(site: CertificateAuthority) -> None:
    def names(of: str) -> list[str]:
        found = certificate(site, of).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return [str(each.value) for each in found]

    assert names("first-cert.crt") == ["first"]
    assert names("second-cert.crt") == ["second.example", "10.0.0.1", "::1"]


def test_openssl_accepts_chain_and_list(site: CertificateAuthority) -> None:
    """OpenSSL as a second opinion; the clock of the fixture is given to it."""
    command = [
        "openssl",
        "verify",
        "-attime",
        str(int(NOW)),
        "-crl_check",
        "-CRLfile",
        "cacrl.pem",
        "-CAfile",
        "cacert.crt",
    ]
    done = subprocess.run([*command, "first-cert.crt"], cwd=site.directory, capture_output=True, text=True, check=False)
    assert done.stdout == "first-cert.crt: OK\n", done.stderr


def test_revocation_bars_the_certificate_in_both_lists(own_ca: CertificateAuthority) -> None:
    assert own_ca.revoke("first") == 2
    assert own_ca.revoke("first") == 2
    pem = x509.load_pem_x509_crl((own_ca.directory / "cacrl.pem").read_bytes())
    der = x509.load_der_x509_crl((own_ca.directory / "cacrl.der").read_bytes())
    assert pem == der
    assert [entry.serial_number for entry in pem] == [2]
    assert pem.is_signature_valid(certificate(own_ca, "cacert.crt").public_key())  # type: ignore[arg-type]  # an RSA key
    assert pem.next_update_utc
    assert pem.next_update_utc > pem.last_update_utc
    assert [(each.name, each.revoked) for each in own_ca.issued()] == [("first", True), ("second", False)]
    command = [
        "openssl",
        "verify",
        "-attime",
        str(int(NOW)),
        "-crl_check",
        "-CRLfile",
        "cacrl.pem",
        "-CAfile",
        "cacert.crt",
    ]
    done = subprocess.run(
        [*command, "first-cert.crt"], cwd=own_ca.directory, capture_output=True, text=True, check=False
    )
    assert "certificate revoked" in done.stderr


def test_serials_go_on_and_the_store_remembers_the_keys(own_ca: CertificateAuthority) -> None:
    assert own_ca.create("third").serial == 4
    assert own_ca.create("third").serial == 5
    store = unseal((own_ca.directory / "private.yml").read_bytes(), "secret")
    assert store.last_serial == 5
    assert store.keys["third"] == (own_ca.directory / "third-private.pem").read_bytes()


def test_a_key_password_encrypts_the_key_file(own_ca: CertificateAuthority) -> None:
    """# trust: secret."""
    own_ca.create("locked", key_password="hunter2")
    pem = (own_ca.directory / "locked-private.pem").read_bytes()
    assert pem.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert (
        serialization.load_pem_private_key(pem, b"hunter2").public_key()
        == certificate(own_ca, "locked-cert.crt").public_key()
    )


def test_a_package_is_stored_closed_and_complete(own_ca: CertificateAuthority) -> None:
    """# trust: secret."""
    path = own_ca.package("first")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with zipfile.ZipFile(path) as package:
        assert {entry.compress_type for entry in package.infolist()} == {zipfile.ZIP_STORED}
        assert package.namelist() == [
            "first-public.pem",
            "first-cert.crt",
            "first-private.pem",
            "cacert.crt",
            "cacrl.der",
            "cacrl.pem",
        ]
        assert package.read("first-cert.crt") == (own_ca.directory / "first-cert.crt").read_bytes()


def test_init_removes_what_an_older_ca_left_and_nothing_else(own_ca: CertificateAuthority) -> None:
    (own_ca.directory / "notes.txt").write_text("mine")
    before = certificate(own_ca, "cacert.crt")
    own_ca.init()
    assert {path.name for path in own_ca.directory.iterdir()} == {
        "cacert.crt",
        "ca-public.pem",
        "cacrl.der",
        "cacrl.pem",
        "private.yml",
        "notes.txt",
    }
    assert certificate(own_ca, "cacert.crt") != before


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a b", "ca", "lastserial", "revoked_keys", "x" * 65, "ä", "a\n"]
)
def test_names_that_could_leave_the_directory_or_the_store_are_refused(name: str) -> None:
    """# trust: hygiene."""
    with pytest.raises(CaError, match="cannot be the name"):
        check_name(name)


@pytest.mark.parametrize("name", ["server", "d432fbb3-d2f1-4a97-9ef7-75bd81c00000", "a.b_c-d", "x" * 64])
def test_node_ids_are_names(name: str) -> None:
    check_name(name)


def test_a_wrong_or_empty_password_changes_nothing(own_ca: CertificateAuthority) -> None:
    """# trust: fail-closed."""
    before = {path.name: path.read_bytes() for path in own_ca.directory.iterdir()}
    for password, error in (("wrong", KeyStoreError), ("", CaError)):
        other = CertificateAuthority(directory=own_ca.directory, settings=own_ca.settings, password=password)
        with pytest.raises(error):
            other.create("x")
        with pytest.raises(error):
            other.revoke("first")
    assert {path.name: path.read_bytes() for path in own_ca.directory.iterdir()} == before
    assert "secret" not in repr(own_ca)


def test_what_is_not_there_is_said(own_ca: CertificateAuthority, make_authority: MakeAuthority, tmp_path: Path) -> None:
    for call in (own_ca.revoke, own_ca.package, own_ca.find):
        with pytest.raises(CaError, match="nobody"):
            call("nobody")
    with pytest.raises(FilesError, match="cannot be opened"):
        make_authority(tmp_path / "nothing").create("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CaError, match="make a CA with init"):
        make_authority(tmp_path / "empty").create("x")


def test_a_link_in_place_of_the_directory_is_refused(make_authority: MakeAuthority, tmp_path: Path) -> None:
    """# trust: no-ambient-files."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "ca").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FilesError, match="a link"):
        make_authority(tmp_path / "ca").init()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_link_in_place_of_a_file_is_replaced_and_not_followed(own_ca: CertificateAuthority, tmp_path: Path) -> None:
    """# trust: no-ambient-files."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("third-private.pem", "third-cert.crt"):
        (own_ca.directory / name).symlink_to(victim)
    own_ca.create("third")
    assert victim.read_text() == "mine"
    assert not (own_ca.directory / "third-private.pem").is_symlink()


def test_a_linked_key_store_is_refused(own_ca: CertificateAuthority, tmp_path: Path) -> None:
    """# trust: no-ambient-files."""
    shutil.move(own_ca.directory / "private.yml", tmp_path / "private.yml")
    (own_ca.directory / "private.yml").symlink_to(tmp_path / "private.yml")
    with pytest.raises(FilesError):
        own_ca.create("x")


def test_a_directory_that_everybody_may_write_to_is_refused(own_ca: CertificateAuthority) -> None:
    """# trust: no-ambient-files."""
    own_ca.directory.chmod(0o777)
    with pytest.raises(FilesError, match="chmod o-w"):
        own_ca.create("x")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_what_root_makes_in_a_services_directory_is_the_services(own_ca: CertificateAuthority) -> None:
    os.chown(own_ca.directory, 65534, 65534)
    own_ca.revoke("first")
    status = (own_ca.directory / "private.yml").stat()
    assert (status.st_uid, status.st_gid) == (65534, 65534)


def test_a_failed_write_leaves_no_pieces(own_ca: CertificateAuthority) -> None:
    """# trust: fail-closed."""
    (own_ca.directory / "first-pkg.zip").mkdir()
    with pytest.raises(OSError, match="first-pkg"):
        own_ca.package("first")
    assert not [path for path in own_ca.directory.iterdir() if path.name.startswith(".")]


def foreign_key() -> bytes:
    return rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def test_a_ca_from_elsewhere_can_be_taken_over(
    site: CertificateAuthority, make_authority: MakeAuthority, tmp_path: Path
) -> None:
    key = unseal((site.directory / "private.yml").read_bytes(), "secret").ca_key
    ca = make_authority(tmp_path / "taken")
    ca.directory.mkdir()
    shutil.copy(site.directory / "cacert.crt", ca.directory)
    ca.import_key(key, 40)
    ca.import_key(key, 7)
    assert ca.create("next").serial == 41
    assert (ca.directory / "cacrl.pem").exists()


def test_a_key_of_another_ca_is_not_taken_over(
    own_ca: CertificateAuthority, tmp_path: Path, make_authority: MakeAuthority
) -> None:
    """# trust: fail-closed."""
    with pytest.raises(CaError, match="does not belong"):
        own_ca.import_key(foreign_key(), 1)
    fresh = make_authority(tmp_path / "fresh")
    fresh.import_key(foreign_key(), 1)
    with pytest.raises(CaError, match="belongs to another CA"):
        fresh.import_key(foreign_key(), 1)
    with pytest.raises(CaError, match="cannot be read"):
        fresh.import_key(b"no key", 1)
