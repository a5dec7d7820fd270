"""Run inside Keylime's environment: follows device-mapper events with Keylime's own validator.

Argument: a JSON file of cases. Prints for each the event ids of each step; "crash" where the validator raises.
"""

import hashlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

from keylime.ima import ast, ima_dm  # type: ignore[import-not-found]


def followed(case: dict[str, Any]) -> list[Any]:
    validator = ima_dm.DmIMAValidator(case["policy"])
    steps: list[Any] = []
    for name, text in case["events"]:
        digest = ast.Digest(f"sha256:{hashlib.sha256(text.encode()).hexdigest()}")
        try:
            failure = validator.validate(digest, ast.Name(name), ast.Buffer(text.encode().hex()))
        except Exception:  # noqa: BLE001 - whatever it raises, it has no verdict from here on
            return [*steps, "crash"]
        steps.append(failure.get_event_ids())
    return steps


def main() -> None:
    logging.disable(logging.CRITICAL)
    cases = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.stdout.write(json.dumps([followed(case) for case in cases]) + "\n")


if __name__ == "__main__":
    main()
