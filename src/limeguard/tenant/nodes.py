"""Commands that ask about nodes or end their supervision: status, lists, delete, reactivate.

Each returns the exit status; what an operator must act on is raised as TenantError.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import ip_address
from urllib.parse import quote

from limeguard.telemetry import clean
from limeguard.tenant.context import Context
from limeguard.tenant.errors import TenantError
from limeguard.tenant.report import error, info, warning
from limeguard.tenant.servers import Reply
from limeguard.wire.operator_view import (
    Document,
    Enrolment,
    Registration,
    UnreadableAnswer,
    made_up_envelope,
    read_enrolment,
    read_registration,
    results_of,
    shown_enrolment,
    shown_fleet,
)

OK, ACCEPTED, NO_CONTENT, NOT_FOUND, CONFLICT = 200, 202, 204, 404, 409

Command = Callable[[Context], Awaitable[int]]


def readable(reply: Reply, who: str) -> Document:
    """Return the results of an answer that should have some. Raises TenantError."""
    try:
        return results_of(reply.require_document(who))
    except UnreadableAnswer as problem:
        raise TenantError(f"{who}: {problem}") from problem


async def registered(context: Context) -> Registration | None:
    """Return what the registrar knows of the node; None when it does not know it. Raises TenantError."""
    node = context.request.node
    reply = await context.registrar.call("GET", f"/agents/{node}")
    if reply.http_status == NOT_FOUND:
        return None
    if reply.http_status != OK:
        raise TenantError(f"{context.registrar_shown} answered {reply.code}: {reply.status}")
    try:
        return read_registration(readable(reply, context.registrar_shown))
    except UnreadableAnswer as problem:
        raise TenantError(f"{context.registrar_shown}: {problem}") from problem


async def supervised(context: Context) -> Document | None:
    """Return the verifier's record of the node and show it; None when it has none. Raises TenantError."""
    node = context.request.node
    reply = await context.verifier.call("GET", f"/agents/{node}")
    if NOT_FOUND in {reply.http_status, reply.code}:
        info(
            context.report,
            f"Verifier at {context.verifier.host} with Port {context.verifier.port} does not have agent {node}.",
        )
        return None
    if reply.http_status != OK:
        raise TenantError(f"{context.verifier_shown} answered {reply.code}: {reply.status}")
    results = readable(reply, context.verifier_shown)
    try:
        shown = shown_enrolment(results, push=context.request.push_model)
    except UnreadableAnswer as problem:
        raise TenantError(f"{context.verifier_shown}: {problem}") from problem
    context.report.document("verifier", f"Agent Info from {context.verifier_shown}:", {node: shown})
    return results


async def regstatus(context: Context) -> int:
    """Show what the registrar knows of a node."""
    node = context.request.node
    where = f"registrar {context.registrar.host} port {context.registrar.port}."
    found = await registered(context)
    if found is None:
        info(
            context.report,
            f"Agent {node} does not exist on the registrar. Please register the agent with the registrar.",
        )
        _repeat(context, made_up_envelope(NOT_FOUND, f"Agent {node} does not exist on {where}", {}))
        error(
            context.report,
            f"Agent {node} does not exist on {context.registrar_shown}. "
            "The log of the agent says why it could not register.",
        )
        return 1
    shown = {node: found.shown()}
    context.report.detail(f"Status from {context.registrar_shown}: Agent {node} exists on {where}")
    _repeat(context, made_up_envelope(OK, f"Agent {node} exists on {where}", shown))
    context.report.document("registrar", f"Agent Info from {context.registrar_shown}:", shown)
    return 0


def _repeat(context: Context, document: Document) -> None:
    context.report.detail(json.dumps(document))


async def cvstatus(context: Context) -> int:
    """Show what the verifier knows of a node."""
    if await supervised(context) is None:
        error(context.report, f"Agent {context.request.node} does not exist on {context.verifier_shown}.")
        return 1
    return 0


async def status(context: Context) -> int:
    """Show what registrar and verifier know of a node."""
    return await regstatus(context) or await cvstatus(context)


async def reglist(context: Context) -> int:
    """List the ids that the registrar knows."""
    reply = await context.registrar.call("GET", "/agents/")
    results = readable(reply, context.registrar_shown)
    where = f"{context.registrar.host} port {context.registrar.port}"
    context.report.detail(f"From registrar {where} retrieved {json.dumps(reply.document)}\n")
    if reply.code != OK:
        raise TenantError(f"{context.registrar_shown} answered {reply.code}: {reply.status}")
    context.report.document("agents", f"Agent list from {context.registrar_shown} retrieved: ", results)
    return 0


async def cvlist(context: Context) -> int:
    """List the ids that the verifier supervises."""
    reply = await context.verifier.call("GET", f"/agents/?verifier={quote(context.verifier_id)}")
    if reply.http_status in {503, 504}:
        error(context.report, f"{context.verifier_shown} is not ready to answer ({reply.http_status})")
        return 0
    where = f"{context.verifier.host} port {context.verifier.port}"
    if NOT_FOUND in {reply.http_status, reply.code}:
        info(context.report, f"{context.verifier_shown} has no agents")
        return 0
    results = readable(reply, context.verifier_shown)
    context.report.detail(f'From verifier {where} retrieved: "{reply.document!r}"\n')
    if reply.code != OK:
        raise TenantError(f"{context.verifier_shown} answered {reply.code}: {reply.status}")
    context.report.document("agents", f"Agent list from {context.verifier_shown} retrieved: ", results)
    return 0


