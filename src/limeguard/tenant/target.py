"""Where a node is reached: by the tenant, and by the verifier if that differs."""

import re
from dataclasses import dataclass

from limeguard.tenant.errors import TenantError
from limeguard.tenant.request import Request
from limeguard.wire.operator_view import Registration

_VERSION = re.compile(r"2\.[0-9]{1,3}")


@dataclass(frozen=True, slots=True)
class Target:
    """A node's address. `verifier_host` is the one that the verifier is told."""

    node: str
    host: str
    port: int
    verifier_host: str

    @property
    def shown(self) -> str:
        """The node as messages show it."""
        return f"Agent {self.node} ({self.host}:{self.port})"

    @property
    def supervised(self) -> str:
        """The node as the verifier reaches it."""
        return f"Agent {self.node} ({self.verifier_host}:{self.port})"


def find_target(request: Request, registration: Registration) -> Target:
    """Take the address from the options, else from the registration. Raises TenantError when neither has one."""
    for version in (request.agent_api_version, request.supported_version):
        if version is not None and not _VERSION.fullmatch(version):
            raise TenantError(f"--agent-api-version {version}: agents speak versions such as 2.6")
    host = request.agent_host or registration.ip
    port = request.agent_port or registration.port
    if (host is None or port is None) and not request.push_model:
        raise TenantError(f"Agent {request.node} registered no address: say it with -t and -tp")
    return Target(request.node, host or "", port or 0, request.verifier_agent_host or host or "")
