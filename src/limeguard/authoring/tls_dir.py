"""The TLS directory that a server makes for itself (`tls_dir = generate`), and the check of one that must be there.

Existing files are never replaced. Which files are meant is decided by the settings.
"""

import ipaddress
import socket
from collections.abc import Sequence
from pathlib import Path

from limeguard.authoring.ca import CaError, CertificateAuthority
from limeguard.authoring.settings import ASK, CaSettings
from limeguard.settings import Identity, TlsFiles
from limeguard.telemetry import get_logger

log = get_logger("keylime.web")


def server_names(ip: str, extra: Sequence[str]) -> tuple[str, ...]:
    """Return the names and addresses of this host for a server certificate, each once."""
    host, full = socket.gethostname(), socket.getfqdn()
    bound = () if _is_any(ip) else (ip,)
    wanted = ("localhost", host, full, "127.0.0.1", "::1", *bound, *extra)
    return tuple(dict.fromkeys(name for name in wanted if name and name.isascii()))


def _is_any(ip: str) -> bool:
    try:
        return ipaddress.ip_address(ip).is_unspecified
    except ValueError:
        return False


def require_tls_dir(files: TlsFiles) -> None:
    """Check that the directory is there. Raises CaError."""
    if not files.directory.is_dir():
        advice = "start the verifier first, which makes it, or set tls_dir"
        raise CaError(f"The TLS directory {files.directory} does not exist; {advice}.")


def generate_tls_dir(files: TlsFiles, settings: CaSettings, names: Sequence[str]) -> None:
    """Make what is missing: the CA, the server's key and certificate, and the client's where `files` has one.

    `names` are for the server's certificate (`server_names`). Raises CaError, FilesError, KeyStoreError.
    """
    authority = CertificateAuthority(directory=files.directory, settings=settings, password=settings.password)
    if settings.password == ASK:
        log.warning("The key store of the CA in %s has the password 'default'; set [ca] password", files.directory)
    if authority.exists:
        log.info("Existing CA certificate found in %s, not generating a new one", files.directory)
    else:
        log.info("Generating new CA, keys, and certificates in %s", files.directory)
        log.info("use keylime_ca -d %s to manage this CA", files.directory)
        authority.init()
    if files.server is not None:
        _ensure(authority, files.server, "server", names)
    if files.client is not None:
        _ensure(authority, files.client, "client", ())


def _ensure(authority: CertificateAuthority, wanted: Identity, name: str, names: Sequence[str]) -> None:
    there = [path for path in (wanted.key, wanted.certificate) if _exists(path)]
    if len(there) == 1:
        missing = wanted.certificate if there[0] == wanted.key else wanted.key
        raise CaError(f"{there[0]} is there without {missing}; remove it to have both made anew.")
    if not there:
        authority.create(name, names=names, key_password=wanted.password)


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()
