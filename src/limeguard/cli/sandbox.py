"""A throw-away site: registrar, verifier and agents as real processes, in one folder, on free loopback ports.

Decides where files and ports are and in which order things start and stop. Knows nothing of verdicts: it hands out what
the programs answer. Nothing is written outside its folder, and nothing of the machine's own configuration is read.
"""

import http.client
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from limeguard.cli.kernel import Kernel
from limeguard.cli.softtpm import Program, SandboxError, SoftwareTpm, free_ports, wait_for_port

LOOPBACK = "127.0.0.1"
PRIVATE_FOLDER = 0o700
TENANT_SECONDS = 120
Options = Mapping[str, object]
Answer = TypeVar("Answer")


@lru_cache(maxsize=1)
def mount_namespace() -> tuple[str, ...] | None:
    """Return the command before a program that lets it mount for itself alone; None where that is not allowed.

    What is mounted inside is gone when the program is, however it ended.
    """
    own = ("unshare", "--mount")
    for command in (own if os.geteuid() == 0 else None, ("unshare", "--user", "--map-root-user", "--mount")):
        probe = "mount -t tmpfs -o size=4k none /mnt"
        if command and shutil.which("unshare") and _succeeds([*command, "sh", "-c", probe]):
            return command
    return None


def _succeeds(command: Sequence[str]) -> bool:
    done = subprocess.run(command, capture_output=True, check=False, timeout=20)  # noqa: S603 - our own words
    return done.returncode == 0


def ini_text(section: str, options: Options) -> str:
    """Return one section of a server's configuration file."""
    return f"[{section}]\n" + "".join(f"{name} = {value}\n" for name, value in options.items())


def toml_text(section: str, options: Options) -> str:
    """Return one section of an agent's configuration file."""
    return f"[{section}]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in options.items())


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment without settings for Keylime's programs, and with `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KEYLIME_") and name != "TCTI"}
    return {**kept, "PYTHONUNBUFFERED": "1", **extra}


