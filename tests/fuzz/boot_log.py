"""Mutated boot logs through the parser, the decoder and the replay: nothing but a refusal may come out, and soon.

Each input is one of the logs in `tests/vectors/bootlog`, changed one to four times: bits, bytes, numbers that lie about
lengths, cut ends, parts of other logs, words that the parser knows. Small logs are taken most of the time. An exception
other than MalformedEvidence, an input that takes more than a second of CPU, or a result that contradicts itself ends
the run with status 1 and the input in hex. The same seed gives the same inputs.

    ./dev run python tests/fuzz/boot_log.py --inputs 10000000 --seed 1
"""

import argparse
import faulthandler
import json
import random
import resource
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

from limeguard.evidence.bootlog.describe import describe
from limeguard.evidence.bootlog.enriched import enriched
from limeguard.evidence.bootlog.log import BootLog, parse_boot_log
from limeguard.evidence.bootlog.replay import BOOT_PCRS, ReplayedBootLog, prove, replay_all
from limeguard.evidence.reader import MalformedEvidence
from limeguard.evidence.tpm.quote import QuotedPcrs
from limeguard.evidence.tpm.structures import ClockInfo

VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "bootlog"
SMALL = 1500
"""Bytes of the logs that most inputs are made from."""
LARGE_SHARE = 0.03
SLOW = 1.0
HANG = 300
"""Seconds without progress, on a machine that may have other work, after which the run ends with a traceback."""
CLOCK = ClockInfo(1, 0, 0, safe=True)

NUMBERS = (0, 1, 2, 3, 4, 7, 16, 31, 32, 33, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
TYPES = (*range(0x14), *range(0x80000001, 0x8000000D), 0x80000010, 0x800000E0, 0x800000E1)
WORDS = (
    *(struct.pack("<I", number) for number in TYPES),
    *(struct.pack("<H", number) for number in (0x4, 0xB, 0xC, 0xD, 0x12, 0x27)),
    *(
        name.encode("utf-16-le")
        for name in ("SecureBoot", "PK", "db", "dbx", "Boot0001", "BootOrder", "SbatLevel", "Shim")
    ),
    b"Spec ID Event03\0",
    b"StartupLocality\0\x03",
    b"HCRTM",
    b"\x7f\xff\x04\0",
    b"\x00\xd8",
    b"\xff\xfe",
    b"\0" * 16,
)

Mutation = Callable[[bytearray, random.Random, list[bytes]], None]


def flip_bits(data: bytearray, rng: random.Random, _seeds: list[bytes]) -> None:
    for _ in range(1 + int(rng.random() * 8)):
        data[int(rng.random() * len(data))] ^= 1 << int(rng.random() * 8)


def set_bytes(data: bytearray, rng: random.Random, _seeds: list[bytes]) -> None:
    at = int(rng.random() * len(data))
    data[at : at + 4] = rng.randbytes(1 + int(rng.random() * 4))


def lie(data: bytearray, rng: random.Random, _seeds: list[bytes]) -> None:
    """Put another number where a length may stand; half the time one near the number that is there."""
    size = (2, 4, 8)[int(rng.random() * 3)]
    at = int(rng.random() * max(1, len(data) - size))
    now = int.from_bytes(data[at : at + size], "little")
    number = now + int(rng.random() * 9) - 4 if rng.random() < 0.5 else NUMBERS[int(rng.random() * len(NUMBERS))]
    data[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, "little")


def cut(data: bytearray, rng: random.Random, _seeds: list[bytes]) -> None:
    del data[int(rng.random() * len(data)) :]


def drop(data: bytearray, rng: random.Random, _seeds: list[bytes]) -> None:
    at = int(rng.random() * len(data))
    del data[at : at + 1 + int(rng.random() * 64)]


def repeat(data: bytearray, rng: random.Random, _seeds: list[bytes]) -> None:
    at = int(rng.random() * len(data))
    data[at:at] = data[at : at + 1 + int(rng.random() * 200)]


def splice(data: bytearray, rng: random.Random, seeds: list[bytes]) -> None:
    other = seeds[int(rng.random() * len(seeds))]
    at, begin = int(rng.random() * len(data)), int(rng.random() * len(other))
    part = other[begin : begin + 1 + int(rng.random() * 300)]
    data[at : at + (len(part) if rng.random() < 0.5 else 0)] = part


def word(data: bytearray, rng: random.Random, _seeds: list[bytes]) -> None:
    at = int(rng.random() * len(data))
    chosen = WORDS[int(rng.random() * len(WORDS))]
    data[at : at + (len(chosen) if rng.random() < 0.7 else 0)] = chosen


def retype(data: bytearray, rng: random.Random, _seeds: list[bytes]) -> None:
    """Give an event another type and leave the rest, so that its data is read by another layout."""
    starts = records(data)
    if starts:
        at = starts[int(rng.random() * len(starts))]
        struct.pack_into("<I", data, at + 4, TYPES[int(rng.random() * len(TYPES))])


def resize(data: bytearray, rng: random.Random, _seeds: list[bytes]) -> None:
    """Shorten or lengthen the last event honestly, so that only what is inside its data is wrong."""
    starts = records(data)
    if not starts:
        return
    at = starts[-1]
    size_at = at + 12 + digests_size(data, at)
    size = len(data) - size_at - 4
    if size > 0 and rng.random() < 0.7:
        del data[-1 - int(rng.random() * min(size, 40)) :]
    else:
        data += rng.randbytes(int(rng.random() * 40))
    if size_at + 4 <= len(data):
        struct.pack_into("<I", data, size_at, len(data) - size_at - 4)


def records(data: bytearray) -> list[int]:
    """Return where the records after the Spec ID event begin, as far as the log can be walked."""
    starts: list[int] = []
    if len(data) < 32:
        return starts
    at = 32 + int.from_bytes(data[28:32], "little")
    while at + 12 <= len(data) and len(starts) < 64:
        size_at = at + 12 + digests_size(data, at)
        if size_at + 4 > len(data):
            break
        starts.append(at)
        at = size_at + 4 + int.from_bytes(data[size_at : size_at + 4], "little")
    return starts


SIZES = {4: 20, 0xB: 32, 0xC: 48, 0xD: 64, 0x12: 32}


def digests_size(data: bytearray, at: int) -> int:
    total = 0
    for _ in range(min(5, int.from_bytes(data[at + 8 : at + 12], "little"))):
        total += 2 + SIZES.get(int.from_bytes(data[at + 12 + total : at + 14 + total], "little"), 0)
    return total


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits, flip_bits, set_bytes, lie, lie, lie, cut, drop, repeat, splice, word, word, retype, retype, resize,
)  # fmt: skip


