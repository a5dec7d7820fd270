"""One life of a node on sites of which each part is ours or Keylime's; the agent is ours, on a software TPM."""

import hashlib
import io
import json
import shutil
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.mixed_site import MixedSite

from limeguard.cli.sandbox import Node, mount_namespace, wait_until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

UNTOUCHED = "00" * 32
CHANGE = hashlib.sha256(b"changed").digest()
CHANGED = hashlib.sha256(bytes(32) + CHANGE).hexdigest()
POLICY = json.dumps({"23": [UNTOUCHED]})
RSA = {"tpm_encryption_alg": "rsa", "tpm_signing_alg": "rsassa"}
ECC = {"tpm_encryption_alg": "ecc", "tpm_signing_alg": "ecdsa"}
SITES = {
    "verifier and registrar and tenant of Keylime": ("keylime", "keylime", "keylime"),
    "Keylime's tenant with our servers": ("limeguard", "limeguard", "keylime"),
    "our tenant with Keylime's servers": ("keylime", "keylime", "limeguard"),
    "Keylime's verifier with our registrar": ("keylime", "limeguard", "keylime"),
    "our verifier with Keylime's registrar": ("limeguard", "keylime", "limeguard"),
}


@pytest.fixture(scope="module", params=list(SITES.values()), ids=list(SITES))
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MixedSite]:
    missing = [name for name in ("swtpm", "swtpm_setup") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)} (Debian and Ubuntu: swtpm, swtpm-tools)")
    with MixedSite(tmp_path_factory.mktemp("mixed"), *request.param) as running:
        running.start_servers()
        yield running


def package(mark: Path) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("autorun.sh", f"#!/bin/sh\ncat word > '{mark}'\n")
        archive.writestr("word", "delivered")
    return out.getvalue()


def started(site: MixedSite, algorithms: dict[str, str]) -> Node:
    node = site.add_node(str(uuid.uuid4()), None, **algorithms)
    site.trust_tpm_maker()
    # The maker of these TPMs certifies no P-256 key.
    site.options["tenant"] = {"require_ek_cert": str(algorithms is RSA)}
    node.start()
    return node


def test_a_node_lives_as_it_should(site: MixedSite, tmp_path: Path) -> None:
    node = started(site, RSA)
    mark, payload = node.folder / "mark", tmp_path / "payload.zip"
    payload.write_bytes(package(mark))
    delivery = ["-f", str(payload)] if mount_namespace() else []
    said = site.run_tenant("-c", "add", "-u", node.id, "--tpm_policy", POLICY, *delivery)
    assert node.id in said
    record = site.comes_to(node, "Get Quote", rounds=3)
    assert record["attestation_status"] == "PASS"
    assert (record["hash_alg"], record["enc_alg"], record["sign_alg"]) == ("sha256", "rsa2048", "rsassa")
    if delivery:
        wait_until("autorun.sh", 30, lambda: mark.exists() and mark.read_text() == "delivered")
    assert node.id in site.run_tenant("-c", "reglist")
    assert node.id in site.run_tenant("-c", "cvlist")
    assert node.id in site.run_tenant("-c", "bulkinfo")
    assert '"operational_state": "Registered"' in site.run_tenant("-c", "regstatus", "-u", node.id)

    assert node.agent is not None
    node.agent.kill()
    node.start()
    count = site.comes_to(node, "Get Quote")["attestation_count"]
    site.comes_to(node, "Get Quote", rounds=count + 2)

    node.tpm.extend(23, CHANGE)
    record = site.comes_to(node, "Invalid Quote")
    assert record["attestation_status"] == "FAIL"
    assert record["last_event_id"] == "pcr_validation.invalid_pcr_23"

    site.run_tenant("-c", "update", "-u", node.id, "--tpm_policy", json.dumps({"23": [CHANGED]}))
    site.comes_to(node, "Get Quote", rounds=2)
    site.run_tenant("-c", "delete", "-u", node.id)
    assert site.status(node) is None
    site.run_tenant("-c", "add", "-u", node.id, "--tpm_policy", json.dumps({"23": [UNTOUCHED, CHANGED]}))
    site.comes_to(node, "Get Quote", rounds=1)
    site.run_tenant("-c", "reactivate", "-u", node.id)
    site.comes_to(node, "Get Quote", rounds=2)
    site.run_tenant("-c", "delete", "-u", node.id)
    node.stop()
    site.run_tenant("-c", "regdelete", "-u", node.id)
    assert node.id not in site.run_tenant("-c", "reglist")


def test_a_node_with_ecc_keys_is_attested(site: MixedSite) -> None:
    node = started(site, ECC)
    site.run_tenant("-c", "add", "-u", node.id, "--tpm_policy", POLICY)
    record = site.comes_to(node, "Get Quote", rounds=2)
    assert (record["enc_alg"], record["sign_alg"]) == ("ecc256", "ecdsa")
    site.run_tenant("-c", "delete", "-u", node.id)
    node.stop()


def test_a_second_tpm_does_not_get_the_id(site: MixedSite) -> None:
    # trust: bound-identity
    first = started(site, RSA)
    second = site.add_node(str(uuid.uuid4()), None, **{**RSA, "uuid": first.id})
    with pytest.raises(Exception, match=r"ended with status|does not listen"):
        second.start()
    second.stop()
    first.stop()