class Node:
    """One attested machine: its software TPM and its agent, in a folder of its own."""

    def __init__(self, sandbox: "Sandbox", agent_id: str, tpm: SoftwareTpm, options: Options) -> None:
        """Prepare the folder; nothing is started yet."""
        self.id, self.tpm = agent_id, tpm
        self.folder = sandbox.folder / f"node-{agent_id[:8]}"
        self.folder.mkdir(mode=PRIVATE_FOLDER)
        (self.port,) = free_ports(1)
        self._sandbox = sandbox
        self.options: dict[str, object] = {
            "uuid": agent_id,
            "ip": LOOPBACK,
            "port": self.port,
            "contact_ip": LOOPBACK,
            "contact_port": self.port,
            "registrar_ip": LOOPBACK,
            "registrar_port": sandbox.ports["registrar"],
            "trusted_client_ca": str(sandbox.authority / "cacert.crt"),
            "run_as": "",
            "exponential_backoff_initial_delay": 200,
            **options,
        }
        self.agent: Program | None = None
        self.kernel: Kernel | None = None

    @property
    def secure_mount(self) -> bool:
        """Whether the agent can have a memory file system, without which it accepts no payload."""
        return mount_namespace() is not None

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Start the agent and wait until it has registered and serves."""
        config = self.folder / "agent.conf"
        _write_private(config, toml_text("agent", self.options))
        settings = {"KEYLIME_DIR": str(self.folder), "KEYLIME_AGENT_CONFIG": str(config), "TCTI": self.tpm.tcti}
        self.agent = Program(
            f"agent-{self.id[:8]}",
            [*(mount_namespace() or ()), *self._sandbox.command("agent", "run")],
            clean_environment({**settings, **(environment or {})}),
            self._sandbox.logs,
            self._sandbox.umask,
        )
        self.agent.start()
        wait_for_port(self.port, self.agent)

    def stop(self) -> None:
        """Stop the agent; the TPM goes on."""
        if self.agent is not None:
            self.agent.stop()
            self.agent = None


class Stoppable(Protocol):
    """A node: what of it runs is ended with the sandbox."""

    folder: Path

    def stop(self) -> None:
        """End it."""
        ...


class Sandbox:
    """Folder, ports, configuration and processes of one throw-away site.

    A context manager: leaving it stops everything. `umask` is what registrar, verifier and agents are started with.
    """

    umask = 0o077

    def __init__(self, folder: Path | None = None, *, keep: bool = False, **options: Options) -> None:
        """Make the folder; `options` are settings per component that go over the sandbox's own.

        Without `folder` a temporary one is made, and removed at the end unless `keep`.
        """
        self._remove = folder is None and not keep
        self.folder = Path(tempfile.mkdtemp(prefix="limeguard-")) if folder is None else folder
        self.folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
        self.work, self.logs, self.store = self.folder / "servers", self.folder / "logs", self.folder / "tpm_cert_store"
        for part in (self.work, self.logs, self.store):
            part.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
        self.authority = self.work / "cv_ca"
        self.ports = dict(zip(("verifier", "registrar", "registrar_tls"), free_ports(3), strict=True))
        self.options: dict[str, dict[str, object]] = {name: dict(given) for name, given in options.items()}
        self.nodes: list[Stoppable] = []
        self.tpms: list[SoftwareTpm] = []
        self.verifier: Program | None = None
        self.registrar: Program | None = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop everything and remove what is to be removed."""
        self.close()

    def command(self, *words: str) -> list[str]:
        """Return the command line of one of limeguard's programs."""
        return [sys.executable, "-m", "limeguard", *words]

    def settings(self, component: str) -> dict[str, object]:
        """Return the settings of a server or the tenant in this sandbox."""
        ports = self.ports
        own: dict[str, dict[str, object]] = {
            "verifier": {"ip": LOOPBACK, "port": ports["verifier"], "quote_interval": "1", "retry_interval": "1"},
            "registrar": {"ip": LOOPBACK, "port": ports["registrar"], "tls_port": ports["registrar_tls"]},
            "tenant": {
                "verifier_ip": LOOPBACK,
                "verifier_port": ports["verifier"],
                "registrar_ip": LOOPBACK,
                "registrar_port": ports["registrar_tls"],
                "tpm_cert_store": self.store,
                "accept_tpm_signing_algs": "['rsassa', 'rsapss', 'ecdsa']",
                "retry_interval": "1",
            },
            "ca": {"cert_ca_name": "limeguard sandbox", "password": "sandbox"},
        }
        return {**own[component], **self.options.get(component, {})}

    def environment(self) -> dict[str, str]:
        """Write the servers' configuration and return the environment that their programs, and the tenant, need."""
        named = {}
        for component in ("verifier", "registrar", "tenant", "ca"):
            text = ini_text(component, self.settings(component))
            if component == "verifier":
                told = {"enabled_revocation_notifications": "[]", **self.options.get("revocations", {})}
                text += ini_text("revocations", told)
            path = self.folder / f"{component}.conf"
            _write_private(path, text)
            named[f"KEYLIME_{component.upper()}_CONFIG"] = str(path)
        return clean_environment({"KEYLIME_DIR": str(self.work), **named})

    def start_verifier(self, *arguments: str) -> None:
        """Start the verifier, which makes the site's CA, and wait until it listens."""
        self.verifier = self._start("verifier", self.ports["verifier"], *arguments)

    def start_registrar(self) -> None:
        """Start the registrar with the verifier's CA and wait until it listens."""
        self.registrar = self._start("registrar", self.ports["registrar"])

    def start_servers(self) -> None:
        """Start the verifier, then the registrar."""
        self.start_verifier()
        self.start_registrar()

    def _start(self, name: str, port: int, *arguments: str) -> Program:
        program = Program(name, self.command(name, "run", *arguments), self.environment(), self.logs, self.umask)
        program.start()
        wait_for_port(port, program)
        return program

    def add_tpm(self) -> SoftwareTpm:
        """Make and start a software TPM whose EK certificates come from the sandbox's own CA."""
        tpm = SoftwareTpm(self.folder / f"tpm-{len(self.tpms)}", self.folder / "tpm-ca", self.logs)
        tpm.create()
        self.tpms.append(tpm)
        tpm.start()
        return tpm

    def trust_tpm_maker(self) -> None:
        """Put the CA that certified the software TPMs into the tenant's certificate store."""
        shutil.copy(self.folder / "tpm-ca" / "issuercert.pem", self.store / "software-tpm.pem")

    def add_node(self, agent_id: str, tpm: SoftwareTpm | None = None, **options: object) -> Node:
        """Prepare a node with a TPM of its own; `options` go over the agent's settings."""
        node = Node(self, agent_id, tpm or self.add_tpm(), options)
        self.nodes.append(node)
        return node

    def tenant(self, *arguments: str, program: Sequence[str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run `limeguard tenant` (or another program that takes its options) to its end and return what it said."""
        command = [*(program or self.command("tenant")), *arguments]
        done = subprocess.run(  # noqa: S603 - our own program
            command,
            env=self.environment(),
            cwd=self.work,
            capture_output=True,
            text=True,
            timeout=TENANT_SECONDS,
            check=False,
        )
        with (self.logs / "tenant.log").open("a") as log:
            log.write(f"$ {' '.join(arguments)}\n{done.stdout}{done.stderr}[exit {done.returncode}]\n")
        return done

    def client_context(self) -> ssl.SSLContext:
        """Return a TLS context with the administrator's certificate."""
        context = ssl.create_default_context(cafile=str(self.authority / "cacert.crt"))
        context.load_cert_chain(self.authority / "client-cert.crt", self.authority / "client-private.pem")
        return context

    def ask(self, port: int, path: str, method: str = "GET") -> tuple[int, Any]:
        """Ask one of the servers as administrator; returns status and decoded JSON."""
        status, text = self.ask_text(port, path, method)
        return status, json.loads(text or "null")

    def ask_text(self, port: int, path: str, method: str = "GET") -> tuple[int, str]:
        """Ask one of the servers as administrator; returns status and text. Raises OSError."""
        connection = http.client.HTTPSConnection(LOOPBACK, port, timeout=20, context=self.client_context())
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def node_view(self, agent_id: str) -> dict[str, Any] | None:
        """Return what the verifier says about a node now; None when it does not know it."""
        status, view = self.ask(self.ports["verifier"], f"/limeguard/v1/nodes/{agent_id}")
        if status == http.client.NOT_FOUND:
            return None
        if status != http.client.OK:
            raise SandboxError(f"the verifier answered {status}: {view}")
        answer: dict[str, Any] = view
        return answer

    def close(self) -> None:
        """Stop everything, agents first and TPMs last, and remove the folder if it is ours."""
        for node in self.nodes:
            node.stop()
        for program in (self.verifier, self.registrar):
            if program is not None:
                program.stop()
        for tpm in self.tpms:
            tpm.stop()
        if self._remove:
            shutil.rmtree(self.folder, ignore_errors=True)


def wait_until(what: str, seconds: float, holds: Callable[[], Answer]) -> Answer:
    """Ask `holds()` several times a second and return its first true answer. Raises SandboxError after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        answer = holds()
        if answer:
            return answer
        if time.monotonic() > end:
            raise SandboxError(f"waited {seconds:.0f} s in vain for: {what}")
        time.sleep(0.1)


def _write_private(path: Path, text: str) -> None:
    """Write configuration, which may hold passwords, for its owner alone."""
    path.touch(mode=0o600)
    path.write_text(text)
