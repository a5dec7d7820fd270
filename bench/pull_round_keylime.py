"""Run by `pull_round.py` inside Keylime's environment: the same answers through Keylime's own appraisal.

Prints least, median and most CPU milliseconds per round as JSON. The function that its verifier calls is called.
"""

import json
import logging
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from keylime.agentstates import AgentAttestState  # type: ignore[import-not-found]
from keylime.cloud_verifier_common import process_quote_response  # type: ignore[import-not-found]
from keylime.mba import mba  # type: ignore[import-not-found]


def judge_all(document: dict[str, Any]) -> None:
    """Judge every answer; end the program when one fails."""
    state = AgentAttestState("node")
    agent = {
        "agent_id": "node",
        "nonce": "",
        "ak_tpm": document["ak_tpm"],
        "tpm_policy": document["tpm_policy"],
        "accept_tpm_hash_algs": ["sha512", "sha384", "sha256"],
        "accept_tpm_encryption_algs": ["ecc", "rsa"],
        "accept_tpm_signing_algs": ["rsassa", "ecdsa"],
        "ima_sign_verification_keys": "",
        "v": None,
        "supported_version": "2.6",
        "attestation_count": 1,
    }
    for nonce, body in document["rounds"]:
        agent["nonce"] = nonce
        failure = process_quote_response(agent, None, None, json.loads(body)["results"], state)
        if failure:
            sys.exit(f"not trusted: {[event.event_id for event in failure.events]}")


def main() -> None:
    """Measure and print."""
    logging.disable(logging.CRITICAL)
    mba.load_imports()
    document = json.loads(Path(sys.argv[1]).read_text())
    judge_all(document)
    seen = []
    for _ in range(document["runs"]):
        began = time.process_time()
        judge_all(document)
        seen.append((time.process_time() - began) / len(document["rounds"]) * 1e3)
    print(json.dumps([min(seen), statistics.median(seen), max(seen)]))


if __name__ == "__main__":
    main()
