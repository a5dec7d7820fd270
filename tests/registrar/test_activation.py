"""Registration and activation as a state machine: every order of messages, also at once, against a model of it."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fakes.strict_agent import Refusal, StrictAgent
from tests.registrar.conftest import AGENT_ID, Site, Start

from limeguard.crypto.keysplit import registration_auth_tag
from limeguard.registrar.challenge import is_answered
from limeguard.registrar.identity import IdentityRules
from limeguard.registrar.service import RegistrarService
from limeguard.simulator.softtpm import SoftNode
from limeguard.store.database import Database
from limeguard.store.registrations import Registration, Registrations
from limeguard.wire.registrar_v2 import OTHER_IDENTITY, taken, wrong_proof

pytestmark = pytest.mark.services

WRONG = "00" * 48
NODES = {name: SoftNode.create("ecc256", number=number) for name, number in (("own", 1), ("other", 2))}


# ---------------------------------------------------------------- what must happen


@dataclass(frozen=True)
class State:
    """What is known of an id: whose TPM, how far, and which challenge is open."""

    owner: str
    challenge: int
    active: bool = False
    proven: bool = False
    regcount: int = 1


@dataclass(frozen=True)
class Message:
    """`register` and `delete` name who does it; `answer` the challenge that is answered, -1 for nonsense."""

    kind: str
    tpm: str = "own"
    challenge: int = -1


Outcome = tuple[int, str]
GOOD: Outcome = (200, "")
UNKNOWN: Outcome = (404, f"Agent with ID '{AGENT_ID}' not found")


def expected(state: State | None, message: Message, number: int) -> tuple[State | None, Outcome]:
    """Return the state after a message and what its sender is told; `number` is that of a new challenge."""
    if message.kind == "register":
        if state is None:
            return State(message.tpm, number), GOOD
        if state.owner != message.tpm:
            return state, (403, OTHER_IDENTITY)
        return replace(state, challenge=number, active=False, regcount=state.regcount + 1), GOOD
    if state is None:
        return None, UNKNOWN
    if message.kind == "delete":
        return None, GOOD
    if message.challenge == state.challenge:
        return replace(state, active=True, proven=True), GOOD
    return (state if state.proven else None), (400, "kept" if state.proven else "deleted")


# ---------------------------------------------------------------- what does happen


@dataclass
class Actor:
    """Sends messages about one id and remembers the challenges."""

    site: Site
    agent_id: str
    blobs: list[tuple[str, bytes]] = field(default_factory=list)

    def agent(self, tpm: str) -> StrictAgent:
        return StrictAgent(self.site.plain, self.agent_id, NODES[tpm])

    def proof(self, challenge: int) -> str:
        if challenge < 0:
            return WRONG
        tpm, blob = self.blobs[challenge]
        return self.agent(tpm).answer(blob)

    async def send(self, message: Message) -> Outcome:
        try:
            if message.kind == "register":
                blob = await self.agent(message.tpm).register()
                self.blobs.append((message.tpm, blob))
            elif message.kind == "delete":
                await self.site.admin(self.agent_id).ask("DELETE", f"/v2.6/agents/{self.agent_id}")
            else:
                await self.agent("own").activate(self.proof(message.challenge))
        except Refusal as refused:
            return refused.status, self._meaning(message, refused.said)
        return GOOD

    def _meaning(self, message: Message, said: str) -> str:
        if message.kind == "answer":
            for deleted in (True, False):
                if said == wrong_proof(self.agent_id, self.proof(message.challenge), deleted=deleted):
                    return "deleted" if deleted else "kept"
        return said.replace(self.agent_id, AGENT_ID)

    async def state(self, challenges: Iterable[int]) -> State | None:
        """Return what is stored, in the words of the model."""
        stored = await Registrations(self.site.database).get(self.agent_id)
        if stored is None:
            return None
        (owner,) = (name for name, node in NODES.items() if node.ek.public_2b == stored.ek_tpm)
        assert stored.aik_tpm == NODES[owner].ak.public_2b
        (challenge,) = (number for number in challenges if self.opens(number, stored))
        return State(owner, challenge, stored.active, stored.proven, stored.regcount)

    def opens(self, challenge: int, stored: Registration) -> bool:
        return is_answered(self.proof(challenge), stored.proof_sha256)


async def follow(actor: Actor, messages: Sequence[Message]) -> None:
    """Send messages one after the other; after each, answer and state are those of the model."""
    state: State | None = None
    for sent, message in enumerate(messages):
        before = len(actor.blobs)
        state, outcome = expected(state, message, before)
        context = f"message {sent} of {messages}"
        assert await actor.send(message) == outcome, context
        assert len(actor.blobs) == before + (message.kind == "register" and outcome == GOOD), context
        assert await actor.state(range(len(actor.blobs))) == state, context


def resolved(names: Sequence[str]) -> list[Message]:
    """Turn `newest` and `older` into the challenges that they mean when each message is sent in this order."""
    state: State | None = None
    messages: list[Message] = []
    challenges = 0
    for name in names:
        message = {
            "register": Message("register"),
            "intrude": Message("register", "other"),
            "delete": Message("delete"),
            "newest": Message("answer", challenge=challenges - 1),
            "older": Message("answer", challenge=challenges - 2 if challenges > 1 else -1),
            "wrong": Message("answer"),
        }[name]
        state, outcome = expected(state, message, challenges)
        challenges += message.kind == "register" and outcome == GOOD
        messages.append(message)
    return messages


# trust: enrolment-order
# trust: fresh
# trust: bound-identity
@pytest.mark.parametrize("first", ["register", "newest", "older", "wrong", "intrude"])
async def test_every_order_of_the_messages_is_taken_as_the_state_machine_says(site: Site, first: str) -> None:
    rest = ["register", "register", "newest", "older", "wrong", "intrude"]
    rest.remove(first)
    orders = sorted({(first, *order) for order in itertools.permutations(rest)})
    for number, order in enumerate(orders):
        await follow(Actor(site, f"node-{number}"), resolved(order))


NAMES = st.sampled_from(["register", "register", "intrude", "delete", "newest", "newest", "older", "wrong"])


# trust: enrolment-order
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(names=st.lists(NAMES, min_size=4, max_size=14))
async def test_long_histories_follow_the_state_machine(site: Site, names: list[str]) -> None:
    await Registrations(site.database).delete(AGENT_ID)
    await follow(Actor(site, AGENT_ID), resolved(names))


# ---------------------------------------------------------------- at once


def possible(state: State | None, messages: Sequence[Message], number: int) -> set[tuple[tuple[Outcome, ...], object]]:
    """Return what every order of these messages, one after the other, leads to: the outcomes and the kind of state."""
    found = set()
    for order in itertools.permutations(range(len(messages))):
        now, outcomes = state, [GOOD] * len(messages)
        for place, index in enumerate(order):
            now, outcomes[index] = expected(now, messages[index], number + place)
        found.add((tuple(outcomes), seen(now, number)))
    return found


def seen(state: State | None, number: int) -> object:
    """Leave out which of the new challenges is open: they are numbered in the order of their answers."""
    return None if state is None else replace(state, challenge=min(state.challenge, number))


OWN, INTRUDER, DELETE, NONSENSE = (
    Message("register"),
    Message("register", "other"),
    Message("delete"),
    Message("answer"),
)
FIRST = Message("answer", challenge=0)

AT_ONCE = [
    (),
    (OWN, OWN),
    (OWN, INTRUDER),
    (OWN, INTRUDER, OWN, INTRUDER),
    (OWN, FIRST),
    (FIRST, FIRST, NONSENSE),
    (NONSENSE, NONSENSE, FIRST),
    (OWN, FIRST, NONSENSE, DELETE),
    (INTRUDER, DELETE, FIRST),
    (INTRUDER, DELETE, OWN, FIRST, NONSENSE),
]


# trust: enrolment-order
# trust: bound-identity
@pytest.mark.parametrize("before", [(), (OWN,), (OWN, FIRST), (OWN, FIRST, OWN)], ids=len)
@pytest.mark.parametrize("processes", [1, 2])
async def test_messages_at_once_lead_to_what_some_order_of_them_leads_to(
    start: Start, before: tuple[Message, ...], processes: int
) -> None:
    sites = [await start() for _ in range(processes)]
    for number, messages in enumerate(AT_ONCE * 2):
        first = Actor(sites[0], f"node-{number}")
        await follow(first, before)
        actors = [first, *(replace(first, site=site) for site in sites[1:])]
        state, challenges = await first.state(range(len(first.blobs))), len(first.blobs)
        chosen = [m for m in messages if m.challenge < challenges]
        outcomes = await asyncio.gather(
            *(actors[turn % processes].send(message) for turn, message in enumerate(chosen))
        )
        after = await first.state(range(len(first.blobs)))
        got = tuple(outcomes), seen(after, challenges)
        assert got in possible(state, chosen, challenges), f"{chosen} after {before}: {got}"


async def test_one_of_many_tpms_at_once_gets_the_id(start: Start) -> None:
    # trust: bound-identity - two processes over one database, and everybody wants the same id
    sites = [await start(), await start()]

    async def attempt(number: int) -> bytes | None:
        agent = replace(sites[number % 2].agent(), node=SoftNode.create("ecc256", number=number))
        try:
            await agent.activate(agent.answer(await agent.register()))
        except Refusal as refused:
            return None if refused.status == 403 else b""
        key: bytes = agent.node.ek.public_2b
        return key

    winners = {key for key in await asyncio.gather(*(attempt(number) for number in range(12))) if key is not None}
    stored = await Registrations(sites[0].database).get(AGENT_ID)
    assert stored is not None
    assert winners == {stored.ek_tpm}
    assert stored.active


# ---------------------------------------------------------------- proofs


# trust: fresh
async def test_no_two_challenges_are_the_same(site: Site) -> None:
    agent = site.agent()
    blobs = [await agent.register() for _ in range(30)]
    assert len({agent.node.activate(blob) for blob in blobs}) == 30


# trust: fresh
@pytest.mark.parametrize("version", ["2", "2.0", "2.1", "2.6", "3", "3.0"])
async def test_the_proof_of_an_earlier_start_activates_nothing(site: Site, version: str) -> None:
    agent = site.agent()
    old = agent.answer(await agent.register())
    await agent.activate(old)
    await agent.register()
    method, tail = ("PUT", "") if version < "3" else ("POST", "/activate")
    with pytest.raises(Refusal) as caught:
        await agent.ask(method, f"/v{version}/agents/{AGENT_ID}{tail}", {"auth_tag": old})
    assert (caught.value.status, caught.value.said) == (400, wrong_proof(AGENT_ID, old, deleted=False))
    stored = await Registrations(site.database).get(AGENT_ID)
    assert stored is not None
    assert not stored.active


# trust: fresh
async def test_a_proof_does_not_outlive_a_deletion(site: Site) -> None:
    agent = site.agent()
    proof = agent.answer(await agent.register())
    await agent.activate(proof)
    await site.admin().ask("DELETE", f"/v2.6/agents/{AGENT_ID}")
    await agent.register()
    with pytest.raises(Refusal) as caught:
        await agent.activate(proof)
    assert caught.value.said == wrong_proof(AGENT_ID, proof, deleted=True)
    assert await Registrations(site.database).ids() == []


# trust: enrolment-order
async def test_a_proof_that_is_sent_twice_changes_nothing_the_second_time(site: Site) -> None:
    # an agent repeats it when the first answer got lost
    agent = site.agent()
    proof = agent.answer(await agent.register())
    await agent.activate(proof)
    store = Registrations(site.database)
    before = await store.get(AGENT_ID)
    await agent.activate(proof)
    assert await store.get(AGENT_ID) == before


# trust: bound-identity
async def test_a_proof_for_another_id_activates_neither(site: Site) -> None:
    one, two = site.agent(1, agent_id="one"), site.agent(2, agent_id="two")
    first, second = await one.register(), await two.register()
    for sender, proof in (
        (two, one.answer(first)),  # the other's proof
        (two, one.answer(first, "two")),  # the other's secret
    ):
        with pytest.raises(Refusal) as caught:
            await sender.activate(proof)
        assert caught.value.status == 400
        second = await two.register()
    with pytest.raises(Refusal):
        await one.activate(two.answer(second, "one"))
    assert await Registrations(site.database).ids() == ["two"]


# trust: bound-identity
async def test_only_the_tpm_with_both_keys_opens_the_challenge(site: Site) -> None:
    own, other = NODES["own"], NODES["other"]
    mixed = replace(site.agent(), node=SoftNode(own.ek, other.ak, own.transport))
    blob = await mixed.register()
    with pytest.raises(ValueError, match="TPM_RC_INTEGRITY"):
        own.activate(blob)  # the TPM of the EK, whose AK is another one
    with pytest.raises(ValueError, match="TPM_RC_INTEGRITY"):
        other.activate(blob)  # the TPM of the AK


@pytest.mark.parametrize("spoil", [str.upper, lambda tag: tag[:-1], lambda tag: tag + "0", lambda _: "", lambda _: "☃"])
async def test_a_proof_is_compared_to_the_letter(site: Site, spoil: Callable[[str], str]) -> None:
    agent = site.agent()
    proof = spoil(agent.answer(await agent.register()))
    with pytest.raises(Refusal) as caught:
        await agent.activate(proof)
    assert (caught.value.status, caught.value.said) == (400, wrong_proof(AGENT_ID, proof, deleted=True))
    assert await Registrations(site.database).ids() == []


# ---------------------------------------------------------------- an operator allows another TPM


async def test_a_tpm_that_replaced_another_is_pending_until_it_answers(start: Start) -> None:
    # trust: bound-identity - also when it is allowed, nothing of the first TPM speaks for the second
    site = await start(allow_reregistration_with_new_tpm=True)
    actor = Actor(site, AGENT_ID)
    assert await actor.send(OWN) == GOOD
    assert await actor.send(FIRST) == GOOD
    assert await actor.send(INTRUDER) == GOOD
    assert await actor.state(range(2)) == State("other", 1, active=False, proven=False, regcount=2)
    assert await actor.send(FIRST) == (400, "deleted")
    assert await actor.state(range(2)) is None


# ---------------------------------------------------------------- other writers


class Interrupted(Registrations):
    """A store where another process does something each time between reading and writing."""

    def __init__(self, database: Database, meanwhile: Callable[[Registrations], Awaitable[object]]) -> None:
        super().__init__(database)
        self._others = Registrations(database)
        self._meanwhile = meanwhile

    async def get(self, agent_id: str) -> Registration | None:
        found = await super().get(agent_id)
        await self._meanwhile(self._others)
        return found


async def touch(store: Registrations) -> None:
    record = await store.get(AGENT_ID)
    assert record is not None
    await store.save(record)


async def test_a_message_that_always_comes_second_changes_nothing(site: Site) -> None:
    # trust: enrolment-order
    agent = site.agent()
    proof = agent.answer(await agent.register())
    before = await Registrations(site.database).get(AGENT_ID)
    assert before is not None
    service = RegistrarService(Interrupted(site.database, touch), IdentityRules())
    with pytest.raises(ValueError, match="concurrent") as caught:
        await service.activate(AGENT_ID, proof)
    assert str(caught.value) == taken(AGENT_ID)
    with pytest.raises(ValueError, match="concurrent"):
        await service.activate(AGENT_ID, WRONG)
    after = await Registrations(site.database).get(AGENT_ID)
    assert after is not None
    assert replace(after, version=before.version) == before


async def test_a_proof_for_a_node_that_is_deleted_meanwhile_finds_nothing(site: Site) -> None:
    # trust: enrolment-order - a deleted node is not written back
    agent = site.agent()
    proof = agent.answer(await agent.register())
    service = RegistrarService(Interrupted(site.database, lambda store: store.delete(AGENT_ID)), IdentityRules())
    with pytest.raises(ValueError, match="not found"):
        await service.activate(AGENT_ID, proof)
    assert await Registrations(site.database).ids() == []


async def test_a_proof_is_not_taken_for_a_node_that_was_made_anew_meanwhile(site: Site) -> None:
    # trust: fresh - same id, same keys, another challenge
    agent = site.agent()
    secret = agent.node.activate(await agent.register())
    done: list[bytes] = []

    async def anew(store: Registrations) -> None:
        if not done:
            await store.delete(AGENT_ID)
            done.append(await agent.register())

    service = RegistrarService(Interrupted(site.database, anew), IdentityRules())
    with pytest.raises(ValueError, match="does not match"):
        await service.activate(AGENT_ID, registration_auth_tag(secret, AGENT_ID))
    assert await Registrations(site.database).ids() == []
