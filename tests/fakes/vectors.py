"""Vectors as data."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "vectors"


def load(relative: str) -> Any:
    """Return the JSON of a file below `tests/vectors`."""
    return json.loads((FOLDER / relative).read_text())
