"""CPU per appraised round, in one process: the body of an agent's answer goes in, a verdict comes out.

Measured are decoding of the HTTP body, parsing of the quote, signature, nonce, PCR digest, clock, PCR policy and
binding of the transport key, for a node without logs; beside it the bare signature check by the same crypto library
(nobody can be quicker than that), and Keylime's own code over the same answers when its environment is there (`./dev
peer` makes it). Every round has a fresh nonce and a later clock, so that nothing is remembered from one to the next.

    ./dev bench pull_round
    ./dev run python bench/pull_round.py --rounds 5000 --runs 9
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from limeguard.appraisal.appraise import Evidence, Expected, appraise  # noqa: E402
from limeguard.appraisal.history import NO_HISTORY  # noqa: E402
from limeguard.appraisal.verdict import Outcome  # noqa: E402
from limeguard.evidence.tpm.quote import parse_quote, signature_is_good  # noqa: E402
from limeguard.policy.pcrs import PcrPolicy, to_wire  # noqa: E402
from limeguard.simulator.softtpm import SoftNode  # noqa: E402 - found through the line above
from limeguard.wire import agent_v2  # noqa: E402
from limeguard.wire.envelope import envelope  # noqa: E402

KINDS = (("RSA-2048, RSASSA, SHA-256", "rsa2048"), ("ECC P-256, ECDSA, SHA-256", "ecc256"))
PCR = 23
PEER_PROGRAM = ROOT / "bench" / "pull_round_keylime.py"


@dataclass(frozen=True)
class Material:
    """Answers of one node, each with the nonce that it answers."""

    node: SoftNode
    policy: PcrPolicy
    rounds: list[tuple[str, bytes]]


def material(kind: str, rounds: int) -> Material:
    """Make the node answer so many challenges."""
    node = SoftNode.create(kind)
    policy = PcrPolicy({PCR: frozenset({node.pcrs[PCR]})}, 1 << PCR)
    answers = []
    for number in range(rounds):
        nonce = f"{number:020d}"
        answers.append((nonce, envelope(200, "Success", node.integrity_answer(nonce, policy.mask_text))))
    return Material(node, policy, answers)


def appraise_all(given: Material) -> None:
    """Judge every answer as the verifier does; raise when one is not trusted."""
    history = NO_HISTORY
    for nonce, body in given.rounds:
        answer = agent_v2.decode_quote(body)
        evidence = Evidence(
            quote=answer.quote,
            hash_alg=answer.hash_alg,
            enc_alg=answer.enc_alg,
            sign_alg=answer.sign_alg,
            public_key=answer.pubkey,
        )
        expected = Expected(
            ak=given.node.ak.area,
            nonce=nonce.encode(),
            accept_hash=("sha512", "sha384", "sha256"),
            accept_enc=("ecc", "rsa"),
            accept_sign=("rsassa", "ecdsa"),
            pcrs=given.policy,
            required_selection=given.policy.requested,
            identity_only_allowed=False,
        )
        appraisal = appraise(evidence, expected, history, 0.0)
        if appraisal.outcome is not Outcome.TRUSTED:
            raise SystemExit(f"not trusted: {appraisal.findings}")
        history = appraisal.history


def verify_all(given: Material) -> Callable[[], None]:
    """Return the bare signature checks of all answers: no parsing, no judgement."""
    quotes = [parse_quote(agent_v2.decode_quote(body).quote) for _, body in given.rounds]
    area = given.node.ak.area

    def run() -> None:
        for quote in quotes:
            if not signature_is_good(area, quote.signature, quote.signed):
                raise SystemExit("a signature does not hold")

    return run


def cpu_ms(run: Callable[[], None], rounds: int, runs: int) -> tuple[float, float, float]:
    """Return least, median and most CPU milliseconds per round, after one run that is not counted."""
    run()
    seen = []
    for _ in range(runs):
        began = time.process_time()
        run()
        seen.append((time.process_time() - began) / rounds * 1e3)
    return min(seen), statistics.median(seen), max(seen)


def peer_ms(given: Material, runs: int) -> tuple[float, float, float] | None:
    """Return the same figures of Keylime's code over the same answers, None when it is not installed."""
    python = Path(os.environ.get("LIMEGUARD_PEER_VENV") or ROOT / ".venv-keylime") / "bin" / "python"
    if not python.exists():
        return None
    document = {
        "ak_tpm": b64encode(given.node.ak.public_2b).decode(),
        "tpm_policy": to_wire(given.policy),
        "runs": runs,
        "rounds": [(nonce, body.decode()) for nonce, body in given.rounds],
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rounds.json")
        path.write_text(json.dumps(document))
        config = Path(folder, "verifier.conf")
        config.write_text("[verifier]\nversion = 2.5\nmeasured_boot_imports = []\n")
        environment = {**os.environ, "KEYLIME_VERIFIER_CONFIG": str(config)}
        command = [python, PEER_PROGRAM, path]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"Keylime's code could not be measured:\n{done.stderr[-3000:]}")
    least, median, most = json.loads(done.stdout.splitlines()[-1])
    return least, median, most


def line(what: str, figures: tuple[float, float, float], ratio: float) -> str:
    """Return one line of the table."""
    return f"  {what:<34}{figures[0]:8.3f}{figures[1]:9.3f}{figures[2]:9.3f}   {ratio:6.2f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="CPU per appraised round, without logs")
    parser.add_argument("--rounds", type=int, default=1000, help="rounds in one run (default 1000)")
    parser.add_argument("--runs", type=int, default=7, help="counted runs (default 7)")
    arguments = parser.parse_args()
    for title, kind in KINDS:
        given = material(kind, arguments.rounds)
        ours = cpu_ms(lambda given=given: appraise_all(given), arguments.rounds, arguments.runs)  # type: ignore[misc]
        bare = cpu_ms(verify_all(given), arguments.rounds, arguments.runs)
        peer = peer_ms(given, arguments.runs)
        print(f"{title}\n  {'CPU ms per round':<34}{'least':>8}{'median':>9}{'most':>9}   ratio")
        print(line("limeguard, whole round", ours, 1.0))
        print(line("the bare signature check", bare, bare[1] / ours[1]))
        if peer is None:
            print("  Keylime is not measured: ./dev peer installs it")
        else:
            print(line("Keylime, whole round", peer, peer[1] / ours[1]))


if __name__ == "__main__":
    main()
