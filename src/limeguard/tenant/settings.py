"""The tenant's settings: `tenant.conf`, section `[tenant]`, as one frozen value."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from limeguard.settings import Component, Loaded, Sources, TlsFiles, load
from limeguard.settings import common as shared
from limeguard.settings.kinds import ADDRESS, BOOLEAN, EXACT_TEXT, LIST, PORT, TEXT, TRUSTED, integer, number
from limeguard.settings.options import Clash, mask_all, option
from limeguard.settings.sources import WORK_DIR
from limeguard.settings.tls import GENERATE, Role, ca_files, identity, tls_directory, trust_cautions, trust_clashes


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSettings:
    """How the tenant reaches its servers and what it accepts. Times are seconds, sizes bytes."""

    version: str = option(TEXT, "2.6", shared.VERSION_HELP)
    verifier_ip: str = option(ADDRESS, "127.0.0.1", "Address of the verifier.")
    verifier_port: int = option(PORT, "8881", "HTTPS port of the verifier.")
    registrar_ip: str = option(ADDRESS, "127.0.0.1", "Address of the registrar.")
    registrar_port: int = option(PORT, "8891", "HTTPS port of the registrar.")
    tls_dir: str = option(TEXT, "default", "Directory of keys and certificates; `default` is the verifier's `cv_ca`.")
    enable_agent_mtls: bool = option(
        BOOLEAN, "True", "Speak TLS with agents. With `False`, keys travel to agents without TLS in the clear."
    )
    client_key: str = option(TEXT, "default", "Private key for all connections, in `tls_dir`.")
    client_key_password: str = option(EXACT_TEXT, "", "Password of the client's key.", mask=mask_all)
    client_cert: str = option(TEXT, "default", "Certificate for all connections, in `tls_dir`.")
    trusted_server_ca: str | tuple[str, ...] = option(TRUSTED, "default", shared.TRUSTED_SERVERS)
    tpm_cert_store: str = option(
        TEXT, "/var/lib/keylime/tpm_cert_store", "Directory with the CA certificates of TPM makers (`*.pem`)."
    )
    max_payload_size: int = option(integer(0), "1048576", "Largest payload for a node, in bytes.")
    accept_tpm_hash_algs: tuple[str, ...] = option(
        LIST, "['sha512', 'sha384', 'sha256']", "Hash algorithms of quotes that are accepted."
    )
    accept_tpm_encryption_algs: tuple[str, ...] = option(
        LIST,
        "['ecc', 'rsa']",
        "Kinds of TPM keys that are accepted; sizes beyond rsa2048 and ecc256 by their own name.",
    )
    accept_tpm_signing_algs: tuple[str, ...] = option(
        LIST,
        "['ecschnorr', 'rsassa']",
        "Signature schemes of quotes that are accepted; nodes with ECC keys need `ecdsa`.",
    )
    exponential_backoff: bool = option(BOOLEAN, "True", "Wait longer after each failed try.")
    retry_interval: float = option(number(0), "2", "Seconds between tries, or the base of the growing wait.")
    max_retries: int = option(integer(0), "5", "Tries before giving up.")
    request_timeout: float = option(number(0.1), "60", "Seconds that one request may take in all.")
    require_ek_cert: bool = option(BOOLEAN, "True", "Refuse nodes whose TPM shows no certificate from its maker.")
    ek_check_script: str = option(TEXT, "", "Program that is asked about the EK and its certificate; empty is none.")
    mb_refstate: str = option(
        TEXT, "", "File with the measured boot policy that `--mb-policy default` stands for; empty is none."
    )
    work_dir: Path = WORK_DIR

    @property
    def tls_directory(self) -> Path:
        """The directory that `tls_dir` names."""
        return tls_directory(self.work_dir, self.tls_dir)

    @property
    def tls_files(self) -> TlsFiles:
        """The files for connections to verifier, registrar and agents."""
        where = self.tls_directory
        return TlsFiles(
            where,
            client=identity(where, Role.CLIENT, self.client_key, self.client_cert, self.client_key_password),
            server_cas=ca_files(self.work_dir, where, self.trusted_server_ca),
        )

    @property
    def ca_directory(self) -> Path:
        """The CA for payloads with certificates."""
        return self.work_dir / "ca"


def _trust(settings: TenantSettings) -> Mapping[str, str | tuple[str, ...]]:
    return {"trusted_server_ca": settings.trusted_server_ca}


def _clashes(settings: TenantSettings) -> Iterator[Clash]:
    if settings.tls_dir == GENERATE:
        yield "tls_dir", "a tenant makes no certificates of its own; write default, the verifier's directory"
    yield from trust_clashes(_trust(settings))
    for name in ("client_key", "client_cert", "tls_dir"):
        if not getattr(settings, name):
            yield name, "empty; write default"
    for name in ("accept_tpm_hash_algs", "accept_tpm_encryption_algs", "accept_tpm_signing_algs"):
        if not getattr(settings, name):
            yield name, "an empty list accepts no node at all; name at least one algorithm"


def _cautions(settings: TenantSettings) -> Iterator[Clash]:
    yield from shared.version_cautions(settings.version)
    yield from trust_cautions(_trust(settings))
    if not settings.enable_agent_mtls:
        yield "enable_agent_mtls", "keys travel to agents without TLS in the clear"
    if not settings.require_ek_cert:
        yield "require_ek_cert", "nothing then shows that a key belongs to a real TPM"
    if "sha1" in settings.accept_tpm_hash_algs:
        yield "accept_tpm_hash_algs", "SHA-1 is broken; take it off the list when no node needs it"


TENANT = Component("tenant", TenantSettings, clashes=_clashes, cautions=_cautions)


def load_tenant_settings(sources: Sources) -> Loaded[TenantSettings]:
    """Read the tenant's settings. Raises SettingsError with every problem."""
    return load(TENANT, sources)
