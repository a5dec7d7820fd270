"""Everything one run of the tenant works with, handed down once: rules, request, connections, report, time, chance."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from limeguard.tenant.ekcheck import EkRules
from limeguard.tenant.identity import AcceptLists, Choose
from limeguard.tenant.payload import CertificateAuthority, Randomness
from limeguard.tenant.report import Report, warning
from limeguard.tenant.request import Request
from limeguard.tenant.retry import Retry
from limeguard.tenant.servers import Server
from limeguard.web.client import HttpClient


@dataclass(frozen=True, slots=True)
class Rules:
    """What the settings say, apart from addresses. Sizes in bytes, `max_payload_size` in characters of base64.

    `default_boot_policy` is the file that `--mb-policy default` stands for, "" for none.
    """

    accept: AcceptLists
    ek: EkRules
    retry: Retry
    max_payload_size: int
    agent_tls: bool
    default_boot_policy: str = ""


@dataclass(slots=True)
class Edges:
    """What reaches outside: HTTP clients, the clock, sleep and the system's random source."""

    agents: HttpClient
    downloads: HttpClient
    now: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    randomness: Randomness
    choose: Choose


@dataclass(slots=True)
class Context:
    """One run: what was asked, by which rules, with what, and where the answers go.

    `verifier` and `verifier_id` change when a record says that another verifier supervises the node.
    """

    request: Request
    rules: Rules
    edges: Edges
    report: Report
    registrar: Server
    verifier: Server
    verifier_id: str
    authority: Callable[[str], CertificateAuthority]
    _warned: bool = False

    @property
    def verifier_shown(self) -> str:
        """The verifier as messages show it, with its id once that is known."""
        name = f"Verifier {self.verifier_id}" if self.verifier_id else "Verifier"
        return f"{name} ({self.verifier.shown})"

    @property
    def registrar_shown(self) -> str:
        """The registrar as messages show it."""
        return f"Registrar ({self.registrar.shown})"

    async def pause(self, attempt: int) -> None:
        """Wait before the next try; attempts count from 1."""
        await self.edges.sleep(self.delay(attempt))

    def delay(self, attempt: int) -> float:
        """Return the seconds that `pause` waits."""
        retry = self.rules.retry
        if retry.constant_despite_backoff and not self._warned:
            self._warned = True
            warning(self.report, f"Base {retry.interval:f} incompatible with exponential backoff")
        return retry.delay(attempt)
