"""Enrolled nodes of one verifier, whichever worker supervises them: in memory where they are ours, else their rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from limeguard.evidence.tpm.structures import PublicArea
from limeguard.store.node_record import Enrolled, NodeRecord
from limeguard.telemetry import clean, get_logger
from limeguard.verifier.enrolment import parse_ak
from limeguard.verifier.fleet import Node

log = get_logger("keylime.verifier")


class Kept(Protocol):
    """Which nodes are in this worker's memory."""

    def keeps(self, agent_id: str, /) -> bool:
        """Say whether a node would be in memory if it was enrolled."""
        ...


class EnrolledRows(Protocol):
    """What is needed of the store. Every method may raise StoreUnavailable."""

    async def get(self, agent_id: str, /) -> NodeRecord | None:
        """Return one node of any verifier."""
        ...

    async def enrolled_at(self, agent_id: str, /) -> float | None:
        """Return when a node of this verifier was enrolled."""
        ...


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What an operator enrolled, and the attestation key in it."""

    enrolled: Enrolled
    ak: PublicArea


class Enrolments:
    """The enrolments of one verifier. Every method may raise StoreUnavailable."""

    def __init__(self, node_of: Callable[[str], Node | None], kept: Kept, rows: EnrolledRows, verifier_id: str) -> None:
        """Look into memory by `node_of` for what is `kept` there, and into `rows` for the rest."""
        self._node_of, self._kept, self._rows, self._verifier_id = node_of, kept, rows, verifier_id

    def are_here(self, agent_id: str) -> bool:
        """Say whether this worker decides about a node, if there is one."""
        return self._kept.keeps(agent_id)

    async def of(self, agent_id: str) -> Enrolment | None:
        """Return a node's enrolment; None where there is none, or none that can be used."""
        node = self._in_memory(agent_id)
        if node is not None:
            return Enrolment(node.record.enrolled, node.ak)
        try:
            record = await self._rows.get(agent_id)
            if record is None or record.enrolled.verifier_id != self._verifier_id:
                return None
            return Enrolment(record.enrolled, parse_ak(record.enrolled.ak_tpm))
        except ValueError as problem:
            log.error("The row of agent %s cannot be used: %s", clean(agent_id), clean(problem))  # noqa: TRY400
            return None

    async def enrolled_at(self, agent_id: str) -> float | None:
        """Return when a node was enrolled, which tells one enrolment from the next; None where there is none."""
        node = self._in_memory(agent_id)
        return await self._rows.enrolled_at(agent_id) if node is None else node.record.enrolled.enrolled_at

    def _in_memory(self, agent_id: str) -> Node | None:
        return self._node_of(agent_id) if self._kept.keeps(agent_id) else None
