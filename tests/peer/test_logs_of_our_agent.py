"""The measurement lists that our agent sends, judged by Keylime's verifier: IMA entry by entry, and the boot log."""

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator
from ctypes.util import find_library
from pathlib import Path

import pytest
from tests.fakes.mixed_site import MixedSite
from tests.fakes.shared import shared_path

from limeguard.cli.kernel import Kernel

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

GOOD = {f"/usr/bin/tool{number}": hashlib.sha256(b"tool%d" % number).hexdigest() for number in range(40)}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MixedSite]:
    if shutil.which("swtpm") is None:
        pytest.skip("needs swtpm (Debian and Ubuntu: swtpm, swtpm-tools)")
    with MixedSite(tmp_path_factory.mktemp("logs"), "keylime", "keylime", "keylime") as running:
        running.options["verifier"]["measured_boot_evaluate"] = "always"
        running.start_servers()
        yield running


def policy(folder: Path) -> Path:
    path = folder / "policy.json"
    document = {
        "meta": {"version": 1, "generator": 0},
        "release": 0,
        "digests": {name: [digest] for name, digest in GOOD.items()},
        "excludes": [],
        "keyrings": {},
        "ima": {"ignored_keyrings": [], "log_hash_alg": "sha1", "dm_policy": None},
        "ima-buf": {},
        "verification-keys": "",
    }
    path.write_text(json.dumps(document))
    return path


def test_the_ima_list_is_read_on_from_where_it_was(site: MixedSite, tmp_path: Path) -> None:
    log = tmp_path / "ascii_runtime_measurements"
    log.write_text("")
    node = site.add_node(str(uuid.uuid4()), None, ima_ml_path=str(log))
    site.trust_tpm_maker()
    kernel = Kernel(node.tpm, log)
    for name in list(GOOD)[:10]:
        kernel.measure(name, GOOD[name])
    node.start({"RUST_LOG": "keylime_agent=info"})
    site.run_tenant("-c", "add", "-u", node.id, "--runtime-policy", str(policy(tmp_path)))
    site.comes_to(node, "Get Quote", rounds=2)
    for name in list(GOOD)[10:]:
        kernel.measure(name, GOOD[name])
    count = site.comes_to(node, "Get Quote")["attestation_count"]
    site.comes_to(node, "Get Quote", rounds=count + 3)

    kernel.measure("/tmp/evil", "66" * 32)
    record = site.comes_to(node, "Invalid Quote")
    assert record["last_event_id"] == "ima.validation.ima-ng.not_in_allowlist"
    site.run_tenant("-c", "delete", "-u", node.id)
    node.stop()


def events(log: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield PCR and SHA-256 digest of each event that was extended (PC Client Platform Firmware Profile §10.2)."""
    place = 32 + int.from_bytes(log[28:32], "little")  # behind the header event, which has the old format
    sizes = {0x4: 20, 0xB: 32, 0xC: 48, 0xD: 64}
    while place < len(log):
        pcr, kind, count = (int.from_bytes(log[place + i : place + i + 4], "little") for i in (0, 4, 8))
        place += 12
        digests = {}
        for _ in range(count):
            algorithm = int.from_bytes(log[place : place + 2], "little")
            digests[algorithm] = log[place + 2 : place + 2 + sizes[algorithm]]
            place += 2 + sizes[algorithm]
        place += 4 + int.from_bytes(log[place : place + 4], "little")
        if kind != NO_ACTION:
            yield pcr, digests[0xB]


NO_ACTION = 3


def test_the_boot_log_is_sent_as_the_firmware_wrote_it(site: MixedSite, tmp_path: Path) -> None:
    if find_library("efivar") is None:
        pytest.skip("Keylime's reading of boot logs needs libefivar (Debian and Ubuntu: libefivar1)")
    log = tmp_path / "binary_bios_measurements"
    log.write_bytes(shared_path("fixtures/vm/direct-imang/1-boot/uefi.bin").read_bytes())
    node = site.add_node(str(uuid.uuid4()), None, measuredboot_ml_path=str(log))
    site.trust_tpm_maker()
    for pcr, digest in events(log.read_bytes()):
        node.tpm.extend(pcr, digest)
    node.start()
    accepted = tmp_path / "boot-policy.json"
    accepted.write_text("{}")
    site.run_tenant("-c", "add", "-u", node.id, "--mb-policy", str(accepted))
    record = site.comes_to(node, "Get Quote", rounds=3)
    assert record["has_mb_refstate"] == 1

    log.write_bytes(log.read_bytes()[:-7])
    record = site.comes_to(node, "Invalid Quote")
    assert record["last_event_id"].startswith("measured_boot.parser.")
    site.run_tenant("-c", "delete", "-u", node.id)
    node.stop()
