"""The kernel's part of IMA for a software TPM: follows an ASCII measurement list and extends PCR 10 with each new line.

For tests, demonstrations and containers, where a kernel measures into no TPM or into another one. Refuses a TPM that is
not software: PCR 10 of a real one belongs to the kernel.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import tpm2_pytss as tss

from limeguard.agent.device import VENDOR_STRING_1, TpmError
from limeguard.agent.tpm_errors import explain
from limeguard.crypto.hashes import HashAlgorithm
from limeguard.evidence.ima.measurement_list import parse_line
from limeguard.evidence.reader import MalformedEvidence
from limeguard.telemetry import get_logger

log = get_logger("keylime.ima_emulator")

IMA_PCR: Final = 10
TCTI_NAMES: Final = ("TPM2TOOLS_TCTI", "TCTI", "TEST_TCTI")
_VIOLATION: Final = b"\xff"


def tcti_of(environment: Mapping[str, str]) -> str:
    """Return the TPM that the environment names. Raises TpmError when it names none."""
    for name in TCTI_NAMES:
        if environment.get(name):
            return environment[name]
    raise TpmError(f"Set one of {', '.join(TCTI_NAMES)} to the software TPM, such as swtpm:host=127.0.0.1,port=2321.")


def measured(line: bytes, banks: tuple[HashAlgorithm, ...], log_hash: HashAlgorithm) -> dict[str, bytes]:
    """Return what a line extends each bank with: the bank's digest of the template data, all ones for a violation.

    The bank of `log_hash` gets the digest that the line states, as a kernel extends what it lists. Raises
    MalformedEvidence.
    """
    entry = parse_line(line)
    if entry.violates(log_hash.size):
        return {bank.name: _VIOLATION * bank.size for bank in banks}
    return {bank.name: entry.template_digest if bank is log_hash else bank.digest(entry.data) for bank in banks}


class SoftwarePcr(AbstractContextManager["SoftwarePcr"]):
    """PCR 10 of a software TPM."""

    def __init__(self, tcti: str, banks: tuple[HashAlgorithm, ...]) -> None:
        """Connect. Raises TpmError for a TPM that cannot be reached or is no software TPM."""
        self._banks = banks
        try:
            self._esapi = tss.ESAPI(tcti)
        except tss.TSS2_Exception as problem:
            raise TpmError(f"Opening the TPM {tcti} failed. {explain(problem.rc)}", problem.rc) from problem
        if not self._is_software():
            self._esapi.close()
            raise TpmError("This is not a software TPM: its vendor string does not contain SW. Nothing was extended.")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._esapi.close()

    def _is_software(self) -> bool:
        _, data = self._esapi.get_capability(tss.TPM2_CAP.TPM_PROPERTIES, VENDOR_STRING_1, 4)
        return b"SW" in b"".join(int(item.value).to_bytes(4, "big") for item in data.data.tpmProperties)

    def value(self, bank: HashAlgorithm) -> bytes:
        """Return PCR 10 of a bank. Raises TpmError for a bank that the TPM does not have."""
        _, _, digests = self._call(self._esapi.pcr_read, f"{bank.name}:{IMA_PCR}")
        if not list(digests):
            raise TpmError(f"The TPM has no active PCR bank {bank.name}.")
        return bytes(next(iter(digests)))

    def extend(self, values: Mapping[str, bytes]) -> None:
        """Extend PCR 10 of several banks at once. Raises TpmError."""
        entries = [
            tss.TPMT_HA(hashAlg=tss.TPM2_ALG.parse(name), digest=tss.TPMU_HA(**{name: value}))
            for name, value in values.items()
        ]
        self._call(self._esapi.pcr_extend, tss.ESYS_TR.PCR10, tss.TPML_DIGEST_VALUES(entries))

    @staticmethod
    def _call(function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except tss.TSS2_Exception as problem:
            raise TpmError(f"The TPM did not take PCR {IMA_PCR}. {explain(problem.rc)}", problem.rc) from problem


class Follower:
    """Reads a growing list line by line, and nothing twice."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = 0

    def lines(self) -> Iterator[bytes]:
        """Yield the lines that are complete and new. Raises OSError."""
        with self._path.open("rb") as file:
            if file.seek(0, 2) < self._place:
                log.warning("%s has become shorter: it is read from its beginning", self._path)
                self._place = 0
            file.seek(self._place)
            while (line := file.readline()).endswith(b"\n"):
                self._place = file.tell()
                yield line[:-1]


def emulate(pcr: SoftwarePcr, lines: Iterator[bytes], banks: tuple[HashAlgorithm, ...], log_hash: HashAlgorithm) -> int:
    """Extend PCR 10 with each line; return how many. A line that cannot be read is named and passed over."""
    count = 0
    for line in lines:
        try:
            values = measured(line, banks, log_hash)
        except MalformedEvidence as problem:
            log.error("A line of the list cannot be read: %s", problem)  # noqa: TRY400 - the reason says it all
            continue
        pcr.extend(values)
        count += 1
    return count


def catch_up(pcr: SoftwarePcr, follower: Follower, banks: tuple[HashAlgorithm, ...], log_hash: HashAlgorithm) -> None:
    """Find how far an earlier run came, when PCR 10 is not zero, and leave the follower there.

    What the list had beyond it is extended now. Raises TpmError when no line leads to the value that PCR 10 has.
    """
    bank = banks[0]
    now, value = pcr.value(bank), bytes(bank.size)
    if now == value:
        return
    log.warning("PCR %d is not zero: looking for the line that it has come to", IMA_PCR)
    lines = list(follower.lines())
    for number, line in enumerate(lines, 1):
        try:
            value = bank.digest(value + measured(line, (bank,), log_hash)[bank.name])
        except MalformedEvidence:
            continue
        if value == now:
            log.info("PCR %d has come to line %d", IMA_PCR, number)
            emulate(pcr, iter(lines[number:]), banks, log_hash)
            return
    raise TpmError(f"No line of the list leads to the value of PCR {IMA_PCR}: start the software TPM anew.")
