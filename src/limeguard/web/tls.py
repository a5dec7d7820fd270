"""TLS contexts out of files: what is asked of the peer, and errors that name the file at fault.

Never below TLS 1.2. Host names are not compared on any connection: a peer is known by the CA that signed its
certificate, or, for an agent, by exactly the certificate that was registered. Knows nothing of settings.
"""

import os
import ssl
import stat
from collections.abc import Sequence
from pathlib import Path

from limeguard.telemetry import get_logger

log = get_logger("keylime.web")

MAX_PEM = 4 * 1024 * 1024
"""Bytes of a key or certificate file; a store of all public CAs has less than one tenth."""


class TlsError(Exception):
    """A TLS context cannot be built; the text names the file and what is wrong with it."""


def server_context(
    certificate: Path, key: Path, password: str, client_cas: Sequence[Path] | None, *, require_client: bool
) -> ssl.SSLContext:
    """Return the context of a server. Raises TlsError.

    `client_cas` None asks for no client certificate; without any CA in it, no client certificate is good enough. Unless
    `require_client`, a client may come without one.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # a peer must not become another after it was looked at
    context.num_tickets = 0  # agents keep their connections: nobody takes up an old one, and tickets cost memory
    _present(context, certificate, key, password)
    if client_cas is None:
        if require_client:
            raise TlsError("client certificates are required, and no CA is named that they could come from")
        return context
    _trust(context, client_cas)
    context.verify_mode = ssl.CERT_REQUIRED if require_client else ssl.CERT_OPTIONAL
    return context


def client_context(
    certificate: Path | None, key: Path | None, password: str, cas: Sequence[Path], *, system_store: bool
) -> ssl.SSLContext:
    """Return the context for servers whose certificate chains to one of `cas`, or to the system's. Raises TlsError."""
    context = _client(certificate, key, password)
    context.verify_mode = ssl.CERT_REQUIRED
    _trust(context, cas)
    if system_store:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    elif not cas:
        raise TlsError("no CA is named that the server's certificate could come from")
    return context


def agent_client_context(certificate: Path, key: Path, password: str) -> ssl.SSLContext:
    """Return the one context for all agents. Raises TlsError.

    It verifies nothing by itself: whoever uses it compares the peer's certificate with the registered one before
    sending a byte, which is narrower than any chain.
    """
    return _client(certificate, key, password)


def _client(certificate: Path | None, key: Path | None, password: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # a peer must not become another after it was looked at
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if certificate is not None and key is not None:
        _present(context, certificate, key, password)
    return context


def _present(context: ssl.SSLContext, certificate: Path, key: Path, password: str) -> None:
    _check(certificate, "certificate")
    if _check(key, "private key") & stat.S_IROTH:
        log.warning("The private key %s can be read by everybody; take that away with chmod o-r", key)
    try:
        # Always a function: without one, the library would ask for a missing password on the terminal.
        context.load_cert_chain(certificate, key, lambda: password)
    except ssl.SSLError as problem:
        raise TlsError(_explained(problem, certificate, key, password)) from problem
    except (OSError, ValueError) as problem:
        raise TlsError(f"certificate {certificate} with private key {key} cannot be used: {problem}") from problem


def _explained(problem: ssl.SSLError, certificate: Path, key: Path, password: str) -> str:
    match problem.reason:
        case "KEY_VALUES_MISMATCH" | "KEY_TYPE_MISMATCH":
            return f"private key {key} does not belong to certificate {certificate}"
        case "EE_KEY_TOO_SMALL" | "CA_KEY_TOO_SMALL" | "CA_MD_TOO_WEAK":
            return f"certificate {certificate} is too weak ({problem.reason}); make it anew with larger [ca] cert_bits"
        case reason:
            return _unreadable(certificate, key, password) or f"{certificate} with {key} cannot be used: {reason}"


def _unreadable(certificate: Path, key: Path, password: str) -> str:
    """Say which of the two files the library could not read, of which it says nothing itself."""
    if b"-----BEGIN " not in certificate.read_bytes():
        return f"certificate {certificate} holds no PEM certificate"
    key_text = key.read_bytes()
    if b"PRIVATE KEY-----" not in key_text:
        return f"private key {key} holds no PEM key"
    if b"ENCRYPTED" in key_text:
        doing = "the configured password does not open it" if password else "it is encrypted; configure its password"
        return f"private key {key} cannot be read: {doing}"
    return ""


def _trust(context: ssl.SSLContext, cas: Sequence[Path]) -> None:
    for ca in cas:
        _check(ca, "CA certificate")
        try:
            context.load_verify_locations(cafile=ca)
        except (ssl.SSLError, OSError) as problem:
            raise TlsError(f"CA certificate {ca} cannot be used: it holds no PEM certificate") from problem


def _check(path: Path, what: str) -> int:
    """Return the mode of a readable regular file of sane size. Raises TlsError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
    except FileNotFoundError as problem:
        raise TlsError(f"{what} {path} does not exist") from problem
    except OSError as problem:
        raise TlsError(f"{what} {path} cannot be read: {problem.strerror}") from problem
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_PEM:
        raise TlsError(f"{what} {path} is not a file of PEM text")
    return status.st_mode
