"""What a push agent does next: one pure function from state and event to state and action.

Decides when the node registers, opens a session, offers and gives evidence, how long it waits in between, and which of
several verifiers it turns to. Performs nothing, and knows neither HTTP nor the TPM: `push.py` performs the one action
and hands back what came of it.
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, assert_never

UNAUTHORIZED: Final = 401
FORBIDDEN: Final = 403
RETRIED: Final = frozenset({408, 429})
ABOUT_THE_ATTESTATION: Final = frozenset({"challenges_expired", "old_attestation", "evidence_immutable"})
"""Codes of a 403 that say nothing against the session: the attestation is over, one way or the other."""
DISABLED: Final = "agent_attestations_disabled"
SHORTEST_PAUSE: Final = 0.1
"""Seconds. A verifier that asks for the next attestation at once gets it, and does not keep the TPM busy."""
LONGEST_ASKED: Final = 7200.0
"""Seconds. A longer Retry-After is not believed; rate limits block for an hour at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the settings say. Seconds; `verifiers` is how many URLs there are, tried in order.

    `session_pause` is the least time between two sessions that were not granted: verifiers block a node that opens more
    than 15 a minute, and it then stays out for as long as the block lasts.
    """

    interval: float = 60.0
    first_delay: float = 10.0
    retries: int = 5
    longest_delay: float = 300.0
    verifiers: int = 1
    session_tries: int = 3
    session_retry: float = 1.0
    session_pause: float = 6.0

    def delay(self, failures: int) -> float:
        """Return the pause after so many failures in a row, counted from 1: twice as long each time, up to a bound."""
        return max(min(self.first_delay * 2.0 ** min(failures - 1, 64), self.longest_delay), SHORTEST_PAUSE)


class Do(Enum):
    """The actions, one of which is always under way."""

    REGISTER = "register at the registrar"
    AUTHENTICATE = "open a session"
    NEGOTIATE = "offer evidence"
    ATTEST = "give the evidence that was asked for"
    WAIT = "wait"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Where the agent is. `doing` is what is under way, `then` what follows a wait.

    `verifier` numbers the URL in use; `session` says whether it has granted a session that is not known to be over;
    `proven` whether an attestation came to its end in that session. Since the last one that did, `failures` counts
    failed requests, `denied` refused sessions, and `unreached` verifiers that could not be used.
    """

    doing: Do = Do.REGISTER
    then: Do = Do.REGISTER
    verifier: int = 0
    session: bool = False
    proven: bool = False
    failures: int = 0
    denied: int = 0
    unreached: int = 0


# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Registered:
    """The registrar knows the node and its keys."""


@dataclass(frozen=True, slots=True)
class NotRegistered:
    """All tries to register failed, whatever the reason."""


@dataclass(frozen=True, slots=True)
class SessionGranted:
    """The verifier accepted the proof and gave a token."""


@dataclass(frozen=True, slots=True)
class SessionDenied:
    """The verifier did not accept the proof: the challenge expired, or it does not supervise this node."""


@dataclass(frozen=True, slots=True)
class EvidenceRequested:
    """The verifier asks for evidence."""


@dataclass(frozen=True, slots=True)
class NothingRequested:
    """The verifier wants no evidence: no policy of the node needs any."""


@dataclass(frozen=True, slots=True)
class EvidenceAccepted:
    """The verifier took the evidence; `after` is when it wants the next, in seconds, None when it does not tell."""

    after: float | None = None


@dataclass(frozen=True, slots=True)
class EvidenceMissing:
    """The evidence asked for cannot be had on this node."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Another status than the one that is wanted. `asked` is the Retry-After in seconds, None without one."""

    status: int
    code: str = ""
    asked: float | None = None


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """No usable answer: no connection, no answer in time, or one that cannot be understood."""


@dataclass(frozen=True, slots=True)
class LocalFault:
    """The node's own TPM or files failed."""


@dataclass(frozen=True, slots=True)
class WaitOver:
    """The wait is over."""


Event = (
    Registered
    | NotRegistered
    | SessionGranted
    | SessionDenied
    | EvidenceRequested
    | NothingRequested
    | EvidenceAccepted
    | EvidenceMissing
    | Refused
    | NoAnswer
    | LocalFault
    | WaitOver
)

START: Final = State()


@dataclass(frozen=True, slots=True)
class Step:
    """The state, whose `doing` is the action to perform now. `seconds` is the length of a wait.

    `spread` waits are lengthened at random, so that a fleet does not come back all at once.
    """

    state: State
    seconds: float = 0.0
    spread: bool = False


