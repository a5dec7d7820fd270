"""The agent's key pairs: made once, kept, private, and never replaced when they are the operator's."""

import datetime
import ipaddress
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from limeguard.agent.keys import (
    KeyFileError,
    ServerIdentity,
    load_server_identity,
    load_transport_key,
)
from limeguard.agent.tls import registrar_context, server_context

ID = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000"


def identity(folder: Path, *, agent_id: str = ID, contact: str = "192.0.2.10", password: str = "") -> ServerIdentity:
    return load_server_identity(folder / "server-private.pem", folder / "server-cert.crt", password, agent_id, contact)


# trust: secret
@pytest.mark.parametrize("password", ["", "open sesame"])
def test_the_transport_key_is_made_once_and_private(tmp_path: Path, password: str) -> None:
    path = tmp_path / "payload-private.pem"
    first = load_transport_key(path, password)
    assert path.stat().st_mode & 0o777 == 0o600
    assert (b"ENCRYPTED" in path.read_bytes()) == bool(password)
    assert load_transport_key(path, password).public_pem == first.public_pem
    assert first.public_pem.endswith("-----END PUBLIC KEY-----\n")
    assert first.private.key_size == 2048


def test_a_transport_key_of_another_size_or_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "payload-private.pem"
    for key in (ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 3072)):
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        with pytest.raises(KeyFileError, match="2048"):
            load_transport_key(path, "")


# trust: secret
def test_a_key_that_cannot_be_read_is_named_and_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "payload-private.pem"
    load_transport_key(path, "right")
    with pytest.raises(KeyFileError, match="payload_key_password") as problem:
        load_transport_key(path, "wrong")
    assert "wrong" not in str(problem.value).replace("payload_key_password", "")
    assert problem.value.__cause__ is None
    path.write_text("garbage")
    with pytest.raises(KeyFileError, match=r"payload-private\.pem"):
        load_transport_key(path, "")


def test_the_certificate_is_the_node_s(tmp_path: Path) -> None:
    made = identity(tmp_path)
    certificate = x509.load_pem_x509_certificate(made.certificate_pem.encode())
    assert certificate.subject == certificate.issuer
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == ID
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "localhost.domain"]
    assert ipaddress.ip_address("192.0.2.10") in names.get_values_for_type(x509.IPAddress)
    assert isinstance(certificate.signature_hash_algorithm, hashes.SHA256)
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    assert certificate.not_valid_before_utc < datetime.datetime.fromtimestamp(
        made.certificate_file.stat().st_mtime, datetime.UTC
    )
    assert stat.S_IMODE(made.key_file.stat().st_mode) == 0o600


def test_the_certificate_stays_the_same_over_restarts(tmp_path: Path) -> None:
    assert identity(tmp_path).certificate_pem == identity(tmp_path).certificate_pem


@pytest.mark.parametrize(("agent_id", "contact"), [("another", "192.0.2.10"), (ID, "192.0.2.11"), (ID, "node.example")])
def test_our_certificate_is_renewed_when_id_or_address_changed(
    tmp_path: Path, agent_id: str, contact: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = identity(tmp_path).certificate_pem
    assert identity(tmp_path, agent_id=agent_id, contact=contact).certificate_pem != before
    assert "enrol the node again" in caplog.text


def test_our_certificate_is_renewed_when_the_key_changed(tmp_path: Path) -> None:
    made = identity(tmp_path)
    made.key_file.unlink()
    renewed = identity(tmp_path)
    assert renewed.certificate_pem != made.certificate_pem
    ca = tmp_path / "ca.crt"
    ca.write_text(renewed.certificate_pem)
    server_context(renewed, [ca])


def operators_certificate(key: ec.EllipticCurvePrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node.example.org")])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=30))
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def test_an_operator_s_certificate_is_never_replaced(tmp_path: Path) -> None:
    key_file = identity(tmp_path).key_file
    key = serialization.load_pem_private_key(key_file.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    own = operators_certificate(key)
    (tmp_path / "server-cert.crt").write_bytes(own)
    assert identity(tmp_path).certificate_pem.encode() == own


def test_an_operator_s_certificate_of_another_key_is_an_error(tmp_path: Path) -> None:
    identity(tmp_path)
    (tmp_path / "server-cert.crt").write_bytes(operators_certificate(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(KeyFileError, match="not the certificate of the server key"):
        identity(tmp_path)
    (tmp_path / "server-cert.crt").write_text("nothing")
    with pytest.raises(KeyFileError, match="PEM certificate"):
        identity(tmp_path)


def test_an_encrypted_server_key_is_used_with_its_password(tmp_path: Path) -> None:
    made = identity(tmp_path, password="secret")
    ca = tmp_path / "ca.crt"
    ca.write_text(made.certificate_pem)
    server_context(made, [ca])
    without = ServerIdentity(made.key_file, made.certificate_file, "", made.certificate_pem)
    with pytest.raises(KeyFileError, match="server_key_password"):
        server_context(without, [ca])


# trust: default-deny
def test_a_server_without_a_client_ca_does_not_start(tmp_path: Path) -> None:
    made = identity(tmp_path)
    with pytest.raises(KeyFileError, match="trusted_client_ca"):
        server_context(made, [tmp_path / "none.crt"])
    with pytest.raises(KeyFileError, match="trusted_client_ca"):
        server_context(made, [])


# trust: downgrade
def test_tls_before_1_2_is_refused(tmp_path: Path) -> None:
    made = identity(tmp_path)
    ca = tmp_path / "ca.crt"
    ca.write_text(made.certificate_pem)
    context = server_context(made, [ca])
    assert context.minimum_version.name == "TLSv1_2"
    assert context.verify_mode.name == "CERT_REQUIRED"
    assert registrar_context(ca).minimum_version.name == "TLSv1_2"
    with pytest.raises(KeyFileError, match="registrar_tls_ca_cert"):
        registrar_context(tmp_path / "none.crt")
