"""The table of findings: everything that can be wrong with a node, each with its ids, severity and advice.

One row a kind. Documentation, pages and `explain` are made from it. Holds facts about findings; whether one applies is
decided by the other modules here and by supervision.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

ContextValue = str | int | Sequence[str] | Sequence[int]
"""What a finding's context may hold: JSON can carry it, and a person can read it."""

WORST: Final = "emergency"
"""Default severity of every kind, as in Keylime, until the operator's rules say otherwise."""


@dataclass(frozen=True, slots=True)
class FindingKind:
    """A kind of finding.

    `id` is ours and never changes its meaning. `event_id` is what Keylime's users match on; `{…}` in it is filled from
    the context, and several kinds may share one. A kind that is not `recoverable` always has the worst severity.
    """

    id: str
    event_id: str
    recoverable: bool
    advice: str
    default_severity: str = WORST


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, with what is needed to understand it. Values in `context` may come from the node."""

    kind: FindingKind
    context: Mapping[str, ContextValue] = field(default_factory=dict)

    @property
    def event_id(self) -> str:
        """The id that Keylime's users match on."""
        event_id = self.kind.event_id
        return event_id.format_map(self.context) if "{" in event_id else event_id

    @property
    def recoverable(self) -> bool:
        """Whether the same node may come back to trust without an operator."""
        return self.kind.recoverable


def _final(kind: str, event_id: str, advice: str) -> FindingKind:
    return FindingKind(kind, event_id, recoverable=False, advice=advice)


def _mild(kind: str, event_id: str, advice: str) -> FindingKind:
    return FindingKind(kind, event_id, recoverable=True, advice=advice)


# --- the answer as such ("qoute" is how the wire has always spelled it) ---------------------------------------------

INVALID_DATA: Final = _final(
    "answer.unreadable",
    "qoute_validation.invalid_data",
    "The agent's answer lacks members or has the wrong types: check that a genuine agent of a known version answers.",
)
NO_TRANSPORT_KEY: Final = _final(
    "answer.no-transport-key",
    "qoute_validation.no_pubkey",
    "The agent sent no transport key and none is known: check the agent's version, then reactivate the node.",
)
HASH_NOT_ACCEPTED: Final = _final(
    "algorithm.hash-not-accepted",
    "qoute_validation.invalid_hash_alg",
    "Set another hash algorithm in the agent's configuration, or accept this one when you enrol the node.",
)
KEY_NOT_ACCEPTED: Final = _final(
    "algorithm.key-not-accepted",
    "qoute_validation.invalid_enc_alg",
    "Set another encryption algorithm in the agent's configuration, or accept this one when you enrol the node.",
)
KEY_MISNAMED: Final = _final(
    "algorithm.key-misnamed",
    "qoute_validation.invalid_enc_alg",
    "The agent names another key algorithm than its attestation key has: enrol the node again with its present key.",
)
SCHEME_NOT_ACCEPTED: Final = _final(
    "algorithm.scheme-not-accepted",
    "qoute_validation.invalid_sign_alg",
    "Set another signing algorithm in the agent's configuration, or accept this one when you enrol the node "
    "(elliptic curve keys need ecdsa).",
)
SCHEME_MISNAMED: Final = _final(
    "algorithm.scheme-misnamed",
    "qoute_validation.invalid_sign_alg",
    "The agent names another signature scheme than it used: look for something between agent and TPM.",
)
IMA_ENTRY_NUMBER: Final = _final(
    "ima.entry-number",
    "qoute_validation.invalid_ima_entry_nb",
    "The agent's IMA log begins at an entry that nobody asked for: check the agent's version.",
)

# --- the quote ------------------------------------------------------------------------------------------------------

_QUOTE: Final = "qoute_validation.quote_validation"

