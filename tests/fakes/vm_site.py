"""A machine with firmware, IMA and a TPM in QEMU that runs our agent, beside a site with our registrar and verifier.

The guest is Debian; what builds and drives it stands in `../shared/vm`. Our agent is put into its root file system with
the packages that it imports, so that every file that IMA measures has a digest that is known beforehand.
"""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from limeguard.cli.sandbox import toml_text, wait_until
from limeguard.cli.softtpm import free_ports
from tests.fakes.shared import shared_path
from tests.fakes.site import Site

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".vm"
HOST = "10.0.2.2"
"""This machine's loopback address, as the guest sees it."""
GUEST_PORT = 9002
BOOT_SECONDS = 420
QUIET_SECONDS = 2.0
PROGRAMS = ("qemu-system-x86_64", "qemu-img", "swtpm", "swtpm_setup", "mmdebstrap", "sbsign", "mcopy", "sgdisk", "ssh")
PACKAGES = frozenset(
    {
        *(
            "_cffi_backend",
            "aiohappyeyeballs",
            "aiohttp",
            "aiosignal",
            "attr",
            "attrs",
            "cffi",
            "click",
            "cryptography",
        ),
        *(
            "frozenlist",
            "httptools",
            "idna",
            "msgspec",
            "multidict",
            "propcache",
            "pyasn1",
            "pyasn1_modules",
            "pycparser",
        ),
        *("tpm2_pytss", "typing_extensions", "uvloop", "yarl", "yaml", "_yaml"),
    }
)
"""What the agent imports beside limeguard itself."""
ENVIRONMENT = "PYTHONPATH=/opt/agent/lib PYTHONDONTWRITEBYTECODE=1 KEYLIME_DIR=/var/lib/keylime TCTI=device:/dev/tpmrm0"
START = (
    "mkdir -p -m 700 /run/keylime /var/lib/keylime; cd /run/keylime;"
    f" {ENVIRONMENT} KEYLIME_AGENT_CONFIG=/run/keylime/agent.conf"
    " setsid python3 -m limeguard agent run >/run/keylime/agent.log 2>&1 </dev/null &"
)


def need_what_a_guest_needs() -> None:
    """Skip the test with a message where a guest cannot be built and run."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: ./dev vm installs them")
    if os.geteuid():
        pytest.skip("needs root, to build a root file system")
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the guest's Python is 3.11, and compiled packages of this environment do not fit it")
    pytest.importorskip("tpm2_pytss", reason="needs the extra `agent` (tpm2-pytss)")


class Machine:
    """One virtual machine in a folder, driven through the program beside the guest's build script."""

    def __init__(self, folder: Path) -> None:
        """Name the folder; `create` makes what is in it."""
        self._driver = shared_path("vm/vm.py")
        self._folder = folder

    def create(self, guest: Path, options: Mapping[str, str]) -> None:
        """Make disk, firmware variables and TPM."""
        words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
        self._call("create", "--guest", str(guest), *words)

    def start(self, forwarded: str) -> None:
        """Power on and wait until the machine answers."""
        self._call("start", "--fwd", forwarded, "--timeout", str(BOOT_SECONDS))

    def reboot(self) -> None:
        """Power off in an orderly way, and on again."""
        self._call("reboot")

    def shell(self, command: str, data: bytes | None = None) -> bytes:
        """Run a command in the guest and return its output."""
        return self._call("exec", "--", command, data=data)

    def stop(self) -> None:
        """Power off."""
        self._call("stop")

    def _call(self, verb: str, *words: str, data: bytes | None = None) -> bytes:
        command = [sys.executable, "-W", "ignore", str(self._driver), verb, str(self._folder), *words]
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=2 * BOOT_SECONDS,
            check=False,
            input=data or b"",
        )
        assert done.returncode == 0, done.stdout[-2000:].decode() + done.stderr[-2000:].decode()
        return done.stdout


def build_guest() -> Path:
    """Build the guest with our agent inside, from packages that are kept between runs; return its folder."""
    script = shared_path("vm/build-vm.sh")
    staging, guest = CACHE / "staging", CACHE / "guest"
    for folder in (staging, guest):
        shutil.rmtree(folder, ignore_errors=True)
    library = staging / "lib"
    library.mkdir(parents=True)
    for place in (Path(path) for path in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}):
        for found in place.iterdir():
            if found.name.split(".")[0] in PACKAGES and not found.name.endswith(".dist-info"):
                _copy(found, library / found.name)
    _copy(ROOT / "src" / "limeguard", library / "limeguard")
    command = [
        "bash",
        str(script),
        str(guest),
        "--rootfs-tar",
        str(CACHE / "rootfs.tar"),
        "--inject",
        f"{staging}:/opt/agent",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return guest


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"), dirs_exist_ok=True)
    elif not target.exists():
        shutil.copy(source, target)


class Guest:
    """One machine, and where its agent is reached."""

    def __init__(self, machine: Machine, site: Site, agent_id: str) -> None:
        """Prepare; `start` powers it on."""
        self.id, self._machine, self._site = agent_id, machine, site
        (self.port,) = free_ports(1)

    def start(self) -> None:
        """Power on and start the agent."""
        self._machine.start(f"{self.port}:{GUEST_PORT}")
        self.start_agent()

    def reboot(self) -> None:
        """Power off and on; PCRs and logs are new, the TPM's keys and counters are not."""
        self._machine.reboot()
        self.start_agent()

    def start_agent(self) -> None:
        """Configure the agent in memory, where IMA does not measure; its keys are kept on the disk."""
        options = {
            "uuid": self.id,
            "ip": "0.0.0.0",
            "port": GUEST_PORT,
            "contact_ip": "127.0.0.1",
            "contact_port": self.port,
            "registrar_ip": HOST,
            "registrar_port": self._site.ports["registrar"],
            "trusted_client_ca": "/run/keylime/cacert.crt",
            "run_as": "",
            "enable_iak_idevid": False,
        }
        files = {
            "cacert.crt": (self._site.authority / "cacert.crt").read_bytes(),
            "agent.conf": toml_text("agent", options).encode(),
        }
        self.run("mkdir -p -m 700 /run/keylime")
        for name, data in files.items():
            self._machine.shell(f"cat > /run/keylime/{name}", data)
        self.run(START)
        wait_until("the agent in the guest", BOOT_SECONDS, self._listens)

    def _listens(self) -> bool:
        """Say whether a connection stays open: QEMU takes it at once, and resets it when nobody listens inside."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=QUIET_SECONDS) as connection:
            try:
                connection.recv(1)
            except TimeoutError:
                return True
            except OSError:
                pass
        time.sleep(QUIET_SECONDS)
        return False

    def run(self, command: str) -> str:
        """Run a command in the guest as root and return its output."""
        return self._machine.shell(command).decode(errors="replace")

    def read(self, path: str) -> bytes:
        """Return a file of the guest."""
        return self._machine.shell(f"cat {path}")


@contextmanager
def guest_of(site: Site, folder: Path, agent_id: str, **machine: str) -> Iterator[Guest]:
    """Make a machine from the guest, power it on, and take it away at the end."""
    need_what_a_guest_needs()
    guest = build_guest()
    made = Machine(folder / "machine")
    made.create(guest, {"ca": str(folder / "tpm-ca"), **machine})
    try:
        node = Guest(made, site, agent_id)
        node.start()
        yield node
    finally:
        made.stop()
