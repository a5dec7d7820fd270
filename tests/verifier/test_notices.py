"""Notices about nodes that lost trust: what is told to whom, how it is signed, and that nothing is lost on the way."""

import asyncio
import itertools
import json
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
from aiohttp import web
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from tests.fakes.pki import Authority
from tests.fakes.soft_agent import SoftAgent
from tests.fakes.verifier_site import Site, running_verifier

from limeguard.cli.softtpm import free_ports
from limeguard.store.notices import Notice, Waiting
from limeguard.verifier import notices as module
from limeguard.verifier.notices import Channel, Dispatcher, NotDelivered

pytestmark = pytest.mark.services

KEY = rsa.generate_private_key(65537, 2048)
PEM = KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
).decode()
POLICY = '{"23": ["%s"], "mask": "0x800000"}' % ("00" * 32)


class Hook:
    """A webhook that takes down what it is told; `status` is what it answers."""

    def __init__(self) -> None:
        self.bodies: list[str] = []
        self.status = 200

    async def take(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.text())
        return web.Response(status=self.status)


@asynccontextmanager
async def hook(port: int = 0) -> AsyncIterator[tuple[Hook, str]]:
    made = Hook()
    app = web.Application()
    app.router.add_post("/told", made.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield made, f"http://127.0.0.1:{runner.addresses[0][1]}/told"
    finally:
        await runner.cleanup()


async def until(holds: Callable[[], object], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.02)


async def failed(site: Site, name: str = "bad", **enrolment: Any) -> SoftAgent:
    """Enrol a node and let it lose trust."""
    agent = await site.add_agent(name)
    await site.enrol(agent, tpm_policy=POLICY, **enrolment)
    await site.reaches(agent, "trusted", rounds=1)
    agent.node.extend(23, bytes(32))
    await site.reaches(agent, "distrusted")
    return agent


async def test_a_webhook_is_told_in_the_format_of_the_wire(tmp_path: Path, authority: Authority) -> None:
    async with hook() as (told, url):
        options = {"enabled_revocation_notifications": ("webhook",), "webhook_url": url}
        async with running_verifier(tmp_path, authority, **options) as site:
            agent = await failed(site, revocation_key=PEM, metadata='{"cert_serial": 71}')
            await until(lambda: told.bodies)
            await asyncio.sleep(0.3)
    (body,) = told.bodies
    assert f'\\"type\\": \\"revocation\\", \\"ip\\": \\"127.0.0.1\\", \\"agent_id\\": \\"{agent.agent_id}\\"' in body
    sent = json.loads(body)
    KEY.public_key().verify(
        b64decode(sent["signature"]),
        sent["msg"].encode(),
        padding.PSS(padding.MGF1(hashes.SHA256()), 222),
        hashes.SHA256(),
    )
    message = json.loads(sent["msg"])
    assert list(message) == [
        *("type", "ip", "agent_id", "port", "tpm_policy", "meta_data"),
        *("event_time", "event_id", "severity_label", "context"),
    ]
    assert (message["event_id"], message["severity_label"]) == ("pcr_validation.invalid_pcr_23", "emergency")
    assert (message["tpm_policy"], message["meta_data"]) == (POLICY, '{"cert_serial": 71}')
    assert json.loads(message["context"])["pcr"] == 23


async def test_all_other_agents_are_told_once(tmp_path: Path, authority: Authority) -> None:
    async with running_verifier(tmp_path, authority) as site:  # the default is to tell agents
        others = [await site.add_agent(f"other-{number}") for number in range(3)]
        for other in others:
            await site.enrol(other)
            await site.reaches(other, "trusted", rounds=1)
        bad = await failed(site)
        await until(lambda: all(other.notices for other in others))
        await asyncio.sleep(0.2)
        assert [len(other.notices) for other in others] == [1, 1, 1]
        assert bad.notices == []
        assert others[0].notices[0]["signature"] == ""
        assert json.loads(others[0].notices[0]["msg"])["agent_id"] == "bad"


async def test_a_webhook_that_refuses_is_asked_again(tmp_path: Path, authority: Authority) -> None:
    async with hook() as (told, url):
        told.status = 500
        options = {"enabled_revocation_notifications": ("webhook",), "webhook_url": url}
        async with running_verifier(tmp_path, authority, **options) as site:
            await failed(site)
            await until(lambda: told.bodies)
            told.status = 202
            await until(lambda: len(told.bodies) == 2)
            await asyncio.sleep(1.2)
    assert told.bodies[0] == told.bodies[1]
    assert len(told.bodies) == 2


# trust: restart
async def test_a_notice_outlives_the_verifier_and_its_node(tmp_path: Path, authority: Authority) -> None:
    (port,) = free_ports(1)
    options = {
        "enabled_revocation_notifications": ("webhook",),
        "webhook_url": f"http://127.0.0.1:{port}/told",
    }
    async with running_verifier(tmp_path, authority, **options) as site:
        agent = await failed(site, revocation_key=PEM)
        await asyncio.sleep(0.2)  # nobody listens there yet
        assert (await site.ask("DELETE", f"/v2.6/agents/{agent.agent_id}")).status == 200
    async with hook(port) as (told, _url), running_verifier(tmp_path, authority, **options):
        await until(lambda: told.bodies)
    assert json.loads(told.bodies[0])["signature"]


async def test_subscribers_of_zeromq_are_told(tmp_path: Path, authority: Authority) -> None:
    (port,) = free_ports(1)
    options = {"enabled_revocation_notifications": ("zeromq",), "zmq_port": port}
    context = zmq.Context()
    subscriber = context.socket(zmq.SUB)
    subscriber.setsockopt(zmq.LINGER, 0)
    subscriber.setsockopt(zmq.SUBSCRIBE, b"")
    try:
        async with running_verifier(tmp_path, authority, **options) as site:
            subscriber.connect(f"tcp://127.0.0.1:{port}")
            await failed(site)
            found = await asyncio.to_thread(subscriber.poll, 5_000)
            assert found
            assert json.loads(json.loads(subscriber.recv())["msg"])["agent_id"] == "bad"
    finally:
        subscriber.close()
        context.term()


async def test_nobody_is_told_when_no_channel_is_enabled(tmp_path: Path, authority: Authority) -> None:
    async with running_verifier(tmp_path, authority, enabled_revocation_notifications=()) as site:
        other = await site.add_agent("other")
        await site.enrol(other)
        await failed(site)
        await asyncio.sleep(0.3)
        assert other.notices == []


class Box:
    """An outbox in memory with one notice."""

    def __init__(self) -> None:
        self.attempts = 0
        self.next_at: float | None = 0.0
        self.gone = False

    async def claim(
        self, now: float, _until: float, _limit: int, *, only: str = "", without: Sequence[str] = ()
    ) -> list[Waiting]:
        assert (only, without) == ("odd", ())
        due = not self.gone and self.next_at is not None and self.next_at <= now
        return [Waiting(1, Notice("odd", "node", "{}"), self.attempts, "not a key")] if due else []

    async def delivered(self, _waiting: Sequence[Waiting]) -> None:
        self.gone = True

    async def depth(self) -> int:
        return int(not self.gone)

    async def failed(self, waiting: Waiting, next_at: float | None) -> None:
        self.attempts, self.next_at = waiting.attempts + 1, next_at


class Odd(Channel):
    """A channel that fails so many times."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.bodies: list[bytes] = []

    async def send(self, _notice: Notice, body: bytes) -> None:
        self.bodies.append(body)
        if len(self.bodies) <= self.failures:
            raise NotDelivered("not today")


@pytest.mark.parametrize(("failures", "gone"), [(0, True), (3, True), (99, False)])
async def test_pauses_grow_and_end(monkeypatch: pytest.MonkeyPatch, failures: int, *, gone: bool) -> None:
    monkeypatch.setattr(module, "MAX_ATTEMPTS", 6)
    now = 1_000.0
    box, odd = Box(), Odd(failures)
    dispatcher = Dispatcher(box, {"odd": odd}, pause=1.0, now=lambda: now)
    times = []
    for _ in range(12):
        tried = len(odd.bodies)
        await dispatcher._round("odd")
        if len(odd.bodies) > tried:
            times.append(now)
        now = box.next_at if box.next_at is not None and not box.gone else now + 1
    assert box.gone is gone
    assert (box.next_at is None) is not gone
    assert len(odd.bodies) == min(failures + 1, 6)
    pauses = [later - before for before, later in itertools.pairwise(times)]
    assert pauses == [1, 2, 4, 8, 16][: len(pauses)]
    assert json.loads(odd.bodies[0])["signature"] == ""  # a key that cannot be read costs the signature, not the notice