def step(state: State, event: Event, rules: Rules) -> Step:  # noqa: C901, PLR0911 - one table
    """Say what to do after `event`, which is what came of `state.doing`."""
    match event:
        case WaitOver():
            return Step(replace(state, doing=_next(state, state.then)))
        case Registered():
            return Step(replace(state, doing=_next(state, Do.NEGOTIATE), failures=0))
        case NotRegistered():
            return _wait(state, rules.interval, Do.REGISTER)
        case SessionGranted():
            return Step(replace(state, doing=Do.NEGOTIATE, session=True, proven=False))
        case SessionDenied():
            return _denied(state, rules, None)
        case EvidenceRequested():
            # Nothing is settled before the evidence is taken: counters that begin anew here would let a verifier that
            # fails in the second half of every attestation keep this node busy without a pause.
            return Step(replace(state, doing=Do.ATTEST))
        case NothingRequested():
            # Anything sent now would be refused with 403, which would cost the session.
            return _wait(_settled(state), rules.interval, Do.NEGOTIATE)
        case EvidenceAccepted(after):
            seconds = rules.interval if after is None else max(after, SHORTEST_PAUSE)
            return _wait(_settled(state), seconds, Do.NEGOTIATE)
        case LocalFault() if state.doing is Do.REGISTER:
            return _wait(state, rules.interval, Do.REGISTER)
        case EvidenceMissing() | LocalFault():
            return _wait(replace(state, failures=0), rules.interval, Do.NEGOTIATE)
        case Refused():
            return _refused(state, event, rules)
        case NoAnswer():
            return _unusable(state, rules)
    assert_never(event)


def _next(state: State, wanted: Do) -> Do:
    """Return `wanted`, or what must come before it."""
    return Do.AUTHENTICATE if wanted in {Do.NEGOTIATE, Do.ATTEST} and not state.session else wanted


def _settled(state: State) -> State:
    """Return the state after an attestation that came to its end."""
    return replace(state, failures=0, denied=0, unreached=0, proven=True)


def _wait(state: State, seconds: float, then: Do, *, spread: bool = False) -> Step:
    return Step(replace(state, doing=Do.WAIT, then=then), seconds, spread)


def _refused(state: State, event: Refused, rules: Rules) -> Step:
    status, asked = event.status, event.asked if event.asked is None else min(event.asked, LONGEST_ASKED)
    if status in RETRIED or status >= 500:
        return _busy(state, asked, rules)
    if state.doing is Do.AUTHENTICATE:
        return _denied(state, rules, asked)
    if status == UNAUTHORIZED:
        return _unauthorized(state, rules)
    if status == FORBIDDEN and event.code not in ABOUT_THE_ATTESTATION | {DISABLED}:
        after = replace(state, session=False, failures=0)
        return _wait(after, max(rules.interval, rules.session_pause), Do.NEGOTIATE)
    if event.code == "challenges_expired" and not state.failures:
        # The evidence took too long. Once, the next attestation begins at once; a second time something is wrong.
        return Step(replace(state, doing=Do.NEGOTIATE, failures=1))
    return _wait(replace(state, failures=0), max(rules.interval, asked or 0.0), Do.NEGOTIATE)


def _busy(state: State, asked: float | None, rules: Rules) -> Step:
    """Go on after a status that passes: the same request again, after the time that the verifier asks for."""
    if asked is None:
        return _unusable(state, rules)
    if state.doing is Do.AUTHENTICATE:
        return _wait(state, max(asked, rules.session_pause), Do.NEGOTIATE, spread=True)
    failures = state.failures + 1
    if failures > rules.retries:
        return _wait(replace(state, failures=0), max(asked, rules.interval), Do.NEGOTIATE)
    return _wait(replace(state, failures=failures), max(asked, SHORTEST_PAUSE), state.doing)


def _unusable(state: State, rules: Rules) -> Step:
    """Turn to the next verifier at once; when all failed, wait longer each time and begin with the first again."""
    if rules.verifiers > 1:
        other = _elsewhere(state, rules)
        if other.unreached % rules.verifiers:
            return Step(replace(other, doing=Do.AUTHENTICATE))
        return _wait(other, rules.delay(other.unreached // rules.verifiers), Do.NEGOTIATE, spread=True)
    failures = state.failures + 1
    if failures > rules.retries:
        return _wait(replace(state, failures=0), rules.interval, Do.NEGOTIATE, spread=True)
    again = Do.NEGOTIATE if state.doing is Do.AUTHENTICATE else state.doing
    return _wait(replace(state, failures=failures), rules.delay(failures), again, spread=True)


def _elsewhere(state: State, rules: Rules) -> State:
    """Return the state that turns to the next verifier. A session holds where it was granted and nowhere else."""
    following = (state.verifier + 1) % rules.verifiers
    return replace(state, verifier=following, session=False, failures=0, unreached=state.unreached + 1)


def _denied(state: State, rules: Rules, asked: float | None) -> Step:
    """Try a few times in case a challenge expired on the way, then at the pace at which sessions are allowed."""
    after = replace(state, session=False, denied=state.denied + 1, failures=0)
    if asked is None and after.denied < rules.session_tries:
        return _wait(after, rules.session_retry, Do.NEGOTIATE)
    if rules.verifiers > 1:
        after = _elsewhere(after, rules)
        if after.unreached % rules.verifiers:
            return Step(replace(after, doing=Do.AUTHENTICATE))
    return _wait(after, max(asked or rules.interval, rules.session_pause), Do.NEGOTIATE)


def _unauthorized(state: State, rules: Rules) -> Step:
    """Open another session at once when this one has worked; one that never did is no reason to open more."""
    after = replace(state, session=False, failures=0)
    if state.proven:
        return Step(replace(after, doing=Do.AUTHENTICATE, proven=False))
    return _wait(after, max(rules.interval, rules.session_pause), Do.NEGOTIATE)
