"""What operators can ask of the verifier: enrol, look, stop, reactivate, delete. Speaks domain; knows no HTTP.

A node of this verifier is answered for from memory, where supervision keeps it; everything else from the database.
"""

import asyncio
import time
from base64 import b64decode
from collections.abc import Callable
from dataclasses import replace
from enum import Enum, auto
from typing import Final, Protocol

from msgspec.structs import replace as replace_state

from limeguard.clients.agent import AgentAddress
from limeguard.evidence.reader import MalformedEvidence
from limeguard.evidence.tpm.quote import QuoteFault, parse_quote, verify_quote
from limeguard.evidence.tpm.structures import PublicArea
from limeguard.policy.pcrs import PcrPolicy, parse_tpm_policy
from limeguard.policy.runtime import EMPTY_POLICY_TEXT, parse_runtime_policy
from limeguard.store.database import Conflict, StoreUnavailable
from limeguard.store.nodes import Enrolled, NodeRecord, NodeState
from limeguard.telemetry import clean, get_logger
from limeguard.verifier import lifecycle
from limeguard.verifier.engine import Applied, Engine
from limeguard.verifier.enrolment import Site, examine, parse_ak, with_ima
from limeguard.verifier.fleet import Node
from limeguard.verifier.policies import Accepted, PolicyShelf, decode_upload, policy_answer
from limeguard.verifier.push import RESERVED_AT_ONCE
from limeguard.verifier.record import with_supervision
from limeguard.verifier.supervision import Phase, Supervision
from limeguard.verifier.view import agent_status, node_list, node_view
from limeguard.web.client import Pin
from limeguard.wire import verifier_v2
from limeguard.wire.limeguard_v1 import NodeList, NodeView
from limeguard.wire.verifier_v2 import AgentStatus, IdentityQuestion, IdentityResult

log = get_logger("keylime.verifier")

COMMIT_SECONDS: Final = 10.0
"""How long an operator waits for a change to be committed before being told that it could not be stored yet."""
RELOAD_PAUSE: Final = 2.0
"""Seconds between tries to read a row while the database is away."""


