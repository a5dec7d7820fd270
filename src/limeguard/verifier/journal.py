"""What the verifier's log says of each step, in the words that operators' scripts match on.

Decides texts and levels only. Nothing that comes from a node stands in a line uncleaned; key material never does.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from limeguard.appraisal.findings import BOOT_REPLAY, IMA_DIGEST, IMA_NOT_ALLOWED, Finding
from limeguard.telemetry import clean, get_logger
from limeguard.verifier import lifecycle
from limeguard.verifier.fleet import Node
from limeguard.verifier.lifecycle import Event, Step
from limeguard.verifier.supervision import Rules, Supervision

log = get_logger("keylime.verifier")
ima_log = get_logger("keylime.ima")
tpm_log = get_logger("keylime.tpm")

PCR_EVENTS: Final = "pcr_validation.invalid_pcr_"
IMA_EVENTS: Final = "ima."
MODES: Final = {"ima": "Ima", "ima-ng": "ImaNg", "ima-sig": "ImaSig", "ima-buf": "ImaBuf"}
_WORDS: Final[dict[type, str]] = {
    lifecycle.KeyDelivered: "Agent %s has its share of the payload key",
    lifecycle.Reactivated: "Agent %s is reactivated",
    lifecycle.StopRequested: "Agent %s is stopped",
}
MAX_LINES: Final = 50
"""Findings of one round that have a line of their own."""
MAX_VALUES: Final = 4
"""Allowed values that a line shows."""


def log_event(node: Node, event: Event, before: Supervision, step: Step, rules: Rules) -> None:
    """Write the lines about one step of one node."""
    agent = clean(node.agent_id)
    match event:
        case lifecycle.RoundTrusted() if before.integrity != step.state.integrity:
            log.info("Agent %s is trusted", agent, extra={"agent_id": agent, "condition": "trusted"})
        case lifecycle.RoundDistrusted(findings):
            for finding in findings[:MAX_LINES]:
                _log_finding(node, agent, finding)
            _log_entries(findings)
        case lifecycle.Unreachable(reason):
            _log_unreachable(node, agent, reason, step, rules)
        case lifecycle.VersionAnswered(version):
            _log_version(agent, version, before, step)
        case lifecycle.DeadlinePassed(at):
            _log_silence(agent, at, before, step)
        case _ if type(event) in _WORDS:
            log.info(_WORDS[type(event)], agent)
        case _:
            pass
    for effect in step.effects:
        _log_effect(agent, effect)


def _log_silence(agent: str, at: float, before: Supervision, step: Step) -> None:
    if before.reachability != step.state.reachability:
        seconds = at - (before.proven_at or at)
        log.warning("Agent %s has not attested for %.0f seconds, its trust has run out", agent, seconds)


def _log_effect(agent: str, effect: lifecycle.Effect) -> None:
    match effect:
        case lifecycle.SupervisionEnded():
            log.warning("Agent %s failed, stopping polling", agent, extra={"agent_id": agent})
        case lifecycle.Alarm(reason, faults):
            about = {"agent_id": agent}
            log.error(
                "The verifier failed with agent %s, %d time(s) in a row: %s", agent, faults, clean(reason), extra=about
            )
        case _:
            pass


def _log_finding(node: Node, agent: str, finding: Finding) -> None:
    context = finding.context
    if finding.event_id.startswith(PCR_EVENTS):
        pcr = context.get("pcr", 16)
        allowed = [value.hex() for value in sorted(node.policy.allowed.get(int(str(pcr)), ()))]
        expected = allowed[:MAX_VALUES] or [str(context.get("expected", ""))]
        tpm_log.error(
            "PCR #%s: %s from quote (from agent %s) does not match expected value(s) %s",
            pcr,
            clean(context.get("value", "")),
            agent,
            clean(", ".join(expected)),
            extra={"agent_id": agent, "event_id": finding.event_id},
        )
    if finding.kind is BOOT_REPLAY:
        tpm_log.error(
            "For PCR %s and hash %s the boot event log has value '%s' but the agent %s returned '%s'",
            context.get("pcr"),
            clean(context.get("bank", "")),
            clean(context.get("expected", "")),
            agent,
            clean(context.get("got", "")),
        )
    shown = ", ".join(f"{name}: {value}" for name, value in context.items())
    about = {"agent_id": agent, "event_id": finding.event_id, "finding": finding.kind.id}
    log.warning("Agent %s: %s (%s) %s", agent, finding.event_id, finding.kind.id, clean(shown), extra=about)


def _log_entries(findings: Sequence[Finding]) -> None:
    """Say which files failed and how many of each template did, in the words that test suites match on."""
    failed = [finding for finding in findings if finding.event_id.startswith(IMA_EVENTS)]
    for finding in failed[:MAX_LINES]:
        path = clean(finding.context.get("path", ""), 4_096)
        if finding.kind is IMA_NOT_ALLOWED:
            ima_log.warning("File not found in allowlist: %s", path)
        elif finding.kind is IMA_DIGEST:
            ima_log.warning("Hashes for file %s don't match %s", path, clean(finding.context.get("expected", "")))
        if "signature" in finding.context:
            ima_log.warning("signature for file %s is not valid", path)
    if failed:
        modes = Counter(MODES.get(str(finding.context.get("template", "")), "Other") for finding in failed)
        shown = " ".join(f"{mode} {count}" for mode, count in sorted(modes.items()))
        ima_log.error("IMA ERRORS: Some entries couldn't be validated. Number of failures in modes: %s.", shown)


def _log_unreachable(node: Node, agent: str, reason: str, step: Step, rules: Rules) -> None:
    attempts = step.state.attempts
    after = next((e.after for e in step.effects if isinstance(e, lifecycle.Schedule)), None)
    if after is None:
        log.warning(
            "Agent %s was not reachable for quote in %d tries, setting state to FAILED",
            agent,
            rules.max_retries,
            extra={"agent_id": agent},
        )
    else:
        log.info(
            "Connection to %s refused after %d/%d tries, trying again in %.1f seconds (agent %s, %s)",
            clean(node.record.enrolled.ip),
            attempts,
            rules.max_retries,
            after,
            agent,
            clean(reason),
            extra={"agent_id": agent},
        )


def _log_version(agent: str, version: str | None, before: Supervision, step: Step) -> None:
    if step.state.api_version != before.api_version:
        log.info("Agent %s API version updated to %s", agent, version)
    elif version is None:
        log.warning("Agent %s serves no API version that this verifier knows", agent)
    else:
        log.warning(
            "Agent %s API version %s is lower or equal to previous version %s", agent, version, before.api_version
        )
