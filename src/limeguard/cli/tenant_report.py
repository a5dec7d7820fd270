"""How `limeguard tenant` shows what it found: JSON for programs, text for people, the rest on stderr."""

import json
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TextIO

import msgspec

from limeguard.telemetry import clean
from limeguard.tenant.own_view import CONDITION, FLEET, TRUSTED
from limeguard.wire.limeguard_v1 import NodeList, NodeView

HIDDEN = "(hidden)"
SECRET_MEMBERS = frozenset({"v"})
"""Members of a node's record that are a share of its payload key."""
TIMES = frozenset({"last_received_quote", "last_successful_attestation"})
LONG = 72
FLEET_COLUMNS = ("operational_state", "attestation_status", "attestation_count", "last_successful_attestation")


class PlainReport:
    """Collects documents and shows them at the end; says the rest on stderr as it happens."""

    def __init__(self, command: str, out: TextIO, err: TextIO, *, as_json: bool, verbose: bool) -> None:
        """Show results on `out`, as JSON or as text; `verbose` tells each step on `err`, not only trouble."""
        self._command = command
        self._out = out
        self._err = err
        self._as_json = as_json
        self._level = logging.INFO if verbose else logging.WARNING
        self._documents: dict[str, object] = {}
        self._errors: list[str] = []

    def say(self, level: int, text: str) -> None:
        """Say it on stderr, unless it is a step that nobody asked for."""
        if level >= logging.ERROR:
            self._errors.append(text)
        if level >= self._level:
            mark = f"{logging.getLevelName(level).lower()}: " if level > logging.INFO else ""
            self._err.write(f"{mark}{text}\n")

    def detail(self, text: str) -> None:
        """Leave out what only scripts of Keylime's tenant read."""

    def echo(self, content: object) -> None:
        """Leave out what only scripts of Keylime's tenant read."""

    def document(self, name: str, title: str, content: object) -> None:
        """Keep a document; a later one of the same name takes its place."""
        del title
        self._documents[name] = _without_secrets(content)

    def answer(self, name: str, content: object, heading: str = "") -> None:
        """Keep a server's answer."""
        del heading
        self._documents[name] = content

    def finish(self, status: int) -> None:
        """Show the result of the run."""
        shown = {} if self._command in {"delete", "reactivate", "regdelete"} else self._documents
        if self._as_json:
            self._out.write(json.dumps(self._result(shown, status), indent=2) + "\n")
            return
        for name, content in shown.items():
            self._out.write(LAYOUTS.get(name, as_text)(content))

    def _result(self, shown: Mapping[str, object], status: int) -> object:
        if not shown:
            return {"ok": True} if status == 0 else {"ok": False, "error": "; ".join(self._errors)}
        return next(iter(shown.values())) if len(shown) == 1 else dict(shown)


def condition_text(content: object) -> str:
    """Lay out what a verifier says of one node: its condition, and each finding with what to do about it."""
    view = msgspec.convert(content, NodeView)
    lines = [f"{clean(view.id)}: {clean(view.condition)}{' (identity only)' if view.identity_only else ''}"]
    facts = {
        "last trusted": _moment(view.last_trusted_at),
        "last answer": _moment(view.last_answer_at),
        "trust expires": _moment(view.trust_expires_at),
        "rounds passed": view.attestation_count,
        "failed tries": view.failed_attempts,
        "reached at": f"{view.ip}:{view.port}",
    }
    lines += [f"  {name:<14} {_value(value)}" for name, value in facts.items()]
    for finding in view.findings:
        lines.append(f"  {clean(finding.id)} ({clean(finding.event_id)}, {clean(finding.severity)})")
        lines.append(f"    {'found':<12} {_moment(finding.found_at)}")
        lines += [f"    {clean(name):<12} {clean(value, LONG * 4)}" for name, value in finding.context.items()]
        lines.append(f"    {'what to do':<12} {clean(finding.advice, LONG * 4)}")
    return "\n".join(lines) + "\n"


def fleet_text(content: object) -> str:
    """Lay out the list of nodes: how many are in each condition, then those that are not trusted first."""
    listed = msgspec.convert(content, NodeList)
    counts = ", ".join(f"{number} {clean(name)}" for name, number in listed.counts.items() if number)
    nodes = sorted(listed.nodes, key=lambda node: (node.condition == TRUSTED, node.condition, node.id))
    width = max((len(_value(node.id)) for node in nodes), default=0)
    lines = [f"{_value(n.id):<{width}}  {n.condition:<12} {_value(n.last_event_id or '')}".rstrip() for n in nodes]
    return "\n".join([counts or "no nodes", *lines]) + "\n"


def _moment(at: float | None) -> str:
    return "never" if at is None else datetime.fromtimestamp(at, UTC).isoformat(sep=" ", timespec="seconds")


LAYOUTS: Mapping[str, Callable[[object], str]] = {CONDITION: condition_text, FLEET: fleet_text}
"""Documents that have a layout of their own on a terminal."""


def _without_secrets(content: object) -> object:
    if isinstance(content, Mapping):
        return {
            key: HIDDEN if key in SECRET_MEMBERS and isinstance(value, str) else _without_secrets(value)
            for key, value in content.items()
        }
    return content


def as_text(content: object) -> str:
    """Lay a document out for reading: ids one to a line, nodes as tables."""
    if not isinstance(content, Mapping):
        return f"{_value(content)}\n"
    ids = content.get("uuids")
    if isinstance(ids, list):
        return "".join(f"{_value(each[0] if isinstance(each, list) and each else each)}\n" for each in ids)
    records = {key: value for key, value in content.items() if isinstance(value, Mapping)}
    if len(records) > 1 and len(records) == len(content):
        return _table(records)
    if len(content) == 1 and len(records) == 1:
        name, record = next(iter(records.items()))
        return f"{_value(name)}\n" + _members(record)
    return _members(content)


def _members(record: Mapping[str, object]) -> str:
    width = max((len(str(key)) for key in record), default=0)
    return "".join(f"  {clean(key).ljust(width)}  {_value(_told(key, value))}\n" for key, value in record.items())


def _table(records: Mapping[str, Mapping[str, object]]) -> str:
    columns = [c for c in FLEET_COLUMNS if any(c in record for record in records.values())]
    rows = [["id", *columns]]
    rows += [[_value(n), *(_value(_told(c, record.get(c))) for c in columns)] for n, record in records.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns) + 1)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "".join(f"{line}\n" for line in lines)


def _told(key: str, value: object) -> object:
    """Tell a time as one; 0 is never."""
    if key in TIMES and isinstance(value, int):
        return datetime.fromtimestamp(value, UTC).isoformat(sep=" ", timespec="seconds") if value else "never"
    return value


def _value(value: object) -> str:
    """Return a value for one line, bounded and without control characters."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return clean(value, LONG)
    if isinstance(value, (list, dict)):
        return clean(json.dumps(value), LONG * 2)
    return clean(value)
