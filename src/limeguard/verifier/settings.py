"""The verifier's settings: `verifier.conf` with its sections `[verifier]` and `[revocations]`, as one frozen value."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from limeguard.policy.boot import NAMES, OWN_NAME
from limeguard.settings import Component, IfSet, Loaded, Sources, TlsFiles, load
from limeguard.settings import common as shared
from limeguard.settings.kinds import (
    ADDRESS,
    BOOLEAN,
    COMMA_LIST,
    EXACT_TEXT,
    LIST,
    POOL,
    PORT,
    SEVERITY_RULES,
    TEXT,
    TRUSTED,
    URL,
    choice,
    integer,
    literal_list_of,
    number,
    optional_number,
)
from limeguard.settings.options import Clash, mask_all, mask_url, not_yet, option
from limeguard.settings.sources import WORK_DIR
from limeguard.settings.tls import (
    VERIFIER_DIR,
    Role,
    ca_files,
    generate_clashes,
    identity,
    tls_directory,
    trust_cautions,
    trust_clashes,
)

DATABASE_FILE = "cv_data.sqlite"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierSettings:
    """How a verifier runs. Times are seconds, sizes bytes; file names are as configured, `tls_files` resolves them."""

    version: str = option(TEXT, "2.6", shared.VERSION_HELP)
    uuid: str = option(TEXT, "default", "Name of this verifier; it supervises the nodes that carry this name.")
    ip: str = option(ADDRESS, "127.0.0.1", "Address to listen on; `0.0.0.0` or `::` is every address.")
    port: int = option(PORT, "8881", "HTTPS port to listen on.")
    enable_agent_mtls: bool = option(
        BOOLEAN,
        "True",
        "Agents must offer TLS. `False` lets agents without TLS in, whose keys then travel in the clear.",
    )
    tls_dir: str = option(
        TEXT, "generate", "Directory of keys and certificates; `generate` makes a CA and all files in `cv_ca`."
    )
    server_key: str = option(TEXT, "default", "Private key of the server, in `tls_dir`.")
    server_key_password: str = option(EXACT_TEXT, "", "Password of the server's key.", mask=mask_all)
    server_cert: str = option(TEXT, "default", "Certificate of the server, in `tls_dir`.")
    cert_subject_alternative_names: tuple[str, ...] = option(COMMA_LIST, "", shared.SUBJECT_ALTERNATIVES)
    trusted_client_ca: str | tuple[str, ...] = option(TRUSTED, "default", shared.TRUSTED_CLIENTS)
    client_key: str = option(TEXT, "default", "Private key for connections to agents, in `tls_dir`.")
    client_key_password: str = option(EXACT_TEXT, "", "Password of the client's key.", mask=mask_all)
    client_cert: str = option(TEXT, "default", "Certificate for connections to agents, in `tls_dir`.")
    trusted_server_ca: str | tuple[str, ...] = option(TRUSTED, "default", shared.TRUSTED_SERVERS)
    authorization_provider: str = option(
        choice("simple"), "simple", "Who may do what: `simple` asks administrators for a client certificate."
    )
    database_url: str = option(
        TEXT, "sqlite", "Database: `sqlite` is a file in the working directory, or a URL.", mask=mask_url
    )
    database_pool_sz_ovfl: tuple[int, int] = option(POOL, "5,10", shared.POOL_HELP)
    auto_migrate_db: bool = option(BOOLEAN, "True", "Bring the tables up to date at start.")
    exponential_backoff: bool = option(BOOLEAN, "True", "Wait longer after each failed try to reach an agent.")
    retry_interval: float = option(number(0), "2", "Seconds between tries, or the base of the growing wait.")
    max_retries: int = option(integer(0), "5", "Tries in a row that may fail before a node counts as failed.")
    quote_interval: float = option(number(0), "2", "Seconds between two rounds with a node; 0 is without a pause.")
    max_upload_size: int = option(integer(1), str(shared.MAX_UPLOAD), shared.UPLOAD_HELP)
    request_timeout: float = option(number(0.1), "60.0", "Seconds that one request to an agent may take in all.")
    severity_labels: tuple[str, ...] = option(
        LIST,
        '["info", "notice", "warning", "error", "critical", "alert", "emergency"]',
        "Severities, the mildest first.",
    )
    severity_policy: tuple[tuple[str, str], ...] = option(
        SEVERITY_RULES,
        '[{"event_id": ".*", "severity_label" : "emergency"}]',
        "Severity of each finding: the first rule whose pattern matches the whole event id.",
    )
    ignore_tomtou_errors: bool = option(
        BOOLEAN, "False", "Pass over violations in IMA logs (files that changed while they were measured)."
    )
    measured_boot_policy_name: str = option(
        choice(*NAMES, OWN_NAME, other="; modules that bring others are not loaded"),
        "accept-all",
        "What judges boot logs by the measured boot policies of the nodes.",
    )
    measured_boot_evaluate: str = option(
        choice("once", "always"),
        "once",
        "When a boot log is judged: `once` until it or its policy changes, `always` in each round.",
    )
    require_allow_list_signatures: bool = option(
        BOOLEAN, "False", "Take only runtime policies with a good DSSE signature."
    )
    policy_signing_keys: tuple[str, ...] = option(
        COMMA_LIST,
        "",
        "Files with the PEM public keys that may sign runtime policies; with any, a key that comes with a request "
        "counts for nothing and every policy must be signed.",
        own=True,
    )
    shutdown_drain_timeout: float = option(number(0), "10", "Seconds that running rounds get to end at a stop.")
    continue_after_failure: bool = option(
        BOOLEAN, "False", "Go on with rounds for a node that has failed, and collect every finding.", own=True
    )
    trust_lifetime: float | None = option(
        optional_number(0.1),
        "",
        "Seconds for which a passed round counts as trust; empty means five intervals and at least 10.",
        own=True,
    )
    num_workers: int = option(
        integer(0), "0", "Worker processes; 0 is one for each core, but not more than `max_workers`."
    )
    max_workers: int = option(
        integer(0), "16", "Worker processes at most while `num_workers` is 0; 0 is without a bound."
    )
    mode: str = option(
        choice("pull", "push", empty="pull"),
        "pull",
        "How nodes attest unless their enrolment says otherwise: `pull` asks them, `push` lets them come.",
    )
    challenge_lifetime: float = option(
        number(1), "1800", "Seconds that a node which pushes has for its evidence after it was asked for."
    )
    session_lifetime: float = option(
        number(1),
        "180",
        "Seconds that the token of a node which pushes counts, from its proof or its last good evidence.",
    )
    extend_token_on_attestation: bool = option(
        BOOLEAN, "True", "Let a token live on with each attestation that passed."
    )
    nonce_lifetime: float = option(
        number(1), "60", "Seconds that a node which pushes has to prove that it has its attestation key."
    )
    auto_recover_attestation_failures: bool = option(
        BOOLEAN, "False", "Trust a node which pushes again after one good attestation, whatever it had failed for."
    )
    session_create_rate_limit_per_ip: int = option(
        integer(0), "50", "Sessions that one address may ask for within its window; 0 is no limit."
    )
    session_create_rate_limit_window_ip: float = option(number(1), "60", "Seconds of the window of an address.")
    session_create_rate_limit_per_agent: int = option(
        integer(0), "15", "Sessions that may be asked for one node within its window; 0 is no limit."
    )
    session_create_rate_limit_window_agent: float = option(number(1), "60", "Seconds of the window of a node.")
    work_dir: Path = WORK_DIR

    @property
    def tls_directory(self) -> Path:
        """The directory that `tls_dir` names."""
        return tls_directory(self.work_dir, self.tls_dir, VERIFIER_DIR)

    @property
    def tls_files(self) -> TlsFiles:
        """The files for the server and for connections to agents."""
        where = self.tls_directory
        return TlsFiles(
            where,
            identity(where, Role.SERVER, self.server_key, self.server_cert, self.server_key_password),
            identity(where, Role.CLIENT, self.client_key, self.client_cert, self.client_key_password),
            ca_files(self.work_dir, where, self.trusted_client_ca),
            ca_files(self.work_dir, where, self.trusted_server_ca),
        )

    def workers(self, cores: int) -> int:
        """Return how many processes do the work on a machine with so many cores."""
        if self.num_workers:
            return self.num_workers
        return max(min(cores, self.max_workers or cores), 1)

    @property
    def database(self) -> str:
        """The URL of the database."""
        return shared.database_url(self.database_url, self.work_dir, DATABASE_FILE)

    enabled_revocation_notifications: tuple[str, ...] = option(
        literal_list_of("agent", "zeromq", "webhook"),
        "['agent']",
        "Who hears of a node that lost trust: `agent` all other agents, `webhook` the URL below, `zeromq` subscribers.",
        section="revocations",
    )
    zmq_ip: str = option(ADDRESS, "127.0.0.1", "Address that ZeroMQ subscribers connect to.", section="revocations")
    zmq_port: int = option(PORT, "8992", "Port that ZeroMQ subscribers connect to.", section="revocations")
    webhook_url: str = option(
        URL, "", "URL that notices are posted to; empty posts none.", section="revocations", mask=mask_url
    )


def _tls_values(settings: VerifierSettings) -> Mapping[str, str | tuple[str, ...]]:
    return {
        "server_key": settings.server_key,
        "server_cert": settings.server_cert,
        "client_key": settings.client_key,
        "client_cert": settings.client_cert,
        **_trust(settings),
    }


def _trust(settings: VerifierSettings) -> Mapping[str, str | tuple[str, ...]]:
    return {"trusted_client_ca": settings.trusted_client_ca, "trusted_server_ca": settings.trusted_server_ca}


def _clashes(settings: VerifierSettings) -> Iterator[Clash]:
    generated = dict(generate_clashes(settings.tls_dir, _tls_values(settings)))
    yield from generated.items()
    yield from (clash for clash in trust_clashes(_trust(settings)) if clash[0] not in generated)
    for name in ("server_key", "server_cert", "client_key", "client_cert", "tls_dir", "uuid", "database_url"):
        if not getattr(settings, name):
            yield name, "empty; write default" if name != "database_url" else "empty; write sqlite or a URL"
    unknown = {label for _, label in settings.severity_policy} - set(settings.severity_labels)
    if unknown:
        yield "severity_policy", f"uses {min(unknown)!r}, which severity_labels does not name; add it there"


def _cautions(settings: VerifierSettings) -> Iterator[Clash]:
    if "webhook" in settings.enabled_revocation_notifications and not settings.webhook_url:
        yield "enabled_revocation_notifications", "webhook is enabled without webhook_url: no notice is posted"
    yield from shared.version_cautions(settings.version)
    yield from trust_cautions(_trust(settings))
    if not settings.enable_agent_mtls:
        yield "enable_agent_mtls", "agents without TLS are accepted; keys travel to them in the clear"


_MODULES = "Python modules are not loaded into the verifier: say in a measured boot policy what the module checks"

NOT_ACTED_ON = (
    *not_yet(
        [("registrar_ip", ADDRESS, "127.0.0.1"), ("registrar_port", PORT, "8891")],
        "a verifier has no use for it",
    ),
    *not_yet([("measured_boot_imports", LIST, "[]")], _MODULES, IfSet.REFUSE),
    *shared.durable_attestation(""),
    *not_yet([("verification_timeout", integer(0), "0")], "verdicts of this verifier do not hang"),
)

VERIFIER = Component("verifier", VerifierSettings, NOT_ACTED_ON, clashes=_clashes, cautions=_cautions)


def load_verifier_settings(sources: Sources) -> Loaded[VerifierSettings]:
    """Read the verifier's settings. Raises SettingsError with every problem."""
    return load(VERIFIER, sources)
