"""Run by `boot_log.py` inside Keylime's environment: the same log through the function that its verifier calls."""

import json
import logging
import resource
import statistics
import sys
from pathlib import Path

from keylime.mba import mba  # type: ignore[import-not-found]


def cpu() -> float:
    """Return the CPU seconds of this process and of what it started and waited for."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def main() -> None:
    """Print the median CPU milliseconds of a run, those of the started program included."""
    logging.disable(logging.CRITICAL)
    case = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    mba.load_imports(skip_custom_policies=True)
    found = []
    for _ in range(case["runs"]):
        start = cpu()
        pcrs, _aggregates, _log, failure = mba.bootlog_parse(case["log"], "sha256")
        found.append(cpu() - start)
        if failure or not pcrs:
            sys.exit(f"not parsed: {failure.get_event_ids()[:3]}")
    print(statistics.median(found) * 1e3)


if __name__ == "__main__":
    main()
