"""An authority for the servers and operators of these tests."""

from pathlib import Path

import pytest
from tests.fakes.pki import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")
