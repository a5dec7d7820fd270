"""The kernel's part of IMA beside a software TPM that runs as a program: a growing list, and PCR 10 extended."""

import hashlib
from pathlib import Path

from limeguard.cli.sandbox import Node

IMA_PCR = 10


class Kernel:
    """Measures files as IMA does with the template ima-ng: a line in the list, and the PCR extended."""

    def __init__(self, node: Node, path: Path) -> None:
        self._node, self._path = node, path
        path.write_text("")

    def measure(self, name: str, digest: str) -> None:
        data = b"sha256:\0" + bytes.fromhex(digest)
        field = name.encode() + b"\0"
        template = len(data).to_bytes(4, "little") + data + len(field).to_bytes(4, "little") + field
        self._node.tpm.extend(IMA_PCR, hashlib.sha256(template).digest())
        with self._path.open("a") as log:
            log.write(f"{IMA_PCR} {hashlib.sha1(template).hexdigest()} ima-ng sha256:{digest} {name}\n")  # noqa: S324
