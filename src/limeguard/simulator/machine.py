"""One simulated machine: TPM, measurement list, and the ways in which it may change, fail or lie.

Decides what an agent answers. Must not know of sockets.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from limeguard.evidence.tpm.structures import ClockInfo
from limeguard.simulator.softtpm import DEFAULT_CLOCK, SoftAk, SoftEk, SoftNode, transport_key

IMA_PCR: Final = 10
APPLICATION_PCR: Final = 23
"""Left to applications (TCG PC Client Platform TPM Profile); policies of simulated fleets want it to be zero."""
_SHOWN_KIND: Final = "ecc256"


def digest_of(name: str) -> str:
    """Return the SHA-256 that the simulated file of this name has, in hexadecimal digits."""
    return hashlib.sha256(name.encode()).hexdigest()


def template_of(name: str, digest: str) -> bytes:
    """Return the template data of an `ima-ng` entry (kernel: d-ng, n-ng)."""
    measured, named = b"sha256:\0" + bytes.fromhex(digest), name.encode() + b"\0"
    return len(measured).to_bytes(4, "little") + measured + len(named).to_bytes(4, "little") + named


@dataclass(frozen=True, slots=True)
class BootList:
    """What every machine of a fleet measures when it starts: lines, and PCR 10 after them."""

    names: tuple[str, ...]
    lines: tuple[str, ...]
    pcr: bytes

    @classmethod
    def of(cls, names: Sequence[str]) -> "BootList":
        """Return the list of these files."""
        lines, pcr = [], bytes(32)
        for name in names:
            line, data = measured_line(name)
            lines.append(line)
            pcr = hashlib.sha256(pcr + hashlib.sha256(data).digest()).digest()
        return cls(tuple(names), tuple(lines), pcr)


def measured_line(name: str, digest: str | None = None) -> tuple[str, bytes]:
    """Return the line of a file in the list, and its template data; its digest is `digest_of` unless given."""
    digest = digest or digest_of(name)
    data = template_of(name, digest)
    column = hashlib.sha1(data, usedforsecurity=False).hexdigest()
    return f"{IMA_PCR} {column} ima-ng sha256:{digest} {name}", data


@dataclass(slots=True)
class Behaviour:
    """How a machine answers just now. Times are seconds of the simulator's clock."""

    offline_until: float = 0.0
    delay: float = 0.0
    replay: dict[str, Any] | None = None
    frozen_clock: ClockInfo | None = None


@dataclass(slots=True)
class Machine:
    """One machine. `boot` is shared by the fleet, `own` are the lines that only this one has."""

    number: int
    node: SoftNode
    boot: BootList
    own: list[str] = field(default_factory=list)
    boottime: int = 1_700_000_000
    behaviour: Behaviour = field(default_factory=Behaviour)
    asked_at: float | None = None
    last: dict[str, Any] | None = None

    @classmethod
    def make(cls, number: int, boot: BootList) -> "Machine":
        """Return machine `number`, just started. All share one transport key: 5,000 RSA keys would take minutes."""
        ak = SoftAk.generate(_SHOWN_KIND, number=number)
        ek = SoftEk.generate(_SHOWN_KIND, number=1_000_000 + number)
        pcrs = {n: b"\xff" * 32 if 17 <= n <= 22 else bytes(32) for n in range(24)}
        node = SoftNode(ek, ak, transport_key(0), pcrs, DEFAULT_CLOCK)
        machine = cls(number, node, boot)
        machine.node.pcrs[IMA_PCR] = boot.pcr
        return machine

    @property
    def agent_id(self) -> str:
        """The node's id."""
        return f"simulated-{self.number:06d}"

    @property
    def entries(self) -> int:
        """How long the list is."""
        return len(self.boot.lines) + len(self.own)

    def measure(self, name: str) -> None:
        """Run a file: the list grows and PCR 10 with it."""
        line, data = measured_line(name)
        self.own.append(line)
        self.node.extend(IMA_PCR, hashlib.sha256(data).digest())

    def forge(self) -> None:
        """Run a file and write another name into the list."""
        self.measure("/tmp/implant")  # noqa: S108 - a name in a list, no file
        self.own[-1], _ = measured_line(self.boot.names[0])

    def extend(self) -> None:
        """Extend the PCR that the policy wants to be zero."""
        self.node.extend(APPLICATION_PCR, hashlib.sha256(b"nobody approved this").digest())

    def replay(self) -> None:
        """From now on answer every question with the last answer."""
        self.behaviour.replay = self.last

    def roll_back(self) -> None:
        """Go back to an earlier state of the TPM, as a machine does that is restored from a snapshot."""
        self.node.clock = ClockInfo(1, 0, 0, safe=True)

    def reboot(self) -> None:
        """Shut down in order and start again: a new list, PCRs from their beginning."""
        self.node.reboot()
        self.node.pcrs[IMA_PCR] = self.boot.pcr
        self.own.clear()
        self.boottime += 1_000

    def answer(self, query: Mapping[str, str], version: str) -> dict[str, Any]:
        """Return `results` of an integrity quote. Raises KeyError, ValueError for a question that is none."""
        if self.behaviour.replay is not None:
            return self.behaviour.replay
        mask, entry = query["mask"], int(query["ima_ml_entry"])
        results = self.node.integrity_answer(query["nonce"], mask, partial=query["partial"] == "1", version=version)
        if int(mask, 16) >> IMA_PCR & 1:
            results |= self._list(entry)
        results["boottime"] = self.boottime
        self.last = results
        return results

    def _list(self, entry: int) -> dict[str, Any]:
        """Return the list from an entry on; from its beginning when it is shorter, as agents do."""
        entry = entry if entry <= self.entries else 0
        return {"ima_measurement_list": self.lines_from(entry), "ima_measurement_list_entry": entry}

    def lines_from(self, entry: int) -> str:
        """Return the text of the list from an entry on."""
        base = len(self.boot.lines)
        lines = [*self.boot.lines[entry:], *self.own[max(entry - base, 0) :]]
        return "\n".join(lines) + "\n" if lines else ""
