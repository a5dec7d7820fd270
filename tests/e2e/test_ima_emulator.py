"""`keylime_ima_emulator` on a software TPM: PCR 10 of each bank follows the list, over a restart as well."""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.fakes.soft_ima import SoftKernel

from limeguard.appraisal.ima.entries import Rules
from limeguard.appraisal.ima.measurements import appraise_list
from limeguard.cli.sandbox import clean_environment, wait_until
from limeguard.cli.softtpm import Program, SoftwareTpm
from limeguard.crypto.hashes import SHA1, SHA256, HashAlgorithm
from limeguard.simulator.softtpm import SoftNode

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-tools")]

EMULATOR = str(Path(sys.executable).parent / "keylime_ima_emulator")


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[SoftwareTpm]:
    tpm = SoftwareTpm(tmp_path / "tpm", tmp_path / "maker", tmp_path)
    tpm.create("sha1,sha256")
    tpm.start()
    yield tpm
    tpm.stop()


def value(tpm: SoftwareTpm, bank: HashAlgorithm) -> bytes:
    from limeguard.agent.ima_emulator import SoftwarePcr

    with SoftwarePcr(tpm.tcti, (bank,)) as pcr:
        return pcr.value(bank)


Start = Callable[[Path], Program]


@pytest.fixture
def emulator(tpm: SoftwareTpm, tmp_path: Path) -> Iterator[Start]:
    programs: list[Program] = []

    def start(log: Path) -> Program:
        environment = clean_environment({"TPM2TOOLS_TCTI": tpm.tcti})
        command = [EMULATOR, "--hash_algs", "sha256", "-a", "sha1", "--ima-hash-alg", "sha1", "-f", str(log)]
        program = Program(f"emulator-{len(programs)}", command, environment, tmp_path)
        programs.append(program)
        program.start()
        wait_until("the emulator", 20, lambda: f"Monitoring {log}" in program.output() or not program.running)
        return program

    yield start
    for program in programs:
        program.stop()


def follows(tpm: SoftwareTpm, lines: list[str]) -> None:
    """Wait until PCR 10 of both banks is where our own replay ends."""
    for bank in (SHA256, SHA1):
        wanted = appraise_list(
            [line.encode() for line in lines], bank=bank, rules=Rules(None, violations_found=False), quoted=None
        ).running
        wait_until(f"PCR 10 of {bank.name}", 20, partial(_has, tpm, bank, wanted))


def _has(tpm: SoftwareTpm, bank: HashAlgorithm, wanted: bytes) -> bool:
    return value(tpm, bank) == wanted


def test_pcr_10_follows_the_list_over_a_restart(tpm: SoftwareTpm, emulator: Start, tmp_path: Path) -> None:
    kernel = SoftKernel(SoftNode.create("ecc256"))
    log = tmp_path / "ascii_runtime_measurements"
    log.write_text("")

    def measure(*names: str) -> None:
        for name in names:
            kernel.measure(name)
        log.write_text("".join(f"{line}\n" for line in kernel.lines))

    measure("/a", "/b")
    program = emulator(log)
    follows(tpm, kernel.lines)
    kernel.lines.append(f"10 {'0' * 40} ima-ng sha256:{'0' * 64} /open/writers")
    measure("/c")
    follows(tpm, kernel.lines)
    with log.open("a") as file:
        file.write("10 half a line")
    assert program.stop() == 0
    measure("/d", "/e")
    program = emulator(log)
    assert "looking for the line" in program.output()
    follows(tpm, kernel.lines)
    assert program.stop() == 0


def test_a_value_that_no_line_leads_to_is_refused(tpm: SoftwareTpm, emulator: Start, tmp_path: Path) -> None:
    tpm.extend(10, hashlib.sha256(b"other").digest())
    log = tmp_path / "list"
    log.write_text("not a line\n")
    program = emulator(log)
    assert program.stop() == 1
    assert "No line of the list leads to the value of PCR 10" in program.output()


@pytest.mark.parametrize(
    ("environment", "arguments", "said"),
    [
        ({}, [], "Set one of TPM2TOOLS_TCTI, TCTI, TEST_TCTI"),
        ({"TCTI": "swtpm:port=1"}, [], "Opening the TPM swtpm:port=1 failed"),
        ({}, ["-a", "sha9"], "'sha9' is not a hash algorithm"),
    ],
)
def test_what_is_missing_is_named(environment: dict[str, str], arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [EMULATOR, *arguments], capture_output=True, text=True, check=False, env=clean_environment(environment)
    )
    assert done.returncode != 0
    assert said in done.stderr
