"""The firmware's part of measured boot in this process: events into a log and into the PCRs of a software TPM."""

from base64 import b64encode
from typing import Any

from aiohttp import web

from limeguard.crypto.hashes import SHA256
from limeguard.evidence.bootlog.event_types import EV_EFI_ACTION, EV_SEPARATOR
from limeguard.simulator.softtpm import SoftNode
from tests.fakes.boot_logs import record, spec_id


class SoftFirmware:
    """Measures into `log`, and answers as an agent does that reads it."""

    def __init__(self, node: SoftNode) -> None:
        self.node = node
        self.log = spec_id((SHA256,))
        self.sent: bytes | str | None = None

    def measure(self, pcr: int, kind: int, data: bytes) -> None:
        """Measure an event whose digest is that of its data."""
        digest = SHA256.digest(data)
        self.node.extend(pcr, digest)
        self.append(pcr, kind, data, digest)

    def append(self, pcr: int, kind: int, data: bytes, digest: bytes) -> None:
        """Write an event that nobody measured."""
        self.log += record(pcr, kind, data, {SHA256: digest})

    def boot(self, *commands: str) -> None:
        """Go through a short boot: separators, a boot attempt, and commands of a boot loader."""
        self.measure(4, EV_EFI_ACTION, b"Calling EFI Application from Boot Option")
        for pcr in range(8):
            self.measure(pcr, EV_SEPARATOR, bytes(4))
        for command in commands:
            self.measure(8, EV_EFI_ACTION, command.encode())

    def alter(self, request: web.Request, results: dict[str, Any]) -> dict[str, Any]:
        """Put the log into a quote's answer where PCR 0 is asked for, as agents do; `sent` goes out in its place."""
        if not int(request.query["mask"], 16) & 1:
            return results
        sent = self.log if self.sent is None else self.sent
        return {**results, "mb_measurement_list": sent if isinstance(sent, str) else b64encode(sent).decode()}
