"""The nodes in memory: those of the partitions that this worker holds, as they come, change and go.

Decides what becomes of a node when its partition is taken, lost or handed over, and when somebody else changed its row.
Must not know operators' requests.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

from msgspec import structs

from limeguard.appraisal.verdict import Integrity
from limeguard.clients.agent import AgentAddress
from limeguard.evidence.tpm.structures import PublicArea
from limeguard.policy.pcrs import PcrPolicy, parse_tpm_policy
from limeguard.store.database import StoreUnavailable
from limeguard.store.node_record import Enrolled, NodeRecord, partition_of
from limeguard.telemetry import clean, get_logger
from limeguard.verifier import lifecycle
from limeguard.verifier.engine import Engine
from limeguard.verifier.enrolment import parse_ak, quoting_logs
from limeguard.verifier.fleet import Node
from limeguard.verifier.policy_desk import PolicyDesk
from limeguard.verifier.supervision import Phase
from limeguard.verifier.writer import MAX_GATHER_SECONDS
from limeguard.web.answers import Pin

log = get_logger("keylime.verifier")

LET_GO_SECONDS: Final = 3.0
"""How long running jobs may last on when their node goes to another worker."""
TAKE_UP_SPREAD: Final = 2.0
"""Rounds that are overdue when nodes are taken up are spread over this many seconds at most."""
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


class HeldRows(Protocol):
    """What is needed of the store."""

    async def load(self, epochs: Mapping[int, int], /) -> list[NodeRecord]:
        """Return the nodes of partitions, each under the epoch of its lease."""
        ...

    async def ids_in(self, partitions: Collection[int], /) -> list[str]:
        """Return the ids of nodes in partitions."""
        ...

    async def get_many(self, agent_ids: Collection[str], /) -> list[NodeRecord]:
        """Return those of these nodes that there are and that can be read."""
        ...

    async def tell(self, agent_id: str, /) -> int:
        """Have the owner of a node look at its row."""
        ...


class Forgetter(Protocol):
    """Keeps records of attestations."""

    async def forget(self, agent_id: str, /) -> None:
        """Write nothing more of a node."""
        ...

    def keep_latest(self, nodes: Iterable[Node], /) -> None:
        """Write the latest of each node, which is given up here."""
        ...


class Holdings:
    """The nodes of one worker. Methods may raise StoreUnavailable."""

    def __init__(
        self,
        rows: HeldRows,
        engine: Engine,
        verifier_id: str,
        desk: PolicyDesk,
        owned: Owned,
        flush: Callable[[], Awaitable[bool]],
        records: Forgetter,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Have `engine` supervise what is `owned` of the nodes of `verifier_id`. `now` is seconds since 1970.

        `flush` writes what was learned and not yet written. With a node go the `records` of its attestations.
        """
        self._rows = rows
        self._engine = engine
        self._verifier_id = verifier_id
        self._desk = desk
        self._owned = owned
        self._flush = flush
        self._archive = records
        self._now = now
        self._unusable: set[str] = set()
        self._begun = False
        self._policies: dict[tuple[str, bool, bool], PcrPolicy] = {}
        self._once: dict[Any, Any] = {}
        self._reloading: set[asyncio.Task[None]] = set()

    def mine(self, agent_id: str) -> Node | None:
        """Return a node that this worker supervises and may answer for now."""
        return None if self._owned.epoch_of(agent_id) is None else self._engine.fleet.get(agent_id)

    async def begin(self, record: NodeRecord, ak: PublicArea) -> None:
        """Supervise a node that was enrolled, unless its partition has gone to another worker meanwhile."""
        if not self._owned.holds(record.agent_id, record.epoch) or self._owned.epoch_of(record.agent_id) is None:
            await self._rows.tell(record.agent_id)
        elif self._engine.fleet.get(record.agent_id) is None:
            enrolled = record.enrolled
            node = Node(record, ak, self._pcr_policy(enrolled), _address(enrolled))
            node.next_attestation = 0
            self._engine.take_in(node, lifecycle.Enrolled())

    async def taken(self, epochs: Mapping[int, int]) -> None:
        """Go on with every stored node of these partitions, as it was when its last owner ended, however that was."""
        records = await self._rows.load(epochs)
        if records and not self._begun:
            log.info("Agent ids in db loaded from file: %s", [clean(record.agent_id) for record in records])
        self._begun = True
        await self._take_up_all(records)

    async def _take_up_all(self, records: Sequence[NodeRecord]) -> None:
        await self._desk.load(records)
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
            if record is not None and epoch is not None and record.enrolled.verifier_id == self._verifier_id:
                taken_up.append(structs.replace(record, epoch=epoch))
        await self._take_up_all(taken_up)

    async def policies_changed(self) -> None:
        """Go by what the policies say now."""
        await self._desk.refresh()

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
        ago = self._now() - record.state.last_received_quote
        delay = min(max(interval - ago, 0.0), interval)
        spread = 0.0 if delay else min(interval, TAKE_UP_SPREAD)
        if interval <= ago < interval + MAX_GATHER_SECONDS:
            delay = min(interval / 2, TAKE_UP_SPREAD)  # or just now: one that died has not written its last rounds
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
        enrolled = self.shared(record.enrolled)
        record = structs.replace(record, enrolled=enrolled)
        return Node(record, parse_ak(enrolled.ak_tpm), self._pcr_policy(enrolled), _address(enrolled))

    def shared(self, enrolled: Enrolled) -> Enrolled:
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


def _is_known(node: Node, record: NodeRecord) -> bool:
    """Say whether a row has nothing new: it is of the same enrolment, and no later write than ours."""
    same = node.record.enrolled.enrolled_at == record.enrolled.enrolled_at
    return same and node.record.version >= record.version


def _address(enrolled: Enrolled) -> AgentAddress:
    pin = None if enrolled.certificate_sha256 is None else Pin(enrolled.certificate_sha256)
    return AgentAddress(enrolled.ip or "", enrolled.port or 0, pin)
