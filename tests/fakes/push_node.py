"""A node whose agent attests by itself, as a process beside a software TPM and the kernel's part of IMA."""

import uuid
from collections.abc import Mapping
from pathlib import Path

from limeguard.cli.kernel import Kernel
from limeguard.cli.sandbox import LOOPBACK, Node, Sandbox, clean_environment, toml_text, wait_until
from limeguard.cli.softtpm import Program, SoftwareTpm

RSA = {"tpm_encryption_alg": "rsa", "tpm_signing_alg": "rsassa"}
ECC = {"tpm_encryption_alg": "ecc", "tpm_signing_alg": "ecdsa"}
ACCEPTED = "SUCCESS! Evidence accepted by the Verifier."


class PushNode(Node):
    """One machine with a push agent. Its IMA list is a file that `kernel` extends together with PCR 10."""

    def __init__(self, sandbox: Sandbox, tpm: SoftwareTpm, options: Mapping[str, object]) -> None:
        node = str(uuid.uuid4())
        site_options = {
            "verifier_url": f"https://{LOOPBACK}:{sandbox.ports['verifier']}",
            "verifier_tls_ca_cert": str(sandbox.authority / "cacert.crt"),
            "attestation_interval_seconds": 1,
            "ima_ml_path": str(sandbox.folder / f"ima-{node[:8]}"),
            "measuredboot_ml_path": str(sandbox.folder / f"boot-{node[:8]}"),
        }
        super().__init__(sandbox, node, tpm, {**site_options, **options})
        self.kernel = Kernel(tpm, Path(str(self.options["ima_ml_path"])))
        sandbox.nodes.append(self)

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Start the agent and wait until it has registered."""
        config = self.folder / "agent.conf"
        config.write_text(toml_text("agent", self.options))
        settings = {
            "KEYLIME_DIR": str(self.folder),
            "KEYLIME_AGENT_CONFIG": str(config),
            "TCTI": self.tpm.tcti,
            "RUST_LOG": "keylime_push_model_agent=debug,keylime=info",
        }
        self.agent = Program(
            f"push-{self.id[:8]}",
            self._sandbox.command("agent", "push"),
            clean_environment({**settings, **(environment or {})}),
            self._sandbox.logs,
            self._sandbox.umask,
        )
        before = self.said("activated")
        self.agent.start()
        self.says("activated", before + 1)

    def said(self, text: str) -> int:
        """Return how often the log of the agent has a text."""
        return self.agent.output().count(text) if self.agent is not None else 0

    def says(self, text: str, count: int = 1, seconds: float = 30) -> None:
        """Wait until the log has a text so many times; a dead agent says nothing any more."""
        agent = self.agent
        assert agent is not None

        def heard() -> bool:
            if not agent.running:
                raise agent.complaint(f"ended with status {agent.status}")
            return self.said(text) >= count

        try:
            wait_until(f"{text!r} {count} times", seconds, heard)
        except Exception as problem:
            raise AssertionError(f"{problem}\n{agent.output()[-3000:]}") from problem

    def attests(self, more: int = 1, seconds: float = 30) -> None:
        """Wait for more evidence to be accepted."""
        self.says(ACCEPTED, self.said(ACCEPTED) + more, seconds)
