"""Results laid out for people: ids one to a line, nodes as tables, nothing that controls the terminal."""

import io
import logging

from limeguard.cli.tenant_report import PlainReport, as_text, condition_text, fleet_text


def test_ids_stand_one_to_a_line() -> None:
    assert as_text({"uuids": ["a", "b"]}) == "a\nb\n"
    assert as_text({"uuids": [["a"], ["b"]]}) == "a\nb\n"
    assert as_text({"uuids": []}) == ""


def test_a_node_is_a_list_of_its_members() -> None:
    text = as_text({"n1": {"operational_state": "Get Quote", "ip": None, "last_received_quote": 0}})
    assert text.splitlines() == [
        "n1",
        "  operational_state    Get Quote",
        "  ip                   -",
        "  last_received_quote  never",
    ]


def test_many_nodes_are_a_table() -> None:
    record = {"operational_state": "Get Quote", "attestation_status": "PASS", "last_successful_attestation": 1767607200}
    lines = as_text({"n1": record, "node-2": record}).splitlines()
    assert lines[0].split() == ["id", "operational_state", "attestation_status", "last_successful_attestation"]
    assert lines[1].startswith("n1      Get Quote")
    assert lines[2].endswith("2026-01-05 10:00:00+00:00")


# trust: hygiene
def test_values_cannot_control_the_terminal() -> None:
    text = as_text({"n\x1b[2J": {"ip": "a\nb\x1b]0;x\x07", "list": ["\x1b"], "long": "x" * 10_000}})
    assert "\x1b" not in text
    assert len(text.splitlines()) == 4
    assert len(text) < 1000


def test_errors_are_said_and_steps_only_when_asked_for() -> None:
    quiet, told = io.StringIO(), io.StringIO()
    for verbose, err in ((False, quiet), (True, told)):
        report = PlainReport("add", io.StringIO(), err, as_json=True, verbose=verbose)
        report.say(logging.INFO, "a step")
        report.say(logging.ERROR, "trouble")
        report.detail("for scripts")
        report.echo("for scripts")
    assert quiet.getvalue() == "error: trouble\n"
    assert told.getvalue() == "a step\nerror: trouble\n"


def test_text_is_shown_on_a_terminal() -> None:
    out = io.StringIO()
    report = PlainReport("reglist", out, io.StringIO(), as_json=False, verbose=False)
    report.document("agents", "title", {"uuids": ["a"]})
    report.finish(0)
    assert out.getvalue() == "a\n"


def test_a_condition_is_told_with_its_findings_and_advice() -> None:
    finding = {
        "id": "pcr.not-allowed",
        "event_id": "pcr_validation.invalid_pcr_23",
        "severity": "emergency",
        "found_at": 1767607200.0,
        "context": {"pcr": 23, "value": "ab\x1b[2J"},
        "advice": "Find out what changed.",
    }
    view = {
        "id": "n1",
        "condition": "distrusted",
        "integrity": "distrusted",
        "reachability": "reachable",
        "phase": "condemned",
        "identity_only": False,
        "trust_expires_at": None,
        "last_answer_at": 1767607200.0,
        "last_trusted_at": None,
        "attestation_count": 3,
        "failed_attempts": 0,
        "findings": [finding],
        "checks": {"required": [], "ran": []},
        "ip": "127.0.0.1",
        "port": 9002,
        "agent_api_version": "2.6",
        "verifier_id": "default",
        "enrolled_at": 1767607100.0,
    }
    text = condition_text(view)
    assert text.startswith("n1: distrusted\n  last trusted   never\n  last answer    2026-01-05 10:00:00+00:00\n")
    assert "  pcr.not-allowed (pcr_validation.invalid_pcr_23, emergency)\n" in text
    assert "    what to do   Find out what changed.\n" in text
    assert "\x1b" not in text


def test_a_fleet_is_told_with_what_needs_attention_first() -> None:
    def line(name: str, condition: str, event: str | None) -> dict[str, object]:
        return {
            "id": name,
            "condition": condition,
            "integrity": "",
            "reachability": "",
            "trust_expires_at": None,
            "last_event_id": event,
        }

    nodes = [line("a", "trusted", None), line("bb", "distrusted", "x.y"), line("c", "stale", None)]
    text = fleet_text({"counts": {"trusted": 1, "distrusted": 1, "stale": 1, "pending": 0}, "nodes": nodes})
    assert text.splitlines() == [
        "1 trusted, 1 distrusted, 1 stale",
        "bb  distrusted   x.y",
        "c   stale",
        "a   trusted",
    ]
