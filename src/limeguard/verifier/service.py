"""What operators can ask of the verifier: enrol, look, stop, reactivate, delete. Speaks domain; knows no HTTP.

A node that this worker supervises is answered for from memory, everything else from the database. Words about a node of
another worker change its row; its owner hears of that, and what it would write meanwhile is refused.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from enum import Enum, auto
from typing import Any, Final, Protocol

from msgspec import structs

from limeguard.appraisal.findings import Finding
from limeguard.appraisal.onetime import proven
from limeguard.appraisal.verdict import Integrity
from limeguard.clients.agent import AgentAddress
from limeguard.evidence.tpm.structures import PublicArea
from limeguard.policy.pcrs import PcrPolicy, parse_tpm_policy
from limeguard.policy.runtime import EMPTY_POLICY_TEXT, parse_runtime_policy
from limeguard.store.database import Conflict, StoreUnavailable
from limeguard.store.nodes import Enrolled, NodeRecord, NodeState, partition_of
from limeguard.telemetry import clean, get_logger
from limeguard.verifier import lifecycle
from limeguard.verifier.boot_policies import NOTHING_ASKED, BootPolicyShelf
from limeguard.verifier.engine import Applied, Engine
from limeguard.verifier.enrolment import Site, examine, parse_ak, quoting_logs
from limeguard.verifier.fleet import Node
from limeguard.verifier.policies import Accepted, PolicyShelf, decode_upload, policy_answer
from limeguard.verifier.push import RESERVED_AT_ONCE
from limeguard.verifier.record import afresh, supervision_of, with_supervision
from limeguard.verifier.supervision import Phase, Supervision
from limeguard.verifier.view import agent_status, node_list, node_view
from limeguard.web.client import Pin
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
LET_GO_SECONDS: Final = 3.0
"""How long running jobs may last on when their node goes to another worker."""
TAKE_UP_SPREAD: Final = 2.0
"""Rounds that are overdue when nodes are taken up are spread over this many seconds at most."""
WORDS: Final = 5
"""How often a word is tried on a node that changes hands all the time."""
MAX_SHARED: Final = 4_096
"""Different values that are looked for in every new node."""
MAX_SHARED_TEXT: Final = 1_024
_COMMON: Final = (
    "verifier_id",
    "verifier_ip",
    "tpm_policy",
    "meta_data",
    "runtime_policy_name",
    "mb_policy_name",
    "ima_keys",
    "accept_hash",
    "accept_enc",
    "accept_sign",
)
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


class Owned(Protocol):
    """Which nodes are this worker's."""

    @property
    def alone(self) -> bool:
        """Whether all nodes of this verifier are in this worker's memory."""
        ...

    def epoch_of(self, agent_id: str, /) -> int | None:
        """Return the epoch under which a node is ours, None when it is not."""
        ...

    def holds(self, agent_id: str, epoch: int, /) -> bool:
        """Say whether a node is ours under this very lease."""
        ...

    def beat_soon(self) -> None:
        """Ask the database what is ours."""
        ...


class Heard(Protocol):
    """Changes that owners are told of."""

    async def is_heard(self, number: int, /) -> bool:
        """Say whether the owner goes by that change."""
        ...


class NodeRows(Protocol):
    """What the service needs of the store."""

    async def load(self, epochs: Mapping[int, int], /) -> list[NodeRecord]:
        """Return the nodes of partitions, each under the epoch of its lease."""
        ...

    async def ids_in(self, partitions: Collection[int], /) -> list[str]:
        """Return the ids of nodes in partitions."""
        ...

    async def tell(self, agent_id: str, /) -> int:
        """Have the owner of a node look at its row."""
        ...

    async def change(self, agent_id: str, step: Callable[[NodeRecord], NodeState | None], /) -> int | None:
        """Change a node of another worker; None when there is none."""
        ...

    async def list_nodes(self, verifier_id: str | None, /) -> list[NodeRecord]:
        """Return the nodes of one verifier id, or all."""
        ...

    async def get(self, agent_id: str, /) -> NodeRecord | None:
        """Return one node of any verifier."""
        ...

    async def get_many(self, agent_ids: Collection[str], /) -> list[NodeRecord]:
        """Return those of these nodes that there are and that can be read."""
        ...

    async def note_policy(self, name: str, /, *, says: bool) -> None:
        """Note of all nodes with this runtime policy whether it allows anything."""
        ...

    async def note_boot_policy(self, name: str, /, *, says: bool) -> None:
        """Note of all nodes with this measured boot policy whether there is any text in it."""
        ...

    async def add(
        self, record: NodeRecord, /, *, mtls_cert: str | None, revocation_key: str, tell: bool = False
    ) -> None:
        """Insert a node, and tell its owner. Raises Conflict."""
        ...


