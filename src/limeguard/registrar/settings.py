"""The registrar's settings: `registrar.conf`, section `[registrar]`, as one frozen value."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from limeguard.settings import Component, Loaded, Sources, TlsFiles, load
from limeguard.settings import common as shared
from limeguard.settings.kinds import (
    ADDRESS,
    BOOLEAN,
    COMMA_LIST,
    EXACT_TEXT,
    POOL,
    PORT,
    TEXT,
    TRUSTED,
    choice,
    integer,
)
from limeguard.settings.options import Clash, mask_all, mask_url, option
from limeguard.settings.sources import WORK_DIR
from limeguard.settings.tls import (
    REGISTRAR_DIR,
    Role,
    ca_files,
    generate_clashes,
    identity,
    tls_directory,
    trust_cautions,
    trust_clashes,
)

DATABASE_FILE = "reg_data.sqlite"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrarSettings:
    """How a registrar runs. Sizes are bytes; file names are as configured, `tls_files` resolves them."""

    version: str = option(TEXT, "2.6", shared.VERSION_HELP)
    ip: str = option(ADDRESS, "127.0.0.1", "Address to listen on; `0.0.0.0` or `::` is every address.")
    port: int = option(PORT, "8890", "HTTP port, where agents register.")
    tls_port: int = option(PORT, "8891", "HTTPS port, for registrations and administration.")
    tls_dir: str = option(
        TEXT,
        "default",
        "Directory of keys and certificates; `default` is the verifier's `cv_ca`, `generate` makes them in `reg_ca`.",
    )
    server_key: str = option(TEXT, "default", "Private key of the server, in `tls_dir`.")
    server_key_password: str = option(EXACT_TEXT, "", "Password of the server's key.", mask=mask_all)
    server_cert: str = option(TEXT, "default", "Certificate of the server, in `tls_dir`.")
    cert_subject_alternative_names: tuple[str, ...] = option(COMMA_LIST, "", shared.SUBJECT_ALTERNATIVES)
    trusted_client_ca: str | tuple[str, ...] = option(TRUSTED, "default", shared.TRUSTED_CLIENTS)
    authorization_provider: str = option(
        choice("simple"), "simple", "Who may do what: `simple` asks administrators for a client certificate."
    )
    database_url: str = option(
        TEXT, "sqlite", "Database: `sqlite` is a file in the working directory, or a URL.", mask=mask_url
    )
    database_pool_sz_ovfl: tuple[int, int] = option(POOL, "5,10", shared.POOL_HELP)
    auto_migrate_db: bool = option(BOOLEAN, "True", "Bring the tables up to date at start.")
    max_upload_size: int = option(integer(1), str(shared.MAX_UPLOAD), shared.UPLOAD_HELP)
    tpm_identity: str = option(
        choice("default", "ek_cert_or_iak_idevid", "ek_cert", "iak_idevid"),
        "default",
        "What must prove a TPM at registration: `ek_cert`, `iak_idevid`, or either (`default`).",
    )
    malformed_cert_action: str = option(
        choice("warn", "reject", "ignore"),
        "warn",
        "EK, IAK and IDevID certificates with flaws in their encoding: `warn` accepts and logs, `ignore` only accepts.",
    )
    allow_reregistration_with_new_tpm: bool = option(
        BOOLEAN, "False", "Let a node register again under its id with a different TPM; unsafe.", own=True
    )
    work_dir: Path = WORK_DIR

    @property
    def tls_directory(self) -> Path:
        """The directory that `tls_dir` names."""
        return tls_directory(self.work_dir, self.tls_dir, REGISTRAR_DIR)

    @property
    def tls_files(self) -> TlsFiles:
        """The files for the server."""
        where = self.tls_directory
        return TlsFiles(
            where,
            identity(where, Role.SERVER, self.server_key, self.server_cert, self.server_key_password),
            client_cas=ca_files(self.work_dir, where, self.trusted_client_ca),
        )

    @property
    def database(self) -> str:
        """The URL of the database."""
        return shared.database_url(self.database_url, self.work_dir, DATABASE_FILE)


def _trust(settings: RegistrarSettings) -> Mapping[str, str | tuple[str, ...]]:
    return {"trusted_client_ca": settings.trusted_client_ca}


def _clashes(settings: RegistrarSettings) -> Iterator[Clash]:
    files = {"server_key": settings.server_key, "server_cert": settings.server_cert, **_trust(settings)}
    generated = dict(generate_clashes(settings.tls_dir, files))
    yield from generated.items()
    yield from (clash for clash in trust_clashes(_trust(settings)) if clash[0] not in generated)
    for name in ("server_key", "server_cert", "tls_dir", "database_url"):
        if not getattr(settings, name) and name not in generated:
            yield name, "empty; write default" if name != "database_url" else "empty; write sqlite or a URL"
    if settings.port == settings.tls_port:
        yield "tls_port", f"the same as port ({settings.port}); write two different ports"
    if settings.tpm_identity == "iak_idevid":
        yield "tpm_identity", "not supported by this version: IAK and IDevID are not judged; write default or ek_cert"


def _cautions(settings: RegistrarSettings) -> Iterator[Clash]:
    yield from shared.version_cautions(settings.version)
    yield from trust_cautions(_trust(settings))
    if settings.allow_reregistration_with_new_tpm:
        yield "allow_reregistration_with_new_tpm", "whoever can register can take over the id of a node"


REGISTRAR = Component(
    "registrar",
    RegistrarSettings,
    (*shared.MAX_WORKERS, *shared.durable_attestation("ek_tpm,aik_tpm,ekcert")),
    clashes=_clashes,
    cautions=_cautions,
)


def load_registrar_settings(sources: Sources) -> Loaded[RegistrarSettings]:
    """Read the registrar's settings. Raises SettingsError with every problem."""
    return load(REGISTRAR, sources)
