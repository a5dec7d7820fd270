"""What operators can ask of the verifier: enrol, look, stop, reactivate, delete. Speaks domain; knows no HTTP.

A node that this worker supervises is answered for from memory, everything else from the database. Words about a node of
another worker change its row; its owner hears of that, and what it would write meanwhile is refused.
"""

import asyncio
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, Protocol

from msgspec import structs

from limeguard.appraisal.findings import Finding
from limeguard.appraisal.onetime import proven
from limeguard.store.database import Conflict, StoreUnavailable
from limeguard.store.node_record import Enrolled, NodeRecord, NodeState
from limeguard.telemetry import clean, get_logger
from limeguard.verifier import lifecycle
from limeguard.verifier.engine import Applied, Engine
from limeguard.verifier.enrolment import Site, examine, parse_ak
from limeguard.verifier.holdings import Forgetter, Holdings, Owned
from limeguard.verifier.policy_desk import PolicyDesk
from limeguard.verifier.push.rounds import RESERVED_AT_ONCE
from limeguard.verifier.record import afresh, supervision_of, with_supervision
from limeguard.verifier.refused import Refused
from limeguard.verifier.supervision import Phase, Supervision
from limeguard.verifier.view import agent_status, node_list, node_view
from limeguard.wire import verifier_v2
from limeguard.wire.evidence_v2 import nonces
from limeguard.wire.limeguard_v1 import NodeList, NodeView
from limeguard.wire.verifier_v2 import AgentStatus, IdentityQuestion, IdentityResult

log = get_logger("keylime.verifier")

COMMIT_SECONDS: Final = 10.0
"""How long an operator waits for a change to be committed before being told that it could not be stored yet."""
HEARD_SECONDS: Final = 2.0
"""How long an operator waits for the owner of a node to go by a change that is committed already."""
HEARD_PAUSE: Final = 0.03
WORDS: Final = 5
"""How often a word is tried on a node that changes hands all the time."""


class Deletion(Enum):
    """What became of a request to delete."""

    DONE = auto()
    LATER = auto()


class Heard(Protocol):
    """Changes that owners are told of."""

    async def is_heard(self, number: int, /) -> bool:
        """Say whether the owner goes by that change."""
        ...


class NodeRows(Protocol):
    """What the service needs of the store."""

    async def change(self, agent_id: str, step: Callable[[NodeRecord], NodeState | None], /) -> int | None:
        """Change a node of another worker; None when there is none."""
        ...

    async def list_nodes(self, verifier_id: str | None, /) -> list[NodeRecord]:
        """Return the nodes of one verifier id, or all."""
        ...

    async def get(self, agent_id: str, /) -> NodeRecord | None:
        """Return one node of any verifier."""
        ...

    async def add(
        self, record: NodeRecord, /, *, mtls_cert: str | None, revocation_key: str, tell: bool = False
    ) -> None:
        """Insert a node, and tell its owner. Raises Conflict."""
        ...


