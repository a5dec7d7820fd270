"""The agent's settings: `agent.conf` (TOML), section `[agent]`, as one frozen value.

Options are kept as configured; the properties that end in `_file`, `_files` or `_dir` say which paths are meant.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from limeguard.settings import Component, IfSet, Loaded, Sources, Syntax, load
from limeguard.settings import common as shared
from limeguard.settings.kinds import (
    ADDRESS,
    BOOLEAN,
    EXACT_TEXT,
    LOOSE_LIST,
    PORT,
    TEXT,
    TRUSTED_LOOSE,
    choice,
    integer,
    matching,
)
from limeguard.settings.options import Clash, mask_all, not_yet, option
from limeguard.settings.sources import WORK_DIR

IMA_LOG = "/sys/kernel/security/ima/ascii_runtime_measurements"
BOOT_LOG = "/sys/kernel/security/tpm0/binary_bios_measurements"

ENCRYPTION_ALGS = (
    "rsa", "rsa1024", "rsa2048", "rsa3072", "rsa4096",
    "ecc", "ecc192", "ecc224", "ecc256", "ecc384", "ecc521",
    "ecc_nist_p192", "ecc_nist_p224", "ecc_nist_p256", "ecc_nist_p384", "ecc_nist_p521", "ecc_sm2", "ecc_sm2_p256",
)  # fmt: skip
HASH_ALGS = ("sha1", "sha256", "sha384", "sha512", "sm3_256")
SIGNING_ALGS = ("rsassa", "rsapss", "ecdsa", "ecschnorr")
HANDLE = matching("a persistent handle", r"generate|0[xX]81[0-9A-Fa-f]{6}", "generate or 0x81000000")
OPTIONAL_HANDLE = matching("a persistent handle", r"|(0[xX])?81[0-9A-Fa-f]{6}", "0x81000000, or leave it empty")
FILE_NAME = matching("the name of a file, without a directory", r"(?!\.{1,2}$)[^/\x00]+", "derived_tci_key")
SIZE = matching("a size", r"[1-9][0-9]{0,9}[kKmMgG]?", "1m")
RUN_AS = matching("user:group", r"|[^:\s]+:[^:\s]+", "keylime:tss, or leave it empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """How an agent runs. Delays are milliseconds where their help says so."""

    version: str = option(TEXT, "2.4", shared.VERSION_HELP, empty_is_default=True)
    api_versions: tuple[str, ...] = option(
        LOOSE_LIST,
        "default",
        "API versions to offer: `default` is all of them, `latest`, or a list.",
        empty_is_default=True,
    )
    uuid: str = option(
        TEXT,
        "d432fbb3-d2f1-4a97-9ef7-75bd81c00000",
        "Id of the node: a UUID, `generate` (a new one at each start) or `hash_ek` (the hash of the TPM's EK).",
        empty_is_default=True,
    )
    ip: str = option(ADDRESS, "127.0.0.1", "Address to listen on.", empty_is_default=True)
    port: int = option(PORT, "9002", "Port to listen on.", empty_is_default=True)
    contact_ip: str = option(
        ADDRESS, "127.0.0.1", "Address under which tenant and verifier reach the agent.", empty_is_default=True
    )
    contact_port: int = option(PORT, "9002", "Port that goes with `contact_ip`.", empty_is_default=True)
    registrar_ip: str = option(ADDRESS, "127.0.0.1", "Address of the registrar.", empty_is_default=True)
    registrar_port: int = option(PORT, "8890", "HTTP port of the registrar.", empty_is_default=True)
    registrar_tls_enabled: bool = option(BOOLEAN, "false", "Register over HTTPS.", empty_is_default=True)
    registrar_tls_port: int = option(PORT, "8891", "HTTPS port of the registrar.", empty_is_default=True)
    registrar_tls_ca_cert: str = option(
        TEXT, "default", "CA of the registrar; `default` is `cv_ca/cacert.crt`.", empty_is_default=True
    )
    enable_agent_mtls: bool = option(
        BOOLEAN, "true", "Serve TLS and ask for client certificates. `false` is plain HTTP.", empty_is_default=True
    )
    keylime_dir: str = option(
        TEXT,
        str(WORK_DIR),
        "Working directory; relative paths are below it. `KEYLIME_DIR` wins.",
        empty_is_default=True,
    )
    server_key: str = option(
        TEXT, "default", "Private key of the agent's server; made when it is not there.", empty_is_default=True
    )
    server_key_password: str = option(EXACT_TEXT, "", "Password of the server's key.", mask=mask_all)
    server_cert: str = option(
        TEXT, "default", "Certificate of the agent's server; made when it is not there.", empty_is_default=True
    )
    payload_key: str = option(
        TEXT,
        "default",
        "RSA key under which a payload's key is sent; made when it is not there.",
        empty_is_default=True,
    )
    payload_key_password: str = option(EXACT_TEXT, "", "Password of the payload key.", mask=mask_all)
    trusted_client_ca: str | tuple[str, ...] = option(
        TRUSTED_LOOSE,
        "default",
        "CAs of the tenant's and verifier's certificates; `default` is `cv_ca/cacert.crt`.",
        empty_is_default=True,
    )
    enc_keyname: str = option(
        FILE_NAME, "derived_tci_key", "File below `secure/unzipped` for the payload's key.", empty_is_default=True
    )
    dec_payload_file: str = option(
        FILE_NAME, "decrypted_payload", "File below `secure/unzipped` for the payload.", empty_is_default=True
    )
    secure_size: str = option(SIZE, "1m", "Size of the memory file system for secrets.", empty_is_default=True)
    extract_payload_zip: bool = option(BOOLEAN, "true", "Unpack a payload that is a ZIP file.", empty_is_default=True)
    payload_script: str = option(TEXT, "autorun.sh", "Script of the payload that is run; empty is none.")
    enable_insecure_payload: bool = option(
        BOOLEAN, "false", "Accept payloads without TLS; unsafe.", empty_is_default=True
    )
    allow_payload_revocation_actions: bool = option(
        BOOLEAN, "true", "Payloads may bring actions for revocation messages.", empty_is_default=True
    )
    revocation_cert: str = option(
        TEXT, "default", "Certificate that revocation messages are checked with.", empty_is_default=True
    )
    revocation_actions: tuple[str, ...] = option(LOOSE_LIST, "", "Actions for revocation messages, in order.")
    revocation_actions_dir: str = option(
        TEXT, "/usr/libexec/keylime", "Directory of these actions.", empty_is_default=True
    )
    tpm_hash_alg: str = option(choice(*HASH_ALGS), "sha256", "Hash algorithm of quotes.", empty_is_default=True)
    tpm_encryption_alg: str = option(choice(*ENCRYPTION_ALGS), "rsa", "Kind of EK and AK.", empty_is_default=True)
    tpm_signing_alg: str = option(choice(*SIGNING_ALGS), "rsassa", "Signature scheme of the AK.", empty_is_default=True)
    ek_handle: str = option(HANDLE, "generate", "Persistent handle of the EK, or `generate`.", empty_is_default=True)
    enable_iak_idevid: bool = option(BOOLEAN, "false", "Register with IAK and IDevID too.", empty_is_default=True)
    iak_idevid_template: str = option(
        choice("detect", "default", "h-1", "h-2", "h-3", "h-4", "h-5", "manual"),
        "detect",
        "Template of IAK and IDevID: `detect` from the certificates, `H-1` to `H-5`, or `manual`.",
        empty_is_default=True,
    )
    iak_idevid_asymmetric_alg: str = option(
        choice(*ENCRYPTION_ALGS), "rsa", "Kind of key for the `manual` template.", empty_is_default=True
    )
    iak_idevid_name_alg: str = option(
        choice(*HASH_ALGS), "sha256", "Name algorithm for the `manual` template.", empty_is_default=True
    )
    idevid_password: str = option(EXACT_TEXT, "", "Password of a persisted IDevID; `hex:` for bytes.", mask=mask_all)
    idevid_handle: str = option(OPTIONAL_HANDLE, "", "Handle of a persisted IDevID.")
    iak_password: str = option(EXACT_TEXT, "", "Password of a persisted IAK; `hex:` for bytes.", mask=mask_all)
    iak_handle: str = option(OPTIONAL_HANDLE, "", "Handle of a persisted IAK.")
    iak_cert: str = option(TEXT, "default", "Certificate of the IAK; empty is none.")
    idevid_cert: str = option(TEXT, "default", "Certificate of the IDevID; empty is none.")
    tpm_ownerpassword: str = option(EXACT_TEXT, "", "Password of the TPM's owner; `hex:` for bytes.", mask=mask_all)
    run_as: str = option(RUN_AS, "keylime:tss", "User and group to become after start as root; empty stays root.")
    agent_data_path: str = option(TEXT, "default", "File that keeps the AK between starts.", empty_is_default=True)
    ima_ml_path: str = option(TEXT, "default", f"IMA log; `default` is `{IMA_LOG}`.", empty_is_default=True)
    measuredboot_ml_path: str = option(TEXT, "default", f"Boot log; `default` is `{BOOT_LOG}`.", empty_is_default=True)
    exponential_backoff_initial_delay: int = option(
        integer(0),
        "10000",
        "Milliseconds before the second try to register; in the push model, of any request.",
        empty_is_default=True,
    )
    exponential_backoff_max_retries: int = option(
        integer(0), "5", "Further tries before giving up; the push model begins anew then.", empty_is_default=True
    )
    exponential_backoff_max_delay: int = option(
        integer(0), "300000", "Longest wait between two tries, in milliseconds.", empty_is_default=True
    )
    verifier_url: tuple[str, ...] = option(
        LOOSE_LIST,
        "https://localhost:8881",
        "Push model: the verifier, or several separated by commas that are tried in order.",
        empty_is_default=True,
    )
    verifier_tls_ca_cert: str = option(
        TEXT, "default", "Push model: CA of the verifier; `default` is `cv_ca/cacert.crt`.", empty_is_default=True
    )
    registrar_api_versions: tuple[str, ...] = option(
        LOOSE_LIST,
        "default",
        "Push model: API versions to try with the registrar: `default` is all of them, `latest`, or a list.",
        empty_is_default=True,
    )
    attestation_interval_seconds: int = option(
        integer(1, 86400),
        "60",
        "Push model: seconds between attestations when the verifier does not say, and after a failure.",
        empty_is_default=True,
    )
    certification_keys_server_identifier: str = option(
        TEXT, "ak", "Push model: the name under which the AK is offered.", empty_is_default=True
    )
    uefi_logs_evidence_version: str = option(
        TEXT, "2.1", "Push model: the version that the boot log is offered with.", empty_is_default=True
    )
    tls_accept_invalid_certs: bool = option(
        BOOLEAN, "false", "Push model: accept any certificate of the verifier; unsafe.", empty_is_default=True
    )
    tls_accept_invalid_hostnames: bool = option(
        BOOLEAN, "false", "Push model: do not compare the verifier's name with its certificate.", empty_is_default=True
    )
    work_dir: Path = WORK_DIR

    def below(self, configured: str, default: str) -> Path:
        """Return the path that an option means, below the working directory unless absolute."""
        return self.work_dir / (default if configured == "default" else configured)

    @property
    def ca_file(self) -> Path:
        """The CA certificate of the verifier, the default wherever a CA is asked for."""
        return self.work_dir / "cv_ca" / "cacert.crt"

    @property
    def registrar_ca_file(self) -> Path:
        """The CA of the registrar."""
        return self.below(self.registrar_tls_ca_cert, "cv_ca/cacert.crt")

    @property
    def verifier_ca_file(self) -> Path:
        """The CA of the verifier that a push agent trusts."""
        return self.below(self.verifier_tls_ca_cert, "cv_ca/cacert.crt")

    @property
    def server_key_file(self) -> Path:
        """The private key of the agent's server."""
        return self.below(self.server_key, "server-private.pem")

    @property
    def server_cert_file(self) -> Path:
        """The certificate of the agent's server."""
        return self.below(self.server_cert, "server-cert.crt")

    @property
    def payload_key_file(self) -> Path:
        """The RSA key under which a payload's key arrives."""
        return self.below(self.payload_key, "payload-private.pem")

    @property
    def trusted_client_ca_files(self) -> tuple[Path, ...]:
        """The CAs of those who may connect."""
        if isinstance(self.trusted_client_ca, str):
            return (self.ca_file,)
        return tuple(self.below(name, "cv_ca/cacert.crt") for name in self.trusted_client_ca)

    @property
    def secure_dir(self) -> Path:
        """The memory file system for secrets."""
        return self.work_dir / "secure"

    @property
    def unzipped_dir(self) -> Path:
        """Where the payload and its key are put."""
        return self.secure_dir / "unzipped"

    @property
    def revocation_cert_file(self) -> Path:
        """The certificate that revocation messages are checked with."""
        return self.below(self.revocation_cert, "secure/unzipped/RevocationNotifier-cert.crt")

    @property
    def iak_cert_file(self) -> Path | None:
        """The certificate of the IAK, or None."""
        return self.below(self.iak_cert, "iak-cert.crt") if self.iak_cert else None

    @property
    def idevid_cert_file(self) -> Path | None:
        """The certificate of the IDevID, or None."""
        return self.below(self.idevid_cert, "idevid-cert.crt") if self.idevid_cert else None

    @property
    def agent_data_file(self) -> Path:
        """The file that keeps the AK."""
        return self.below(self.agent_data_path, "agent_data.json")

    @property
    def ima_log_file(self) -> Path:
        """The kernel's IMA log; a relative path is below the root of the file system."""
        return Path("/") / (IMA_LOG if self.ima_ml_path == "default" else self.ima_ml_path)

    @property
    def boot_log_file(self) -> Path:
        """The firmware's boot log; a relative path is below the root of the file system."""
        return Path("/") / (BOOT_LOG if self.measuredboot_ml_path == "default" else self.measuredboot_ml_path)


