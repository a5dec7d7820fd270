"""A running verifier for a test, and one authority for all of them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.fakes.pki import Authority
from tests.fakes.verifier_site import Site, running_verifier


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
async def site(tmp_path: Path, authority: Authority) -> AsyncIterator[Site]:
    async with running_verifier(tmp_path, authority) as running:
        yield running
