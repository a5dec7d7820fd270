"""A boot log of a real machine put into a software TPM that runs as a program, as if it had booted so."""

from pathlib import Path

from limeguard.cli.softtpm import SoftwareTpm
from limeguard.crypto.hashes import SHA256
from limeguard.evidence.bootlog.event_types import EV_NO_ACTION
from limeguard.evidence.bootlog.log import parse_boot_log

VM_LOGS = Path(__file__).resolve().parents[1] / "vectors" / "bootlog" / "vm"


def vm_log(name: str) -> bytes:
    """Return the log of one of the virtual machines."""
    return (VM_LOGS / f"{name}.bin").read_bytes()


def boot(tpm: SoftwareTpm, log: bytes) -> None:
    """Extend the PCRs of the SHA-256 bank with every event of the log."""
    for event in parse_boot_log(log).events:
        if event.type != EV_NO_ACTION:
            tpm.extend(event.pcr, event.digests[SHA256])