def _clashes(settings: AgentSettings) -> Iterator[Clash]:
    if not settings.enable_agent_mtls and settings.payload_script and not settings.enable_insecure_payload:
        # Users match on this wording.
        text = "payloads would arrive without TLS: 'enable_insecure_payload' has to be set to 'True' to allow that"
        yield "enable_insecure_payload", f'{text}; better write enable_agent_mtls = true, or payload_script = ""'
    if settings.tpm_encryption_alg.startswith("rsa") == settings.tpm_signing_alg.startswith("ec"):
        scheme = "rsassa or rsapss" if settings.tpm_encryption_alg.startswith("rsa") else "ecdsa"
        yield "tpm_signing_alg", f"does not go with tpm_encryption_alg = {settings.tpm_encryption_alg}; write {scheme}"


def _cautions(settings: AgentSettings) -> Iterator[Clash]:
    yield from shared.version_cautions(settings.version)
    if not settings.enable_agent_mtls:
        yield "enable_agent_mtls", "tenant and verifier reach this agent without TLS, and keys arrive in the clear"
    if settings.enable_insecure_payload:
        yield "enable_insecure_payload", "whoever reads the network can read the payload and its key"
    if settings.tls_accept_invalid_certs:
        yield "tls_accept_invalid_certs", "whoever answers in the verifier's place gets this node's session token"
    if settings.tls_accept_invalid_hostnames:
        yield "tls_accept_invalid_hostnames", "any server of the verifier's CA can take the verifier's place"
    if not settings.run_as:
        yield "run_as", "empty: an agent that is started as root stays root"
    if settings.tpm_hash_alg == "sha1":
        yield "tpm_hash_alg", "SHA-1 is broken, and verifiers refuse it unless told otherwise"


NOT_ACTED_ON = (
    *not_yet(
        [("enable_revocation_notifications", BOOLEAN, "false")],
        "there is no ZeroMQ listener; revocation messages arrive over HTTPS",
        IfSet.WARN,
    ),
    *not_yet(
        [("revocation_notification_ip", ADDRESS, "127.0.0.1"), ("revocation_notification_port", PORT, "8992")],
        "there is no ZeroMQ listener",
    ),
)

AGENT = Component(
    "agent",
    AgentSettings,
    NOT_ACTED_ON,
    syntax=Syntax.TOML,
    clashes=_clashes,
    cautions=_cautions,
    work_dir_option="keylime_dir",
)


def load_agent_settings(sources: Sources) -> Loaded[AgentSettings]:
    """Read the agent's settings. Raises SettingsError with every problem."""
    return load(AGENT, sources)
