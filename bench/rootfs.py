"""A policy from a root file system: how close `--rootfs` comes to what the machine's cores can hash.

Makes a tree of files of the sizes that a system has, then measures the scan with one worker and with all cores, and the
bare hashing of the same files in one process.

    ./dev bench rootfs
    ./dev run python bench/rootfs.py --files 100000
"""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from limeguard.authoring.policy import rootfs  # noqa: E402 - found through the line above

SIZES = (200, 1_500, 6_000, 20_000, 80_000)


def make(top: Path, count: int) -> int:
    """Make the tree; return its bytes."""
    chooser = random.Random(1)  # noqa: S311 - sizes of test files
    block = os.urandom(max(SIZES))
    total = 0
    for number in range(count):
        folder = top / f"d{number // 500}"
        folder.mkdir(exist_ok=True)
        size = chooser.choice(SIZES)
        (folder / f"f{number}").write_bytes(block[:size])
        total += size
    return total


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Speed of a policy from a root file system.")
    parser.add_argument("--files", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        total = make(Path(folder), options.files)
        paths = list(rootfs.files(folder, frozenset(), None))
        start = time.perf_counter()
        rootfs.hash_files(paths, "sha256")
        bare = time.perf_counter() - start
        cores = os.cpu_count() or 1
        print(f"{options.files:,} files, {total / 1e6:,.0f} MB, {cores} cores")
        print(f"  bare hashing, one process {bare:8.2f} s   {options.files / bare:10,.0f} files/s")
        for workers in (1, cores):
            start = time.perf_counter()
            found = rootfs.scan(folder, "sha256", workers=workers, owner=None)
            took = time.perf_counter() - start
            said = f"scan with {workers} worker{'s' if workers > 1 else ''}"
            share = bare / workers / took
            print(
                f"  {said:<25} {took:8.2f} s   {len(found) / took:10,.0f} files/s   {share:4.0%} of what they can hash"
            )


if __name__ == "__main__":
    main()
