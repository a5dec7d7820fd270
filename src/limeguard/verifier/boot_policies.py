"""Measured boot policies as objects: what may be stored of an upload.

What a policy demands of a boot log is decided in `policy.boot` and `appraisal`; which one a name stands for now, in
`shelf`.
"""

import asyncio
import hashlib
from dataclasses import dataclass
from typing import Final

from limeguard.policy.boot import BootPolicy, parse_boot_policy, stored_boot_policy
from limeguard.policy.errors import PolicyError
from limeguard.store.boot_policies import StoredBootPolicy
from limeguard.verifier.shelf import PolicyRows, Shelf
from limeguard.wire.envelope import BadRequest

NOTHING_ASKED: Final = "{ }"
"""What a policy says that was stored as null: nothing is asked of the boot. With a blank, unlike what people write."""
SHOWN_PROBLEMS: Final = 20


@dataclass(frozen=True, slots=True)
class AcceptedBoot:
    """A policy that may be stored: its text as uploaded, None for null, and compiled."""

    text: str | None
    policy: BootPolicy

    def stored(self, name: str) -> StoredBootPolicy:
        """Return the row of that name."""
        said = b"null" if self.text is None else self.text.encode("utf-8", "surrogateescape")
        return StoredBootPolicy(name, self.text, hashlib.sha256(said).hexdigest())


def accept_boot(text: str | None, policy_name: str) -> AcceptedBoot:
    """Judge an upload by the policy of the setting `measured_boot_policy_name`. Raises BadRequest with all problems."""
    try:
        return AcceptedBoot(text, parse_boot_policy(NOTHING_ASKED if text is None else text, policy_name))
    except PolicyError as problem:
        raise BadRequest(f"Measured boot policy cannot be used: {_shown(problem.problems)}") from None


def _shown(problems: tuple[str, ...]) -> str:
    more = len(problems) - SHOWN_PROBLEMS
    return "; ".join([*problems[:SHOWN_PROBLEMS], f"and {more} more"] if more > 0 else problems)


class BootPolicyShelf(Shelf[StoredBootPolicy, BootPolicy]):
    """Measured boot policies by name, all judged by the one that the setting `measured_boot_policy_name` names."""

    def __init__(self, rows: PolicyRows[StoredBootPolicy], policy_name: str) -> None:
        """Keep what `rows` hold."""
        super().__init__(rows, self._stored, "Measured boot policy")
        self._policy_name = policy_name

    def _stored(self, row: StoredBootPolicy) -> BootPolicy:
        """Compile a row; one that cannot be used, perhaps of another verifier, makes a policy that nothing passes."""
        return stored_boot_policy(NOTHING_ASKED if row.text is None else row.text, self._policy_name)

    async def accept(self, text: str | None) -> AcceptedBoot:
        """Judge an upload outside of the loop. Raises BadRequest."""
        return await asyncio.to_thread(accept_boot, text, self._policy_name)

    async def add(self, name: str, accepted: AcceptedBoot) -> None:
        """Store a new policy. Raises Conflict."""
        await self.add_row(accepted.stored(name), accepted.policy)

    async def replace(self, name: str, accepted: AcceptedBoot) -> bool:
        """Replace a policy; nodes are judged by the new one from their next answer on. False when there is none."""
        return await self.replace_row(accepted.stored(name), accepted.policy)
