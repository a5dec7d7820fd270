"""Generated device-mapper events and policies by the thousand: Keylime's validator says the same of each step."""

import copy
import hashlib
import json
import os
import random
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.peer import peer_program
from tests.policy.test_device_mapper import RULE

from limeguard.appraisal.ima.devices import Device, changed, judge_event
from limeguard.policy.device_mapper import compile_devices, device_problems

pytestmark = [pytest.mark.peer, pytest.mark.timeout(120)]

CASES = 2_000
SEED = 20260217
NAMES = ("test", "test2", "data")
UUIDS = ("", "CRYPT-1", "CRYPT-2")
HEAD = "dm_version=4.45.0;"
TAIL = "current_device_capacity=8;"
REFERENCES: dict[str, list[Any]] = {
    "name": ["test.*", "test", "test|data", None, False],
    "uuid": [None, "", "CRYPT-.*", ".*"],
    "major": [253, None, "25[0-9]", 8, True],
    "minor": [0, None, "0", 1, False],
    "minor_count": [1, None, "1"],
}


class Maker:
    """Makes cases from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def rule(self) -> dict[str, Any]:
        rule = copy.deepcopy(RULE)
        flag = [True, False]
        pick = self.random.choice
        rule |= {"device_resume_required": pick(flag), "allow_clear": pick(flag)}
        rule["device_remove"] = {"allow_removal": pick(flag)}
        rule["device_rename"] = {"valid_name": pick([None, False, "test.*"]), "valid_uuid": pick([None, "", "CRYPT-2"])}
        load = rule["table_load"]
        load["allow_multiple_loads"] = pick(flag)
        for name, values in REFERENCES.items():
            load[name] = pick(values)
        load["num_targets"] = pick([1, 1, 2])
        load["targets"] = [
            {"target_name": pick(["linear", "verity"]), "start": pick([0, "0", None]), "target_index": index}
            for index in range(load["num_targets"])
        ]
        if self.random.random() < 0.1:
            load["targets"][0]["unknown_field"] = None
        return rule

    def metadata(self, targets: int = 1) -> str:
        name, uuid = self.random.choice(NAMES), self.random.choice(UUIDS)
        return f"name={name},uuid={uuid},major=253,minor=0,minor_count=1,num_targets={targets};"

    def target(self, index: int = 0) -> str:
        start = self.random.choice([0, 0, 8])
        row = f"target_index={index},target_begin=0,target_len=8,target_name=linear,target_version=1.4.0"
        return f"{row},device_name=8:1,start={start};"

    def events(self) -> list[tuple[str, str]]:
        loads: list[str] = []
        return [self.event(loads) for _ in range(self.random.randrange(1, 9))]

    def event(self, loads: list[str]) -> tuple[str, str]:
        chance = self.random.random()
        if chance < 0.4 or not loads:
            count = self.random.choice([1, 1, 1, 2])
            rows = "".join(self.target(index) for index in range(count))
            loads.append(HEAD + self.metadata(count) + rows)
            return "dm_table_load", loads[-1]
        load = self.random.choice(loads)
        device = load.split(";")[1] + ";" if self.random.random() < 0.8 else self.metadata()
        table = f"active_table_hash=sha256:{hashlib.sha256(load.encode()).hexdigest()}"
        if chance < 0.65:
            return "dm_device_resume", f"{HEAD}{device}{table};{TAIL}"
        if chance < 0.75:
            new = f"new_name={self.random.choice(NAMES)},new_uuid={self.random.choice(UUIDS)}"
            return "dm_device_rename", f"{HEAD}{device}{new};{TAIL}"
        if chance < 0.83:
            return "dm_device_remove", f"{HEAD}device_active_metadata={device}{table},remove_all=n;{TAIL}"
        if chance < 0.9:
            name, uuid, *_ = device.split(",")
            return "dm_table_clear", f"{HEAD}{name},{uuid};table_clear=no_data;{TAIL}"
        if chance < 0.97:
            return "dm_target_update", f"{HEAD}{device}{self.target(self.random.choice([0, 0, 1]))}"
        return self.random.choice([("dm_table_load", "nonsense"), ("dm_table_clear", HEAD + device)])

    def case(self) -> dict[str, Any]:
        rules = {f"rule{number}": self.rule() for number in range(self.random.randrange(1, 4))}
        match_on = self.random.choice(["name", "uuid"])
        for rule in rules.values():  # null and booleans are no keys to Keylime, whatever else they are
            rule["table_load"][match_on] = self.random.choice([".*", "test.*|CRYPT-1", "", "data|test|CRYPT-.*"])
            if match_on == "uuid":  # Keylime moves a record that it keeps by UUID to the new name
                rule["device_rename"]["valid_uuid"] = False
        return {"policy": {"version": 1, "match_on": match_on, "rules": rules}, "events": self.events()}


def followed(case: dict[str, Any]) -> list[Any]:
    """Return the event ids of each step as this project sees them."""
    assert list(device_problems(case["policy"])) == []
    policy = compile_devices(case["policy"])
    devices: dict[str, Device] = {}
    steps: list[Any] = []
    for name, text in case["events"]:
        digest = hashlib.sha256(text.encode()).digest()
        verdict = judge_event(name, "sha256", digest, text.encode(), policy, devices)
        changed(devices, verdict.changes)
        steps.append([finding.event_id for finding in verdict.findings])
    return steps


def test_each_step_of_generated_devices_has_the_event_ids_of_keylime(tmp_path: Path) -> None:
    maker = Maker(SEED)
    cases = [maker.case() for _ in range(CASES)]
    file = tmp_path / "cases.json"
    file.write_text(json.dumps(cases))
    program = [str(peer_program("python")), str(Path(__file__).with_name("keylime_devices.py")), str(file)]
    run = subprocess.run(program, capture_output=True, text=True, check=True, env={**os.environ}, timeout=100)
    seen: Counter[str] = Counter()
    for case, theirs in zip(cases, json.loads(run.stdout.splitlines()[-1]), strict=True):
        ours = followed(case)
        for number, ids in enumerate(theirs):
            if ids == "crash":
                seen["crash"] += 1
                break
            assert ours[number] == ids, json.dumps({"step": number, "ours": ours, "theirs": theirs, "case": case})
            seen.update(ids)
            seen["clean"] += not ids
    assert len(seen) >= 17, seen
    assert seen["clean"] > 400, seen
    assert seen["crash"] < CASES / 4, seen
