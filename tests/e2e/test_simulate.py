"""`limeguard simulate` as a program: its own verifier, a table, JSON, and what it says of wrong input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-tools")]

RUNNING = ("--verifier", "https://127.0.0.1:9", "--cert", "/dev/null", "--key", "/dev/null", "--ca", "/dev/null")
QUICK = ("--nodes", "3", "--interval", "0.5", "--warm-up", "1", "--seconds", "3")


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "limeguard", "simulate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_a_fleet_is_registered_enrolled_and_attacked(tmp_path: Path) -> None:
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text("- {at: 1, do: unlisted, nodes: 1}\n")
    done = simulate(*QUICK, "--register", "--files", "5", "--digests", "50", "--scenario", str(scenario), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["conditions"] == {"distrusted": 1, "trusted": 2}
    (found,) = report["detections"]
    assert 0 < found["seconds"] < 5
    assert report["rounds"] > 5
    assert report["verifier_cpu"] > 0
    assert report["registered_per_second"] > 0
    assert report["complaints"] == 0
    assert report["errors"] == {}
    memory = report["memory"]
    assert 10 << 20 < memory["start"] <= memory["peak"] < 1 << 30
    assert memory["end"] - memory["start"] == report["memory_growth"] < 20 << 20
    assert 0 < report["verifier_cpu_per_round"] < 0.1


def test_a_fleet_that_pushes_attests(tmp_path: Path) -> None:
    done = simulate(
        "--push", "--nodes", "3", "--interval", "1", "--warm-up", "1", "--seconds", "3", "--register", "--json"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["conditions"] == {"trusted": 3}
    assert report["sessions"] == 3
    assert report["refusals"] == {}
    assert report["rounds"] >= 3


def test_people_get_a_table() -> None:
    done = simulate(*QUICK)
    assert done.returncode == 0, done.stderr
    for word in ("machines", "enrolled", "lateness", "ms CPU a round", "KiB a machine", "bytes a round", "trusted 3"):
        assert word in done.stdout
    assert "warming up for 1 s" in done.stderr
    assert "measuring, 0 of 3 s" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--verifier", "https://127.0.0.1:9"], "--verifier needs --cert, --key and --ca"),
        (["--nodes", "0"], "0 is not in the range"),
        (["--verifier-option", "nonsense"], "it is NAME=VALUE"),
        (["--verifier-option", "tenant.x=1"], "may begin with verifier. or revocations."),
        (["--verifier-option", "quote_interval=never"], "quote_interval"),
        (["--ca", "/dev/null"], "--ca goes with --verifier"),
        ([*RUNNING, "--database", "sqlite"], "--database is for servers that are started from here"),
    ],
)
def test_wrong_arguments_are_said(arguments: list[str], said: str) -> None:
    done = simulate(*arguments)
    assert done.returncode != 0
    assert said in done.stderr


def test_a_scenario_that_cannot_be_played_is_named(tmp_path: Path) -> None:
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text("- {at: 1, do: explode}\n")
    done = simulate("--scenario", str(scenario))
    assert done.returncode == 1
    assert "do is one of unlisted" in done.stderr
    scenario.write_text("- {at: 10, do: forge}\n")
    done = simulate("--scenario", str(scenario), "--seconds", "5")
    assert done.returncode == 1
    assert "forge at 10 s comes after the end" in done.stderr
    assert "forge needs machines with an IMA log" in done.stderr
