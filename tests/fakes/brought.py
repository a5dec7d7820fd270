"""Evidence as somebody brings it to be verified once: a node in software, its logs, and requests about them."""

import json
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

from limeguard.evidence.bootlog.event_types import EV_SEPARATOR
from limeguard.simulator.softtpm import SoftNode
from tests.fakes.soft_boot import SoftFirmware
from tests.fakes.soft_ima import SoftKernel, policy_for

NONCE = "abc"
ZEROS = "00" * 32
FILE = "/usr/bin/a"
REFERENCE = '{"any": "reference state"}'


class Bringer:
    """A machine that was booted and measured one file; `data` makes the `data` of a request about it."""

    def __init__(self, kind: str = "rsa2048") -> None:
        self.node = SoftNode.create(kind)
        self.kernel = SoftKernel(self.node)
        self.kernel.measure(FILE)
        self.firmware = SoftFirmware(self.node)
        self.firmware.boot("linux /vmlinuz")

    def data(self, mask: int = 0x8000, /, **changes: Any) -> dict[str, Any]:
        """Return everything about a quote of these PCRs, with a PCR policy; a change to None leaves a member out."""
        answer = self.node.integrity_answer(NONCE, hex(mask), partial=True)
        whole = {
            "quote": answer["quote"],
            "nonce": NONCE,
            "hash_alg": answer["hash_alg"],
            "tpm_ek": b64encode(self.node.ek.public_2b).decode(),
            "tpm_ak": b64encode(self.node.ak.public_2b).decode(),
            "tpm_policy": json.dumps({"15": [ZEROS], "mask": "0x8000"}),
        }
        return {name: value for name, value in {**whole, **changes}.items() if value is not None}

    def ima(self, *files: str, mask: int = 0x400, **changes: Any) -> dict[str, Any]:
        """Return the same about the measurement list, by a policy that allows these files."""
        text = "".join(f"{line}\n" for line in self.kernel.lines)
        told = {"tpm_policy": None, "runtime_policy": json.dumps(policy_for(*files)), "ima_measurement_list": text}
        return self.data(mask, **{**told, **changes})

    def boot(self, log: bytes | None = None, mask: int = 0xFBFF, **changes: Any) -> dict[str, Any]:
        """Return the same about the boot log, by a policy that takes what leads to the quoted PCRs."""
        sent = b64encode(self.firmware.log if log is None else log).decode()
        return self.data(mask, **{"tpm_policy": None, "mb_policy": REFERENCE, "mb_log": sent, **changes})

    def tampered_boot(self) -> dict[str, Any]:
        """Return a boot log from which the last event was taken."""
        before = self.firmware.log
        self.firmware.measure(9, EV_SEPARATOR, b"evil")
        return self.boot(before)


def tee(**changes: Any) -> dict[str, Any]:
    """Return a request about a SEV-SNP report."""
    whole = {
        "tee-evidence": {"tee": "snp", "evidence": {"snp-report": "AA=="}},
        "nonce": "YQ==",
        "tee-pubkey-x-b64": "YQ",
        "tee-pubkey-y-b64": "YQ",
    }
    return {name: value for name, value in {**whole, **changes}.items() if value is not None}


def missing_members() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield requests that lack one member each, by its name."""
    machine = Bringer()
    for name in ("quote", "nonce", "hash_alg", "tpm_ek", "tpm_ak"):
        yield name, {"type": "tpm", "data": machine.data(**{name: None})}
        yield name, {"type": "tpm", "data": machine.data(**{name: ""})}
    for name in ("tee-evidence", "nonce", "tee-pubkey-x-b64", "tee-pubkey-y-b64"):
        yield name, {"type": "tee", "data": tee(**{name: None})}
    yield "tee", {"type": "tee", "data": tee(**{"tee-evidence": {"evidence": {}}})}
