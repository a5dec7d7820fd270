"""Rounds with nodes that attest by themselves: what they are asked for, what they send, and the verdict on it.

Decides which message is in order. What evidence is worth is decided by appraisal, what follows from it by the
lifecycle; both are those of the nodes that are polled. A challenge is taken once, by evidence that is complete; the
verdict is made after the answer.
"""

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import ceil
from typing import Final, Protocol

from limeguard.appraisal.appraise import Evidence, Expected, appraise
from limeguard.appraisal.boot import BootMemo
from limeguard.appraisal.runtime import RuntimeExpected
from limeguard.appraisal.verdict import Appraisal, Outcome
from limeguard.policy.boot import BootPolicy
from limeguard.store.node_record import Enrolled
from limeguard.telemetry import clean, get_logger
from limeguard.verifier import lifecycle
from limeguard.verifier.engine import Engine
from limeguard.verifier.fleet import Node
from limeguard.verifier.poller import LONG_LIST, Facts, Judge, NoBootPolicyError, history_of, is_new_boot_log
from limeguard.verifier.push.attestation import Attestation
from limeguard.verifier.push.attestation_log import AttestationLog
from limeguard.verifier.push.evidence import event_of, evidence_of, failure_reason, has_boot_log, offset_of
from limeguard.verifier.push.negotiation import CHALLENGE_BYTES, Progress, Wanted, checked_pcrs, negotiate
from limeguard.verifier.supervision import PAUSED
from limeguard.wire.attestation_v3 import (
    COMPLETE,
    EVALUATING,
    encode_attributes,
    read_evidence,
    show,
    without_logs,
)
from limeguard.wire.jsonapi import decode_resource
from limeguard.wire.offer_v3 import decode_request, read_offer
from limeguard.wire.verifier_v3 import FAIL, PASS

log = get_logger("keylime.verifier")

RESERVED_AT_ONCE: Final = 64
"""Numbers of attestations that are reserved with one write: one is never given twice, not even after a crash."""
THREADS: Final = 2
"""Long logs that are judged at once, beside the loop."""
MAX_WAITING_CHARS: Final = 256 * 1024 * 1024
"""Characters of long logs that may wait for their verdict."""
KEPT_LOG: Final = 256 * 1024
"""Bytes of a log up to which it is kept with the record of an attestation."""
BUSY_SECONDS: Final = 1
"""Seconds after which an agent may ask again whose last evidence is still being judged."""


