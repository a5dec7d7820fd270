"""The table of findings is complete, unambiguous and readable."""

import re

import pytest

from limeguard.appraisal.findings import KINDS, KINDS_BY_ID, PCR_VALUE, Finding, FindingKind
from limeguard.policy.severity import DEFAULT_LABELS, MAX_EVENT_ID

RAISED = {
    "qoute_validation": (
        "invalid_data no_pubkey invalid_hash_alg invalid_enc_alg invalid_sign_alg invalid_ima_entry_nb "
        "quote_validation invalid_quote"
    ),
    "pcr_validation": (
        "invalid_pcr_{pcr} invalid_pcr_16 missing_pcr_16 unused_pcr_{pcr} missing_pcrs invalid_mb_policy "
        "invalid_measured_boot_evaluate"
    ),
    "measured_boot": (
        "invalid_pcr_{pcr} missing_pcrs policy_{policy} parser.invalid_pcrs parser.invalid_pcrs_hashes "
        "parser.invalid_boot_aggregates parser.log.base64decode parser.tpm2_eventlog.error"
    ),
    "ima": (
        "validation.ima-ng.not_in_allowlist validation.ima-ng.runtime_policy_hash validator.ima-sig.invalid_signature "
        "invalid_key validation.ima_hash validation.ima_pcr validation.tomtou validation.no_validator parser.entry "
        "pcr_mismatch quote_progress validation.dm.{event}"
    ),
    "internal.verifier": "no_quote no_v not_reachable not_reachable_v version_not_supported exception",
    "tee_attestation": (
        "missing_param invalid.tee invalid_input vcek_fetch invalid_public_key invalid_signature freshness_hash_failed"
    ),
    "default": "missing_param missing_policy",
}
FINAL = ("qoute_validation.", "internal.", "tee_attestation.", "default.")


def test_the_event_ids_are_those_that_operators_match_on() -> None:
    known = {f"{component}.{name}" for component, names in RAISED.items() for name in names.split()}
    assert {kind.event_id for kind in KINDS} == known


def test_ids_are_unique() -> None:
    assert len(KINDS_BY_ID) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.id)
def test_each_row_is_complete(kind: FindingKind) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*\.[a-z0-9-]+", kind.id)
    assert len(kind.event_id) < MAX_EVENT_ID
    assert kind.recoverable is not kind.event_id.startswith(FINAL)
    assert kind.default_severity in DEFAULT_LABELS
    assert kind.advice[0].isupper()
    assert kind.advice.endswith(".")
    assert len(kind.advice) <= 200


def test_the_pcr_stands_in_the_event_id() -> None:
    finding = Finding(PCR_VALUE, {"pcr": 23, "bank": "sha256"})
    assert finding.event_id == "pcr_validation.invalid_pcr_23"
    assert finding.recoverable


def test_a_context_without_what_the_id_needs_is_our_own_fault() -> None:
    # trust: fail-closed
    with pytest.raises(KeyError):
        _ = Finding(PCR_VALUE).event_id


def test_what_a_node_says_does_not_shape_an_event_id() -> None:
    # trust: hygiene
    finding = Finding(KINDS_BY_ID["boot.rejected"], {"policy": "{pcr}{0.__class__}"})
    assert finding.event_id == "measured_boot.policy_{pcr}{0.__class__}"