class Deletion(Enum):
    """What became of a request to delete."""

    DONE = auto()
    LATER = auto()


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """The request cannot be served; `status` and `text` are the answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class NodeRows(Protocol):
    """What the service needs of the store."""

    async def load_all(self) -> list[NodeRecord]:
        """Return every node of this verifier."""
        ...

    async def list_nodes(self, verifier_id: str | None, /) -> list[NodeRecord]:
        """Return the nodes of one verifier id, or all."""
        ...

    async def get(self, agent_id: str, /) -> NodeRecord | None:
        """Return one node of any verifier."""
        ...

    async def note_policy(self, name: str, /, *, says: bool) -> None:
        """Note of all nodes with this runtime policy whether it allows anything."""
        ...

    async def add(self, record: NodeRecord, /, *, mtls_cert: str | None, revocation_key: str) -> None:
        """Insert a node. Raises Conflict."""
        ...


class Forgetter(Protocol):
    """Keeps records of attestations."""

    async def forget(self, agent_id: str, /) -> None:
        """Write nothing more of a node."""
        ...


class VerifierService:
    """The nodes of one verifier. Every method may raise StoreUnavailable."""

    def __init__(
        self,
        rows: NodeRows,
        engine: Engine,
        site: Site,
        shelf: PolicyShelf,
        records: Forgetter,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Serve the nodes of `site` that `engine` supervises. `now` is seconds since 1970.

        With a node go the `records` of its attestations.
        """
        self._archive = records
        self._rows = rows
        self._engine = engine
        self._site = site
        self._shelf = shelf
        self._now = now
        self._policies: dict[tuple[str, bool], PcrPolicy] = {}
        self._reloading: set[asyncio.Task[None]] = set()

    # --- start --------------------------------------------------------------------------------------------------------

    async def take_up(self) -> None:
        """Go on with every stored node, as it was when the last process ended, however that was."""
        records = await self._rows.load_all()
        await self._shelf.load({name for one in records if (name := one.enrolled.runtime_policy_name) is not None})
        if records:
            log.info("Agent ids in db loaded from file: %s", [clean(record.agent_id) for record in records])
        for record in records:
            await self._take_up(record, self._engine.rules.quote_interval)

    async def _take_up(self, record: NodeRecord, spread: float) -> None:
        try:
            node = self._node(record)
            applied = self._engine.take_in(node, lifecycle.Restarted(), spread=spread)
        except ValueError as problem:
            log.error("Agent %s cannot be supervised: %s", clean(record.agent_id), clean(problem))  # noqa: TRY400
            self._engine.fleet.remove(record.agent_id)
            return
        if applied.remove:
            await self._engine.remove(node)

    def changed_elsewhere(self, node: Node) -> None:
        """Take a node up anew whose row somebody else has changed or removed."""
        self._engine.forget(node)
        task = asyncio.get_running_loop().create_task(self._reload(node.agent_id))
        self._reloading.add(task)
        task.add_done_callback(self._reloading.discard)

    async def _reload(self, agent_id: str) -> None:
        while True:
            try:
                record = await self._rows.get(agent_id)
            except StoreUnavailable:
                await asyncio.sleep(RELOAD_PAUSE)
                continue
            if record is not None and record.enrolled.verifier_id == self._site.verifier_id:
                if record.enrolled.runtime_policy_name is not None:
                    await self._shelf.load([record.enrolled.runtime_policy_name])
                log.warning("The row of agent %s was changed by somebody else; taken up anew", clean(agent_id))
                await self._take_up(record, 0.0)
            return

    def _node(self, record: NodeRecord) -> Node:
        """Make the object in memory. Raises ValueError for a row that cannot be used."""
        enrolled = record.enrolled
        return Node(record, parse_ak(enrolled.ak_tpm), self._pcr_policy(enrolled), _address(enrolled))

    def _pcr_policy(self, enrolled: Enrolled) -> PcrPolicy:
        """Return the parsed policy; nodes with the same text share one."""
        key = (enrolled.tpm_policy, enrolled.runtime_policy_name is not None)
        policy = self._policies.get(key)
        if policy is None:
            policy = parse_tpm_policy(enrolled.tpm_policy)
            if enrolled.runtime_policy_name is not None:
                policy = with_ima(policy)
            if len(self._policies) >= 10_000:
                self._policies.clear()
            self._policies[key] = policy
        return policy

    # --- changes ------------------------------------------------------------------------------------------------------

    async def enrol(self, agent_id: str, body: bytes) -> None:
        """Enrol a node and begin to supervise it. Raises BadRequest, Refused."""
        required = self._site.certificate_required and not self._site.push
        request = verifier_v2.decode_enrolment(body, certificate_required=required)
        new = examine(agent_id, request, self._site, self._now())
        start = Supervision(api_version=new.supported_version, has_v=new.enrolled.v is not None, push=new.enrolled.push)
        enrolled = new.enrolled
        if self._engine.fleet.get(agent_id) is not None:
            raise _exists(agent_id)
        if enrolled.runtime_policy_name is not None:
            # Another verifier's node is found out by the insert below; before a policy is stored, it is looked for.
            stores = bool(request.runtime_policy) or not request.runtime_policy_name
            if stores and await self._rows.get(agent_id) is not None:
                raise _exists(agent_id)
            judged = await self._runtime_policy(enrolled.runtime_policy_name, request)
            enrolled = replace(enrolled, has_runtime_policy=judged)
        blank = NodeState(supported_version=new.supported_version, phase="", integrity="", reachability="")
        reserved = RESERVED_AT_ONCE if enrolled.push else 0
        record = NodeRecord(enrolled, replace_state(with_supervision(blank, start), attestation_limit=reserved))
        try:
            await self._rows.add(record, mtls_cert=new.mtls_cert, revocation_key=new.revocation_key)
        except Conflict:
            raise _exists(agent_id) from None
        node = Node(record, new.ak, self._pcr_policy(enrolled), _address(enrolled))
        node.next_attestation = 0
        self._engine.take_in(node, lifecycle.Enrolled())
        log.info("Agent %s is enrolled", clean(agent_id))

    async def _runtime_policy(self, name: str, request: verifier_v2.EnrolmentRequest) -> bool:
        """Have the node's policy stored and ready; say whether it allows anything. Raises BadRequest, Refused."""
        named = bool(request.runtime_policy_name)
        if request.runtime_policy:
            accepted = await self._shelf.accept(request.runtime_policy, request.runtime_policy_key)
            if not named:
                await self._shelf.put(name, accepted)
            else:
                try:
                    await self._shelf.add(name, accepted)
                except Conflict:
                    raise Refused(409, verifier_v2.policy_exists(name)) from None
        elif named:
            await self._shelf.load([name])
            if await self._shelf.get(name) is None:
                raise Refused(404, f"Could not find IMA policy with name {name}!")
        else:
            await self._shelf.put(name, Accepted(EMPTY_POLICY_TEXT, parse_runtime_policy(EMPTY_POLICY_TEXT)))
        policy = self._shelf.current(name)
        return policy is not None and policy.says_something

    # --- runtime policies ---------------------------------------------------------------------------------------------

    async def policy_names(self) -> tuple[str, ...]:
        """Return the names of all runtime policies."""
        return await self._shelf.names()

    async def runtime_policy(self, name: str) -> dict[str, object]:
        """Return one runtime policy as the wire has it. Raises Refused."""
        row = await self._shelf.get(name)
        if row is None:
            raise Refused(404, f"Runtime policy {clean(name, 255)} not found")
        return policy_answer(row)

    async def store_policy(self, name: str, body: bytes, *, replace: bool) -> None:
        """Store a new runtime policy, or a new text for an old one. Raises BadRequest, Refused."""
        policy, key, tpm_policy = decode_upload(body)
        accepted = await self._shelf.accept(policy, key)
        if replace:
            if not await self._shelf.replace(name, accepted, tpm_policy):
                text = f"Runtime policy with name {clean(name, 255)} does not already exist, use POST to create"
                raise Refused(404, text)
            log.info("Runtime policy %s was replaced", clean(name))
            await self._note_policy(name)
            return
        try:
            await self._shelf.add(name, accepted, tpm_policy)
        except Conflict:
            raise Refused(409, f"Runtime policy with name {clean(name, 255)} already exists") from None

    async def _note_policy(self, name: str) -> None:
        """Have nodes say whether their policy, which was replaced, allows anything."""
        policy = self._shelf.current(name)
        says = policy is not None and policy.says_something
        await self._rows.note_policy(name, says=says)
        for node in self._engine.fleet:
            if node.record.enrolled.runtime_policy_name == name:
                node.note_policy(says=says)

    async def delete_policy(self, name: str) -> None:
        """Delete a runtime policy that no node uses. Raises Refused."""
        outcome = await self._shelf.delete(name)
        if outcome is False:
            raise Refused(404, f"Runtime policy {clean(name, 255)} not found")
        if isinstance(outcome, str):
            raise Refused(409, f"Can't delete allowlist as it's currently in use by agent {outcome}")

    async def delete(self, agent_id: str) -> Deletion:
        """Delete a node, at once or when the running request to it has ended. Raises Refused."""
        node = await self._supervised(agent_id, 404, verifier_v2.UNKNOWN_NODE)
        applied = self._engine.apply(node, lifecycle.DeleteRequested(busy=node.busy))
        if applied.remove:
            if node.record.enrolled.push:
                await self._archive.forget(agent_id)
            await self._engine.remove(node)
            return Deletion.DONE
        await self._committed(applied)
        return Deletion.LATER

    async def reactivate(self, agent_id: str) -> None:
        """Supervise a node afresh. Raises Refused."""
        await self._told(agent_id, lifecycle.Reactivated())

    async def stop(self, agent_id: str) -> None:
        """Leave a node alone until it is reactivated. Raises Refused."""
        await self._told(agent_id, lifecycle.StopRequested())

    async def _told(self, agent_id: str, event: lifecycle.Reactivated | lifecycle.StopRequested) -> None:
        node = await self._supervised(agent_id, 400, verifier_v2.NO_ROW)
        if node.state.phase == Phase.TERMINATED:
            raise Refused(400, verifier_v2.NO_ROW)
        await self._committed(self._engine.apply(node, event))

    async def _supervised(self, agent_id: str, status: int, text: str) -> Node:
        node = self._engine.fleet.get(agent_id)
        if node is not None:
            return node
        record = await self._rows.get(agent_id)
        if record is None:
            raise Refused(status, text)
        raise Refused(404, verifier_v2.OTHER_VERIFIER)

    async def _committed(self, applied: Applied) -> None:
        if applied.committed is None:
            return
        try:
            async with asyncio.timeout(COMMIT_SECONDS):
                await asyncio.shield(applied.committed)
        except TimeoutError:
            raise StoreUnavailable("the change is in effect and will be stored when the database is back") from None

    # --- questions ----------------------------------------------------------------------------------------------------

    async def status(self, agent_id: str) -> AgentStatus:
        """Return a node in Keylime's fields. Raises Refused."""
        record = await self._record(agent_id)
        if record is None:
            raise Refused(404, verifier_v2.UNKNOWN_NODE)
        return self._status(record)

    async def statuses(self, verifier_id: str | None) -> dict[str, AgentStatus]:
        """Return all nodes in Keylime's fields, by id; only those of one verifier id unless None."""
        return {record.agent_id: self._status(record) for record in await self._records(verifier_id)}

    async def ids(self, verifier_id: str | None) -> tuple[str, ...]:
        """Return the ids of all nodes, or of those of one verifier id."""
        return tuple(record.agent_id for record in await self._records(verifier_id))

    async def view(self, agent_id: str) -> NodeView | None:
        """Return a node as our own interface shows it."""
        record = await self._record(agent_id)
        return None if record is None else node_view(record, self._now())

    async def views(self) -> NodeList:
        """Return all nodes as our own interface lists them."""
        return node_list(await self._records(None), self._now())

    async def verify_identity(self, question: IdentityQuestion) -> IdentityResult:
        """Say whether a node's attestation key signed this quote over this nonce. Raises Refused."""
        record = await self._record(question.agent_uuid)
        if record is None:
            raise Refused(404, verifier_v2.UNKNOWN_NODE)
        fault = identity_fault(question, parse_ak(record.enrolled.ak_tpm), record.enrolled.accept_hash)
        return IdentityResult(1) if fault is None else verifier_v2.identity_refused(fault)

    def _status(self, record: NodeRecord) -> AgentStatus:
        return agent_status(record, self._now(), self._engine.rules.quote_interval)

    async def _record(self, agent_id: str) -> NodeRecord | None:
        node = self._engine.fleet.get(agent_id)
        return node.visible if node is not None else await self._rows.get(agent_id)

    async def _records(self, verifier_id: str | None) -> list[NodeRecord]:
        if verifier_id == self._site.verifier_id:
            return sorted((node.visible for node in self._engine.fleet), key=lambda record: record.agent_id)
        stored = await self._rows.list_nodes(verifier_id)
        return [node.visible if (node := self._engine.fleet.get(row.agent_id)) is not None else row for row in stored]


