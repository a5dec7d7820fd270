"""One certificate authority for all tests that only look, because RSA keys take their time."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from limeguard.authoring.ca import CertificateAuthority
from limeguard.authoring.settings import CaSettings

NOW = 1_800_000_000.0


def authority(directory: Path) -> CertificateAuthority:
    """Return an authority at a fixed time."""
    return CertificateAuthority(
        directory=directory, settings=CaSettings(cert_lifetime=90), password="secret", clock=lambda: NOW
    )


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    """Return an authority that has issued `first` and `second`; not to be changed."""
    made = authority(tmp_path_factory.mktemp("site") / "ca")
    made.init()
    made.create("first")
    made.create("second", names=("second.example", "10.0.0.1", "::1"))
    return made


@pytest.fixture
def own_ca(site: CertificateAuthority, tmp_path: Path) -> CertificateAuthority:
    """Return a copy of that authority, to be changed at will."""
    shutil.copytree(site.directory, tmp_path / "ca")
    (tmp_path / "ca").chmod(0o700)
    return authority(tmp_path / "ca")


MakeAuthority = Callable[[Path], CertificateAuthority]


@pytest.fixture
def make_authority() -> MakeAuthority:
    """Return the maker of authorities with the same settings."""
    return authority
