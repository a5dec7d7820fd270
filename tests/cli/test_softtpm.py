"""The processes of a sandbox are waited for until they can be used."""

import sys
import time
from pathlib import Path

import pytest

from limeguard.cli import softtpm
from limeguard.cli.softtpm import Program, SandboxError

SERVER = """
import socket, sys, time
server = socket.socket()
server.bind(("127.0.0.1", int(sys.argv[1])))
time.sleep(0.3)  # between bind and listen a client is refused
server.listen()
server.settimeout(20)
try:
    server.accept()
    print("somebody came", flush=True)
    time.sleep(20)
except TimeoutError:
    pass
"""


def server(folder: Path, port: int, code: str = SERVER) -> Program:
    return Program("server", [sys.executable, "-c", code, str(port)], {}, folder)


def test_a_listener_is_waited_for_without_being_visited(tmp_path: Path) -> None:
    (port,) = softtpm.free_ports(1)
    program = server(tmp_path, port)
    program.start()
    try:
        softtpm.wait_for_listener(port, program, 20.0)
        assert "somebody came" not in program.output()
        softtpm.wait_for_port(port, program)
        end = time.monotonic() + 20.0
        while "somebody came" not in program.output():
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        program.stop()


def test_a_program_that_ends_instead_of_listening_is_told(tmp_path: Path) -> None:
    (port,) = softtpm.free_ports(1)
    program = server(tmp_path, port, "raise SystemExit('no such folder')")
    program.start()
    with pytest.raises(SandboxError, match=r"ended with status 1 instead of listening\n.*no such folder"):
        softtpm.wait_for_listener(port, program, 20.0)


def test_a_program_that_never_listens_is_told(tmp_path: Path) -> None:
    (port,) = softtpm.free_ports(1)
    program = server(tmp_path, port, "import time; time.sleep(20)")
    program.start()
    try:
        with pytest.raises(SandboxError, match=f"does not listen on port {port}"):
            softtpm.wait_for_listener(port, program, 0.2)
    finally:
        program.stop()
