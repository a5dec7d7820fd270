"""Who is calling, and what callers of that kind may do.

One table maps every action to a rule; an action without a rule is refused. The kit decides from the rule, the caller
and the id of the node that the path names; it does not know what the actions do.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum

import msgspec

from limeguard.telemetry import clean, get_logger

log = get_logger("keylime.authorization")


class CallerKind(Enum):
    """How a caller proved who it is."""

    ANONYMOUS = "anonymous"
    ADMIN = "admin"
    AGENT = "agent"


class Caller(msgspec.Struct, frozen=True):
    """Somebody who sends a request: nobody known, the holder of a client certificate (its CN), or an agent (its id)."""

    kind: CallerKind
    name: str = ""


ANONYMOUS = Caller(CallerKind.ANONYMOUS)


class Rule(Enum):
    """Who may do an action."""

    PUBLIC = "public"
    ADMIN = "admin"
    AGENT = "agent, for itself"
    AGENT_OR_ADMIN = "agent for itself, or admin"


class Unauthorized(Exception):  # noqa: N818 - named as HTTP names it
    """A credential was offered and is not valid; the text is the detail of the 401 answer."""


TokenChecker = Callable[[str], Awaitable[Caller]]
"""Turns a bearer token into its caller; raises Unauthorized."""


async def no_tokens(_token: str) -> Caller:
    """Refuse every token: for a service that issues none."""
    raise Unauthorized("Invalid authentication token")


def refusal(action: str, rule: Rule | None, caller: Caller, node: str | None) -> str | None:
    """Say why this caller may not do this action, or None when it may."""
    if rule is Rule.PUBLIC:
        return None
    if caller.kind is CallerKind.ADMIN and rule in {Rule.ADMIN, Rule.AGENT_OR_ADMIN}:
        return None
    if rule is None or rule is Rule.ADMIN:
        return f"Action {action} requires admin authentication (mTLS certificate)"
    if caller.kind is not CallerKind.AGENT:
        if rule is Rule.AGENT:
            return f"Action {action} requires agent authentication (PoP token)"
        return f"Action {action} requires authentication"
    if node is None or caller.name != node:
        return f"Agent {caller.name} cannot access resource {node} (ownership required)"
    return None


class Authorizer:
    """Decides from one table of rules; writes an audit line for every decision about a protected action.

    What is granted to an agent for itself happens all the time, so that line is for those who look closely (DEBUG).
    """

    def __init__(self, rules: Mapping[str, Rule], tokens: TokenChecker = no_tokens) -> None:
        self.rules = rules
        self._tokens = tokens

    async def identify(self, authorization: str | None, certificate_name: str | None) -> Caller:
        """Return the caller. A credential in the header is never set aside in favour of the certificate."""
        if authorization is not None:
            if not authorization.startswith("Bearer "):
                raise Unauthorized("Invalid Authorization header format")
            return await self._tokens(authorization.removeprefix("Bearer "))
        return Caller(CallerKind.ADMIN, certificate_name) if certificate_name else ANONYMOUS

    def refusal(self, action: str, caller: Caller, node: str | None) -> str | None:
        """Return why the action is refused, or None when it is granted."""
        rule = self.rules.get(action)
        reason = refusal(action, rule, caller, node)
        level = logging.WARNING if reason else logging.DEBUG if caller.kind is CallerKind.AGENT else logging.INFO
        if rule is not Rule.PUBLIC and log.isEnabledFor(level):
            log.log(
                level,
                "Authorization %s: identity=%s, identity_type=%s, action=%s, resource=%s, reason=%s",
                "DENIED" if reason else "GRANTED",
                clean(caller.name or "none"),
                caller.kind.value,
                action,
                clean(node or "none"),
                clean(reason or f"rule: {rule.value if rule else 'none'}"),
            )
        return reason
