"""Agents that want to hurt: silence, floods, tricks of HTTP and TLS. Bounded in time and memory, never trusted."""

import asyncio
import gzip
import resource
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.fakes.pki import Authority
from tests.fakes.pki import server_context as lax_server_context
from tests.fakes.soft_agent import SoftAgent
from tests.fakes.verifier_site import FAILED_AT_ONCE, Site, running_verifier

pytestmark = pytest.mark.services

TIMEOUT = 2.0
"""Seconds in which the honest agent must answer too, while others flood the very process that it lives in."""
GIGABYTE = 1 << 30
MEMORY = 200 << 20
"""Bytes by which this process may grow: an answer may have 64 MiB, and no more is ever held."""

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


async def hang(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def reset(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def one_byte_a_while(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for byte in HEAD + b"Content-Length: 5000\r\n\r\n" + b" " * 5000:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.1)


async def slow_body(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"Content-Length: 5000\r\n\r\n")
    for _ in range(600):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.1)


async def announced_gigabyte(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % GIGABYTE)
    await _flood(writer, b" " * 65536)


async def chunked_gigabyte(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    await _flood(writer, b"10000\r\n" + b" " * 65536 + b"\r\n")


async def endless_body(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"\r\n")
    await _flood(writer, b" " * 65536)


async def endless_header(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX: ")
    await _flood(writer, b"a" * 65536)


async def many_headers(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    await _flood(writer, b"X: a\r\n" * 10_000)


async def _flood(writer: asyncio.StreamWriter, piece: bytes) -> None:
    for _ in range(GIGABYTE // len(piece)):
        writer.write(piece)
        await writer.drain()


async def zip_bomb(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB)
    await writer.drain()


BOMB = gzip.compress(gzip.compress(b" " * (1 << 28)))


async def not_http(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n" * 100)
    await writer.drain()


async def redirect(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 307 X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()


async def no_content(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 204 X\r\n\r\n")
    await writer.drain()


async def server_error(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()


async def deep_json(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    body = b'{"results":' * 100_000
    writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()


async def long_quote(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    quote = b"r" + b"A" * (20 << 20)
    body = (
        b'{"code":200,"status":"x","results":{"quote":"'
        + quote
        + (b'","hash_alg":"sha256","enc_alg":"ecc256","sign_alg":"ecdsa","pubkey":"x"}}')
    )
    writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()


async def not_json(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    body = b"\xff\xfe<html>" * 10
    writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()


UNREACHABLE = [
    hang,
    reset,
    one_byte_a_while,
    slow_body,
    announced_gigabyte,
    chunked_gigabyte,
    endless_body,
    endless_header,
    many_headers,
    not_http,
    redirect,
    no_content,
    server_error,
]
MALFORMED = [zip_bomb, deep_json, long_quote, not_json]


@asynccontextmanager
async def hostile(behaviour: Behaviour, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Serve the behaviour on a free port."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await reader.readuntil(b"\r\n\r\n")
            await behaviour(reader, writer)
        except (OSError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def strict_site(tmp_path: Path, authority: Authority) -> AsyncIterator[Site]:
    async with running_verifier(tmp_path, authority, request_timeout=TIMEOUT, **FAILED_AT_ONCE) as running:
        yield running


async def attacked(site: Site, behaviour: Behaviour) -> tuple[dict[str, object], SoftAgent]:
    """Have an agent behave, beside one that is honest; return what is said of the first when it is settled."""
    honest, liar = await site.add_agent("honest"), await site.add_agent("liar")
    context = lax_server_context(liar.identity, site.authority.identity.certificate, required=True)
    async with hostile(behaviour, context) as port:
        await site.enrol(honest)
        await site.enrol(liar, cloudagent_port=port)
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        view = await site.shows(liar, lambda seen: seen["phase"] not in {"start", "attesting"})
        assert time.monotonic() - began < TIMEOUT + 5
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY
        assert view["condition"] != "trusted"
        assert view["attestation_count"] == 0
        count = (await site.view(honest))["attestation_count"]
        await site.reaches(honest, "trusted", rounds=count + 2)
        return view, liar


# trust: bounded
# trust: fail-closed
@pytest.mark.parametrize("behaviour", UNREACHABLE, ids=lambda behaviour: behaviour.__name__)
async def test_an_agent_without_usable_answer_is_unreachable_in_good_time(
    strict_site: Site, behaviour: Behaviour
) -> None:
    view, liar = await attacked(strict_site, behaviour)
    assert view["condition"] == "unreachable"
    assert view["integrity"] == "unknown"
    status = await strict_site.status(liar)
    assert (status["operational_state"], status["attestation_status"]) == (7, "FAIL")


# trust: bounded
# trust: safe-parsing
@pytest.mark.parametrize("behaviour", MALFORMED, ids=lambda behaviour: behaviour.__name__)
async def test_an_answer_that_is_no_evidence_is_a_finding(strict_site: Site, behaviour: Behaviour) -> None:
    view, _ = await attacked(strict_site, behaviour)
    assert view["condition"] == "distrusted"
    assert strict_site.event_ids(view) in (["qoute_validation.invalid_data"], ["qoute_validation.quote_validation"])


# trust: bound-identity
async def test_only_the_registered_certificate_is_spoken_to(strict_site: Site) -> None:
    real, other = await strict_site.add_agent("node-1"), await strict_site.add_agent("other", None)
    await strict_site.enrol(real, cloudagent_port=other.port)
    view = await strict_site.reaches(real, "unreachable")
    assert view["attestation_count"] == 0
    assert other.requests == []  # not a byte of a request went out


# trust: downgrade
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_old_tls_is_not_spoken(strict_site: Site) -> None:
    agent = await strict_site.add_agent()
    context = lax_server_context(agent.identity, strict_site.authority.identity.certificate)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    async with hostile(not_json, context) as port:
        await strict_site.enrol(agent, cloudagent_port=port)
        await strict_site.reaches(agent, "unreachable")


# trust: bounded
async def test_a_hundred_silent_agents_keep_nobody_waiting(tmp_path: Path, authority: Authority) -> None:
    async with running_verifier(tmp_path, authority, request_timeout=30.0, **FAILED_AT_ONCE) as site:
        honest, silent = await site.add_agent("honest"), await site.add_agent("silent")
        context = lax_server_context(silent.identity, site.authority.identity.certificate, required=True)
        async with hostile(hang, context) as port:
            for number in range(100):
                body = silent.enrolment(cloudagent_port=port)
                assert (await site.ask("POST", f"/v2.6/agents/silent-{number}", body)).status == 200
            await site.enrol(honest)
            began = time.monotonic()
            await site.reaches(honest, "trusted", rounds=5)
            assert time.monotonic() - began < 10
            counts = (await site.ask("GET", "/limeguard/v1/nodes")).json["counts"]
            assert (counts["trusted"], counts["pending"]) == (1, 100)