QUOTE_MALFORMED: Final = _final(
    "quote.malformed", _QUOTE, "The quote cannot be read: check that a genuine agent of a known version answers."
)
QUOTE_KEY_UNFIT: Final = _final(
    "quote.key-unfit",
    _QUOTE,
    "The enrolled attestation key is not a restricted signing key, so it proves nothing: enrol the node again.",
)
QUOTE_SCHEME: Final = _final(
    "quote.scheme-mismatch",
    _QUOTE,
    "The quote is signed with another algorithm than the one announced or the key's own: register the node again.",
)
QUOTE_HASH: Final = _final(
    "quote.hash-not-accepted",
    _QUOTE,
    "The signature or a quoted PCR bank uses a hash algorithm that is not accepted: set another one in the agent.",
)
QUOTE_SIGNATURE: Final = _final(
    "quote.bad-signature",
    _QUOTE,
    "The enrolled attestation key did not sign this quote: find out whether the TPM or its owner changed, "
    "then enrol the node again.",
)
QUOTE_NONCE: Final = _final(
    "quote.wrong-nonce",
    _QUOTE,
    "The quote answers another question, as a replayed one does: treat the node as compromised until explained.",
)
QUOTE_LATE: Final = _final(
    "quote.late",
    _QUOTE,
    "The quote came after its nonce had expired: look at the load of the node and at the network.",
)
QUOTE_SELECTION: Final = _final(
    "quote.selection-mismatch",
    _QUOTE,
    "The TPM quoted other PCRs than those whose values were sent: check for a tampered agent.",
)
QUOTE_PCR_DIGEST: Final = _final(
    "quote.wrong-pcr-digest",
    _QUOTE,
    "The PCR values are not those that the TPM signed: check for a tampered agent.",
)
QUOTE_UNUSABLE: Final = _final(
    "quote.unusable", _QUOTE, "The quote proves nothing; the context says why. Check the agent's TPM and settings."
)
CLOCK_RESETS: Final = _final(
    "clock.reset-count-fell",
    _QUOTE,
    "The TPM counts fewer resets than before, which no TPM does unless it is cleared: enrol the node again if it was.",
)
CLOCK_RESTARTS: Final = _final(
    "clock.restart-count-fell",
    _QUOTE,
    "The TPM counts fewer restarts than before without a reset, which no TPM does: find out whose TPM answers.",
)
CLOCK_BACKWARDS: Final = _final(
    "clock.not-later",
    _QUOTE,
    "The TPM's clock did not advance since the last quote, as in a replay or a restored virtual machine.",
)
CLOCK_UNSAFE: Final = _final(
    "clock.unsafe",
    _QUOTE,
    "The TPM says that its clock may have gone back, although it was not reset: look at the TPM's health.",
)
INVALID_QUOTE: Final = _final(
    "quote.unchecked", "qoute_validation.invalid_quote", "The quote could not be checked: look at the verifier's log."
)

# --- PCR values -----------------------------------------------------------------------------------------------------

TRANSPORT_KEY: Final = _mild(
    "transport-key.not-bound",
    "pcr_validation.invalid_pcr_16",
    "PCR 16 does not hold the agent's transport key: another program used PCR 16, or the key is not the agent's.",
)
TRANSPORT_KEY_UNQUOTED: Final = _mild(
    "transport-key.unquoted",
    "pcr_validation.missing_pcr_16",
    "The quote lacks PCR 16, which binds the transport key: check the agent's version.",
)
PCR_VALUE: Final = _mild(
    "pcr.not-allowed",
    "pcr_validation.invalid_pcr_{pcr}",
    "The PCR has a value that the policy does not list: find out what changed on the node, then fix it or the policy.",
)
PCR_BANK: Final = _mild(
    "pcr.no-digest-for-bank",
    "pcr_validation.invalid_pcr_{pcr}",
    "The policy lists no digest of the quoted bank for this PCR: add one, or set the agent's hash algorithm.",
)
PCRS_MISSING: Final = _mild(
    "pcr.missing",
    "pcr_validation.missing_pcrs",
    "The quote lacks PCRs that were asked for: check that the TPM has the bank of the agent's hash algorithm.",
)
PCR_LOG_MISSING: Final = _mild(
    "pcr.log-missing",
    "pcr_validation.unused_pcr_{pcr}",
    "The PCR was quoted, but the log that explains it was not sent: check that the agent can read the log.",
)
BOOT_POLICY_UNUSABLE: Final = _mild(
    "boot.policy-unusable",
    "pcr_validation.invalid_mb_policy",
    "The measured boot policy cannot be used: make it again and enrol the node with it.",
)
BOOT_EVALUATE: Final = _mild(
    "boot.evaluate-option",
    "pcr_validation.invalid_measured_boot_evaluate",
    "The option measured_boot_evaluate must be once or always.",
)

