"""What it costs to read, prove and judge a boot log of 200 KB, as a verifier does when it has changed; CPU, one core.

The log is that of a guest with shim and GRUB (`tests/vectors/bootlog/vm/grub-shim.bin`) with a long configuration: the
events of GRUB repeated. Measured: bytes to facts; replay in the quoted bank with what the digests cover; the whole
decoded form that reference states are compared with; all of it with the judgement, by a learned policy and by the
policy `example`; and the same for a log that was judged before. Nothing else is kept between runs. Beside it Keylime's
own way, when its environment is there (`./dev peer` makes it) and the machine has `tpm2_eventlog`: it runs that program
and enriches what it prints; its child's CPU counts. Keylime's judgement is not in its figure.

    ./dev bench boot_log
    ./dev run python bench/boot_log.py --size 200000 --runs 50
"""

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

from limeguard.appraisal.boot import BootMemo, appraise_boot
from limeguard.authoring.boot.learn import Named, learn
from limeguard.authoring.boot.refstate import reference_state
from limeguard.crypto.hashes import SHA256
from limeguard.evidence.bootlog.enriched import enriched
from limeguard.evidence.bootlog.log import BootEvent, parse_boot_log
from limeguard.evidence.bootlog.replay import BOOT_PCRS, ReplayedBootLog, prove, replay
from limeguard.evidence.tpm.quote import QuotedPcrs
from limeguard.evidence.tpm.structures import ClockInfo
from limeguard.policy.boot import parse_boot_policy
from limeguard.policy.boot.rules import encode_boot_document

ROOT = Path(__file__).resolve().parent.parent
PEER_PROGRAM = ROOT / "bench" / "boot_log_keylime.py"
SEED = ROOT / "tests" / "vectors" / "bootlog" / "vm" / "grub-shim.bin"


def material(size: int) -> bytes:
    """Return a log of at least `size` bytes: the seed's, with the events of GRUB again and again."""
    seed = SEED.read_bytes()
    first = 32 + int.from_bytes(seed[28:32], "little")
    events = [(event.pcr, record(event)) for event in parse_boot_log(seed).events[1:]]
    grub = b"".join(part for pcr, part in events if pcr in {8, 9})
    whole = seed[:first] + b"".join(part for _, part in events)
    return whole + grub * max(0, -(-(size - len(whole)) // len(grub)))


def record(event: BootEvent) -> bytes:
    """Return an event as it stands in a log."""
    head = struct.pack("<III", event.pcr, event.type, len(event.digests))
    digests = [struct.pack("<H", bank.tpm_id) + digest for bank, digest in event.digests.items()]
    return head + b"".join(digests) + struct.pack("<I", len(event.data)) + event.data


def milliseconds(runs: int, work: Callable[[], object]) -> float:
    """Return the median CPU time of `work`."""
    found = []
    for _ in range(runs):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return statistics.median(found) * 1e3


def quote_of(data: bytes) -> QuotedPcrs:
    """Return what a TPM that measured this would quote."""
    pcrs = replay(parse_boot_log(data), SHA256)
    values = {pcr: pcrs.get(pcr, bytes(SHA256.size)) for pcr in BOOT_PCRS}
    return QuotedPcrs(SHA256, values, {SHA256: values}, ClockInfo(1, 0, 0, safe=True), 0)


def judged(data: bytes, quoted: QuotedPcrs, runs: int) -> list[tuple[str, float]]:
    """Measure the judgement, with all that comes before it."""
    log = parse_boot_log(data)
    own = parse_boot_policy(encode_boot_document(learn([Named("bench", log)])))
    state = reference_state(enriched(log), without_secure_boot=False)
    example = parse_boot_policy(json.dumps(state), "example")
    memo = BootMemo()
    if appraise_boot(data, quoted, own, memo).findings:
        sys.exit("the log is not accepted by the policy that was learned from it")
    return [
        ("parse, prove, judge: learned policy", milliseconds(runs, lambda: appraise_boot(data, quoted, own))),
        ("parse, prove, judge: example", milliseconds(runs, lambda: appraise_boot(data, quoted, example))),
        ("unchanged log", milliseconds(runs, lambda: appraise_boot(data, quoted, own, memo))),
    ]


def keylime(python: Path, data: bytes, runs: int) -> float:
    """Return the median CPU time of Keylime's parse, in milliseconds, with the program that it starts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.json"
        path.write_text(json.dumps({"log": b64encode(data).decode(), "runs": runs}), encoding="utf-8")
        done = subprocess.run(
            [python, PEER_PROGRAM, path], capture_output=True, text=True, check=False, cwd=folder, env={**os.environ}
        )
    if done.returncode != 0:
        raise SystemExit(f"Keylime's code could not be measured:\n{done.stderr[-3000:]}")
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="A boot log read, replayed and decoded.")
    parser.add_argument("--size", type=int, default=200_000)
    parser.add_argument("--runs", type=int, default=50)
    options = parser.parse_args()
    data = material(options.size)
    log, quoted = parse_boot_log(data), quote_of(data)
    proven = prove(log, quoted)
    if not isinstance(proven, ReplayedBootLog) or proven.confirmed != BOOT_PCRS:
        sys.exit("the log is not proven by its own values")
    rows = [
        ("parse", milliseconds(options.runs, lambda: parse_boot_log(data))),
        ("parse and prove", milliseconds(options.runs, lambda: prove(parse_boot_log(data), quoted))),
        ("decoded form, all banks replayed", milliseconds(options.runs, lambda: enriched(log))),
    ]
    rows += judged(data, quoted, options.runs)
    venv = os.environ.get("LIMEGUARD_PEER_VENV") or str(ROOT / ".venv-keylime")
    python = Path(venv) / "bin" / "python"
    if python.exists():
        rows.append(("Keylime: tool and enrichment", keylime(python, data, max(3, options.runs // 10))))
    else:
        print("Keylime is not measured: ./dev peer makes its environment")
    print(f"  {len(data):,} bytes, {len(log.events)} events, banks {', '.join(bank.name for bank in log.banks)}")
    for what, took in rows:
        print(f"  {what:<36}{took:10.2f} ms")


if __name__ == "__main__":
    main()
