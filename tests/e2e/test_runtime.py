"""A node whose IMA log grows, with our own programs and a software TPM: listed, unlisted, updated, started again."""

import hashlib
import json
import time
import uuid
from pathlib import Path

import pytest
from tests.fakes.site import Site
from tests.fakes.soft_ima import policy_for

from limeguard.cli.kernel import Kernel
from limeguard.cli.sandbox import Node

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-pull")]

TOOLS = tuple(f"/usr/bin/tool{number}" for number in range(8))
NOT_LISTED = "ima.validation.ima-ng.not_in_allowlist"


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def started(site: Site, log: Path) -> tuple[Node, Kernel]:
    log.write_text("")
    node = site.add_node(str(uuid.uuid4()), None, ima_ml_path=str(log))
    site.trust_tpm_maker()
    kernel = Kernel(node.tpm, log)
    for name in TOOLS:
        kernel.measure(name, digest(name))
    node.start()
    return node, kernel


def stored(folder: Path, *names: str) -> str:
    path = folder / "policy.json"
    path.write_text(json.dumps(policy_for(*TOOLS, *names, excludes=["/tmp/ok.*"])))
    return str(path)


def test_an_unlisted_file_is_named_and_an_updated_policy_revives(site: Site, tmp_path: Path) -> None:
    node, kernel = started(site, tmp_path / "ascii_runtime_measurements")
    site.keylime_tenant("-c", "addruntimepolicy", "--runtime-policy-name", "web", "--runtime-policy", stored(tmp_path))
    site.keylime_tenant("-c", "add", "-u", node.id, "--runtime-policy-name", "web")
    view = site.reaches(node, "trusted", rounds=2)
    assert "ima-log" in view["checks"]["ran"]

    kernel.measure("/tmp/okay", digest("/tmp/okay"))
    site.reaches(node, "trusted", rounds=view["attestation_count"] + 2)

    kernel.measure("/opt/evil", digest("/opt/evil"))
    since = time.monotonic()
    view = site.reaches(node, "distrusted")
    took = time.monotonic() - since
    assert took < 10, took
    (finding,) = view["findings"]
    assert (finding["event_id"], finding["context"]["path"]) == (NOT_LISTED, "/opt/evil")

    new = stored(tmp_path, "/opt/evil")
    site.keylime_tenant("-c", "updateruntimepolicy", "--runtime-policy-name", "web", "--runtime-policy", new)
    site.keylime_tenant("-c", "reactivate", "-u", node.id)
    assert site.reaches(node, "trusted", rounds=1)["findings"] == []
    site.keylime_tenant("-c", "delete", "-u", node.id)
    site.keylime_tenant("-c", "deleteruntimepolicy", "--runtime-policy-name", "web")
    node.stop()
