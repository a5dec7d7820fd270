"""Results laid out for people: ids one to a line, nodes as tables, nothing that controls the terminal."""

import io
import logging

from limeguard.cli.tenant_report import PlainReport, as_text


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
