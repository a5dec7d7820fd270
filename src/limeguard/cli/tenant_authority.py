"""The certificate authority that `--cert` uses, as the tenant asks for it.

The tenant and the makers of certificates do not know each other; they meet here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from limeguard.authoring.ca import CaError, CertificateAuthority
from limeguard.authoring.files import FilesError
from limeguard.authoring.keystore import KeyStoreError
from limeguard.authoring.node_package import node_package
from limeguard.authoring.settings import ASK, load_ca_settings
from limeguard.settings import Sources
from limeguard.telemetry import get_logger
from limeguard.tenant.errors import TenantError
from limeguard.tenant.payload import CertificatePackage
from limeguard.tenant.report import Report, info


@dataclass(frozen=True, slots=True)
class PayloadAuthority:
    """The authority in a directory. Settings are read, and the password is asked for, when a package is wanted."""

    directory: Path
    sources: Sources
    report: Report
    ask_password: Callable[[], str]

    def package_for(self, agent_id: str) -> CertificatePackage:
        """Make (or find) the certificates of a node. Raises TenantError."""
        loaded = load_ca_settings(self.sources)
        loaded.announce(get_logger("keylime.config"))
        settings = loaded.settings
        try:
            password = self.ask_password() if settings.password == ASK else settings.password
        except EOFError:
            raise TenantError("no password for the key store of the CA was given") from None
        authority = CertificateAuthority(directory=self.directory, settings=settings, password=password)
        if not authority.exists:
            info(self.report, "CA directory does not exist. Creating...")
        try:
            found = node_package(authority, agent_id)
        except (CaError, FilesError, KeyStoreError) as problem:
            raise TenantError(f"CA in {self.directory}: {problem}") from problem
        return CertificatePackage(
            found.files, found.serial, found.subject, found.revocation_key, found.notifier_certificate
        )
