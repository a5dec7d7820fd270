"""Run by `ima_list.py` inside Keylime's environment: the same list through the function that its verifier calls."""

import json
import logging
import statistics
import sys
import time
from pathlib import Path

from keylime.agentstates import AgentAttestState  # type: ignore[import-not-found]
from keylime.common.algorithms import Hash  # type: ignore[import-not-found]
from keylime.ima import ima  # type: ignore[import-not-found]


def main() -> None:
    """Print the median CPU seconds of a run."""
    logging.disable(logging.CRITICAL)
    case = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    found = []
    for _ in range(case["runs"]):
        state = AgentAttestState("node")
        start = time.process_time()
        _, failure = ima.process_measurement_list(
            state, case["lines"], case["policy"], pcrval=case["quoted"], hash_alg=Hash.SHA256
        )
        found.append(time.process_time() - start)
        if failure:
            sys.exit(f"not clean: {failure.get_event_ids()[:3]}")
    print(statistics.median(found))


if __name__ == "__main__":
    main()