# --- measured boot --------------------------------------------------------------------------------------------------

BOOT_REPLAY: Final = _mild(
    "boot.replay",
    "measured_boot.invalid_pcr_{pcr}",
    "The boot log does not lead to the quoted PCR: the log was changed, or something extended the PCR behind it.",
)
BOOT_PCRS_MISSING: Final = _mild(
    "boot.pcrs-missing",
    "measured_boot.missing_pcrs",
    "PCRs that the boot policy needs are not in the quote: enrol the node again with the boot policy.",
)
BOOT_REJECTED: Final = _mild(
    "boot.rejected",
    "measured_boot.policy_{policy}",
    "The boot policy rejects what the node booted: the context names the event to look at.",
)
BOOT_LOG_PCRS: Final = _mild(
    "boot.log-pcrs", "measured_boot.parser.invalid_pcrs", "The boot log covers no PCRs: check the node's firmware."
)
BOOT_LOG_BANK: Final = _mild(
    "boot.log-bank",
    "measured_boot.parser.invalid_pcrs_hashes",
    "The boot log has no digests of the quoted bank: set the agent's hash algorithm to one that the firmware uses.",
)
BOOT_AGGREGATES: Final = _mild(
    "boot.aggregates",
    "measured_boot.parser.invalid_boot_aggregates",
    "No boot aggregate can be computed from the boot log: check the node's firmware.",
)
BOOT_LOG_BASE64: Final = _mild(
    "boot.log-base64", "measured_boot.parser.log.base64decode", "The boot log is not base64: check the agent."
)
BOOT_LOG_MALFORMED: Final = _mild(
    "boot.log-malformed",
    "measured_boot.parser.tpm2_eventlog.error",
    "The boot log cannot be read: save it from the node and look at it with limeguard boot show.",
)

# --- IMA ------------------------------------------------------------------------------------------------------------

IMA_NOT_ALLOWED: Final = _mild(
    "ima.not-allowed",
    "ima.validation.ima-ng.not_in_allowlist",
    "A file that the runtime policy does not list was used: find out what put it there, then remove or list it.",
)
IMA_DIGEST: Final = _mild(
    "ima.digest",
    "ima.validation.ima-ng.runtime_policy_hash",
    "A listed file has another content than the runtime policy says: find out whether it was updated or altered.",
)
IMA_SIGNATURE: Final = _mild(
    "ima.signature",
    "ima.validator.ima-sig.invalid_signature",
    "A file's signature cannot be verified: check the file and the verification keys of the runtime policy.",
)
IMA_KEY: Final = _mild(
    "ima.key", "ima.invalid_key", "A key was measured whose type is not supported: look at the kernel's keyrings."
)
IMA_TEMPLATE_HASH: Final = _mild(
    "ima.template-hash", "ima.validation.ima_hash", "An entry of the IMA log does not match its hash: it was changed."
)
IMA_OTHER_PCR: Final = _mild(
    "ima.other-pcr",
    "ima.validation.ima_pcr",
    "An entry of the IMA log is for another PCR: check the kernel's settings.",
)
IMA_TOMTOU: Final = _mild(
    "ima.tomtou", "ima.validation.tomtou", "A file was changed while it was measured: find out by what."
)
IMA_NO_VALIDATOR: Final = _mild(
    "ima.template-unknown",
    "ima.validation.no_validator",
    "The IMA log uses a template that cannot be judged: set ima_template=ima-sig on the kernel's command line.",
)
IMA_LINE: Final = _mild(
    "ima.line-malformed", "ima.parser.entry", "A line of the IMA log cannot be read: save the log and look at it."
)
IMA_REPLAY: Final = _mild(
    "ima.replay",
    "ima.pcr_mismatch",
    "The IMA log does not lead to the quoted PCR 10: the log was changed, or something extended the PCR behind it.",
)
IMA_ABSENT: Final = _mild(
    "ima.absent",
    "pcr_validation.unused_pcr_{pcr}",
    "There is no IMA log to judge: give the kernel an IMA policy (ima_policy=tcb) and let the agent read the log.",
)
IMA_MORE: Final = _mild(
    "ima.more",
    "ima.validation.ima-ng.not_in_allowlist",
    "More findings than are kept: the runtime policy is not for this machine, or the machine is not what it was.",
)
IMA_PROGRESS: Final = _mild(
    "ima.progress", "ima.quote_progress", "The IMA log does not keep up with PCR 10: check the agent."
)
DEVICE_MAPPER: Final = _mild(
    "ima.device-mapper",
    "ima.validation.dm.{event}",
    "A device mapper event does not follow the policy: the context names the device and the event.",
)