async def bulkinfo(context: Context) -> int:
    """Show the full record of every node that the verifier supervises."""
    reply = await context.verifier.call("GET", f"/agents/?bulk=True&verifier={quote(context.verifier_id)}")
    if reply.http_status != OK:
        raise TenantError(f"{context.verifier_shown} answered {reply.code}: {reply.status}")
    try:
        fleet = shown_fleet(readable(reply, context.verifier_shown))
    except UnreadableAnswer as problem:
        raise TenantError(f"{context.verifier_shown}: {problem}") from problem
    context.report.document("agents", "Bulk Agent Info:", fleet)
    return 0


async def regdelete(context: Context) -> int:
    """Remove a node's registration; that it was not there is no failure."""
    node = context.request.node
    reply = await context.registrar.call("DELETE", f"/agents/{node}")
    if reply.http_status == OK:
        info(context.report, f"Agent {node} deleted from the registrar")
        return 0
    warning(context.report, f"Status command response: {reply.http_status} from {context.registrar_shown}")
    warning(context.report, f"Response code {reply.code}: {reply.status}")
    return 0 if reply.http_status == NOT_FOUND else 1


async def find_supervisor(context: Context) -> Enrolment | None:
    """Learn from the record who supervises the node, and talk to that verifier from now on.

    Returns None when the verifier that was asked has no such node. Raises TenantError.
    """
    results = await supervised(context)
    if results is None:
        return None
    try:
        found = read_enrolment(results)
    except UnreadableAnswer as problem:
        raise TenantError(f"{context.verifier_shown}: {problem}") from problem
    context.verifier_id = clean(found.verifier_id or context.verifier_id)
    if found.verifier_ip and found.verifier_port and not _any_address(found.verifier_ip):
        context.verifier = context.verifier.moved(found.verifier_ip, found.verifier_port)
    return found


def _any_address(text: str) -> bool:
    """Whether an address names every interface: a verifier bound so tells nobody how to reach it."""
    try:
        return ip_address(text.strip("[]")).is_unspecified
    except ValueError:
        return False


async def delete(context: Context) -> int:
    """End the supervision of a node; that it was not supervised is no failure."""
    return await unsupervise(context, f"Agent {context.request.node}")


async def unsupervise(context: Context, shown: str) -> int:
    """End the supervision of a node, called `shown` as long as its address is not known from its record."""
    node = context.request.node
    if context.request.verifier_check:
        found = await find_supervisor(context)
        if found is None:
            info(context.report, f"The {shown} is deleted from {context.verifier_shown}")
            return 0
        shown = f"Agent {node} ({found.agent_ip}:{found.agent_port})"
    reply = await context.verifier.call("DELETE", f"/agents/{node}")
    if reply.code == NOT_FOUND:
        info(context.report, f"Agent {node} is already absent from the CV")
        return 0
    if reply.code == ACCEPTED:
        if not await _gone(context, clean(shown)):
            return 1
    elif reply.code != OK:
        raise TenantError(f"DELETE command response: {reply.code} from {context.verifier_shown}: {reply.status}")
    info(context.report, f"Agent {node} deleted from the CV")
    return 0


async def _gone(context: Context, shown: str) -> bool:
    """Wait until the verifier has ended the round in hand and let go of the node."""
    tries = context.rules.retry.tries
    for attempt in range(1, tries + 1):
        if await supervised(context) is None:
            info(context.report, f"{shown} was deleted from {context.verifier_shown} after {attempt - 1} tries")
            return True
        if attempt < tries:
            wait = context.delay(attempt)
            info(
                context.report,
                f"{shown} still not deleted from {context.verifier_shown} at try {attempt}/{tries}, "
                f"trying again in {wait} seconds...",
            )
            await context.edges.sleep(wait)
    error(context.report, f"{shown} was not deleted from {context.verifier_shown} after {tries} tries")
    return False


async def reactivate(context: Context) -> int:
    """Resume the supervision of a node that failed or was stopped."""
    node = context.request.node
    if context.request.verifier_check and await find_supervisor(context) is None:
        error(context.report, f"Agent {node} does not exist on {context.verifier_shown}.")
        return 1
    reply = await context.verifier.call("PUT", f"/agents/{node}/reactivate", b"")
    if reply.http_status != OK:
        raise TenantError(f"Reactivate command response: {reply.code} from {context.verifier_shown}: {reply.status}")
    info(context.report, f"Agent {node} re-activated")
    context.report.detail(f"Agent {node} re-activated")
    return 0


COMMANDS: Mapping[str, Command] = {
    "status": status,
    "cvstatus": cvstatus,
    "regstatus": regstatus,
    "cvlist": cvlist,
    "reglist": reglist,
    "bulkinfo": bulkinfo,
    "delete": delete,
    "regdelete": regdelete,
    "reactivate": reactivate,
}
