"""Run inside Keylime's environment: judges decoded boot logs with the policy `example` that its verifier uses.

Argument: a JSON file of cases. Prints for each whether the log is accepted, or that the evaluation failed.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from keylime.mba.elchecking import example, policies  # type: ignore[import-not-found]

assert example.Example, "importing it registers the policy"


def judged(case: dict[str, Any]) -> bool:
    try:
        return bool(policies.evaluate("example", case["state"], case["log"]) == "")
    except Exception:  # noqa: BLE001 - its verifier takes every exception for a rejection
        return False


def main() -> None:
    logging.disable(logging.CRITICAL)
    document = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    states, logs = document["states"], document["logs"]
    verdicts = [judged({"state": states[state], "log": logs[log]}) for state, log in document["pairs"]]
    verdicts += [judged(case) for case in document["cases"]]
    sys.stdout.write(json.dumps(verdicts) + "\n")


if __name__ == "__main__":
    main()
