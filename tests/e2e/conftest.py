"""What the end-to-end tests share: a site with registrar and verifier as processes, for one module at a time."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.site import Site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Run a registrar and a verifier; nodes are added by the tests and end with the module."""
    missing = [name for name in ("swtpm", "swtpm_setup") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)} (Debian and Ubuntu: swtpm, swtpm-tools)")
    pytest.importorskip("tpm2_pytss", reason="needs the extra `agent` (tpm2-pytss)")
    folder: Path = tmp_path_factory.mktemp("site")
    with Site(folder) as running:
        running.start_servers()
        yield running
