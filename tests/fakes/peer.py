"""Where Keylime itself is, in an environment of its own, and the skip that says so when it is absent."""

import os
from pathlib import Path

import pytest


def peer_program(name: str) -> Path:
    """Return one of Keylime's programs, or skip the test with a message where there is none."""
    venv = os.environ.get("LIMEGUARD_PEER_VENV", "")
    program = Path(venv) / "bin" / name
    if not venv or not program.exists():
        pytest.skip(f"needs Keylime's {name}; LIMEGUARD_PEER_VENV names its environment (./dev peer sets it)")
    return program
