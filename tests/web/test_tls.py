"""What each TLS context demands of its peer, shown by handshakes in memory, and errors that name the file."""

import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from tests.fakes.pki import Authority, Identity, self_signed

from limeguard.web.tls import TlsError, agent_client_context, client_context, server_context


class Site:
    """One CA with a server and a client, another CA with a client, and an agent's own certificate."""

    def __init__(self, folder: Path) -> None:
        self.ca, other = Authority(folder / "ca"), Authority(folder / "other", "Other CA")
        self.server, self.client = self.ca.issue("server"), self.ca.issue("client")
        self.stranger = other.issue("client")
        self.agent = self_signed(folder / "agent", "agent")
        self.cas = [self.ca.identity.certificate]

    def serve(self, identity: Identity, *, require: bool = False, cas: list[Path] | None = None) -> ssl.SSLContext:
        trusted = self.cas if cas is None else cas
        return server_context(identity.certificate, identity.key, "", trusted, require_client=require)

    def connect(self, identity: Identity | None) -> ssl.SSLContext:
        if identity is None:
            return client_context(None, None, "", self.cas, system_store=False)
        return client_context(identity.certificate, identity.key, "", self.cas, system_store=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("pki"))


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """Let both talk until they agree; return the server's end. Raises ssl.SSLError when either refuses."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname="not.the.name"),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    done: set[ssl.SSLObject] = set()
    for _ in range(10):
        for end in ends:
            try:
                end.do_handshake()
                done.add(end)
            except ssl.SSLWantReadError:
                continue
    assert len(done) == len(ends)
    return ends[1]


def common_name(end: ssl.SSLObject) -> str | None:
    certificate = end.getpeercert() or {}
    subject = dict(pair for name in certificate.get("subject", ()) for pair in name)  # type: ignore[misc]  # untyped
    return subject.get("commonName")


def test_a_client_of_the_trusted_ca_is_known_by_name_whatever_the_host(site: Site) -> None:
    end = handshake(site.serve(site.server), site.connect(site.client))
    assert common_name(end) == "client"


def test_a_client_may_come_without_certificate_where_none_is_required(site: Site) -> None:
    assert common_name(handshake(site.serve(site.server), site.connect(None))) is None


def test_a_client_without_certificate_is_refused_where_one_is_required(site: Site) -> None:
    """# trust: default-deny."""
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        handshake(site.serve(site.server, require=True), site.connect(None))


@pytest.mark.parametrize("who", ["stranger", "agent"])
def test_a_client_of_another_ca_or_of_none_is_refused(site: Site, who: str) -> None:
    """# trust: default-deny."""
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        handshake(site.serve(site.server), site.connect(getattr(site, who)))


def test_without_any_ca_no_client_certificate_is_good_enough(site: Site) -> None:
    """# trust: default-deny."""
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        handshake(site.serve(site.server, cas=[]), site.connect(site.client))


def test_a_server_of_another_ca_is_refused(site: Site) -> None:
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        handshake(site.serve(site.stranger), site.connect(site.client))


def test_the_context_for_agents_leaves_the_comparison_to_its_user_and_shows_our_certificate(site: Site) -> None:
    context = agent_client_context(site.client.certificate, site.client.key, "")
    assert common_name(handshake(site.serve(site.agent, require=True), context)) == "client"


@pytest.mark.parametrize("old", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_old_tls_is_refused_by_server_and_client(site: Site, old: ssl.TLSVersion) -> None:
    """# trust: downgrade."""
    for server, client in (
        (site.serve(site.server), _only(site.connect(None), old)),
        (_only(site.serve(site.server), old), site.connect(None)),
        (_only(site.serve(site.server), old), agent_client_context(site.client.certificate, site.client.key, "")),
    ):
        with pytest.raises((ssl.SSLError, AssertionError)):
            handshake(server, client)


def _only(context: ssl.SSLContext, version: ssl.TLSVersion) -> ssl.SSLContext:
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = version
    context.maximum_version = version
    return context


def test_a_server_that_requires_clients_needs_a_ca(site: Site) -> None:
    """# trust: empty-is-not-valid."""
    with pytest.raises(TlsError, match="no CA is named"):
        server_context(site.server.certificate, site.server.key, "", None, require_client=True)
    with pytest.raises(TlsError, match="no CA is named"):
        client_context(None, None, "", [], system_store=False)


def test_errors_name_the_file(site: Site, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no PEM")
    missing, server = tmp_path / "missing", site.server
    for certificate, key, cas, complaint in (
        (missing, server.key, site.cas, f"certificate {missing} does not exist"),
        (server.certificate, missing, site.cas, f"private key {missing} does not exist"),
        (server.certificate, tmp_path, site.cas, f"private key {tmp_path} is not a file"),
        (server.certificate, server.key, [text], f"CA certificate {text} cannot be used"),
        (server.certificate, site.client.key, site.cas, "does not belong to certificate"),
        (text, server.key, site.cas, f"certificate {text} holds no PEM certificate"),
        (server.certificate, text, site.cas, f"private key {text} holds no PEM key"),
    ):
        with pytest.raises(TlsError) as refused:
            server_context(certificate, key, "", cas, require_client=False)
        assert complaint in str(refused.value)


def test_an_encrypted_key_needs_the_right_password_and_never_asks_for_it(site: Site, tmp_path: Path) -> None:
    """# trust: secret."""
    plain = serialization.load_pem_private_key(site.server.key.read_bytes(), None)
    locked = tmp_path / "locked.pem"
    encryption = serialization.BestAvailableEncryption(b"hunter2")
    locked.write_bytes(plain.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    server_context(site.server.certificate, locked, "hunter2", None, require_client=False)
    for password, complaint in (("", "it is encrypted"), ("wrong", "does not open it")):
        with pytest.raises(TlsError, match=complaint) as refused:
            server_context(site.server.certificate, locked, password, None, require_client=False)
        assert "hunter2" not in str(refused.value)


def test_a_private_key_open_to_everybody_is_warned_of(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """# trust: secret."""
    key = tmp_path / "open.pem"
    key.write_bytes(site.server.key.read_bytes())
    key.chmod(0o644)
    server_context(site.server.certificate, key, "", None, require_client=False)
    assert f"The private key {key} can be read by everybody" in caplog.text
