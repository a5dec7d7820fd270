"""A site of which each part is ours or Keylime's; the agents are ours, on software TPMs."""

import runpy
from pathlib import Path
from typing import Any, Literal

from limeguard.cli.sandbox import Node, ini_text, wait_until
from limeguard.cli.softtpm import Program, wait_for_port
from tests.fakes.peer import peer_program
from tests.fakes.shared import shared_path
from tests.fakes.site import KEYLIME_TENANT, Site, last_json

Maker = Literal["keylime", "limeguard"]


class MixedSite(Site):
    """Every part reads the same files: Keylime's whole configuration, with the sandbox's own values over it."""

    def __init__(self, folder: Path, verifier: Maker, registrar: Maker, tenant: Maker) -> None:
        self._makers: dict[str, Maker] = {"verifier": verifier, "registrar": registrar, "tenant": tenant}
        self._keylime = runpy.run_path(str(shared_path("peer/keylime_site.py")))
        peer_program("keylime_tenant")
        super().__init__(folder)
        self.options["verifier"] = {"exponential_backoff": "False", "max_retries": "60"}

    def environment(self) -> dict[str, str]:
        named = super().environment()
        for component in ("verifier", "registrar", "tenant", "ca"):
            values = {**self._keylime["OPTIONS"][component], **self.settings(component)}
            text = ini_text(component, values)
            if component == "verifier":
                text += ini_text("revocations", self._keylime["OPTIONS"]["revocations"])
            Path(named[f"KEYLIME_{component.upper()}_CONFIG"]).write_text(text)
        logging = self.folder / "logging.conf"
        logging.write_text(self._keylime["LOGGING"])
        return {**named, "KEYLIME_LOGGING_CONFIG": str(logging)}

    def _start(self, name: str, port: int, *arguments: str) -> Program:
        if self._makers[name] == "limeguard":
            return super()._start(name, port, *arguments)
        environment = {**self.environment(), "KEYLIME_TEST": "on"}
        program = Program(name, [str(peer_program(f"keylime_{name}"))], environment, self.logs)
        program.start()
        wait_for_port(port, program)
        return program

    def run_tenant(self, *arguments: str) -> str:
        """Run the tenant of this site, which must succeed, and return all it said on stdout."""
        ours = self._makers["tenant"] == "limeguard"
        done = self.tenant(*arguments, program=[KEYLIME_TENANT if ours else str(peer_program("keylime_tenant"))])
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def status(self, node: Node) -> dict[str, Any] | None:
        """Return what the verifier says of the node, as the tenant shows it; None when it does not know it."""
        done = self.tenant("-c", "cvstatus", "-u", node.id, program=[KEYLIME_TENANT])
        if f"does not have agent {node.id}" in done.stdout:
            return None
        found: dict[str, Any] = last_json(done.stdout)[node.id]
        return found

    def comes_to(self, node: Node, state: str, seconds: float = 60, *, rounds: int = 0) -> dict[str, Any]:
        """Wait for an operational state after so many good rounds, and return the record."""
        seen: dict[str, Any] = {}

        def look() -> bool:
            seen.clear()
            seen.update(self.status(node) or {})
            return seen.get("operational_state") == state and seen["attestation_count"] >= rounds

        try:
            wait_until(f"{node.id} to be in state {state} after {rounds} rounds", seconds, look)
        except Exception as problem:
            raise AssertionError(f"{problem}\nlast seen: {seen}\n{self.ends_of_logs()}") from problem
        return dict(seen)

    def ends_of_logs(self) -> str:
        """Return the ends of all logs, for a test that failed."""
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-2500:]}" for log in self.logs.iterdir())

    def close(self) -> None:
        for name, program in (("verifier", self.verifier), ("registrar", self.registrar)):
            if program is not None and self._makers[name] == "keylime":
                program.kill()  # with its workers
        super().close()
