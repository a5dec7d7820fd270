"""Runtime and measured boot policies as operators handle them: stored, replaced, named by enrolments, deleted.

What a policy demands is decided in `policy` and `appraisal`, which text a name stands for in `shelf`. Knows no HTTP.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from limeguard.policy.runtime import EMPTY_POLICY_TEXT, parse_runtime_policy
from limeguard.store.database import Conflict
from limeguard.store.node_record import Enrolled, NodeRecord
from limeguard.telemetry import clean, get_logger
from limeguard.verifier.boot_policies import NOTHING_ASKED, BootPolicyShelf
from limeguard.verifier.fleet import Node
from limeguard.verifier.policies import Accepted, PolicyShelf, decode_upload, policy_answer
from limeguard.verifier.refused import Refused
from limeguard.wire import verifier_v2

log = get_logger("keylime.verifier")


class Notes(Protocol):
    """Where rows of nodes say something of their policies."""

    async def note_policy(self, name: str, /, *, says: bool) -> None:
        """Note of all nodes with this runtime policy whether it allows anything."""
        ...

    async def note_boot_policy(self, name: str, /, *, says: bool) -> None:
        """Note of all nodes with this measured boot policy whether there is any text in it."""
        ...


class PolicyDesk:
    """The policies of one verifier. Every method may raise StoreUnavailable."""

    def __init__(self, rows: Notes, nodes: Iterable[Node], shelf: PolicyShelf, boot_shelf: BootPolicyShelf) -> None:
        """Handle what the shelves hold; `nodes` are those that this worker supervises, whenever it is iterated."""
        self._rows = rows
        self._nodes = nodes
        self._shelf = shelf
        self._boot_shelf = boot_shelf
        shelf.changed = self._note_in_memory
        boot_shelf.changed = self._note_boot_in_memory

    # --- what nodes need ----------------------------------------------------------------------------------------------

    async def load(self, records: Sequence[NodeRecord]) -> None:
        """Have the policies of these nodes ready."""
        enrolled = [record.enrolled for record in records]
        await self._shelf.load({name for one in enrolled if (name := one.runtime_policy_name) is not None})
        await self._boot_shelf.load({name for one in enrolled if (name := one.mb_policy_name) is not None})

    async def refresh(self) -> None:
        """Go by what the policies say now."""
        await self._shelf.refresh()
        await self._boot_shelf.refresh()

    async def settled(self, enrolled: Enrolled, request: verifier_v2.EnrolmentRequest) -> Enrolled:
        """Have the policies of an enrolment stored and ready, and note what they say. Raises BadRequest, Refused."""
        if enrolled.runtime_policy_name is not None:
            judged = await self._runtime_policy(enrolled.runtime_policy_name, request)
            enrolled = replace(enrolled, has_runtime_policy=judged)
        if enrolled.mb_policy_name is not None:
            judged = await self._boot_policy(enrolled.mb_policy_name, request.mb_policy)
            enrolled = replace(enrolled, has_mb_policy=judged)
        return enrolled

    async def _runtime_policy(self, name: str, request: verifier_v2.EnrolmentRequest) -> bool:
        """Have the node's policy stored and ready; say whether it allows anything. Raises BadRequest, Refused."""
        named = bool(request.runtime_policy_name)
        if request.runtime_policy:
            accepted = await self._shelf.accept(request.runtime_policy, request.runtime_policy_key)
            if not named:
                await self._shelf.put(name, accepted)
            else:
                try:
                    await self._shelf.add(name, accepted)
                except Conflict:
                    raise Refused(409, verifier_v2.policy_exists(name)) from None
        elif named:
            if await self._shelf.fetch(name) is None:
                raise Refused(404, f"Could not find IMA policy with name {name}!")
        else:
            await self._shelf.put(name, Accepted(EMPTY_POLICY_TEXT, parse_runtime_policy(EMPTY_POLICY_TEXT)))
        policy = self._shelf.current(name)
        return policy is not None and policy.says_something

    async def _boot_policy(self, name: str, text: str | None) -> bool:
        """Have the node's measured boot policy stored and ready; say whether it has a text. Raises BadRequest, Refused.

        Without a text a stored one is meant.
        """
        if text:
            try:
                await self._boot_shelf.add(name, await self._boot_shelf.accept(text))
            except Conflict:
                raise Refused(409, verifier_v2.boot_policy_exists(name)) from None
            return True
        row = await self._boot_shelf.fetch(name)
        if row is None:
            raise Refused(404, f"Could not find mb_policy with name {name}!")
        return row.text is not None

    # --- runtime policies ---------------------------------------------------------------------------------------------

    async def policy_names(self) -> tuple[str, ...]:
        """Return the names of all runtime policies."""
        return await self._shelf.names()

    async def runtime_policy(self, name: str) -> dict[str, object]:
        """Return one runtime policy as the wire has it. Raises Refused."""
        row = await self._shelf.get(name)
        if row is None:
            raise Refused(404, f"Runtime policy {clean(name, 255)} not found")
        return policy_answer(row)

    async def store_policy(self, name: str, body: bytes, *, replace: bool) -> None:
        """Store a new runtime policy, or a new text for an old one. Raises BadRequest, Refused."""
        policy, key, tpm_policy = decode_upload(body)
        accepted = await self._shelf.accept(policy, key)
        if replace:
            if not await self._shelf.replace(name, accepted, tpm_policy):
                text = f"Runtime policy with name {clean(name, 255)} does not already exist, use POST to create"
                raise Refused(404, text)
            log.info("Runtime policy %s was replaced", clean(name))
            await self._note_policy(name)
            return
        try:
            await self._shelf.add(name, accepted, tpm_policy)
        except Conflict:
            raise Refused(409, f"Runtime policy with name {clean(name, 255)} already exists") from None

    async def _note_policy(self, name: str) -> None:
        """Have nodes say whether their policy, which was replaced, allows anything."""
        await self._rows.note_policy(name, says=self._note_in_memory(name))

    def _note_in_memory(self, name: str) -> bool:
        policy = self._shelf.current(name)
        says = policy is not None and policy.says_something
        for node in self._nodes:
            if node.record.enrolled.runtime_policy_name == name:
                node.note_enrolled(replace(node.record.enrolled, has_runtime_policy=says))
        return says

    async def delete_policy(self, name: str) -> None:
        """Delete a runtime policy that no node uses. Raises Refused."""
        outcome = await self._shelf.delete(name)
        if outcome is False:
            raise Refused(404, f"Runtime policy {clean(name, 255)} not found")
        if isinstance(outcome, str):
            raise Refused(409, f"Can't delete allowlist as it's currently in use by agent {outcome}")

    # --- measured boot policies ---------------------------------------------------------------------------------------

    async def boot_policy_names(self) -> tuple[str, ...]:
        """Return the names of all measured boot policies."""
        return await self._boot_shelf.names()

    async def boot_policy(self, name: str) -> str | None:
        """Return the text of one measured boot policy, None where it is null. Raises Refused."""
        row = await self._boot_shelf.get(name)
        if row is None:
            raise Refused(404, f"Measured boot policy {clean(name, 255)} not found")
        return row.text

    async def store_boot_policy(self, name: str, body: bytes, *, replace: bool) -> None:
        """Store a new measured boot policy, or a new text for an old one. Raises BadRequest, Refused."""
        accepted = await self._boot_shelf.accept(verifier_v2.decode_boot_policy(body).mb_policy)
        if replace:
            if not await self._boot_shelf.replace(name, accepted):
                # 409, not 404: peers have always answered so.
                raise Refused(409, f"Measured boot policy with name {clean(name, 255)} does not already exist")
            log.info("Measured boot policy %s was replaced", clean(name))
            await self._rows.note_boot_policy(name, says=self._note_boot_in_memory(name))
            return
        try:
            await self._boot_shelf.add(name, accepted)
        except Conflict:
            raise Refused(409, f"Measured boot policy with name {clean(name, 255)} already exists") from None

    def _note_boot_in_memory(self, name: str) -> bool:
        """Have nodes show whether there is a text in their measured boot policy, which was replaced."""
        policy = self._boot_shelf.current(name)
        says = policy is not None and policy.text != NOTHING_ASKED
        for node in self._nodes:
            if node.record.enrolled.mb_policy_name == name:
                node.note_enrolled(replace(node.record.enrolled, has_mb_policy=says))
        return says

    async def delete_boot_policy(self, name: str) -> None:
        """Delete a measured boot policy that no node uses. Raises Refused."""
        outcome = await self._boot_shelf.delete(name)
        if outcome is False:
            raise Refused(404, f"Measured boot policy {clean(name, 255)} not found")
        if isinstance(outcome, str):
            raise Refused(409, f"Can't delete mb_policy as it's currently in use by agent {outcome}")
