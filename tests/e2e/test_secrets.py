"""What a full run leaves behind: no secret outside the place that is made for it, no file open to others."""

import json
import secrets
import shutil
import subprocess
import uuid
from base64 import b64decode
from pathlib import Path

import pytest
from tests.fakes.site import Site, last_json

from limeguard.cli.sandbox import Node, mount_namespace, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-secrets")]


def inside(node: Node, name: str) -> bytes:
    """Read a file of the agent's memory file system, which only the agent's own mount namespace shows."""
    assert node.agent is not None
    return Path(f"/proc/{node.agent.pid}/root{node.folder}/secure/unzipped/{name}").read_bytes()


def in_database(site: Site, name: str) -> bool:
    return name.startswith("servers/cv_data.sqlite")


def test_a_full_run_leaves_no_secret_behind(site: Site, tmp_path: Path) -> None:
    # trust: secret
    if not mount_namespace():
        pytest.skip("needs to mount a tmpfs for the payload, in a mount namespace of its own")
    node = site.add_node(str(uuid.uuid4()))
    site.trust_tpm_maker()
    node.start({"RUST_LOG": "trace"})
    marker = secrets.token_bytes(24).hex().encode()
    payload = tmp_path / "payload"
    payload.write_bytes(b"#!/bin/sh\n# " + marker + b"\n")
    site.keylime_tenant("-c", "add", "-u", node.id, "--tpm_policy", json.dumps({"23": ["00" * 32]}), "-f", str(payload))
    site.reaches(node, "trusted", rounds=1)
    wait_until("the payload", 30, lambda: _arrived(node))
    key = inside(node, "derived_tci_key")
    record = last_json(site.keylime_tenant("-c", "cvstatus", "-u", node.id))[node.id]
    node.tpm.extend(23, bytes(32))
    site.reaches(node, "distrusted")

    half = b64decode(record["v"])
    shares = [half, bytes(a ^ b for a, b in zip(key, half, strict=True))] if len(key) == len(half) else [half]
    for log in site.logs.iterdir():
        # The operator's own question is answered with V, as Keylime answers it; that answer is not our logs' affair.
        if log.name != "tenant.log":
            assert not [s for s in (marker, key, *shares) if _holds(log, s)], log.name
    found = site.holding([marker, key, *shares])
    assert [name for name in found if not in_database(site, name) and name != "logs/tenant.log"] == []
    assert not any("raw" in forms for name, forms in found.items() if marker in (site.folder / name).read_bytes())
    _keys_stay_in_their_files(site)
    node.stop()
    assert site.open_to_others() == []


def _arrived(node: Node) -> bool:
    try:
        return bool(inside(node, "derived_tci_key"))
    except FileNotFoundError:
        return False


def _holds(path: Path, secret: bytes) -> bool:
    data = path.read_bytes()
    return secret in data or secret.hex().encode() in data


def _keys_stay_in_their_files(site: Site) -> None:
    keys = site.private_keys()
    assert {name.rpartition("/")[2] for name in keys} >= {"server-private.pem", "client-private.pem"}
    for name, body in keys.items():
        needle = body[40:80]
        others = [p for p in site.written() if needle in b"".join(p.read_bytes().split())]
        assert [str(p.relative_to(site.folder)) for p in others] == [name]


@pytest.mark.parametrize(
    "place", ["cv_data.sqlite", "reg_data.sqlite", "cv_ca/private.yml", "cv_ca/server-private.pem"]
)
def test_files_with_secrets_are_for_their_owner_alone(site: Site, place: str) -> None:
    # trust: secret
    path = site.work / place
    assert path.stat().st_mode & 0o007 == 0
    assert path.parent.stat().st_mode & 0o007 == 0 or path.parent == site.work


def test_certificates_can_be_read_with_openssl(site: Site) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    shown = ["openssl", "verify", "-CAfile", str(site.authority / "cacert.crt")]
    done = subprocess.run([*shown, str(site.authority / "server-cert.crt")], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
