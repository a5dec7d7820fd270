"""A node whose IMA log grows, with our own programs and a software TPM: listed, unlisted, updated, started again."""

import hashlib
import json
import time
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.fakes.site import Site
from tests.fakes.soft_ima import SoftKernel, policy_for, signature

from limeguard.cli.kernel import Kernel
from limeguard.cli.sandbox import Node
from limeguard.crypto.hashes import SHA256
from limeguard.policy.keyring import key_id_of, keyring_text
from limeguard.simulator.softtpm import SoftNode

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


class Chip:
    """A software TPM as a program, where `SoftKernel` wants one in this process."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.ak = SimpleNamespace(hash_alg=SHA256)

    def extend(self, pcr: int, digest: bytes) -> None:
        self._node.tpm.extend(pcr, digest)

    def reboot(self) -> None:
        """Take the power away and give it back; the agent dies with the machine."""
        self._node.stop()
        self._node.tpm.stop()
        self._node.tpm.start()


class Machine:
    """A node with the kernel's part of IMA: signatures, keys and reboots as well."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.log = folder / "ascii_runtime_measurements"
        self.log.write_text("")
        self.node = site.add_node(str(uuid.uuid4()), None, ima_ml_path=str(self.log))
        site.trust_tpm_maker()
        self.kernel = SoftKernel(cast("SoftNode", Chip(self.node)))
        for name in TOOLS:
            self.kernel.measure(name)
        self.show()
        self.node.start()

    def show(self) -> None:
        """Let the agent see the list as it is now."""
        self.log.write_text("".join(f"{line}\n" for line in self.kernel.lines))


def test_signatures_and_learned_keys_stand_for_digests_and_a_reboot_begins_anew(site: Site, tmp_path: Path) -> None:
    # trust: clock-and-reset
    machine = Machine(site, tmp_path)
    node, kernel = machine.node, machine.kernel
    known, learned = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    der = learned.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    policy = policy_for(*TOOLS, keyrings={".ima": [hashlib.sha256(der).hexdigest()]})
    policy["verification-keys"] = keyring_text([(known.public_key(), key_id_of(known.public_key()))])
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(policy))
    site.keylime_tenant("-c", "add", "-u", node.id, "--runtime-policy", str(path))
    view = site.reaches(node, "trusted", rounds=1)

    kernel.measure("/opt/signed", sig=signature(known, bytes.fromhex(digest("/opt/signed"))))
    kernel.load_key(".ima", der)
    machine.show()
    view = site.reaches(node, "trusted", rounds=view["attestation_count"] + 2)
    kernel.measure("/opt/later", sig=signature(learned, bytes.fromhex(digest("/opt/later"))))
    machine.show()
    view = site.reaches(node, "trusted", rounds=view["attestation_count"] + 2)
    assert view["findings"] == []

    kernel.reboot()
    for name in TOOLS[:3]:
        kernel.measure(name)
    machine.show()
    node.start()
    view = site.reaches(node, "trusted", rounds=view["attestation_count"] + 2)
    assert view["findings"] == []

    # The key was loaded in the boot before: its signatures are worth nothing now.
    kernel.measure("/opt/later", sig=signature(learned, bytes.fromhex(digest("/opt/later"))))
    machine.show()
    (finding,) = site.reaches(node, "distrusted")["findings"]
    assert (finding["event_id"], finding["context"]["path"]) == (NOT_LISTED, "/opt/later")
    site.keylime_tenant("-c", "delete", "-u", node.id)
    node.stop()
