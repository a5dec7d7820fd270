"""A software TPM for the agent's tests: started on free ports, asked for its handles, shut down in order."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


def free_port_pair() -> int:
    """Return a port whose neighbour is free too: the swtpm TCTI expects the control port there."""
    for _ in range(100):
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port
    raise AssertionError("no two neighbouring free ports")


@dataclass
class SoftwareTpm:
    """A running swtpm and its state folder."""

    state: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def tcti(self) -> str:
        return f"swtpm:host=localhost,port={self.port}"

    def start(self) -> None:
        self.port = self.port or free_port_pair()
        command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.state}", "--flags", "startup-clear"]
        command += ["--ctrl", f"type=tcp,port={self.port + 1}", "--server", f"type=tcp,port={self.port}"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port + 1)) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError("swtpm did not come up")

    def tool(self, *command: str) -> str:
        """Run one of tpm2-tools against this TPM and return what it printed."""
        environment = {"TPM2TOOLS_TCTI": self.tcti, "PATH": "/usr/bin:/bin", "TSS2_LOG": "all+none"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    def handles(self) -> list[str]:
        """Return every transient object and session in the TPM."""
        kinds = ("handles-transient", "handles-loaded-session", "handles-saved-session")
        return [line for kind in kinds for line in self.tool("tpm2_getcap", kind).split() if line != "-"]

    def stop(self, *, orderly: bool = True) -> None:
        if self.process is None:
            return
        if orderly:
            self.tool("tpm2_shutdown", "-c")
        self.process.terminate()
        self.process.wait(10)
        self.process = None


@contextmanager
def software_tpm(folder: Path, *options: str) -> Iterator[SoftwareTpm]:
    """Make a TPM below `folder` (options go to swtpm_setup), run it, and end it."""
    if shutil.which("swtpm") is None or shutil.which("swtpm_setup") is None:
        pytest.skip("needs swtpm and swtpm_setup (Debian: swtpm, swtpm-tools)")
    state = folder / "tpm"
    state.mkdir()
    command = ["swtpm_setup", "--tpm2", "--tpmstate", str(state), "--overwrite", *options]
    subprocess.run(command, check=True, capture_output=True)
    tpm = SoftwareTpm(state)
    tpm.start()
    try:
        yield tpm
    finally:
        tpm.stop(orderly=False)
