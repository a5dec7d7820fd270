"""A whole site for tests: the sandbox that the demo uses, with the looser umask of a careless operator, and searches.

Programs are started with umask 022, so that a file which nobody but its owner may read is the program's own doing.
"""

import base64
import json
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from limeguard.cli.sandbox import Node, Sandbox, wait_until

KEYLIME_TENANT = str(Path(sys.executable).parent / "keylime_tenant")


class Site(Sandbox):
    """A sandbox whose folder can be searched for secrets and for files with loose modes."""

    umask = 0o022

    def keylime_tenant(self, *arguments: str) -> str:
        """Run our `keylime_tenant`, which must succeed, and return all it said on stdout."""
        done = self.tenant(*arguments, program=[KEYLIME_TENANT])
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def reaches(self, node: Node, condition: str, seconds: float = 30, *, rounds: int = 0) -> dict[str, Any]:
        """Wait for a condition after at least so many passed rounds, and return the view of the node."""

        def look() -> dict[str, Any] | None:
            view = self.node_view(node.id)
            reached = view is not None and view["condition"] == condition and view["attestation_count"] >= rounds
            return view if reached else None

        view = wait_until(f"{node.id} to be {condition}", seconds, look)
        assert view is not None
        return view

    def written(self) -> Iterator[Path]:
        """Return every regular file that the programs wrote: the servers' and nodes' folders and the logs."""
        for folder in (self.work, self.logs, *(node.folder for node in self.nodes)):
            yield from (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())

    def holding(self, secrets: Iterable[bytes]) -> dict[str, list[str]]:
        """Return which written files hold a secret in the clear, as hex or as base64: file -> forms found."""
        found: dict[str, list[str]] = {}
        wanted = [(name, form) for secret in secrets for name, form in forms_of(secret)]
        for path in self.written():
            data = path.read_bytes()
            hits = [name for name, form in wanted if form in data]
            if hits:
                found[str(path.relative_to(self.folder))] = hits
        return found

    def private_keys(self) -> dict[str, bytes]:
        """Return the body of every private key in PEM that lies about: file -> its base64 text without line ends."""
        pattern = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----(.+?)-----END", re.DOTALL)
        return {
            str(path.relative_to(self.folder)): b"".join(match[1].split())
            for path in self.written()
            if (match := pattern.search(path.read_bytes()))
        }

    def open_to_others(self) -> list[str]:
        """Return the files and folders that users other than owner and group may touch, with their modes."""
        places = [*self.written(), *(p for n in self.nodes for p in n.folder.rglob("*") if p.is_dir())]
        places += [path for path in self.work.rglob("*") if path.is_dir()]
        return [
            f"{oct(stat.S_IMODE(path.stat().st_mode))} {path.relative_to(self.folder)}"
            for path in places
            if path.stat().st_mode & stat.S_IRWXO and self.logs not in path.parents
        ]


def forms_of(secret: bytes) -> Iterator[tuple[str, bytes]]:
    """Return how a secret may look in a file or a log line."""
    yield "raw", secret
    yield "hex", secret.hex().encode()
    yield "base64", base64.b64encode(secret).rstrip(b"=")


def last_json(text: str) -> dict[str, Any]:
    """Return the last object that begins a line, as scripts take it out of a tenant's output."""
    found: dict[str, Any] = json.loads([line for line in text.splitlines() if line.startswith("{")][-1])
    return found