# --- reaching the agent, and ourselves ------------------------------------------------------------------------------

UNEXPECTED_STATUS: Final = _final(
    "agent.unexpected-status",
    "internal.verifier.no_quote",
    "The agent refused to quote: look at its log for the reason, then reactivate the node.",
)
UNEXPECTED_STATUS_V: Final = _final(
    "agent.unexpected-status-key",
    "internal.verifier.no_v",
    "The agent did not take the key share: look at its log for the reason, then reactivate the node.",
)
NOT_REACHABLE: Final = _final(
    "agent.not-reachable",
    "internal.verifier.not_reachable",
    "The agent did not answer: check that the node and its agent run and that its address and certificate are right.",
)
NOT_REACHABLE_V: Final = _final(
    "agent.not-reachable-key",
    "internal.verifier.not_reachable_v",
    "The agent did not answer when the key share was sent: check that the node and its agent run.",
)
VERSION_NOT_SUPPORTED: Final = _final(
    "agent.version",
    "internal.verifier.version_not_supported",
    "The agent speaks no API version that is acceptable, or an older one than before: check what was installed.",
)
OUR_FAULT: Final = _final(
    "verifier.fault",
    "internal.verifier.exception",
    "The verifier could not finish the round; this says nothing about the node. Look at the verifier's log.",
)

# --- evidence checked on request ------------------------------------------------------------------------------------

MISSING_PARAMETER: Final = _final("request.missing-parameter", "default.missing_param", "Add the missing parameter.")
MISSING_POLICY: Final = _final("request.missing-policy", "default.missing_policy", "Name at least one policy.")

_TEE: Final = "Look at the context: the report, its certificate or the request is not what it should be."
TEE_KINDS: Final = tuple(
    _final(f"tee.{ours}", f"tee_attestation.{wire}", _TEE)
    for ours, wire in (
        ("missing-parameter", "missing_param"),
        ("kind", "invalid.tee"),
        ("input", "invalid_input"),
        ("certificate", "vcek_fetch"),
        ("public-key", "invalid_public_key"),
        ("signature", "invalid_signature"),
        ("freshness", "freshness_hash_failed"),
    )
)


def _all_kinds(values: Iterable[object]) -> tuple[FindingKind, ...]:
    return (*(value for value in values if isinstance(value, FindingKind)), *TEE_KINDS)


KINDS: Final = _all_kinds(tuple(globals().values()))
"""Every kind, in the order of this file."""
KINDS_BY_ID: Final[Mapping[str, FindingKind]] = {kind.id: kind for kind in KINDS}
