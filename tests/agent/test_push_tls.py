"""Whom a push agent takes for its verifier: a server of the CA, under its name; anything else only when told so."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.pki import Authority, server_context

from limeguard.agent.keys import KeyFileError
from limeguard.agent.push_build import PatientHttp
from limeguard.agent.tls import verifier_context
from limeguard.web.answers import Answer, Unreachable
from limeguard.web.app import Response
from limeguard.web.client import HttpClient
from limeguard.web.serve import Listener


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@pytest.fixture
async def port(authority: Authority) -> AsyncIterator[int]:
    """Serve under a certificate for 127.0.0.1."""

    async def answer(_incoming: object) -> Response:
        return Response(200, b"here")

    identity = authority.issue("verifier")
    listener = Listener(answer, "127.0.0.1", 0, server_context(identity, authority.identity.certificate))
    await listener.start()
    yield listener.port
    await listener.stop()


async def reached(port: int, host: str, ca: Path, *, insecure: bool = False, any_name: bool = False) -> bool:
    context = verifier_context(ca, insecure=insecure, any_name=any_name)
    client = HttpClient(context, timeout=10, max_answer=1000)
    try:
        answer = await client.request("POST", f"https://{host}:{port}/", body=b"{}")
    except Unreachable as problem:
        if problem.kind != "tls":
            raise
        return False
    finally:
        await client.close()
    return answer.status == 200


async def test_a_verifier_is_known_by_ca_and_name(tmp_path: Path, authority: Authority, port: int) -> None:
    # trust: downgrade
    ours, theirs = authority.identity.certificate, Authority(tmp_path / "other").identity.certificate
    assert await reached(port, "127.0.0.1", ours)
    assert not await reached(port, "127.0.0.1", theirs)
    assert not await reached(port, "localhost", ours)
    assert await reached(port, "localhost", ours, any_name=True)
    assert not await reached(port, "localhost", theirs, any_name=True)
    assert await reached(port, "localhost", theirs, insecure=True)


def test_a_ca_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="verifier_tls_ca_cert"):
        verifier_context(tmp_path / "missing.crt", insecure=False, any_name=False)


async def test_a_long_log_is_given_the_time_that_a_slow_link_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    async def request(_self: HttpClient, _method: str, _url: str, **options: Any) -> Answer:
        given.append(options["timeout"])
        return Answer(202, b"", {})

    monkeypatch.setattr(HttpClient, "request", request)
    client = HttpClient(None, timeout=5, max_answer=10)
    patient = PatientHttp(client, 5)
    await patient.request("POST", "https://v", body=b"{}")
    await patient.request("PATCH", "https://v", body=bytes(13_000_000))
    await client.close()
    assert 5 <= given[0] < 5.1
    assert given[1] > 300
