"""Requests from worker to worker: what is handed on, what is not, and what a sibling must not be able to do to us."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from limeguard.store.schema_verifier import PARTITIONS
from limeguard.verifier.push import relay as module
from limeguard.verifier.push.relay import NotHereError, Relay
from limeguard.web.app import BodyTooLarge, Incoming, Request, Response
from limeguard.web.auth import ANONYMOUS, Caller, CallerKind

MAX_BODY = 1000
AGENT = "node-1"


class Table:
    """Who holds what, and which nodes are in memory and rows."""

    def __init__(self) -> None:
        self.kept = False
        self.owner: str | None = "two"
        self.memory: set[str] = set()
        self.enrolled: set[str] = set()
        self.called = 0

    def keeps(self, _agent_id: str, /) -> bool:
        return self.kept

    def call(self) -> None:
        self.called += 1

    async def owners(self) -> dict[int, str]:
        return {} if self.owner is None else dict.fromkeys(range(PARTITIONS), self.owner)

    def in_memory(self, agent_id: str) -> object | None:
        return agent_id if agent_id in self.memory else None

    async def is_enrolled(self, agent_id: str) -> object | None:
        return agent_id if agent_id in self.enrolled else None


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="limeguard-test-") as found:
        yield Path(found)


def made(folder: Path | None, table: Table, worker: str = "one") -> Relay:
    return Relay(folder, worker, table, table.owners, table.in_memory, table.is_enrolled, max_body=MAX_BODY)


def request(body: bytes = b"{}", *, caller: Caller = ANONYMOUS, relayed: bool = False, **headers: str) -> Request:
    return Request(
        method="POST",
        path=f"/v3.0/agents/{AGENT}/attestations",
        params={"agent_id": AGENT},
        query={},
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        body=body,
        caller=caller,
        secure=True,
        request_id="",
        peer="192.0.2.1",
        relayed=relayed,
    )


async def own(_request: Request) -> Response:
    return Response(200, b"own")


async def sibling(
    folder: Path, heard: list[Incoming], answer: Callable[[Incoming], Awaitable[Response]] | None = None
) -> Relay:
    """Start the worker that holds everything."""

    async def answered(incoming: Incoming) -> Response:
        heard.append(incoming)
        return Response(202, await incoming.read_body(MAX_BODY), "application/x-test", {"Location": "/here"})

    two = made(folder, Table(), "two")
    await two.serve(answer or answered)
    return two


async def test_what_is_ours_is_answered_here_also_that_there_is_none(folder: Path) -> None:
    table = Table()
    table.kept = True
    handler = made(folder, table).at_owner(own)
    assert (await handler(request())).body == b"own"
    table.memory, table.enrolled = {AGENT}, {AGENT}
    assert (await handler(request())).body == b"own"
    assert table.called == 0


async def test_a_node_that_was_enrolled_elsewhere_a_moment_ago_is_looked_for_and_not_denied(folder: Path) -> None:
    table = Table()
    table.kept, table.enrolled = True, {AGENT}
    asked = asyncio.ensure_future(made(folder, table).at_owner(own)(request()))
    while not table.called:
        await asyncio.sleep(0)
    table.memory = {AGENT}
    assert (await asked).body == b"own"


async def test_a_node_that_is_enrolled_and_never_taken_up_is_nobodys_for_now(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # trust: fail-closed
    monkeypatch.setattr(module, "TAKEN_UP_SECONDS", 0.1)
    table = Table()
    table.kept, table.enrolled = True, {AGENT}
    with pytest.raises(NotHereError):
        await made(folder, table).at_owner(own)(request())


async def test_the_owner_gets_the_request_with_its_credentials_and_what_proved_the_caller(folder: Path) -> None:
    # trust: authority
    heard: list[Incoming] = []
    two = await sibling(folder, heard)
    handler = made(folder, Table()).at_owner(own)
    secret: dict[str, Any] = {
        "Authorization": "Bearer x",
        "Content_Type": "application/json",
        "Cookie": "no",
        "X_Request_ID": "id",
    }
    answer = await handler(request(b"evidence", caller=Caller(CallerKind.AGENT, AGENT), **secret))
    assert (answer.status, answer.body, answer.content_type) == (202, b"evidence", "application/x-test")
    assert answer.headers == {"Location": "/here"}
    await handler(request(caller=Caller(CallerKind.ADMIN, "operator")))
    of_agent, of_admin = heard
    assert (of_agent.method, of_agent.target) == ("POST", f"/v3.0/agents/{AGENT}/attestations")
    assert of_agent.headers == {"Authorization": "Bearer x", "Content-Type": "application/json", "X-Request-ID": "id"}
    assert (of_agent.certificate_name, of_agent.peer, of_agent.relayed) == (None, "192.0.2.1", True)
    assert of_admin.certificate_name == "operator"
    await two.stop()


@pytest.mark.parametrize(("method", "closed"), [("POST", False), ("GET", False), ("PATCH", True)])
async def test_after_a_round_that_was_handed_on_the_next_connection_may_come_to_the_owner(
    folder: Path, method: str, *, closed: bool
) -> None:
    two = await sibling(folder, [])
    asked = structs.replace(request(b"evidence"), method=method)
    answer = await made(folder, Table()).at_owner(own)(asked)
    assert (answer.headers.get("Connection") == "close") is closed
    assert answer.headers["Location"] == "/here"
    await two.stop()


async def test_what_was_handed_on_is_not_handed_on_again(folder: Path) -> None:
    heard: list[Incoming] = []
    two = await sibling(folder, heard)
    with pytest.raises(NotHereError):
        await made(folder, Table()).at_owner(own)(request(relayed=True))
    assert heard == []
    await two.stop()


@pytest.mark.parametrize("owner", [None, "one", "dead", "elsewhere"])
async def test_without_an_owner_that_can_be_asked_nobody_answers(folder: Path, owner: str | None) -> None:
    # trust: fail-closed
    table = Table()
    table.owner = owner
    if owner == "dead":
        server = await asyncio.start_unix_server(lambda _r, w: w.close(), folder / "dead.relay")
        server.close()
    with pytest.raises(NotHereError):
        await made(folder, table).at_owner(own)(request())
    with pytest.raises(NotHereError):
        await made(None, table).at_owner(own)(request())


async def test_an_owner_that_does_not_answer_in_time_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # trust: bounded
    monkeypatch.setattr(module, "RELAY_SECONDS", 0.1)

    async def never(_incoming: Incoming) -> Response:
        await asyncio.sleep(60)
        raise AssertionError

    two = await sibling(folder, [], never)
    with pytest.raises(NotHereError):
        await made(folder, Table()).at_owner(own)(request())
    await two.stop()


async def test_many_at_once_wait_for_their_turn(folder: Path) -> None:
    # trust: bounded
    running, most = 0, 0

    async def slow(_incoming: Incoming) -> Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        return Response(200, b"")

    two = await sibling(folder, [], slow)
    handler = made(folder, Table()).at_owner(own)
    answers = await asyncio.gather(*(handler(request()) for _ in range(4 * module.MAX_RELAYED)))
    assert {answer.status for answer in answers} == {200}
    assert most <= module.MAX_RELAYED
    await two.stop()


async def test_a_new_owner_is_found_after_the_old_one_did_not_answer(folder: Path) -> None:
    table, heard = Table(), list[Incoming]()
    table.owner = "gone"
    handler = made(folder, table).at_owner(own)
    with pytest.raises(NotHereError):
        await handler(request())
    table.owner = "two"
    two = await sibling(folder, heard)
    assert (await handler(request())).status == 202
    await two.stop()


def framed(head: bytes, body: bytes = b"") -> bytes:
    return len(head).to_bytes(4, "big") + head + body


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\0\0",
        b"\xff\xff\xff\xff",
        framed(b"no json"),
        framed(b"{}"),
        framed(b'{"method": "GET", "path": "/", "headers": {}, "certificate_name": null, "peer": "", "body": 1001}'),
        framed(b'{"method": "GET", "path": "/", "headers": {}, "certificate_name": null, "peer": "", "body": -1}'),
        framed(b'{"method": "GET", "path": "/", "headers": {}, "certificate_name": null, "peer": "", "body": 9}', b"x"),
    ],
)
async def test_what_is_no_request_is_not_answered(folder: Path, sent: bytes) -> None:
    # trust: bounded, fail-closed
    heard: list[Incoming] = []
    two = await sibling(folder, heard)
    reader, writer = await asyncio.open_unix_connection(folder / "two.relay")
    writer.write(sent)
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    assert heard == []
    await two.stop()


async def test_a_body_beyond_what_the_route_takes_is_too_large_for_the_owner_as_well(folder: Path) -> None:
    # trust: bounded
    found: list[str] = []

    async def strict(incoming: Incoming) -> Response:
        try:
            await incoming.read_body(10)
        except BodyTooLarge:
            found.append("too large")
        return Response(413)

    two = await sibling(folder, [], strict)
    assert (await made(folder, Table()).at_owner(own)(request(b"x" * 11))).status == 413
    assert found == ["too large"]
    await two.stop()
