"""Serves the list of revoked certificates over plain HTTP, one path and nothing else."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

from limeguard.authoring.ca import CRL_DER
from limeguard.telemetry import clean, get_logger

log = get_logger("keylime.ca-util")

PATIENCE = 10.0
"""Seconds after which a silent client is dropped."""
MAX_CRL = 16 * 1024 * 1024


class _Handler(BaseHTTPRequestHandler):
    """Answers GET for the one path with the file as it is now."""

    file: ClassVar[Path]
    path_served: ClassVar[str]
    timeout = PATIENCE
    server_version = "limeguard"
    sys_version = ""

    def do_GET(self) -> None:
        """Send the list."""
        if self.path.partition("?")[0] != self.path_served:
            self.send_error(404)
            return
        try:
            with self.file.open("rb") as handle:
                data = handle.read(MAX_CRL)
        except OSError:
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/pkix-crl")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that the base class has
        """Log through the usual logger."""
        log.info("%s %s", clean(self.client_address[0]), clean(format % args))


def crl_server(directory: Path, address: str, port: int, path: str) -> ThreadingHTTPServer:
    """Bind a server for the list in a CA's directory; `serve_forever` runs it. Raises OSError."""
    handler = type("Handler", (_Handler,), {"file": directory / CRL_DER, "path_served": path or "/"})
    return ThreadingHTTPServer((address, port), handler)