class VerifierService:
    """The nodes of one verifier. Every method may raise StoreUnavailable."""

    def __init__(
        self,
        rows: NodeRows,
        engine: Engine,
        site: Site,
        policies: PolicyDesk,
        holdings: Holdings,
        owned: Owned,
        changes: Heard,
        records: Forgetter,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Serve the nodes of `site`; those in `holdings` are what `engine` supervises. `now` is seconds since 1970.

        With a node go the `records` of its attestations.
        """
        self.policies = policies
        self._holdings = holdings
        self._owned = owned
        self._changes = changes
        self._archive = records
        self._rows = rows
        self._engine = engine
        self._site = site
        self._now = now

    # --- changes ------------------------------------------------------------------------------------------------------

    async def enrol(self, agent_id: str, body: bytes) -> None:
        """Enrol a node and begin to supervise it. Raises BadRequest, Refused."""
        required = self._site.certificate_required and not self._site.push
        request = verifier_v2.decode_enrolment(body, certificate_required=required)
        new = examine(agent_id, request, self._site, self._now())
        start = Supervision(api_version=new.supported_version, has_v=new.enrolled.v is not None, push=new.enrolled.push)
        enrolled = self._holdings.shared(new.enrolled)
        epoch = self._owned.epoch_of(agent_id)
        if epoch is not None and self._engine.fleet.get(agent_id) is not None:
            raise _exists(agent_id)
        # Another verifier's node is found out by the insert below; before a policy is stored, it is looked for.
        stores_runtime = enrolled.runtime_policy_name and (request.runtime_policy or not request.runtime_policy_name)
        if (stores_runtime or request.mb_policy) and await self._rows.get(agent_id) is not None:
            raise _exists(agent_id)
        enrolled = await self.policies.settled(enrolled, request)
        blank = NodeState(supported_version=new.supported_version, phase="", integrity="", reachability="")
        # A worker that takes the node up from its row begins at the limit and reserves numbers by itself.
        reserved = RESERVED_AT_ONCE if enrolled.push and epoch is not None else 0
        state = structs.replace(with_supervision(blank, start), attestation_limit=reserved)
        record = NodeRecord(enrolled, state, epoch=epoch or 0)
        try:
            await self._rows.add(record, mtls_cert=new.mtls_cert, revocation_key=new.revocation_key, tell=epoch is None)
        except Conflict:
            raise _exists(agent_id) from None
        if epoch is not None:
            await self._holdings.begin(record, new.ak)
        log.info("Agent %s is enrolled", clean(agent_id))

    # --- nodes --------------------------------------------------------------------------------------------------------

    async def delete(self, agent_id: str) -> Deletion:
        """Delete a node, at once or when the running request to it has ended. Raises Refused."""
        node = self._holdings.mine(agent_id)
        if node is not None:
            applied = self._engine.apply(node, lifecycle.DeleteRequested(busy=node.busy))
            if not applied.remove and await self._committed(applied):
                return Deletion.LATER
            if applied.remove:
                if node.record.enrolled.push:
                    await self._archive.forget(agent_id)
                if await self._engine.remove(node):
                    return Deletion.DONE
        try:
            await self._change(agent_id, lambda _record: None, (404, verifier_v2.UNKNOWN_NODE))
        except Refused:
            if node is None or self._engine.fleet.get(agent_id) is not None:
                raise
            # Its last job ended meanwhile, and the row with it.
        return Deletion.DONE

    async def reactivate(self, agent_id: str) -> None:
        """Supervise a node afresh. Raises Refused."""
        await self._told(agent_id, lifecycle.Reactivated())

    async def stop(self, agent_id: str) -> None:
        """Leave a node alone until it is reactivated. Raises Refused."""
        await self._told(agent_id, lifecycle.StopRequested())

    async def _told(self, agent_id: str, event: lifecycle.Reactivated | lifecycle.StopRequested) -> None:
        for _ in range(WORDS):
            node = self._holdings.mine(agent_id)
            if node is None:
                break
            if node.state.phase == Phase.TERMINATED:
                raise Refused(400, verifier_v2.NO_ROW)
            if await self._committed(self._engine.apply(node, event)):
                return
        await self._change(agent_id, lambda record: self._stepped(record, event), (400, verifier_v2.NO_ROW))

    async def _change(
        self, agent_id: str, step: Callable[[NodeRecord], NodeState | None], absent: tuple[int, str]
    ) -> None:
        """Change the row of a node that is not ours, and wait a little for its owner. Raises Refused."""
        number = await self._rows.change(agent_id, step)
        if number is None:
            if await self._rows.get(agent_id) is None:
                raise Refused(*absent)
            raise Refused(404, verifier_v2.OTHER_VERIFIER)
        for _ in range(round(HEARD_SECONDS / HEARD_PAUSE)):
            if await self._changes.is_heard(number):
                return
            await asyncio.sleep(HEARD_PAUSE)

    def _stepped(self, record: NodeRecord, event: lifecycle.Reactivated | lifecycle.StopRequested) -> NodeState:
        """Return the state of a row after a word. Raises Refused."""
        if record.state.phase == Phase.TERMINATED:
            raise Refused(400, verifier_v2.NO_ROW)
        try:
            enrolled = record.enrolled
            before = supervision_of(record.state, has_v=enrolled.v is not None, push=enrolled.push)
        except ValueError:
            raise Refused(500, "The row of this node cannot be read; delete and enrol it again") from None
        after = with_supervision(record.state, lifecycle.step(before, event, self._engine.rules).state)
        return afresh(after) if isinstance(event, lifecycle.Reactivated) else after

    async def _committed(self, applied: Applied) -> bool:
        """Say whether a change is in the database; False when the node is not ours any more."""
        if applied.committed is None:
            return True
        try:
            async with asyncio.timeout(COMMIT_SECONDS):
                return await asyncio.shield(applied.committed)
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
        fault = _identity_fault(question, record.enrolled)
        return IdentityResult(1) if fault is None else verifier_v2.identity_refused(fault)

    def _status(self, record: NodeRecord) -> AgentStatus:
        return agent_status(record, self._now(), self._engine.rules.quote_interval)

    async def _record(self, agent_id: str) -> NodeRecord | None:
        node = self._holdings.mine(agent_id)
        return node.visible if node is not None else await self._rows.get(agent_id)

    async def _records(self, verifier_id: str | None) -> list[NodeRecord]:
        if verifier_id == self._site.verifier_id and self._owned.alone:
            return sorted((node.visible for node in self._engine.fleet), key=lambda record: record.agent_id)
        stored = await self._rows.list_nodes(verifier_id)
        return [node.visible if (node := self._holdings.mine(row.agent_id)) is not None else row for row in stored]


def _identity_fault(question: IdentityQuestion, enrolled: Enrolled) -> str | None:
    """Return why a quote does not prove the key's presence, or None. The nonce counts as sent, or base64-decoded."""
    if question.hash_alg not in enrolled.accept_hash:
        return "The hash algorithm is not accepted for this node"
    found = proven(
        question.quote, key=parse_ak(enrolled.ak_tpm), nonces=nonces(question.nonce), hash_alg=question.hash_alg
    )
    return str(found.context["message"]) if isinstance(found, Finding) else None


def _exists(agent_id: str) -> Refused:
    return Refused(409, f"Agent of uuid {agent_id} already exists. Please use delete or update.")
