"""A node with a boot log, with our own programs and a software TPM: accepted, lied about, judged anew by an update."""

import json
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from tests.fakes.boot_logs import record
from tests.fakes.firmware import boot, vm_log
from tests.fakes.site import Site, last_json

from limeguard.cli.sandbox import Node, clean_environment
from limeguard.crypto.hashes import SHA256
from limeguard.evidence.bootlog.event_types import EV_IPL
from limeguard.evidence.bootlog.log import parse_boot_log

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-pull")]

LOG = vm_log("grub-shim")
SERVERS = {"verifier": "verifier", "registrar": "registrar_tls"}


def booted(site: Site, path: Path) -> Node:
    """Start a node that went through shim and GRUB, and shows it in a log at `path`."""
    path.write_bytes(LOG)
    node = site.add_node(str(uuid.uuid4()), None, measuredboot_ml_path=str(path))
    site.trust_tpm_maker()
    boot(node.tpm, LOG)
    node.start()
    return node


def learned(site: Site, folder: Path, name: str) -> str:
    """Make a policy of the log of a virtual machine, and return its file."""
    source, made = folder / f"{name}.bin", folder / f"{name}.json"
    source.write_bytes(vm_log(name))
    command = site.command("boot", "learn", str(source), "--output", str(made))
    subprocess.run(command, check=True, capture_output=True, timeout=60, env=clean_environment({}))
    return str(made)


PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "verify-evidence.md"


def test_the_page_about_evidence_goes_as_it_says(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "binary_bios_measurements"
    node = booted(site, path)
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    servers = {name.upper(): f"https://127.0.0.1:{site.ports[port]}" for name, port in SERVERS.items()}
    environment = clean_environment({"NODE": node.id, "TLS": str(site.authority), **servers})

    def said() -> tuple[int, list[str]]:
        command = [sys.executable, "-c", program]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert not done.stderr, done.stderr
        return done.returncode, done.stdout.splitlines()

    Path(learned(site, tmp_path, "grub-shim")).rename(tmp_path / "boot.json")
    assert said() == (0, ["valid"])
    Path(learned(site, tmp_path, "grub-off")).rename(tmp_path / "boot.json")
    status, lines = said()
    assert (status, lines[-1]) == (1, "not valid")
    assert {line.split()[0] for line in lines[:-1]} == {"measured_boot.policy_limeguard"}
    path.write_bytes(vm_log("grub-off"))
    status, lines = said()
    assert (status, lines[-1]) == (1, "not valid")
    assert any(line.startswith("measured_boot.invalid_pcr_8 ") for line in lines)
    assert site.node_view(node.id) is None
    node.stop()


def test_a_boot_is_accepted_a_lie_is_found_and_an_updated_policy_judges_anew(site: Site, tmp_path: Path) -> None:
    # trust: replayed-before-believed
    path = tmp_path / "binary_bios_measurements"
    node = booted(site, path)
    fleet = ("--mb-policy-name", "fleet")
    site.keylime_tenant("-c", "addmbpolicy", *fleet, "--mb-policy", learned(site, tmp_path, "grub-shim"))
    site.keylime_tenant("-c", "add", "-u", node.id, *fleet)
    view = site.reaches(node, "trusted", rounds=2)
    assert "boot-log" in view["checks"]["ran"]
    status = last_json(site.keylime_tenant("-c", "cvstatus", "-u", node.id))[node.id]
    assert status["has_mb_refstate"] == 1

    path.write_bytes(LOG[:-1000])  # cut within an event
    (finding,) = site.reaches(node, "distrusted")["findings"]
    assert finding["event_id"] == "measured_boot.parser.tpm2_eventlog.error"
    path.write_bytes(LOG)
    site.keylime_tenant("-c", "reactivate", "-u", node.id)
    site.reaches(node, "trusted", rounds=1)

    other = vm_log("grub-off")
    path.write_bytes(other)  # another machine's log, which its own policy would accept
    events = {one["event_id"] for one in site.reaches(node, "distrusted")["findings"]}
    assert {"measured_boot.invalid_pcr_7", "measured_boot.invalid_pcr_8"} <= events
    path.write_bytes(LOG)
    site.keylime_tenant("-c", "reactivate", "-u", node.id)
    site.reaches(node, "trusted", rounds=1)

    site.keylime_tenant("-c", "updatembpolicy", *fleet, "--mb-policy", learned(site, tmp_path, "grub-off"))
    view = site.reaches(node, "distrusted")
    assert {one["event_id"] for one in view["findings"]} == {"measured_boot.policy_limeguard"}
    site.keylime_tenant("-c", "updatembpolicy", *fleet, "--mb-policy", str(tmp_path / "grub-shim.json"))
    site.keylime_tenant("-c", "reactivate", "-u", node.id)
    assert site.reaches(node, "trusted", rounds=1)["findings"] == []

    # What nobody knows was started before the agent: the log and the TPM agree, the policy does not.
    command = b"linux /vmlinuz init=/bin/sh"
    digests = {bank: bank.digest(command) for bank in parse_boot_log(LOG).banks}
    node.tpm.extend(8, digests[SHA256])
    path.write_bytes(LOG + record(8, EV_IPL, b"grub_cmd: " + command + b"\0", digests))
    (finding,) = site.reaches(node, "distrusted")["findings"]
    assert finding["event_id"] == "measured_boot.policy_limeguard"
    assert "init=/bin/sh" in json.dumps(finding["context"])

    site.keylime_tenant("-c", "delete", "-u", node.id)
    site.keylime_tenant("-c", "deletembpolicy", *fleet)
    node.stop()
