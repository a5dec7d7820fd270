"""A node's whole life with our own programs: enrolled, attested, changed, distrusted with a reason, removed, back."""

import hashlib
import io
import json
import os
import signal
import time
import uuid
import zipfile
from pathlib import Path

import pytest
from tests.fakes.site import Site, last_json

from limeguard.cli.sandbox import Node, mount_namespace, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-pull")]

UNTOUCHED = "00" * 32
POLICY = json.dumps({"23": [UNTOUCHED]})
CHANGE = hashlib.sha256(b"changed").digest()
CHANGED = hashlib.sha256(bytes(32) + CHANGE).hexdigest()
ALGORITHMS = {
    "rsa": {"tpm_encryption_alg": "rsa", "tpm_signing_alg": "rsassa"},
    "ecc": {"tpm_encryption_alg": "ecc", "tpm_signing_alg": "ecdsa"},
}


def package(mark: Path) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("autorun.sh", f"#!/bin/sh\ncat word > '{mark}'\n")
        archive.writestr("word", "delivered")
    return out.getvalue()


def started(site: Site, kind: str = "rsa") -> Node:
    """Start an agent on a TPM of its own. Software TPMs have a certificate for the RSA EK, none for P-256."""
    node = site.add_node(str(uuid.uuid4()), None, **ALGORITHMS[kind])
    site.trust_tpm_maker()
    site.options["tenant"] = {"require_ek_cert": str(kind == "rsa")}
    node.start()
    return node


def enrol(site: Site, node: Node, *arguments: str, policy: str = POLICY) -> str:
    return site.keylime_tenant("-c", "add", "-u", node.id, "--tpm_policy", policy, *arguments)


@pytest.mark.parametrize("kind", ["rsa", "ecc"])
def test_a_node_attests_changes_and_is_distrusted_with_the_reason(site: Site, kind: str, tmp_path: Path) -> None:
    node = started(site, kind)
    mark, payload = node.folder / "mark", tmp_path / "payload.zip"
    payload.write_bytes(package(mark))
    delivery = ["-f", str(payload)] if mount_namespace() else []
    enrol(site, node, *delivery)
    view = site.reaches(node, "trusted", rounds=2)
    assert view["identity_only"] is False
    assert view["checks"]["required"]
    assert set(view["checks"]["required"]) <= set(view["checks"]["ran"])
    if delivery:
        wait_until("autorun.sh", 30, lambda: mark.exists() and mark.read_text() == "delivered")

    node.tpm.extend(23, CHANGE)
    view = site.reaches(node, "distrusted")
    assert [finding["event_id"] for finding in view["findings"]] == ["pcr_validation.invalid_pcr_23"]
    assert CHANGED in json.dumps(view["findings"][0]["context"])
    assert view["findings"][0]["advice"]
    shown = last_json(site.keylime_tenant("-c", "cvstatus", "-u", node.id))[node.id]
    assert shown["operational_state"] == "Invalid Quote"
    assert shown["attestation_status"] == "FAIL"
    assert shown["last_event_id"] == "pcr_validation.invalid_pcr_23"
    assert shown["severity_level"] == 6
    assert (shown["hash_alg"], shown["sign_alg"]) == ("sha256", ALGORITHMS[kind]["tpm_signing_alg"])

    site.keylime_tenant("-c", "delete", "-u", node.id)
    assert site.node_view(node.id) is None
    enrol(site, node, policy=json.dumps({"23": [UNTOUCHED, CHANGED]}))
    site.reaches(node, "trusted", rounds=1)
    site.keylime_tenant("-c", "delete", "-u", node.id)
    node.stop()


def test_an_agent_that_is_restarted_is_unreachable_and_then_trusted_again(site: Site) -> None:
    # A restart is not a change of the machine: reachability apart from integrity.
    site.options["verifier"] = {"max_retries": 30}
    node = started(site)
    enrol(site, node)
    before = site.reaches(node, "trusted", rounds=1)
    node.stop()
    site.reaches(node, "unreachable", 60)
    node.start()
    after = site.reaches(node, "trusted", 60, rounds=before["attestation_count"] + 1)
    assert after["findings"] == []
    registered = last_json(site.keylime_tenant("-c", "regstatus", "-u", node.id))[node.id]
    assert registered["regcount"] == 1 + 1
    site.keylime_tenant("-c", "delete", "-u", node.id)
    node.stop()


def test_a_reboot_is_not_a_change(site: Site) -> None:
    # trust: clock-and-reset - the reset counter moves on, the clock does not go back
    node = started(site)
    enrol(site, node)
    site.reaches(node, "trusted", rounds=1)
    node.stop()
    node.tpm.reboot()
    node.start()
    count = (site.node_view(node.id) or {})["attestation_count"]
    view = site.reaches(node, "trusted", 60, rounds=count + 1)
    assert view["findings"] == []
    site.keylime_tenant("-c", "delete", "-u", node.id)
    node.stop()


def test_lists_and_status_come_as_scripts_expect_them(site: Site) -> None:
    node = started(site)
    enrol(site, node)
    site.reaches(node, "trusted", rounds=1)
    assert node.id in last_json(site.keylime_tenant("-c", "reglist"))["uuids"]
    assert [node.id] in last_json(site.keylime_tenant("-c", "cvlist"))["uuids"]
    assert last_json(site.keylime_tenant("-c", "bulkinfo"))[node.id]["operational_state"] == "Get Quote"
    shown = last_json(site.keylime_tenant("-c", "status", "-u", node.id))[node.id]
    assert shown["operational_state"] in {"Get Quote", "Provide V"}
    assert shown["attestation_count"] >= 1
    ours = site.tenant("cvstatus", "-u", node.id)
    assert json.loads(ours.stdout), ours.stderr
    site.keylime_tenant("-c", "delete", "-u", node.id)
    site.keylime_tenant("-c", "regdelete", "-u", node.id)
    assert node.id not in last_json(site.keylime_tenant("-c", "reglist"))["uuids"]
    node.stop()


def test_a_tpm_of_an_unknown_maker_is_not_enrolled(site: Site) -> None:
    # trust: bound-identity - no chain from a trusted maker to the EK, no enrolment
    node = started(site)
    for certificate in site.store.iterdir():
        certificate.unlink()
    done = site.tenant("-c", "add", "-u", node.id, "--tpm_policy", POLICY)
    assert done.returncode == 1
    assert site.node_view(node.id) is None
    node.stop()


def test_a_killed_verifier_goes_on_where_it_was_and_shows_nothing_green_unproven(site: Site) -> None:
    # trust: green-is-recent
    node = started(site)
    enrol(site, node)
    before = site.reaches(node, "trusted", rounds=2)
    assert site.verifier is not None
    site.verifier.kill()
    node.stop()
    time.sleep(max(0.0, before["trust_expires_at"] - time.time()) + 0.5)
    site.start_verifier()
    view = site.node_view(node.id)
    assert view is not None
    assert view["condition"] != "trusted"
    node.start()
    site.reaches(node, "trusted", 60, rounds=before["attestation_count"] + 1)
    site.keylime_tenant("-c", "delete", "-u", node.id)
    node.stop()


@pytest.mark.parametrize("which", ["verifier", "registrar"])
def test_a_server_stops_in_order_on_sigterm(site: Site, which: str) -> None:
    program = {"verifier": site.verifier, "registrar": site.registrar}[which]
    assert program is not None
    os.kill(program.pid, signal.SIGTERM)
    wait_until(f"the {which} to stop", 10, lambda: not program.running)
    assert program.status == 0
    assert "Traceback" not in program.output()
    getattr(site, f"start_{which}")()
