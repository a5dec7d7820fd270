"""The package of a node: made on first use, reused, made anew when it is worth nothing."""

import stat

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from limeguard.authoring.ca import CertificateAuthority
from limeguard.authoring.node_package import node_package

NODE = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000"


def test_a_package_names_its_certificate_and_holds_no_key_for_revocation(own_ca: CertificateAuthority) -> None:
    """# trust: secret."""
    package = node_package(own_ca, NODE)
    certificate = x509.load_pem_x509_certificate(package.files[f"{NODE}-cert.crt"])
    assert package.serial == certificate.serial_number
    assert package.subject == f"OU=53,O=Keylime,L=Lexington,ST=MA,CN={NODE},C=US"
    key = serialization.load_pem_private_key(package.revocation_key.encode(), None)
    assert key.public_key() == x509.load_pem_x509_certificate(package.notifier_certificate).public_key()
    assert package.revocation_key.encode() not in package.files.values()
    assert not [name for name in package.files if name.startswith("Revocation")]
    assert package.revocation_key not in repr(package)
    for name in (NODE, "RevocationNotifier"):
        assert stat.S_IMODE((own_ca.directory / f"{name}-pkg.zip").stat().st_mode) == 0o600


def test_certificates_are_reused_until_they_are_revoked(own_ca: CertificateAuthority) -> None:
    first = node_package(own_ca, NODE)
    again = node_package(own_ca, NODE)
    assert (again.serial, again.revocation_key) == (first.serial, first.revocation_key)
    own_ca.revoke(NODE)
    assert node_package(own_ca, NODE).serial > first.serial
