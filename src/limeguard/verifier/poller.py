"""One job with one agent: ask, judge, and say what came of it as an event of the lifecycle.

Decides nothing about the node's future and writes nothing. An exception that leaves `perform` is our own fault; what
agents do wrong comes back as an event.
"""

import asyncio
import secrets
import time
from base64 import b64decode
from collections.abc import Callable
from functools import lru_cache
from typing import Final, Protocol, TypeVar

import msgspec
from msgspec import structs

from limeguard.appraisal.appraise import Evidence, Expected, appraise, unreadable
from limeguard.appraisal.boot import BootMemo
from limeguard.appraisal.findings import BOOT_LOG_BASE64, BOOT_LOG_MALFORMED, Finding
from limeguard.appraisal.history import History
from limeguard.appraisal.ima.memo import LineMemo
from limeguard.appraisal.runtime import RuntimeExpected
from limeguard.appraisal.verdict import Appraisal, Check, Outcome
from limeguard.clients.agent import AgentClient, AgentRefused
from limeguard.crypto.keysplit import KeyShareError, encrypt_key_share
from limeguard.policy.boot import BootPolicy
from limeguard.policy.keyring import Keyring, parse_keyring
from limeguard.policy.runtime import RuntimePolicy
from limeguard.store.node_record import Enrolled, NodeState
from limeguard.telemetry import clean, get_logger
from limeguard.verifier import lifecycle
from limeguard.verifier.challenge import NONCE_BYTES, QuoteRequest, ask
from limeguard.verifier.fleet import Node
from limeguard.verifier.lifecycle import Event
from limeguard.verifier.supervision import Job
from limeguard.web.answers import NoRoom, Unreachable
from limeguard.wire import versions
from limeguard.wire.agent_v2 import BadAnswer, QuoteAnswer, decode_boot_log

log = get_logger("keylime.verifier")

LONG_LIST: Final = 256 * 1024
"""Characters of a measurement list that are judged beside the loop, not in it: about 2,000 lines, 6 ms."""
LONG_BOOT_LOG: Final = 32 * 1024
"""Characters of a boot log that are judged beside the loop where it is a new one: about 100 events, 1 ms."""
MAX_BOOT_VERDICTS: Final = 1 << 18
"""Verdicts of boot logs that are kept: more than nodes in one process, or none would still be there when it is needed.
"""
NO_ANSWER: Final = frozenset({408, 500, 599})
"""Statuses that count as no answer and are tried again (Keylime REST API, how the verifier calls the agent)."""


Judge = Callable[[Evidence, Expected, History, float], Appraisal]


class Facts(msgspec.Struct, frozen=True):
    """What a round learned beside its event. `answered_at` is None when no quote was checked."""

    appraisal: Appraisal
    answered_at: float | None
    hash_alg: str
    enc_alg: str
    sign_alg: str


class Result(msgspec.Struct, frozen=True):
    """What came of a job."""

    event: Event
    facts: Facts | None = None


class NoBootPolicyError(Exception):
    """The measured boot policy of a node is not there, so that nobody can say whether it booted as it should."""


def history_of(state: NodeState) -> History:
    """Return what earlier rounds proved."""
    return History(state.clock, state.public_key, state.ima, state.boottime)


PolicyT_co = TypeVar("PolicyT_co", covariant=True)


class Policies(Protocol[PolicyT_co]):
    """Policies of one kind by name, as they are in force now."""

    def current(self, name: str, /) -> PolicyT_co | None:
        """Return the policy of that name; None when there is none that can be used."""
        ...


@lru_cache(maxsize=256)
def _keyring(text: str) -> Keyring:
    return parse_keyring(text)