def identity_fault(question: IdentityQuestion, ak: PublicArea, accepted: tuple[str, ...]) -> str | None:
    """Return why a quote does not prove the key's presence, or None. The nonce counts as sent, or base64-decoded."""
    if question.hash_alg not in accepted:
        return "The hash algorithm is not accepted for this node"
    try:
        quote = parse_quote(question.quote)
    except MalformedEvidence as problem:
        return f"The quote cannot be read: {problem}"
    if quote.signature.hash_alg.name != question.hash_alg:
        return "The quote is not signed with the named hash algorithm"
    faults: list[QuoteFault] = []
    for nonce in _nonces(question.nonce):
        proven = verify_quote(quote, key=ak, nonce=nonce, accepted_hashes=frozenset({question.hash_alg}))
        if not isinstance(proven, QuoteFault):
            return None
        faults.append(proven)
    return faults[0].value


def _nonces(text: str) -> tuple[bytes, ...]:
    plain = text.encode()
    try:
        return plain, b64decode(text, validate=True)
    except ValueError:
        return (plain,)


def _exists(agent_id: str) -> Refused:
    return Refused(409, f"Agent of uuid {agent_id} already exists. Please use delete or update.")


def _address(enrolled: Enrolled) -> AgentAddress:
    pin = None if enrolled.certificate_sha256 is None else Pin(enrolled.certificate_sha256)
    return AgentAddress(enrolled.ip or "", enrolled.port or 0, pin)
