"""TLS for a server or tenant that starts: the files made or checked as the settings say, then contexts out of them."""

import ssl

from limeguard.authoring.ca import CaError
from limeguard.authoring.settings import load_ca_settings
from limeguard.authoring.tls_dir import generate_tls_dir, require_tls_dir, server_names
from limeguard.registrar.settings import RegistrarSettings
from limeguard.settings import Identity, Sources, TlsFiles
from limeguard.settings.tls import GENERATE
from limeguard.telemetry import get_logger
from limeguard.verifier.settings import VerifierSettings
from limeguard.web.tls import agent_client_context, client_context, server_context


def prepare_tls(settings: VerifierSettings | RegistrarSettings, sources: Sources) -> TlsFiles:
    """Return the files of a server, made first when `tls_dir = generate`; only then the CA's settings are read.

    Raises CaError, FilesError, KeyStoreError, SettingsError.
    """
    files = settings.tls_files
    if settings.tls_dir != GENERATE:
        require_tls_dir(files)
        return files
    ca = load_ca_settings(sources)
    ca.announce(get_logger("keylime.config"))
    generate_tls_dir(files, ca.settings, server_names(settings.ip, settings.cert_subject_alternative_names))
    return files


def server_tls(files: TlsFiles) -> ssl.SSLContext:
    """Return the context of a server; a client without certificate may connect, and do little. Raises TlsError."""
    own = _named(files.server)
    return server_context(own.certificate, own.key, own.password, files.client_cas, require_client=False)


def agents_tls(files: TlsFiles) -> ssl.SSLContext:
    """Return the one context for all agents, whose certificates are pinned. Raises TlsError."""
    own = _named(files.client)
    return agent_client_context(own.certificate, own.key, own.password)


def servers_tls(files: TlsFiles) -> ssl.SSLContext:
    """Return the context for verifier, registrar and other servers. Raises TlsError."""
    own = _named(files.client)
    return client_context(own.certificate, own.key, own.password, files.server_cas, system_store=True)


def _named(identity: Identity | None) -> Identity:
    if identity is None:
        raise CaError("The settings name no key and certificate.")
    return identity
