"""Run inside Keylime's environment: judges measurement lists with the function that its verifier calls.

Argument: a JSON file of cases. Prints for each the event ids in order, PCR 10 after all lines, and the next entry.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from keylime.agentstates import AgentAttestState  # type: ignore[import-not-found]
from keylime.common.algorithms import Hash  # type: ignore[import-not-found]
from keylime.ima import ima  # type: ignore[import-not-found]
from keylime.ima.file_signatures import ImaKeyring, ImaKeyrings  # type: ignore[import-not-found]


def judged(case: dict[str, Any]) -> list[Any]:
    state = AgentAttestState("node")
    keyrings = None
    if case["keyring"] is not None:
        keyrings = ImaKeyrings()
        keyrings.set_tenant_keyring(ImaKeyring.from_string(case["keyring"]))
    running, failure = ima.process_measurement_list(
        state,
        case["lines"],
        case["policy"],
        pcrval=case["quoted"],
        ima_keyrings=keyrings,
        hash_alg=Hash(case["bank"]),
    )
    return [failure.get_event_ids(), running, state.get_next_ima_ml_entry()]


def main() -> None:
    logging.disable(logging.CRITICAL)
    cases = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.stdout.write(json.dumps([judged(case) for case in cases]) + "\n")


if __name__ == "__main__":
    main()
