"""The list of revoked certificates over HTTP: one path and nothing else."""

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from limeguard.authoring.crl_server import crl_server

pytestmark = pytest.mark.services


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "cacrl.der").write_bytes(b"the list")
    (tmp_path / "private.yml").write_bytes(b"secret")
    with crl_server(tmp_path, "127.0.0.1", 0, "/crl") as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def get(port: int, path: str, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_the_list_is_served_as_it_is_now(port: int, tmp_path: Path) -> None:
    assert get(port, "/crl") == (200, b"the list")
    (tmp_path / "cacrl.der").write_bytes(b"a newer list")
    assert get(port, "/crl?x=1") == (200, b"a newer list")


def test_nothing_else_is_served(port: int) -> None:
    """# trust: default-deny."""
    for path in ("/", "/private.yml", "/crl/../private.yml", "//private.yml"):
        assert get(port, path)[0] == 404
    assert get(port, "/crl", "POST")[0] == 501
