"""Whom notices go to: the agents of all nodes but those that are known to be away, of other workers' nodes too."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from limeguard.appraisal.verdict import Reachability
from limeguard.clients.agent import AgentAddress
from limeguard.store.node_record import Address
from limeguard.verifier.fleet import Node
from limeguard.web.answers import Pin

FRESH_SECONDS: Final = 5.0
"""How long a list of all agents serves: a thousand notices at once need it once."""


@dataclass(frozen=True, slots=True)
class Addressee:
    """An agent that may be told: its node, where it is, and the version of its API."""

    agent_id: str
    address: AgentAddress
    version: str


def addressees(nodes: Iterable[Node]) -> list[Addressee]:
    """Return the agents that listen: not those of nodes that are known to be away, or that attest by themselves."""
    return [
        Addressee(node.agent_id, node.address, node.state.supported_version)
        for node in nodes
        if node.state.reachability != Reachability.UNREACHABLE and not node.record.enrolled.push
    ]


class Addresses(Protocol):
    """The stored addresses of all nodes."""

    async def addresses(self) -> list[Address]:
        """Return where agents are. Raises StoreUnavailable."""
        ...


class Ownership(Protocol):
    """Which nodes are in memory."""

    @property
    def alone(self) -> bool:
        """Whether all nodes of this verifier are in this worker's memory."""
        ...


class Everybody:
    """The agents of a whole verifier, whichever of its workers asks."""

    def __init__(self, rows: Addresses, nodes: Iterable[Node], ownership: Ownership) -> None:
        """Answer from `nodes`, those of this worker, while they are all there are, else from `rows`."""
        self._rows, self._nodes, self._ownership = rows, nodes, ownership
        self._stored: tuple[float, list[Addressee]] | None = None

    async def found(self) -> Sequence[Addressee]:
        """Return whom to tell. Raises StoreUnavailable."""
        if self._ownership.alone:
            return addressees(self._nodes)
        now = asyncio.get_running_loop().time()
        if self._stored is None or self._stored[0] < now - FRESH_SECONDS:
            self._stored = (now, [_stored(row) for row in await self._rows.addresses()])
        return self._stored[1]


def _stored(row: Address) -> Addressee:
    pin = None if row.certificate_sha256 is None else Pin(row.certificate_sha256)
    return Addressee(row.agent_id, AgentAddress(row.ip or "", row.port or 0, pin), row.version)
