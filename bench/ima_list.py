"""Lines of a measurement list that are judged in a second, on one core, and what a policy costs in memory.

A list of new lines (`ima-ng`, SHA-256) against a policy that holds a digest for each: both template hashes, the fold
into PCR 10 and the policy are done for every line. Then the same lines from another node, which the process has seen;
then no new line, as in nearly every round. Beside it Keylime's own evaluation of the same list when its environment is
there (`./dev peer` makes it).

    ./dev bench ima_list
    ./dev run python bench/ima_list.py --lines 100000 --runs 5
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from limeguard.appraisal.ima.entries import TENANT_KEYRING, Rules  # noqa: E402 - found through the line above
from limeguard.appraisal.ima.history import NO_IMA, ImaHistory  # noqa: E402
from limeguard.appraisal.ima.measurements import appraise_list, split_lines  # noqa: E402
from limeguard.crypto.hashes import SHA256  # noqa: E402
from limeguard.policy.keyring import EMPTY_KEYRING  # noqa: E402
from limeguard.policy.runtime import RuntimePolicy, empty_policy_document, parse_runtime_policy  # noqa: E402

PEER_PROGRAM = ROOT / "bench" / "ima_list_keylime.py"
KEYRINGS = {TENANT_KEYRING: EMPTY_KEYRING}


def material(count: int) -> tuple[dict[str, Any], list[str], str]:
    """Return a policy document, a list that it allows, and PCR 10 after it."""
    document = empty_policy_document()
    lines, pcr = [], bytes(32)
    for number in range(count):
        name = f"/usr/lib/x86_64-linux-gnu/libsomething{number}.so.1"
        digest = hashlib.sha256(name.encode()).digest()
        document["digests"][name] = [digest.hex()]
        text = name.encode() + b"\0"
        data = (40).to_bytes(4, "little") + b"sha256:\0" + digest + len(text).to_bytes(4, "little") + text
        column = hashlib.sha1(data, usedforsecurity=False).hexdigest()
        lines.append(f"10 {column} ima-ng sha256:{digest.hex()} {name}")
        pcr = hashlib.sha256(pcr + hashlib.sha256(data).digest()).digest()
    return document, lines, pcr.hex()


def seconds(runs: int, prepare: Callable[[], Any], work: Callable[[Any], None]) -> float:
    """Return the median CPU time of `work`."""
    found = []
    for _ in range(runs):
        given = prepare()
        start = time.process_time()
        work(given)
        found.append(time.process_time() - start)
    return statistics.median(found)


def judge(policy: RuntimePolicy, text: bytes, pcr: str, known: dict[bytes, bytes], history: ImaHistory) -> None:
    """Judge a list as a round does; end the program when it is not clean."""
    quoted = bytes.fromhex(pcr)
    result = appraise_list(
        split_lines(text),
        bank=SHA256,
        rules=Rules(policy),
        quoted=quoted,
        history=history,
        keyrings=KEYRINGS,
        known=known,
    )
    if result.findings or result.matched is None:
        sys.exit(f"not clean: {result.findings[:3]}")


def memory(text: str) -> float:
    """Return MiB that the compiled policy holds."""
    tracemalloc.start()
    policy = parse_runtime_policy(text)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del policy
    return held / (1 << 20)


def keylime(python: Path, document: dict[str, Any], lines: list[str], pcr: str, runs: int) -> float:
    """Return Keylime's median CPU time for the list."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.json"
        case = {"policy": document, "lines": lines, "quoted": pcr, "runs": runs}
        path.write_text(json.dumps(case), encoding="utf-8")
        done = subprocess.run(
            [python, PEER_PROGRAM, path], capture_output=True, text=True, check=False, cwd=folder, env={**os.environ}
        )
    if done.returncode != 0:
        raise SystemExit(f"Keylime's code could not be measured:\n{done.stderr[-3000:]}")
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Lines of a measurement list judged in a second.")
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    document, lines, pcr = material(options.lines)
    policy = parse_runtime_policy(json.dumps(document))
    text = "".join(f"{line}\n" for line in lines).encode()
    cold = seconds(options.runs, dict, lambda known: judge(policy, text, pcr, known, NO_IMA))
    known: dict[bytes, bytes] = {}
    judge(policy, text, pcr, known, NO_IMA)
    seen = seconds(options.runs, lambda: None, lambda _: judge(policy, text, pcr, known, NO_IMA))
    after = ImaHistory(options.lines, bytes.fromhex(pcr))

    def rounds(_: object) -> None:
        for _number in range(1_000):
            judge(policy, b"", pcr, known, after)

    idle = seconds(options.runs, lambda: None, rounds)
    rows = [
        ("new lines", options.lines / cold),
        ("lines seen from another node", options.lines / seen),
    ]
    venv = os.environ.get("LIMEGUARD_PEER_VENV") or str(ROOT / ".venv-keylime")
    python = Path(venv) / "bin" / "python"
    if python.exists():
        peer = keylime(python, document, lines, pcr, max(1, options.runs // 2))
        rows.append(("Keylime, new lines", options.lines / peer))
    else:
        print("Keylime is not measured: ./dev peer makes its environment")
    for what, rate in rows:
        print(f"  {what:<32}{rate:12,.0f} lines/s {rate * cold / options.lines:8.2f}")
    print(f"  {'a round without new lines':<32}{idle * 1000:12.2f} us")
    print(f"  {'policy in memory':<32}{memory(json.dumps(document)):12.1f} MiB for {options.lines:,} digests")


if __name__ == "__main__":
    main()