class Forgetter(Protocol):
    """Keeps records of attestations."""

    async def forget(self, agent_id: str, /) -> None:
        """Write nothing more of a node."""
        ...

    def keep_latest(self, nodes: Iterable[Node], /) -> None:
        """Write the latest of each node, which is given up here."""
        ...


class VerifierService:
    """The nodes of one verifier. Every method may raise StoreUnavailable."""

    def __init__(
        self,
        rows: NodeRows,
        engine: Engine,
        site: Site,
        shelf: PolicyShelf,
        boot_shelf: BootPolicyShelf,
        owned: Owned,
        changes: Heard,
        flush: Callable[[], Awaitable[bool]],
        records: Forgetter,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Serve the nodes of `site`; those that are `owned` are what `engine` supervises. `now` is seconds since 1970.

        `flush` writes what was learned and not yet written. With a node go the `records` of its attestations.
        """
        self._owned = owned
        self._changes = changes
        self._flush = flush
        self._archive = records
        self._unusable: set[str] = set()
        self._begun = False
        self._rows = rows
        self._engine = engine
        self._site = site
        self._shelf = shelf
        self._boot_shelf = boot_shelf
        shelf.changed = self._note_in_memory
        boot_shelf.changed = self._note_boot_in_memory
        self._now = now
        self._policies: dict[tuple[str, bool, bool], PcrPolicy] = {}
        self._once: dict[Any, Any] = {}
        self._reloading: set[asyncio.Task[None]] = set()

    # --- nodes that come and go with their partitions -----------------------------------------------------------------

    async def taken(self, epochs: Mapping[int, int]) -> None:
        """Go on with every stored node of these partitions, as it was when its last owner ended, however that was."""
        records = await self._rows.load(epochs)
        if records and not self._begun:
            log.info("Agent ids in db loaded from file: %s", [clean(record.agent_id) for record in records])
        self._begun = True
        await self._take_up_all(records)

    async def _load_policies(self, records: Sequence[NodeRecord]) -> None:
        """Have the policies of these nodes ready."""
        enrolled = [record.enrolled for record in records]
        await self._shelf.load({name for one in enrolled if (name := one.runtime_policy_name) is not None})
        await self._boot_shelf.load({name for one in enrolled if (name := one.mb_policy_name) is not None})

    async def _take_up_all(self, records: Sequence[NodeRecord]) -> None:
        await self._load_policies(records)
        for count, record in enumerate(records, 1):
            # Others were waited for since the row was read: the lease may be gone, or the node be there already.
            if self._owned.holds(record.agent_id, record.epoch) and self._engine.fleet.get(record.agent_id) is None:
                await self._take_up(record)
            if not count % 100:
                await asyncio.sleep(0)

    def lost(self, partitions: Collection[int]) -> None:
        """Forget the nodes of these partitions: somebody else may supervise them."""
        for node in self._nodes_in(partitions):
            self._engine.drop(node)

    async def let_go(self, partitions: Collection[int]) -> bool:
        """Hand the nodes of these partitions over; False when what is known of them cannot be written now."""
        nodes = self._nodes_in(partitions)
        await self._engine.quiet(nodes, LET_GO_SECONDS)
        if not await self._flush():
            self._engine.resume(nodes)
            return False
        self._archive.keep_latest(nodes)
        for node in nodes:
            self._engine.forget(node)
        return True

    def _nodes_in(self, partitions: Collection[int]) -> list[Node]:
        wanted = frozenset(partitions)
        return [node for node in self._engine.fleet if partition_of(node.agent_id) in wanted]

    async def changed(self, agent_ids: Collection[str]) -> None:
        """Take these nodes up anew, as their rows are now."""
        records = await self._rows.get_many(agent_ids)
        found = {record.agent_id: record for record in records}
        taken_up = []
        for agent_id in agent_ids:
            self._unusable.discard(agent_id)
            node, record = self._engine.fleet.get(agent_id), found.get(agent_id)
            epoch = self._owned.epoch_of(agent_id)
            if node is not None and record is not None and _is_known(node, record):
                continue  # it is what we have written ourselves
            if node is not None:
                self._engine.drop(node)
                if record is None and node.record.enrolled.push:
                    await self._archive.forget(agent_id)
            if record is not None and epoch is not None and record.enrolled.verifier_id == self._site.verifier_id:
                taken_up.append(structs.replace(record, epoch=epoch))
        await self._take_up_all(taken_up)

    async def policies_changed(self) -> None:
        """Go by what the policies say now."""
        await self._shelf.refresh()
        await self._boot_shelf.refresh()

    async def reconcile(self, partitions: Collection[int]) -> None:
        """Take up nodes whose enrolment was never heard of."""
        stored = set(await self._rows.ids_in(partitions))
        missing = [one for one in stored if self._engine.fleet.get(one) is None and one not in self._unusable]
        if missing:
            log.warning("%d nodes were not supervised and are taken up", len(missing))
            await self.changed(missing)
            self._unusable.update(one for one in missing if self._engine.fleet.get(one) is None)

    async def _take_up(self, record: NodeRecord) -> None:
        interval = self._engine.rules.quote_interval
        # Its last owner asked it a moment ago, or a while: it is asked when its time comes, and no earlier.
        delay = min(max(record.state.last_received_quote + interval - self._now(), 0.0), interval)
        spread = 0.0 if delay else min(interval, TAKE_UP_SPREAD)
        if record.state.phase == Phase.START and record.state.integrity == Integrity.UNKNOWN:
            delay = 0.0  # enrolled or reactivated: an operator waits for it
        try:
            node = self._node(record)
            applied = self._engine.take_in(node, lifecycle.Restarted(), delay=delay, spread=spread)
        except ValueError as problem:
            log.error("Agent %s cannot be supervised: %s", clean(record.agent_id), clean(problem))  # noqa: TRY400
            self._engine.fleet.remove(record.agent_id)
            return
        if applied.remove:
            await self._engine.remove(node)

    def changed_elsewhere(self, node: Node) -> None:
        """Take a node up anew whose row somebody else has changed or removed, if it is ours at all."""
        self._owned.beat_soon()
        self._engine.drop(node)
        task = asyncio.get_running_loop().create_task(self._reload(node.agent_id))
        self._reloading.add(task)
        task.add_done_callback(self._reloading.discard)

    async def _reload(self, agent_id: str) -> None:
        while True:
            try:
                await self.changed({agent_id})
            except StoreUnavailable:
                await asyncio.sleep(RELOAD_PAUSE)
                continue
            if self._engine.fleet.get(agent_id) is not None:
                log.warning("The row of agent %s was changed by somebody else; taken up anew", clean(agent_id))
            return

    def _node(self, record: NodeRecord) -> Node:
        """Make the object in memory. Raises ValueError for a row that cannot be used."""
        enrolled = self._shared(record.enrolled)
        record = structs.replace(record, enrolled=enrolled)
        return Node(record, parse_ak(enrolled.ak_tpm), self._pcr_policy(enrolled), _address(enrolled))

    def _shared(self, enrolled: Enrolled) -> Enrolled:
        """Return the same enrolment with what it has in common with other nodes held once."""
        once = self._once
        if len(once) >= MAX_SHARED:
            once.clear()
        values = {name: getattr(enrolled, name) for name in _COMMON}
        short = {name: value for name, value in values.items() if value and len(value) <= MAX_SHARED_TEXT}
        return replace(enrolled, **{name: once.setdefault(value, value) for name, value in short.items()})

    def _pcr_policy(self, enrolled: Enrolled) -> PcrPolicy:
        """Return the parsed policy; nodes with the same text share one."""
        ima, boot = enrolled.runtime_policy_name is not None, enrolled.mb_policy_name is not None
        key = (enrolled.tpm_policy, ima, boot)
        policy = self._policies.get(key)
        if policy is None:
            policy = quoting_logs(parse_tpm_policy(enrolled.tpm_policy), ima=ima, boot=boot)
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
        enrolled = self._shared(new.enrolled)
        epoch = self._owned.epoch_of(agent_id)
        if epoch is not None and self._engine.fleet.get(agent_id) is not None:
            raise _exists(agent_id)
        # Another verifier's node is found out by the insert below; before a policy is stored, it is looked for.
        stores_runtime = enrolled.runtime_policy_name and (request.runtime_policy or not request.runtime_policy_name)
        if (stores_runtime or request.mb_policy) and await self._rows.get(agent_id) is not None:
            raise _exists(agent_id)
        if enrolled.runtime_policy_name is not None:
            judged = await self._runtime_policy(enrolled.runtime_policy_name, request)
            enrolled = replace(enrolled, has_runtime_policy=judged)
        if enrolled.mb_policy_name is not None:
            judged = await self._boot_policy(enrolled.mb_policy_name, request.mb_policy)
            enrolled = replace(enrolled, has_mb_policy=judged)
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
            await self._begin(record, new.ak)
        log.info("Agent %s is enrolled", clean(agent_id))

    async def _begin(self, record: NodeRecord, ak: PublicArea) -> None:
        """Supervise a node that was enrolled, unless its partition has gone to another worker meanwhile."""
        if not self._owned.holds(record.agent_id, record.epoch) or self._owned.epoch_of(record.agent_id) is None:
            await self._rows.tell(record.agent_id)
        elif self._engine.fleet.get(record.agent_id) is None:
            enrolled = record.enrolled
            node = Node(record, ak, self._pcr_policy(enrolled), _address(enrolled))
            node.next_attestation = 0
            self._engine.take_in(node, lifecycle.Enrolled())

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
            if await self._shelf.fetch(name) is None:
                raise Refused(404, f"Could not find IMA policy with name {name}!")
        else:
            await self._shelf.put(name, Accepted(EMPTY_POLICY_TEXT, parse_runtime_policy(EMPTY_POLICY_TEXT)))
        policy = self._shelf.current(name)
        return policy is not None and policy.says_something

    async def _boot_policy(self, name: str, text: str | None) -> bool:
        """Have the node's measured boot policy stored and ready; say whether it has a text. Raises BadRequest, Refused.

        Without a text a stored one is meant.
        """
        if text:
            try:
                await self._boot_shelf.add(name, await self._boot_shelf.accept(text))
            except Conflict:
                raise Refused(409, verifier_v2.boot_policy_exists(name)) from None
            return True
        row = await self._boot_shelf.fetch(name)
        if row is None:
            raise Refused(404, f"Could not find mb_policy with name {name}!")
        return row.text is not None

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
        await self._rows.note_policy(name, says=self._note_in_memory(name))

    def _note_in_memory(self, name: str) -> bool:
        policy = self._shelf.current(name)
        says = policy is not None and policy.says_something
        for node in self._engine.fleet:
            if node.record.enrolled.runtime_policy_name == name:
                node.note_enrolled(replace(node.record.enrolled, has_runtime_policy=says))
        return says

    async def delete_policy(self, name: str) -> None:
        """Delete a runtime policy that no node uses. Raises Refused."""
        outcome = await self._shelf.delete(name)
        if outcome is False:
            raise Refused(404, f"Runtime policy {clean(name, 255)} not found")
        if isinstance(outcome, str):
            raise Refused(409, f"Can't delete allowlist as it's currently in use by agent {outcome}")

    # --- measured boot policies ---------------------------------------------------------------------------------------

    async def boot_policy_names(self) -> tuple[str, ...]:
        """Return the names of all measured boot policies."""
        return await self._boot_shelf.names()

    async def boot_policy(self, name: str) -> str | None:
        """Return the text of one measured boot policy, None where it is null. Raises Refused."""
        row = await self._boot_shelf.get(name)
        if row is None:
            raise Refused(404, f"Measured boot policy {clean(name, 255)} not found")
        return row.text

    async def store_boot_policy(self, name: str, body: bytes, *, replace: bool) -> None:
        """Store a new measured boot policy, or a new text for an old one. Raises BadRequest, Refused."""
        accepted = await self._boot_shelf.accept(verifier_v2.decode_boot_policy(body).mb_policy)
        if replace:
            if not await self._boot_shelf.replace(name, accepted):
                # 409, not 404: peers have always answered so.
                raise Refused(409, f"Measured boot policy with name {clean(name, 255)} does not already exist")
            log.info("Measured boot policy %s was replaced", clean(name))
            await self._rows.note_boot_policy(name, says=self._note_boot_in_memory(name))
            return
        try:
            await self._boot_shelf.add(name, accepted)
        except Conflict:
            raise Refused(409, f"Measured boot policy with name {clean(name, 255)} already exists") from None

    def _note_boot_in_memory(self, name: str) -> bool:
        """Have nodes show whether there is a text in their measured boot policy, which was replaced."""
        policy = self._boot_shelf.current(name)
        says = policy is not None and policy.text != NOTHING_ASKED
        for node in self._engine.fleet:
            if node.record.enrolled.mb_policy_name == name:
                node.note_enrolled(replace(node.record.enrolled, has_mb_policy=says))
        return says

    async def delete_boot_policy(self, name: str) -> None:
        """Delete a measured boot policy that no node uses. Raises Refused."""
        outcome = await self._boot_shelf.delete(name)
        if outcome is False:
            raise Refused(404, f"Measured boot policy {clean(name, 255)} not found")
        if isinstance(outcome, str):
            raise Refused(409, f"Can't delete mb_policy as it's currently in use by agent {outcome}")

    # --- nodes --------------------------------------------------------------------------------------------------------

    async def delete(self, agent_id: str) -> Deletion:
        """Delete a node, at once or when the running request to it has ended. Raises Refused."""
        node = self._mine(agent_id)
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
            node = self._mine(agent_id)
            if node is None:
                break
            if node.state.phase == Phase.TERMINATED:
                raise Refused(400, verifier_v2.NO_ROW)
            if await self._committed(self._engine.apply(node, event)):
                return
        await self._change(agent_id, lambda record: self._stepped(record, event), (400, verifier_v2.NO_ROW))

    def _mine(self, agent_id: str) -> Node | None:
        """Return a node that this worker supervises and may answer for now."""
        return None if self._owned.epoch_of(agent_id) is None else self._engine.fleet.get(agent_id)

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
        node = self._mine(agent_id)
        return node.visible if node is not None else await self._rows.get(agent_id)

    async def _records(self, verifier_id: str | None) -> list[NodeRecord]:
        if verifier_id == self._site.verifier_id and self._owned.alone:
            return sorted((node.visible for node in self._engine.fleet), key=lambda record: record.agent_id)
        stored = await self._rows.list_nodes(verifier_id)
        return [node.visible if (node := self._mine(row.agent_id)) is not None else row for row in stored]


def _identity_fault(question: IdentityQuestion, enrolled: Enrolled) -> str | None:
    """Return why a quote does not prove the key's presence, or None. The nonce counts as sent, or base64-decoded."""
    if question.hash_alg not in enrolled.accept_hash:
        return "The hash algorithm is not accepted for this node"
    found = proven(
        question.quote, key=parse_ak(enrolled.ak_tpm), nonces=nonces(question.nonce), hash_alg=question.hash_alg
    )
    return str(found.context["message"]) if isinstance(found, Finding) else None


def _is_known(node: Node, record: NodeRecord) -> bool:
    """Say whether a row has nothing new: it is of the same enrolment, and no later write than ours."""
    same = node.record.enrolled.enrolled_at == record.enrolled.enrolled_at
    return same and node.record.version >= record.version


def _exists(agent_id: str) -> Refused:
    return Refused(409, f"Agent of uuid {agent_id} already exists. Please use delete or update.")


def _address(enrolled: Enrolled) -> AgentAddress:
    pin = None if enrolled.certificate_sha256 is None else Pin(enrolled.certificate_sha256)
    return AgentAddress(enrolled.ip or "", enrolled.port or 0, pin)
