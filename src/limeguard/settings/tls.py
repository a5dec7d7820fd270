"""What the TLS options mean: directories and files by Keylime's rules. Touches no file.

Making the files is the work of `authoring`, making contexts out of them that of `web.tls`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

DEFAULT = "default"
GENERATE = "generate"
ALL = "all"

CA_FILE = "cacert.crt"
VERIFIER_DIR = "cv_ca"
REGISTRAR_DIR = "reg_ca"


class Role(Enum):
    """Which end of a connection a key is for."""

    SERVER = "server"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class Identity:
    """Key and certificate (PEM files, the certificate may be followed by its chain); empty password: not encrypted."""

    key: Path
    certificate: Path
    password: str = ""

    def __repr__(self) -> str:
        """Show everything but the password."""
        return f"Identity(key={str(self.key)!r}, certificate={str(self.certificate)!r})"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """All that a program's TLS contexts are built from. An empty tuple of CAs trusts nobody beyond the system's."""

    directory: Path
    server: Identity | None = None
    client: Identity | None = None
    client_cas: tuple[Path, ...] = ()
    server_cas: tuple[Path, ...] = ()


def tls_directory(work_dir: Path, tls_dir: str, generated: str = VERIFIER_DIR) -> Path:
    """Return the directory that `tls_dir` names; `generated` is where this program's own material is made."""
    if tls_dir == GENERATE:
        return work_dir / generated
    if tls_dir == DEFAULT:
        return work_dir / VERIFIER_DIR
    return work_dir / tls_dir


def identity(directory: Path, role: Role, key: str, certificate: str, password: str) -> Identity | None:
    """Return where key and certificate of a role are; None when one of the names is empty."""
    if not key or not certificate:
        return None
    name = role.value
    return Identity(
        directory / (f"{name}-private.pem" if key == DEFAULT else key),
        directory / (f"{name}-cert.crt" if certificate == DEFAULT else certificate),
        password,
    )


def ca_files(work_dir: Path, directory: Path, trusted: str | tuple[str, ...]) -> tuple[Path, ...]:
    """Return the CA files that an option names. `default` is the verifier's CA whatever `tls_dir` says.

    `all` gives none: a client then trusts the system's store alone, a server no certificate at all.
    """
    if trusted == DEFAULT:
        return (work_dir / VERIFIER_DIR / CA_FILE,)
    if isinstance(trusted, str):
        return ()
    return tuple(directory / name for name in trusted)


def generate_clashes(tls_dir: str, named: Mapping[str, str | tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    """Say which options contradict `tls_dir = generate`, which makes all files itself."""
    if tls_dir == GENERATE:
        for name, value in named.items():
            if value != DEFAULT:
                yield name, f"tls_dir = generate makes these files itself; write {name} = default, or set tls_dir"


def trust_clashes(named: Mapping[str, str | tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    """Say which options leave nobody to trust where somebody must be."""
    for name, value in named.items():
        if value == ():
            yield name, "no CA is named; write default, or a list such as ['ca.crt']"


def trust_cautions(named: Mapping[str, str | tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    """Say what `all` means, which is less than it promises."""
    for name, value in named.items():
        if value == ALL:
            who = "no client certificate" if name == "trusted_client_ca" else "the CAs of the system alone"
            yield name, f"all does not turn verification off; it trusts {who}"