class PushRefused(Exception):  # noqa: N818 - an answer, not a fault
    """The message is not in order; `code` and `detail` are the answer."""

    def __init__(self, status: int, code: str, detail: str, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.retry_after = status, code, detail, retry_after


Watched = Callable[[Node], AbstractContextManager[object]]
"""Makes something around the judgement of a node's evidence, such as a span."""


def unwatched(_node: Node) -> AbstractContextManager[object]:
    """Make nothing."""
    return _NOTHING


_NOTHING: Final = nullcontext()


class Tokens(Protocol):
    """What is needed of sessions."""

    def reset_count(self, agent_id: str, /) -> int | None:
        """Return how often the agent's TPM had been reset when it proved itself."""
        ...

    def passed(self, agent_id: str, /) -> None:
        """Let the agent's token live on."""
        ...


@dataclass(frozen=True, slots=True)
class PushRules:
    """How attestations are taken. Times are seconds."""

    quote_interval: float
    challenge_lifetime: float = 1800.0


class Grounds(Protocol):
    """What evidence is judged by, as it is in force when it is asked for."""

    @property
    def boot_memo(self) -> BootMemo | None:
        """Verdicts of boot logs that were judged before."""
        ...

    def runtime(self, enrolled: Enrolled, /) -> RuntimeExpected | None:
        """Return what judges the node's IMA log."""
        ...

    def boot(self, enrolled: Enrolled, /) -> BootPolicy | None:
        """Return what judges the node's boot log, None where nothing was to. Raises for a policy that is gone."""
        ...


class AskedBeforeError(Exception):
    """The node's policy asks for more since its evidence was asked for, which is nothing to hold against the node."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Evidence that was taken: its attestation, and how long the agent waits before the next one."""

    attestation: Attestation
    seconds_to_next: int


class PushRounds:
    """Takes offers and evidence of the nodes of one engine."""

    def __init__(
        self,
        engine: Engine,
        tokens: Tokens,
        records: AttestationLog,
        grounds: Grounds,
        rules: PushRules,
        *,
        now: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = secrets.token_bytes,
        judge: Judge = appraise,
        watched: Watched = unwatched,
    ) -> None:
        """Judge by what `grounds` say of a node at that moment. `now` is seconds since 1970."""
        self._engine, self._tokens, self._records = engine, tokens, records
        self._grounds, self._rules = grounds, rules
        self._now, self._random = now, random
        self._judge, self._watched = judge, watched
        self._threads = asyncio.Semaphore(THREADS)
        self._waiting_chars = 0
        self._tasks: set[asyncio.Task[None]] = set()

    # --- offers ------------------------------------------------------------------------------------------------------

    async def negotiate(self, agent_id: str, body: bytes) -> Attestation:
        """Answer an offer with what is to be sent. Raises PushRefused, NotADocument, Invalid, StoreUnavailable."""
        resource = None if self._offered_before(agent_id, body) else decode_request(body)
        node = self._node(agent_id)
        self._check_turn(node)
        await self._reserve(node)
        self._check_turn(node)
        # From here on nothing waits: what is asked for fits what is proven at this moment.
        latest = self._offered_before(agent_id, body)
        offer = latest.offer if latest is not None else read_offer(resource or decode_request(body))
        challenge = self._random(CHALLENGE_BYTES)
        state = node.state
        clock = state.clock
        progress = Progress(state.ima.next_entry, state.boottime, None if clock is None else clock.reset_count)
        resets, wanted = self._tokens.reset_count(agent_id), self._wanted(node)
        known = latest.requested[0] if latest is not None and has_boot_log(latest) == wanted.boot_log else None
        requested, entries = negotiate(offer, wanted, progress, challenge, resets, known)
        number, now = node.next_attestation, self._now()
        node.next_attestation += 1
        node.attestation = Attestation(
            number=number,
            generation=node.generation,
            offer_body=body if latest is None else latest.offer_body,
            offer=offer,
            challenge=challenge,
            requested=requested,
            offset=offset_of(requested),
            entries_due=entries,
            boot_time=offer.boot_time,
            created_at=now,
            expires_at=now + self._rules.challenge_lifetime,
            before=node.attestation if node.attestation is None or node.attestation.done else node.attestation.before,
        )
        log.debug("Created attestation %d for agent '%s', sending chosen parameters", number, agent_id)
        return node.attestation

    def _wanted(self, node: Node) -> Wanted:
        """Return what a node is held to now."""
        enrolled = node.record.enrolled
        return Wanted(
            ak=node.ak,
            accept_hash=enrolled.accept_hash,
            accept_sign=enrolled.accept_sign,
            pcrs=frozenset(node.policy.allowed),
            boot_log=self._judges_boot(enrolled),
            ima_log=enrolled.runtime_policy_name is not None,
        )

    def _judges_boot(self, enrolled: Enrolled) -> bool:
        """Say whether the boot log is judged; it is asked for as well where its policy is gone, which is no verdict."""
        try:
            policy = self._grounds.boot(enrolled)
        except NoBootPolicyError:
            return True
        return policy is not None and policy.active

    def _offered_before(self, agent_id: str, body: bytes) -> Attestation | None:
        """Return the node's latest attestation when it began with the very same offer."""
        node = self._engine.fleet.get(agent_id)
        latest = None if node is None else node.attestation
        return latest if latest is not None and latest.offer_body == body else None

    def _node(self, agent_id: str) -> Node:
        node = self._engine.fleet.get(agent_id)
        if node is None:
            raise PushRefused(404, "not_found", f"No enrolled agent with ID '{agent_id}'.")
        if not node.record.enrolled.push:
            raise _disabled(agent_id, "It is enrolled as a node that the verifier polls.")
        if node.state.phase in PAUSED:
            raise _disabled(agent_id, "An operator has stopped it; reactivate it to go on.")
        return node

    def _check_turn(self, node: Node) -> None:
        """Refuse an offer that comes before its time."""
        latest, now = node.attestation, self._now()
        if latest is not None and latest.judging:
            detail = f"The last evidence of agent '{node.agent_id}' is still being evaluated."
            raise PushRefused(503, "verification_in_progress", detail, BUSY_SECONDS)
        wait = self._seconds_to_next(node, now)
        if wait > 0:
            detail = (
                f"Cannot create attestation for agent '{node.agent_id}' before the configured interval has elapsed. "
                f"Wait {wait} seconds before trying again."
            )
            raise PushRefused(429, "premature_attestation", detail, wait)

    def _seconds_to_next(self, node: Node, now: float) -> int:
        """Return after how many whole seconds the next offer is welcome."""
        latest = node.attestation
        last = node.state.last_received_quote
        if latest is not None and latest.received_at is not None:
            last = max(last, latest.received_at)
        if last > now:
            return 0  # the clock was set back: nobody is kept waiting for that
        return max(ceil(last + self._rules.quote_interval - now), 0)

    async def _reserve(self, node: Node) -> None:
        """See that the next number is one that no other attestation of the node has or had."""
        if node.next_attestation < node.state.attestation_limit:
            return
        if node.reserving:
            detail = (
                f"Cannot create attestation for agent '{node.agent_id}' while another creation attempt is in progress."
            )
            raise PushRefused(409, "conflict", detail)
        generation = node.generation
        node.reserving = True
        try:
            limit = node.next_attestation + RESERVED_AT_ONCE
            stored = await asyncio.shield(self._engine.reserve_attestations(node, limit))
        finally:
            node.reserving = False
        if not stored or self._engine.fleet.get(node.agent_id) is not node or node.generation != generation:
            raise PushRefused(409, "conflict", f"Agent '{node.agent_id}' was changed meanwhile.")

    # --- evidence ----------------------------------------------------------------------------------------------------

    def submit(self, agent_id: str, number: int | None, body: bytes) -> Taken:
        """Take evidence for an attestation, the latest when None, and have it judged.

        Raises PushRefused, NotADocument, NoEvidence, Invalid.
        """
        resource = decode_resource(body)
        node = self._node(agent_id)
        latest = self._addressed(node, number)
        digest = hashlib.sha256(body).digest()
        now = self._now()
        if latest.body_sha256 is not None:
            if latest.body_sha256 != digest:
                raise PushRefused(403, "evidence_immutable", "Evidence for this attestation was received already.")
            return Taken(latest, self._seconds_to_next(node, now))  # a repetition, after an answer that was lost
        if not latest.created_at <= now <= latest.expires_at or latest.generation != node.generation:
            raise PushRefused(403, "challenges_expired", "The challenges of this attestation have expired.")
        collected = read_evidence(resource, latest.requested, latest.entries_due)
        size = len(collected.ima_log or "") + len(collected.boot_log or b"")
        if size > LONG_LIST and self._waiting_chars + size > MAX_WAITING_CHARS:
            raise PushRefused(503, "verification_in_progress", "Too much evidence waits for its verdict.", BUSY_SECONDS)
        latest.body_sha256, latest.received_at, latest.stage = digest, now, EVALUATING
        latest.shown = show(latest.requested, collected)
        latest.judging = True
        evidence = evidence_of(node, latest, collected)
        if size > LONG_LIST or is_new_boot_log(node, len(collected.boot_log or b""), self._grounds.boot_memo):
            self._waiting_chars += size
            task = asyncio.create_task(self._judge_long(node, latest, evidence, size))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            asyncio.get_running_loop().call_soon(self._judge_now, node, latest, evidence)
        return Taken(latest, self._seconds_to_next(node, now))

    def _addressed(self, node: Node, number: int | None) -> Attestation:
        latest = node.attestation
        if latest is None or (number is not None and number > latest.number):
            which = "No attestation" if number is None else f"No attestation {number}"
            raise PushRefused(404, "not_found", f"{which} exists for agent '{node.agent_id}'.")
        if number is not None and number != latest.number:
            detail = f"Attestation {number} of agent '{node.agent_id}' is not the latest one."
            raise PushRefused(403, "old_attestation", detail)
        return latest

    # --- verdicts ----------------------------------------------------------------------------------------------------

    def _judge_now(self, node: Node, attestation: Attestation, evidence: Evidence) -> None:
        try:
            self._begin(node, attestation)
            expected = self._expected(node, attestation)
            with self._watched(node):
                appraisal = self._judge(evidence, expected, history_of(node.state), attestation.received_at or 0.0)
            self._conclude(node, attestation, appraisal)
        except Exception as problem:  # noqa: BLE001 - whatever it is, it is ours, and no verdict
            self._our_fault(node, attestation, problem)
        finally:
            attestation.judging = False

    async def _judge_long(self, node: Node, attestation: Attestation, evidence: Evidence, size: int) -> None:
        """Judge beside the loop: seconds of work for a list of a million lines, other nodes must not wait for it."""
        try:
            async with self._threads:
                self._begin(node, attestation)
                expected, history = self._expected(node, attestation), history_of(node.state)
                received = attestation.received_at or 0.0
                with self._watched(node):
                    appraisal = await asyncio.to_thread(self._judge, evidence, expected, history, received)
            self._conclude(node, attestation, appraisal)
        except Exception as problem:  # noqa: BLE001 - whatever it is, it is ours, and no verdict
            self._our_fault(node, attestation, problem)
        finally:
            attestation.judging = False
            self._waiting_chars -= size

    def _begin(self, node: Node, attestation: Attestation) -> None:
        agent = clean(node.agent_id)
        log.debug("Starting verification of attestation %d for agent '%s'...", attestation.number, agent)
        self._engine.fleet.counters.rounds += 1

    def _expected(self, node: Node, attestation: Attestation) -> Expected:
        """Return what is good evidence now. Raises what is our own fault: then there is no verdict."""
        enrolled = node.record.enrolled
        boot_policy = self._grounds.boot(enrolled)
        if boot_policy is not None and boot_policy.active and not has_boot_log(attestation):
            raise AskedBeforeError("the measured boot policy asks for a log since the evidence was asked for")
        return Expected(
            ak=node.ak,
            nonce=attestation.challenge,
            nonce_expires=attestation.expires_at,
            accept_hash=enrolled.accept_hash,
            accept_enc=enrolled.accept_enc,
            accept_sign=enrolled.accept_sign,
            pcrs=node.policy,
            required_selection=frozenset(checked_pcrs(attestation.requested)),
            # Enrolment refuses what is not judged, so a policy without values is what the operator asked for.
            identity_only_allowed=True,
            runtime=self._grounds.runtime(enrolled),
            binds_key=False,
            boot_policy=boot_policy,
            boot_memo=self._grounds.boot_memo,
        )

    def _conclude(self, node: Node, attestation: Attestation, appraisal: Appraisal) -> None:
        """Note the verdict, and step the node by it unless an operator has spoken since the challenge was made."""
        current = self._engine.fleet.get(node.agent_id) is node and node.generation == attestation.generation
        event = event_of(appraisal, attestation.received_at or 0.0)
        if isinstance(event, lifecycle.OurFault):
            log.error(
                "Attestation %d for agent '%s' is not decided: %s", attestation.number, node.agent_id, event.reason
            )
        else:
            self._note(node, attestation, appraisal)
        if not current:
            return
        if appraisal.outcome is Outcome.TRUSTED:
            self._tokens.passed(node.agent_id)
        checked = len(appraisal.required & appraisal.ran) > 1
        self._engine.apply(node, event, Facts(appraisal, attestation.received_at if checked else None, "", "", ""))
        self._engine.count_verdict(node)

    def _note(self, node: Node, attestation: Attestation, appraisal: Appraisal) -> None:
        passed, agent = appraisal.outcome is Outcome.TRUSTED, clean(node.agent_id)
        attestation.stage, attestation.completed_at = COMPLETE, self._now()
        attestation.evaluation = PASS if passed else FAIL
        if passed:
            log.info("Attestation %d for agent '%s' successfully passed verification", attestation.number, agent)
        else:
            attestation.failure_reason = failure_reason(appraisal.findings)
            reason = attestation.failure_reason
            log.warning("Attestation %d for agent '%s' failed verification (%s)", attestation.number, agent, reason)
        if attestation.shown is not None:
            attestation.shown = without_logs(attestation.shown, KEPT_LOG)
        if self._engine.fleet.get(node.agent_id) is node:
            self._records.add(node.agent_id, attestation, attestation.before)
        attestation.before = None

    def _our_fault(self, node: Node, attestation: Attestation, problem: Exception) -> None:
        """Note a fault of this program, which is no verdict: trust runs out by itself, and the agent comes again."""
        log.error("Error while judging attestation %d of agent %s", attestation.number, node.agent_id, exc_info=problem)
        self._engine.fleet.counters.faults += 1
        if self._engine.fleet.get(node.agent_id) is node and node.generation == attestation.generation:
            self._engine.apply(node, lifecycle.OurFault(f"{type(problem).__name__} in this verifier"))

    async def drain(self, seconds: float) -> None:
        """Let verdicts that are being made end for so long, then give them up; keep the latest of each node."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in self._tasks:
            task.cancel()
        self._records.keep_latest(self._engine.fleet)

    # --- questions ---------------------------------------------------------------------------------------------------

    async def attestations(self, agent_id: str) -> list[tuple[int, bytes]]:
        """Return number and attributes of what is known of a node's attestations. Raises PushRefused."""
        node = self._engine.fleet.get(agent_id)
        if node is None:
            raise PushRefused(404, "not_found", f"No enrolled agent with ID '{agent_id}'.")
        found = dict(await self._records.of(agent_id))
        latest = node.attestation
        for one in () if latest is None else (latest, latest.before):
            if one is not None:
                found[one.number] = encode_attributes(one.view)
        return sorted(found.items())

    async def attestation(self, agent_id: str, number: int | None) -> tuple[int, bytes]:
        """Return one attestation, the latest when None. Raises PushRefused."""
        found = await self.attestations(agent_id)
        for one in reversed(found):
            if number is None or one[0] == number:
                return one
        which = "No attestation" if number is None else f"No attestation {number}"
        raise PushRefused(404, "not_found", f"{which} exists for agent '{agent_id}'.")


def _disabled(agent_id: str, why: str) -> PushRefused:
    detail = f"Attestations for agent '{agent_id}' are currently disabled. {why}"
    return PushRefused(403, "agent_attestations_disabled", detail)
