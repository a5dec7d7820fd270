"""Processes that belong to a sandbox, and the software TPM among them.

Decides how they are started, waited for and ended. Knows nothing of attestation.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

LOOPBACK = "127.0.0.1"
READY_SECONDS = 60.0
STOP_SECONDS = 15.0
GROUP_SECONDS = 2.0
SHOWN_LINES = 15
PORTS = range(16000, 32000)
LISTEN = "0A"
"""State of a listening socket in /proc/net/tcp (the kernel's TCP_LISTEN)."""


class SandboxError(Exception):
    """Something in the sandbox did not go as it must; the text says what, and shows the end of the log."""


def free_ports(count: int, *, consecutive: bool = False) -> list[int]:
    """Return free loopback ports, one after the other if asked for.

    They are taken at random below the range that the system gives to outgoing connections: between this look and the
    start of the program that uses one, nobody else is likely to get it.
    """
    found: list[int] = []
    for _ in range(1000):
        first = PORTS.start + secrets.randbelow(len(PORTS))
        wanted = list(range(first, first + count)) if consecutive else [first]
        if not set(wanted) & set(found) and all(_is_free(port) for port in wanted):
            found += wanted
        if len(found) >= count:
            return found
    raise SandboxError(f"no {count} free ports on {LOOPBACK}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


class Program:
    """One process of the sandbox, whose output goes to a file."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], logs: Path, umask: int = 0o077
    ) -> None:
        """Prepare; the log is `name`.log in `logs` and grows with every start."""
        self._umask = umask
        self.name, self.log = name, logs / f"{name}.log"
        self._command, self._environment = list(command), dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id. Only for a started program."""
        if self._process is None:
            raise SandboxError(f"{self.name} is not running")
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status, None while it runs or when it was never started."""
        return self._process.poll() if self._process is not None else None

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start in a session of its own, so that Ctrl-C in the terminal reaches it through us alone."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=self._umask,
            )

    def output(self) -> str:
        """Return all that it said so far."""
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""

    def complaint(self, text: str) -> SandboxError:
        """Return an error that shows the end of the log."""
        lines = self.output().splitlines()[-SHOWN_LINES:]
        return SandboxError("\n".join([f"{self.name}: {text}", *(f"  | {line}" for line in lines)]))

    def stop(self, patience: float = STOP_SECONDS) -> int:
        """Ask it to end, insist after `patience` seconds, and return the exit status."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                self.kill()
        return self._process.wait()

    def kill(self) -> None:
        """End it and what it started, without asking."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                return
            self._process.wait()
            end = time.monotonic() + GROUP_SECONDS
            while _lives(self._process.pid) and time.monotonic() < end:
                time.sleep(0.01)


def wait_for_port(port: int, program: Program, seconds: float = READY_SECONDS) -> None:
    """Wait until somebody accepts connections. Raises SandboxError when the program ends first, or after `seconds`."""
    _wait_until(_accepts, port, program, seconds)


def wait_for_listener(port: int, program: Program, seconds: float = READY_SECONDS) -> None:
    """Wait until the kernel says that somebody listens on a loopback port, without connecting to it.

    For programs that take one client and would take a probe for it. Raises SandboxError like `wait_for_port`.
    """
    _wait_until(_has_listener, port, program, seconds)


def _wait_until(ready: Callable[[int], bool], port: int, program: Program, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not program.running:
            raise program.complaint(f"ended with status {program.status} instead of listening")
        if ready(port):
            return
        time.sleep(0.05)
    raise program.complaint(f"does not listen on port {port} after {seconds:.0f} s")


def _accepts(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError:
        return False
    return True


def _has_listener(port: int) -> bool:
    """Look the port up in the kernel's table (proc(5), /proc/net/tcp: the address is in hexadecimal, state 0A)."""
    address = f"{int.from_bytes(socket.inet_aton(LOOPBACK), sys.byteorder):08X}:{port:04X}"
    rows = (row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return any(row[1] == address and row[3] == LISTEN for row in rows)


class SoftwareTpm:
    """A TPM 2.0 in software (swtpm) with EK certificates of a local CA, all of it in folders that are handed in."""

    def __init__(self, state: Path, authority: Path, logs: Path) -> None:
        """Prepare; `authority` is where the CA of the TPM's maker is or will be."""
        self._state, self._authority, self._logs = state, authority, logs
        self._program: Program | None = None
        self.port = 0

    @property
    def tcti(self) -> str:
        """How TPM libraries and tools find it."""
        return f"swtpm:host={LOOPBACK},port={self.port}"

    def create(self, banks: str = "sha256") -> None:
        """Manufacture it: EKs for RSA-2048 and P-384 with their certificates, and these PCR banks."""
        missing = [name for name in ("swtpm", "swtpm_setup", "swtpm_localca") if shutil.which(name) is None]
        if missing:
            raise SandboxError(f"not installed: {', '.join(missing)}; Debian and Ubuntu: apt install swtpm swtpm-tools")
        for folder in (self._state, self._authority):
            folder.mkdir(mode=0o700, exist_ok=True)
        log = self._logs / "swtpm_setup.log"
        options = ["--tpm2", "--create-ek-cert", "--lock-nvram", "--not-overwrite", "--pcr-banks", banks]
        with log.open("ab") as output:
            done = subprocess.run(  # noqa: S603 - fixed program
                ["swtpm_setup", "--tpmstate", str(self._state), "--config", str(self._configuration()), *options],  # noqa: S607
                stdout=output,
                stderr=subprocess.STDOUT,
                umask=0o077,
                timeout=READY_SECONDS,
                check=False,
            )
        if done.returncode != 0:
            end = "\n".join(log.read_text("utf-8", "replace").splitlines()[-SHOWN_LINES:])
            raise SandboxError(f"swtpm_setup failed:\n{end}")

    def _configuration(self) -> Path:
        """Write what swtpm_setup needs to keep its CA with us instead of in /var/lib."""
        where = self._authority
        files = {"signingkey": "signkey.pem", "issuercert": "issuercert.pem", "certserial": "certserial"}
        ca = [f"statedir = {where}", *(f"{name} = {where / file}" for name, file in files.items())]
        (where / "localca.conf").write_text("\n".join(ca) + "\n")
        (where / "localca.options").write_text(
            "--platform-manufacturer limeguard\n--platform-version 1\n--platform-model sandbox\n"
        )
        (where / "setup.conf").write_text(
            f"create_certs_tool = {shutil.which('swtpm_localca')}\n"
            f"create_certs_tool_config = {where / 'localca.conf'}\n"
            f"create_certs_tool_options = {where / 'localca.options'}\n"
        )
        return where / "setup.conf"

    def start(self) -> None:
        """Power it on, at the same port as before if it was on before. The control port is the next one."""
        self.port = self.port or free_ports(2, consecutive=True)[0]
        self._program = Program(
            self._state.name,
            [
                *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self._state}", "--flags", "startup-clear"),
                *("--ctrl", f"type=tcp,port={self.port + 1},bindaddr={LOOPBACK}"),
                *("--server", f"type=tcp,port={self.port},bindaddr={LOOPBACK}"),
            ],
            dict(os.environ),
            self._logs,
        )
        self._program.start()
        # swtpm opens one port after the other. The server port takes one client and a probe would be one.
        wait_for_port(self.port + 1, self._program)
        wait_for_listener(self.port, self._program)

    def stop(self) -> None:
        """Power it off."""
        if self._program is not None:
            self._program.stop()
            self._program = None

    def reboot(self) -> None:
        """Power it off and on: PCRs as after a reset of the machine."""
        self.stop()
        self.start()

    def extend(self, pcr: int, digest: bytes, bank: str = "sha256") -> None:
        """Extend one PCR, as software on the node does when it measures something.

        Needs the TPM library of the extra `agent`. Raises SandboxError when the TPM refuses.
        """
        from tpm2_pytss import ESAPI, ESYS_TR, TPM2_ALG, TPML_DIGEST_VALUES, TPMT_HA, TPMU_HA, TSS2_Exception

        value = TPMT_HA(hashAlg=TPM2_ALG.parse(bank), digest=TPMU_HA(**{bank: digest}))
        try:
            with ESAPI(self.tcti) as tpm:
                tpm.pcr_extend(ESYS_TR(pcr), TPML_DIGEST_VALUES([value]))
        except TSS2_Exception as problem:
            raise SandboxError(f"the TPM did not extend PCR {pcr}: {problem}") from problem


def _lives(group: int) -> bool:
    """Say whether a thread of this process group has not ended: what a killed process started ends a little later."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, found = path.read_text().rpartition(")")[2].split()[:3]
            # The last thread closes the files, though the first has ended.
            if int(found) == group and (state != "Z" or len(list(path.parent.glob("task/*"))) > 1):
                return True
        except (OSError, ValueError):
            continue
    return False
