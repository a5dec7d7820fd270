"""The TLS context of the agent's server: its own certificate, and a client certificate demanded of everybody."""

import ssl
from collections.abc import Sequence
from pathlib import Path

from limeguard.agent.keys import KeyFileError, ServerIdentity


def server_context(identity: ServerIdentity, client_cas: Sequence[Path]) -> ssl.SSLContext:
    """Return a context that accepts only clients of the given CAs, from TLS 1.2 up. Raises KeyFileError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # A password is always given: without one OpenSSL would ask for it on the terminal.
        context.load_cert_chain(identity.certificate_file, identity.key_file, lambda: identity.key_password)
    except (ssl.SSLError, OSError) as problem:
        raise KeyFileError(
            f"{identity.certificate_file} and {identity.key_file} cannot be used for TLS; check server_cert, "
            f"server_key and server_key_password."
        ) from problem
    for file in client_cas:
        _trust(context, file)
    if not client_cas:
        raise KeyFileError("trusted_client_ca names no file: nobody could connect.")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _trust(context: ssl.SSLContext, file: Path) -> None:
    try:
        context.load_verify_locations(file)
    except (ssl.SSLError, OSError) as problem:
        raise KeyFileError(
            f"{file} of trusted_client_ca cannot be read as a CA certificate. Copy the verifier's cacert.crt "
            f"there, or set enable_agent_mtls = false for a trial."
        ) from problem


def registrar_context(ca: Path) -> ssl.SSLContext:
    """Return a context that accepts a registrar of that CA only, by its name. Raises KeyFileError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(ca)
    except (ssl.SSLError, OSError) as problem:
        raise KeyFileError(f"{ca} of registrar_tls_ca_cert cannot be read as a CA certificate.") from problem
    return context


def verifier_context(ca: Path, *, insecure: bool, any_name: bool) -> ssl.SSLContext:
    """Return a context for a push agent's verifiers: of that CA and by their names, unless told otherwise.

    `insecure` accepts anybody, `any_name` any server of the CA. Raises KeyFileError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = not (insecure or any_name)
    if insecure:
        context.verify_mode = ssl.CERT_NONE
        return context
    try:
        context.load_verify_locations(ca)
    except (ssl.SSLError, OSError) as problem:
        raise KeyFileError(
            f"{ca} of verifier_tls_ca_cert cannot be read as a CA certificate. Copy the verifier's cacert.crt there."
        ) from problem
    return context
