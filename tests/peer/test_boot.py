"""Reference states against decoded boot logs, as they are and with generated changes: Keylime's verdict."""

import copy
import json
import os
import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.boot_logs import quoted
from tests.fakes.peer import peer_program
from tests.fakes.shared import shared_path

from limeguard.appraisal.boot import appraise_boot
from limeguard.evidence.bootlog.enriched import enriched
from limeguard.evidence.bootlog.log import parse_boot_log
from limeguard.policy.boot import EXAMPLE, parse_boot_policy, stored_boot_policy
from limeguard.policy.boot.checks import evaluate
from limeguard.policy.errors import PolicyError

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

CASES = 1_000
SEED = 20261127
ACCEPTED = ("keylime-el9-kvm-secureboot", "tpm2tools-event-bootorder", "tpm2tools-event-moklisttrusted")
"""Logs that the state made of them accepts: changes of these say the most."""
HASH = "0x" + "ab" * 32
VALUES: tuple[Any, ...] = (
    [],
    {},
    "",
    "x",
    None,
    True,
    False,
    0,
    1,
    [[]],
    [{}],
    {"sha256": HASH},
    HASH,
    ".*",
    "No",
    "Yes",
    "00000000",
)
TYPES = ("EV_IPL", "EV_SEPARATOR", "EV_NO_ACTION", "EV_EFI_ACTION", "EV_EFI_VARIABLE_AUTHORITY", "EV_EFI_GPT_EVENT")


class Maker:
    """Makes changes from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def case(self, state: dict[str, Any], log: dict[str, Any]) -> dict[str, Any]:
        state, log = copy.deepcopy(state), copy.deepcopy(log)
        for _ in range(self.random.choice([1, 1, 1, 2, 3])):
            self.random.choice([self.change_state, self.change_log, self.change_log])(*(state, log))
        return {"state": state, "log": log}

    def change_state(self, state: dict[str, Any], _log: dict[str, Any]) -> None:
        self.change_leaf(state)

    def change_log(self, _state: dict[str, Any], log: dict[str, Any]) -> None:
        events = log["events"]
        at = self.random.randrange(len(events))
        match self.random.randrange(9):
            case 0:
                del events[at]
            case 1:
                events.insert(self.random.randrange(len(events) + 1), copy.deepcopy(events[at]))
            case 2:
                other = self.random.randrange(len(events))
                events[at], events[other] = events[other], events[at]
            case 3:
                events[at]["PCRIndex"] = self.random.randrange(16)
            case 4:
                events[at]["EventType"] = self.random.choice(TYPES)
            case 5:
                events[at]["Digests"] = copy.deepcopy(self.random.choice(events).get("Digests", []))
            case 6:
                events[at].pop(self.random.choice(["Event", "Digests", "PCRIndex", "EventType"]), None)
            case 7:
                events[at]["Event"] = copy.deepcopy(self.random.choice(events).get("Event"))
            case 8:
                self.change_leaf(events[at])

    def change_leaf(self, value: Any) -> None:
        """Walk down at random and change what is there."""
        while True:
            keys = list(value) if isinstance(value, dict) else list(range(len(value)))
            if not keys:
                return
            key = self.random.choice(keys)
            if isinstance(value[key], dict | list) and value[key] and self.random.random() < 0.8:
                value = value[key]
                continue
            match self.random.randrange(4):
                case 0:
                    del value[key]
                case 1 if isinstance(value, list):
                    value.append(copy.deepcopy(value[key]))
                case 2 if isinstance(value[key], str) and value[key]:
                    text = value[key]
                    value[key] = text[:-1] + ("0" if text[-1] != "0" else "1")
                case _:
                    value[key] = copy.deepcopy(self.random.choice(VALUES))
            return


def stems(upstream: Path) -> list[str]:
    return sorted(path.stem.removeprefix("from-") for path in (upstream / "mb-refstates").glob("from-*.json"))


def documents(upstream: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    states = {one: json.loads((upstream / f"mb-refstates/from-{one}.json").read_text()) for one in stems(upstream)}
    logs = {one: enriched(parse_boot_log((upstream / f"event-logs/{one}.bin").read_bytes())) for one in states}
    return states, logs


def cases(states: dict[str, Any], logs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    maker = Maker(SEED)
    for number in range(CASES):
        stem = ACCEPTED[number % len(ACCEPTED)]
        yield maker.case(states[stem], logs[stem])


def ours(state: Any, log: Any) -> bool:
    policy = stored_boot_policy(json.dumps(state), EXAMPLE)
    assert callable(policy.judge)
    return policy.active and evaluate(policy.judge, log) == ""


def refused_as_such(state: Any) -> bool:
    """Say whether a state has members of the wrong type, which Keylime passes over where it does not look at them."""
    try:
        parse_boot_policy(json.dumps(state), EXAMPLE)
    except PolicyError:
        return True
    return False


def test_reference_states_judge_logs_as_keylime_does(tmp_path: Path) -> None:
    python = peer_program("keylime_tenant").parent / "python"
    upstream = shared_path("fixtures/upstream")
    states, logs = documents(upstream)
    pairs = [(state, log) for state in states for log in logs]
    changed = list(cases(states, logs))
    path = tmp_path / "cases.json"
    path.write_text(json.dumps({"states": states, "logs": logs, "pairs": pairs, "cases": changed}))
    program = Path(__file__).with_name("keylime_boot.py")
    done = subprocess.run(
        [python, program, path], capture_output=True, text=True, check=False, env={**os.environ}, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    seen: Counter[bool] = Counter()
    for (state, log), peer in zip(pairs, theirs, strict=False):
        assert ours(states[state], logs[log]) is peer, (state, log)
        raw = (upstream / f"event-logs/{log}.bin").read_bytes()
        verdict = appraise_boot(raw, quoted(raw), stored_boot_policy(json.dumps(states[state]), EXAMPLE))
        assert (verdict.findings == ()) is peer, (state, log)
        seen[peer] += 1
    assert seen[True] == len(ACCEPTED)
    faulty = 0
    for number, (case, peer) in enumerate(zip(changed, theirs[len(pairs) :], strict=True)):
        if peer and refused_as_such(case["state"]):
            faulty += 1
            continue
        assert ours(case["state"], case["log"]) is peer, (number, peer, differing_parts(case, states, logs, number))
        seen[peer] += 1
    assert min(seen.values()) > CASES // 10
    assert 0 < faulty < CASES // 20


def differing_parts(case: dict[str, Any], states: dict[str, Any], logs: dict[str, Any], number: int) -> str:
    """Return what was changed in a case, for the message of a failure."""
    stem = ACCEPTED[number % len(ACCEPTED)]
    state = {key: value for key, value in case["state"].items() if value != states[stem].get(key)}
    gone = [key for key in states[stem] if key not in case["state"]]
    events = [one for one in case["log"]["events"] if one not in logs[stem]["events"]]
    return json.dumps({"state": state, "gone": gone, "events": events})[:1500]