def mutated(rng: random.Random, small: list[bytes], large: list[bytes]) -> bytes:
    seeds = large if rng.random() < LARGE_SHARE else small
    data = bytearray(seeds[int(rng.random() * len(seeds))])
    for _ in range(1 + int(rng.random() * 4)):
        if not data:
            break
        MUTATIONS[int(rng.random() * len(MUTATIONS))](data, rng, small)
    return bytes(data)


def check(data: bytes, *, whole: bool) -> bool:
    """Run one input; return whether it was accepted. Any exception that leaves here is a failure."""
    try:
        log = parse_boot_log(data)
    except MalformedEvidence:
        return False
    shown = enriched(log)
    if whole:
        json.dumps(shown)
        for event in log.events:
            describe(event)
    contradiction = contradicts(log, len(data))
    if contradiction:
        raise AssertionError(contradiction)
    return True


def contradicts(log: BootLog, size: int) -> str | None:
    if sum(len(event.data) for event in log.events) > size:
        return "events have more data than the log"
    for bank, pcrs in replay_all(log).items():
        values = {pcr: pcrs.get(pcr, bytes(bank.size)) for pcr in BOOT_PCRS}
        proven = prove(log, QuotedPcrs(bank, values, {bank: values}, CLOCK, 0))
        if not isinstance(proven, ReplayedBootLog) or proven.confirmed != BOOT_PCRS:
            return "a quote of the replayed values does not confirm them"
        if any(event.content is not None and event.content not in event.event.data for event in proven.events):
            return "proven content is not in the event"
    return None


def run(inputs: int, seed: int, say: Callable[[str], None]) -> dict[str, float]:
    """Run that many inputs and return the figures. Raises AssertionError with the input that failed."""
    logs = [path.read_bytes() for path in sorted(VECTORS.rglob("*.bin"))]
    small = [log for log in logs if 0 < len(log) <= SMALL]
    large = [log for log in logs if len(log) > SMALL]
    rng = random.Random(seed)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    accepted = 0
    longest = biggest = 0.0
    began = time.process_time()
    for number in range(inputs):
        if number % 10_000 == 0:
            faulthandler.dump_traceback_later(HANG, exit=True)
        if number and number % 1_000_000 == 0:
            say(f"{number} inputs, {accepted} accepted, longest {longest * 1e3:.1f} ms")
        data = mutated(rng, small, large)
        start = time.thread_time()  # of this thread: what else the machine does is not counted
        try:
            accepted += check(data, whole=number % 16 == 0)
        except Exception as problem:
            raise AssertionError(f"seed {seed}, input {number}: {problem!r}: {data.hex()}") from problem
        took = time.thread_time() - start
        longest = max(longest, took)
        if took > SLOW:
            raise AssertionError(f"seed {seed}, input {number} took {took:.1f} s: {data.hex()}")
        biggest = max(biggest, len(data))
    faulthandler.cancel_dump_traceback_later()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "inputs": inputs,
        "seed": seed,
        "accepted": accepted,
        "longest_ms": round(longest * 1e3, 2),
        "biggest_input": int(biggest),
        "memory_mib": round(peak / 1024, 1),
        "memory_growth_mib": round((peak - base) / 1024, 1),
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the boot log parser.")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    try:
        figures = run(options.inputs, options.seed, _say)
    except AssertionError as problem:
        sys.stdout.write(f"{problem}\n")
        return 1
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
