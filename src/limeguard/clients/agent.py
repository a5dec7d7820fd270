"""Calls to a node's agent: ask for a quote, hand over the key share, ask for the versions it serves.

Knows how to ask and which answers are none. What an answer proves, and what a failure means for the node, is decided by
the caller.
"""

from dataclasses import dataclass
from typing import Final

from limeguard.telemetry import clean
from limeguard.web.answers import Answer, Pin, Requester
from limeguard.wire import agent_v2

HEADERS: Final = {"Content-Type": "application/json"}
"""Sent with every request: agents in the field expect it, also on GET."""


class AgentRefused(Exception):  # noqa: N818 - an answer of the agent
    """The agent answered with another status than 200. `text` is its own words, safe to show."""

    def __init__(self, status: int, text: str, *, unsupported_version: bool) -> None:
        super().__init__(f"{status} {text}")
        self.status = status
        self.text = text
        self.unsupported_version = unsupported_version


@dataclass(frozen=True, slots=True)
class AgentAddress:
    """Where an agent is reached. `pin` None: it has no certificate, and is spoken to without TLS."""

    host: str
    port: int
    pin: Pin | None

    @property
    def base(self) -> str:
        """Start of every URL."""
        host = f"[{self.host.strip('[]')}]" if ":" in self.host else self.host
        return f"{'http' if self.pin is None else 'https'}://{host}:{self.port}"


class AgentClient:
    """Calls over one pool of connections. Every call may raise Unreachable and AgentRefused."""

    def __init__(self, http: Requester) -> None:
        """Call over this pool, whose bounds hold for every answer."""
        self._http = http
        self.answer_bytes = 0

    async def integrity_quote(
        self, address: AgentAddress, version: str, *, nonce: str, mask: str, partial: bool, ima_entry: int
    ) -> agent_v2.QuoteAnswer:
        """Ask for a quote over `nonce` of the PCRs in `mask` (hex text). Raises BadAnswer too."""
        path = agent_v2.integrity_path(version, nonce, mask, partial=partial, ima_entry=ima_entry)
        return agent_v2.decode_quote((await self._call("GET", address, path)).body)

    async def deliver_share(self, address: AgentAddress, version: str, encrypted_share: bytes) -> None:
        """Hand over V, encrypted to the agent's transport key."""
        await self._call("POST", address, f"/v{version}/keys/vkey", agent_v2.encode_vkey(encrypted_share))

    async def notify(self, address: AgentAddress, version: str, notice: bytes) -> None:
        """Tell the agent that another node lost trust; what it does about that is its own business."""
        await self._call("POST", address, f"/v{version}/notifications/revocation", notice)

    async def versions(self, address: AgentAddress) -> tuple[str, ...]:
        """Ask which API versions the agent serves. Raises BadAnswer too."""
        return agent_v2.decode_version((await self._call("GET", address, "/version")).body)

    async def _call(self, method: str, address: AgentAddress, path: str, body: bytes | None = None) -> Answer:
        answer = await self._http.request(method, f"{address.base}{path}", body=body, headers=HEADERS, pin=address.pin)
        self.answer_bytes += len(answer.body)
        if answer.status != 200:
            raise AgentRefused(
                answer.status,
                clean(agent_v2.decode_error_status(answer.body), 200),
                unsupported_version=answer.status == 400 and agent_v2.says_unsupported(answer.body),
            )
        return answer
