"""What the operator asked for: the parsed options as one frozen value, and which of them contradict each other.

Decides nothing about nodes and reads no files. The command line fills it; tests and other front ends may too.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from limeguard.tenant.errors import ArgumentError, TenantError

DEFAULT_ID = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000"
"""The id that Keylime's tools fall back to."""

AGENT_ID = re.compile(r"[\w.-]+", re.ASCII)
MAX_AGENT_ID = 80

ENROLMENTS = frozenset({"add", "update"})
OWN_COMMANDS = frozenset({"why", "nodes"})
"""Commands that Keylime's tenant does not have; they need a limeguard verifier."""
NODE_COMMANDS = ENROLMENTS | {"delete", "status", "cvstatus", "regstatus", "reactivate", "regdelete", "why"}
"""Commands about one node."""

ALIASES = {
    "addallowlist": "addruntimepolicy",
    "showallowlist": "showruntimepolicy",
    "deleteallowlist": "deleteruntimepolicy",
}
"""Older names, and what took their place."""

POLICY_COMMANDS = frozenset(
    {f"{verb}{kind}" for verb in ("add", "update", "show", "delete", "list") for kind in ("runtimepolicy", "mbpolicy")}
)
COMMANDS = (
    NODE_COMMANDS | POLICY_COMMANDS | OWN_COMMANDS | {"cvlist", "reglist", "bulkinfo", "version"} | frozenset(ALIASES)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One run of the tenant. Hosts are names or addresses; None means that settings or the registrar say it.

    `unjudged` names options that were given and belong to appraisals that this version does not have.
    """

    command: str = "add"
    push_model: bool = False
    agent_id: str | None = None
    agent_host: str | None = None
    agent_port: int | None = None
    verifier_agent_host: str | None = None
    registrar_host: str | None = None
    registrar_port: int | None = None
    verifier_host: str | None = None
    verifier_port: int | None = None
    verifier_id: str = ""
    verifier_check: bool = True
    agent_api_version: str | None = None
    supported_version: str | None = None
    verify: bool = False

    file: str | None = None
    key: str | None = None
    payload: str | None = None
    cert: str | None = None
    include: str | None = None

    tpm_policy: str | None = None
    runtime_policy: str | None = None
    runtime_policy_url: str | None = None
    runtime_policy_checksum: str | None = None
    runtime_policy_sig_key: str | None = None
    runtime_policy_name: str | None = None
    mb_policy: str | None = None
    mb_policy_name: str | None = None
    allowlist: str | None = None
    allowlist_url: str | None = None
    allowlist_name: str | None = None
    exclude: str | None = None
    ima_keys: tuple[str, ...] = field(default=())

    @property
    def node(self) -> str:
        """The id of the node, the shared default when none was given."""
        return DEFAULT_ID if self.agent_id is None else self.agent_id

    @property
    def policy_name(self) -> str | None:
        """The name of a stored runtime policy to show or delete: the older option wins, as in Keylime."""
        return self.allowlist_name or self.runtime_policy_name


def _contradictions(request: Request) -> Iterator[str]:
    policy = request.runtime_policy or request.runtime_policy_url
    allowlist = request.allowlist or request.allowlist_url
    if ALIASES.get(request.command, request.command) == "addruntimepolicy" and not (policy or allowlist):
        yield "--allowlist or --runtime_policy is required to add a runtime policy"
    if request.exclude and not allowlist:
        yield "--exclude means nothing without --allowlist or --allowlist-url"
    if request.allowlist and request.allowlist_url:
        yield "--allowlist and --allowlist-url name the same thing twice"
    if request.runtime_policy and request.runtime_policy_url:
        yield "--runtime-policy and --runtime-policy-url name the same thing twice"
    if request.runtime_policy_url and not request.runtime_policy_checksum:
        yield "--runtime-policy-url needs --runtime-policy-checksum, which proves what was downloaded"
    if request.runtime_policy_checksum and not policy:
        yield "--runtime-policy-checksum needs --runtime-policy or --runtime-policy-url"


def check_arguments(request: Request) -> None:
    """Refuse options that contradict each other. Raises ArgumentError with the first of them."""
    for problem in _contradictions(request):
        raise ArgumentError(problem)


def _user_errors(request: Request) -> Iterator[str]:
    if request.command in NODE_COMMANDS and not valid_agent_id(request.node):
        yield "The agent ID set via agent uuid parameter use invalid characters"
    if request.command not in ENROLMENTS:
        return
    sources = [name for name, given in (("-k", request.key), ("-f", request.file), ("--cert", request.cert)) if given]
    if request.push_model:
        refused = [*sources, *(["-p"] if request.payload else []), *(["--verify"] if request.verify else [])]
        if refused:
            yield (
                f"{', '.join(refused)} with --push-model: the push model has no way to hand a payload to a node; "
                "leave it out, and deliver by other means once the node is trusted"
            )
    if len(sources) > 1:
        yield f"{' and '.join(sources)} each name a payload; give one of them"
    if request.payload and not request.key:
        yield "-p/--payload needs the key file it was encrypted with (-k/--key)"
    if request.verify and not sources:
        yield "--verify needs a payload key: give one of -k, -f and --cert"
    if request.include and not request.cert:
        yield "--include adds files to the package of --cert, which was not given"


def check_request(request: Request) -> None:
    """Refuse what can be known to be wrong before anything is sent. Raises TenantError."""
    for problem in _user_errors(request):
        raise TenantError(problem)
    if request.command not in COMMANDS:
        raise TenantError(f"Invalid command specified: {request.command}")


def valid_agent_id(text: str) -> bool:
    """Say whether an id may stand in a path."""
    return len(text) <= MAX_AGENT_ID and AGENT_ID.fullmatch(text) is not None and text not in {".", ".."}