class Poller:
    """Does jobs, any number at once; holds no state of any node."""

    def __init__(
        self,
        agents: AgentClient,
        *,
        answer_within: float,
        policies: Policies[RuntimePolicy],
        boot_policies: Policies[BootPolicy],
        violations_found: bool = True,
        boot_always: bool = False,
        judge: Judge = appraise,
        now: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """Use these calls; a nonce expires after `answer_within` seconds. `now` is seconds since 1970.

        Policies are asked for when an answer is there, so that it is judged by what is in force then, by `judge`.
        `boot_always` judges each boot log that comes, also when nothing changed since the last one.
        """
        self._judge = judge
        self._policies = policies
        self._boot_policies = boot_policies
        self.boot_memo = None if boot_always else BootMemo(MAX_BOOT_VERDICTS)
        self._violations_found = violations_found
        self._memo = LineMemo()
        self._agents = agents
        self._answer_within = answer_within
        self._now = now
        self._random = random

    async def perform(self, node: Node, job: Job) -> Result:
        """Do one job. Raises whatever is our own fault."""
        try:
            if job is Job.DELIVER_KEY:
                return Result(await self._deliver(node))
            return await self._round(node, partial=job is Job.PARTIAL_ROUND)
        except Unreachable as problem:
            return Result(_unreached(problem))
        except AgentRefused as refused:
            return Result(await self._refused(node, refused))
        except NoBootPolicyError as missing:
            return Result(lifecycle.OurFault(f"there is no measured boot policy with name {clean(missing, 255)}"))

    async def _round(self, node: Node, *, partial: bool) -> Result:
        appraisal, answer = await self._asked(node, history_of(node.state), partial=partial)
        if appraisal.outcome is Outcome.INCOMPLETE and Check.IMA_LOG in appraisal.not_run and answer is not None:
            # The machine was started again, so the answer continued a list that is gone: ask for the new one at once.
            appraisal, answer = await self._asked(node, appraisal.history, partial=partial)
        return self._judged(appraisal, answer)

    async def _asked(self, node: Node, history: History, *, partial: bool) -> tuple[Appraisal, QuoteAnswer | None]:
        state = node.state
        question = ask(
            node.policy,
            self._random(NONCE_BYTES),
            partial=partial,
            api_version=state.supported_version,
            ima_entry=history.ima.next_entry,
        )
        nonce_expires = self._now() + self._answer_within
        try:
            answer = await self._agents.integrity_quote(
                node.address,
                question.api_version,
                nonce=question.nonce,
                mask=question.mask,
                partial=question.partial,
                ima_entry=question.ima_ml_entry,
            )
            evidence = _evidence(answer)
        except BadAnswer as problem:
            return unreadable(self._expected(node, question, nonce_expires), history, clean(problem)), None
        expected, now = self._expected(node, question, nonce_expires), self._now()
        if now > nonce_expires:
            # Requests end before that, so this process stood still meanwhile: nothing to hold against the node.
            raise Unreachable("timeout", "the answer was looked at when its nonce had expired")
        if self._takes_long(node, answer):
            # Seconds of work for a list of a million lines: other nodes must not wait for it.
            appraisal = await asyncio.to_thread(self._judge, evidence, expected, history, now)
        else:
            appraisal = self._judge(evidence, expected, history, now)
        no_base64 = evidence.boot_log == b"" and answer.mb_measurement_list
        return _not_base64(appraisal) if no_base64 else appraisal, answer

    def _takes_long(self, node: Node, answer: QuoteAnswer) -> bool:
        """Say whether judging takes milliseconds: a long IMA log does, and a new boot log."""
        new = is_new_boot_log(node, len(answer.mb_measurement_list or ""), self.boot_memo)
        return len(answer.ima_measurement_list or "") > LONG_LIST or new

    def _expected(self, node: Node, question: QuoteRequest, nonce_expires: float) -> Expected:
        enrolled = node.record.enrolled
        return Expected(
            ak=node.ak,
            nonce=question.nonce.encode(),
            nonce_expires=nonce_expires,
            accept_hash=enrolled.accept_hash,
            accept_enc=enrolled.accept_enc,
            accept_sign=enrolled.accept_sign,
            pcrs=node.policy,
            required_selection=node.policy.requested,
            # Enrolment refuses what is not judged, so a policy without values is what the operator asked for.
            identity_only_allowed=True,
            runtime=self.runtime(enrolled),
            boot_policy=self.boot(enrolled),
            boot_memo=self.boot_memo,
        )

    def boot(self, enrolled: Enrolled) -> BootPolicy | None:
        """Return what judges the node's boot log, None where nothing was to. Raises NoBootPolicyError."""
        name = enrolled.mb_policy_name
        if name is None:
            return None
        policy = self._boot_policies.current(name)
        if policy is None:
            raise NoBootPolicyError(name)
        return policy

    def runtime(self, enrolled: Enrolled) -> RuntimeExpected | None:
        """Return what judges the node's IMA log; None, which no node passes with that needs it, for no policy."""
        name = enrolled.runtime_policy_name
        policy = None if name is None else self._policies.current(name)
        if policy is None:
            return None
        keys = _keyring(enrolled.ima_keys) if enrolled.ima_keys else policy.verification_keys
        return RuntimeExpected(
            policy=policy, verification_keys=keys, violations_found=self._violations_found, memo=self._memo
        )

    def _judged(self, appraisal: Appraisal, answer: QuoteAnswer | None) -> Result:
        now = self._now()
        checked = appraisal.required & appraisal.ran
        facts = Facts(
            appraisal,
            now if answer is not None and len(checked) > 1 else None,
            answer.hash_alg[:20] if answer is not None else "",
            answer.enc_alg[:20] if answer is not None else "",
            answer.sign_alg[:20] if answer is not None else "",
        )
        match appraisal.outcome:
            case Outcome.TRUSTED:
                return Result(lifecycle.RoundTrusted(now, new_key=appraisal.new_key), facts)
            case Outcome.DISTRUSTED:
                return Result(lifecycle.RoundDistrusted(appraisal.findings), facts)
            case Outcome.INCOMPLETE:
                missing = ", ".join(sorted(appraisal.not_run))
                return Result(lifecycle.OurFault(f"required checks did not run: {missing}"), facts)

    async def _deliver(self, node: Node) -> Event:
        share, key = node.record.enrolled.v, node.state.public_key
        if share is None or key is None:
            return lifecycle.KeyDeliveryFailed("there is no share to deliver, or no transport key")
        try:
            sealed = encrypt_key_share(key, b64decode(share))
        except KeyShareError as problem:
            return lifecycle.KeyDeliveryFailed(str(problem))
        await self._agents.deliver_share(node.address, node.state.supported_version, sealed)
        return lifecycle.KeyDelivered()

    async def _refused(self, node: Node, refused: AgentRefused) -> Event:
        if refused.status in NO_ANSWER:
            return lifecycle.Unreachable(f"status {refused.status}: {refused.text}")
        if refused.unsupported_version:
            return await self._renegotiate(node)
        log.critical(
            "Unexpected status %d from agent %s: %s", refused.status, clean(node.agent_id), clean(refused.text)
        )
        return lifecycle.UnexpectedStatus(refused.status)

    async def _renegotiate(self, node: Node) -> Event:
        log.info("Agent %s API version bump detected, trying to update stored API version", clean(node.agent_id))
        try:
            offered = await self._agents.versions(node.address)
        except NoRoom as full:
            return _unreached(full)
        except (Unreachable, AgentRefused, BadAnswer) as problem:
            return lifecycle.Unreachable(f"the agent does not say which API versions it serves: {clean(problem)}")
        return lifecycle.VersionAnswered(versions.negotiate(versions.AGENT_VERSIONS, offered))


def _unreached(problem: Unreachable) -> Event:
    """Say whose fault it is that there is no answer."""
    if isinstance(problem, NoRoom):
        return lifecycle.OurFault(problem.reason)
    return lifecycle.Unreachable(f"{problem.kind}: {problem.reason}")


def _evidence(answer: QuoteAnswer) -> Evidence:
    return Evidence(
        quote=answer.quote,
        hash_alg=answer.hash_alg,
        enc_alg=answer.enc_alg,
        sign_alg=answer.sign_alg,
        public_key=answer.pubkey,
        ima_log=answer.ima_measurement_list,
        ima_entry=answer.first_entry,
        boot_log=_boot_log(answer.mb_measurement_list),
        boottime=answer.boottime,
    )


def _boot_log(text: str | None) -> bytes | None:
    """Decode the boot log. What is not base64, or far too long, comes out empty, which no log is.

    An empty text is no log, as in Keylime: agents send it where the kernel's file is empty.
    """
    if not text:
        return None
    try:
        return decode_boot_log(text)
    except BadAnswer:
        return b""


def _not_base64(appraisal: Appraisal) -> Appraisal:
    """Return the appraisal of an empty boot log with the finding by its name, where there was no base64 to read."""
    return structs.replace(
        appraisal,
        findings=tuple(
            Finding(
                BOOT_LOG_BASE64, {"message": "mb_measurement_list is not base64 of a boot log, or too long for one"}
            )
            if finding.kind is BOOT_LOG_MALFORMED
            else finding
            for finding in appraisal.findings
        ),
    )


def is_new_boot_log(node: Node, length: int, memo: BootMemo | None) -> bool:
    """Say whether judging a boot log takes milliseconds: it is long, and another one than that of the last round.

    That its length changed is a good enough sign: it only decides where the work is done.
    """
    known = memo is not None and node.boot_log_length == length
    node.boot_log_length = length
    return length > LONG_BOOT_LOG and not known
