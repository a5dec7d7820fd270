"""Commands that only a limeguard verifier can answer: which nodes are in which condition, and why.

Asks the verifier's own read interface and hands the documents on. Must not work out conditions itself.
"""

from collections.abc import Callable, Mapping
from typing import Final, TypeVar
from urllib.parse import quote

import msgspec

from limeguard.telemetry import clean
from limeguard.tenant.context import Context
from limeguard.tenant.errors import TenantError
from limeguard.tenant.nodes import NOT_FOUND, OK, Command
from limeguard.tenant.servers import Reply
from limeguard.wire.limeguard_v1 import NODE, NODES, UnreadableViewError, decode_node, decode_nodes

CONDITION: Final = "condition"
FLEET: Final = "nodes"
"""The names of the documents."""
TRUSTED: Final = "trusted"

T = TypeVar("T")


async def why(context: Context) -> int:
    """Show the condition of a node, its findings and what to do about each; 1 unless the node is trusted."""
    node = context.request.node
    reply = await context.verifier.call_plain("GET", NODE.format(agent_id=quote(node, safe="")))
    if reply.http_status == NOT_FOUND:
        raise TenantError(
            f"{context.verifier_shown} has no node {node}, or is no limeguard verifier: "
            "cvlist shows its nodes, cvstatus what it says of one"
        )
    view = _read(context, reply, decode_node)
    context.report.document(CONDITION, "", msgspec.to_builtins(view))
    return 0 if view.condition == TRUSTED else 1


async def fleet(context: Context) -> int:
    """Show every node with its condition, and how many there are in each."""
    reply = await context.verifier.call_plain("GET", NODES)
    if reply.http_status == NOT_FOUND:
        raise TenantError(f"{context.verifier_shown} is no limeguard verifier: bulkinfo shows what it knows")
    context.report.document(FLEET, "", msgspec.to_builtins(_read(context, reply, decode_nodes)))
    return 0


def _read(context: Context, reply: Reply, decode: Callable[[bytes], T]) -> T:
    if reply.http_status != OK:
        raise TenantError(f"{context.verifier_shown} answered {reply.http_status}: {reply.status}")
    try:
        return decode(reply.body)
    except UnreadableViewError as problem:
        raise TenantError(f"{context.verifier_shown}: {clean(problem, 512)}") from None


COMMANDS: Mapping[str, Command] = {"why": why, "nodes": fleet}
