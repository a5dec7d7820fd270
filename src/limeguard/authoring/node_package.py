"""The certificate package of a node (`--cert`): its own certificate, the CA, and what proves revocation messages.

The private key for revocation messages goes to the verifier alone; no package that is delivered holds it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from limeguard.authoring.ca import CertificateAuthority, Issued, package_files
from limeguard.authoring.files import open_folder

NOTIFIER = "RevocationNotifier"


@dataclass(frozen=True, slots=True, repr=False)
class NodePackage:
    """Certificates for one node: the files of its package by name, and what the verifier is told.

    `subject` is RFC 4514 text, `revocation_key` and `notifier_certificate` PEM.
    """

    files: Mapping[str, bytes]
    serial: int
    subject: str
    revocation_key: str
    notifier_certificate: bytes


def node_package(authority: CertificateAuthority, agent_id: str) -> NodePackage:
    """Find the certificates of a node, or make them, and the CA with them on first use.

    A certificate that was revoked or has run out is made anew. Raises CaError, FilesError, KeyStoreError.
    """
    if not authority.exists:
        authority.init()
    issued = _usable(authority, agent_id)
    _usable(authority, NOTIFIER)
    authority.package(agent_id)
    authority.package(NOTIFIER)
    with open_folder(authority.directory, create=False) as folder:
        files = package_files(folder, agent_id)
        notifier = package_files(folder, NOTIFIER)
    return NodePackage(
        files,
        issued.serial,
        issued.subject,
        notifier[f"{NOTIFIER}-private.pem"].decode(),
        notifier[f"{NOTIFIER}-cert.crt"],
    )


def _usable(authority: CertificateAuthority, name: str) -> Issued:
    found = {each.name: each for each in authority.issued()}.get(name)
    if found is None or found.revoked or found.expires.timestamp() <= authority.clock():
        return authority.create(name)
    return found
