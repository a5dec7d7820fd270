"""The kernel's part of IMA beside a software TPM that runs as a program: a growing list, and PCR 10 extended."""

import hashlib
from pathlib import Path

from limeguard.cli.softtpm import SoftwareTpm
from limeguard.simulator.machine import IMA_PCR, measured_line


class Kernel:
    """Measures files as IMA does with the template ima-ng: a line in the list, and the PCR extended."""

    def __init__(self, tpm: SoftwareTpm, path: Path) -> None:
        """Begin an empty list at `path`."""
        self._tpm, self._path = tpm, path
        path.write_text("")

    def measure(self, name: str, digest: str) -> None:
        """Measure a file with this SHA-256 in hexadecimal digits."""
        line, data = measured_line(name, digest)
        self._tpm.extend(IMA_PCR, hashlib.sha256(data).digest())
        with self._path.open("a") as log:
            log.write(f"{line}\n")
