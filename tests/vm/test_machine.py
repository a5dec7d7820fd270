"""A whole machine: firmware with Secure Boot, a unified kernel, IMA and /dev/tpmrm0, with our agent inside."""

import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.site import Site
from tests.fakes.vm_site import CACHE, Guest, guest_of, need_what_a_guest_needs

from limeguard.cli.sandbox import wait_until
from limeguard.cli.softtpm import SandboxError

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1500)]

CHANGES = r"""boot_aggregate
/etc/machine-id
/var/.*
/root/.*
"""
"""What is not in the build's list of digests: the aggregate is judged by itself, the rest the guest writes itself."""
SLOW = 120.0
BOOT = "unified-kernel"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Run our servers; requests may take long, for the guest's processor is emulated."""
    need_what_a_guest_needs()
    folder = tmp_path_factory.mktemp("site")
    with Site(folder, verifier={"request_timeout": "60.0", "quote_interval": "4", "max_retries": "10"}) as running:
        running.start_servers()
        yield running


@pytest.fixture(scope="module")
def guest(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """Boot one machine with Secure Boot and a unified kernel image."""
    folder = tmp_path_factory.mktemp("vm")
    with guest_of(site, folder, str(uuid.uuid4()), boot="uki", secure_boot="snakeoil") as running:
        yield running


def view_of(site: Site, guest: Guest, condition: str, *, rounds: int = 0) -> dict[str, Any]:
    """Wait until the verifier says so of the guest."""
    seen: list[dict[str, Any] | None] = []

    def look() -> dict[str, Any] | None:
        view = site.node_view(guest.id)
        seen[:] = [view]
        reached = view is not None and view["condition"] == condition and view["attestation_count"] >= rounds
        return view if reached else None

    try:
        view = wait_until(f"{guest.id} to be {condition}", SLOW, look)
    except SandboxError as problem:
        pytest.fail(f"{problem}, the last view was {json.dumps(seen, indent=1)}")
    assert view is not None
    return view


def policy(site: Site, folder: Path) -> Path:
    """Make a runtime policy from the digests that the build of the guest wrote down, and from its initrd."""
    excludes, ramdisks, made = folder / "excludes", folder / "boot", folder / "policy.json"
    excludes.write_text(CHANGES)
    ramdisks.mkdir()
    shutil.copy(CACHE / "guest" / "initrd.img", ramdisks / "initrd.img-guest")
    done = site.tenant(
        *("create", "runtime", "--allowlist", str(CACHE / "guest" / "files.sha256"), "--excludelist", str(excludes)),
        *("--ramdisk-dir", str(ramdisks), "-o", str(made)),
        program=site.command("policy"),
    )
    assert done.returncode == 0, done.stderr
    boot = json.loads(made.read_text())
    assert len(boot["digests"]) > 3_000
    return made


def learned(site: Site, guest: Guest, folder: Path) -> Path:
    """Make a boot policy from what the guest's firmware and kernel have logged."""
    log, made = folder / "boot.log", folder / "boot.json"
    log.write_bytes(guest.read("/sys/kernel/security/tpm0/binary_bios_measurements"))
    done = site.tenant("learn", str(log), "-o", str(made), program=site.command("boot"))
    assert done.returncode == 0, done.stderr
    return made


def spoken(site: Site, *words: str) -> None:
    """Give the tenant a command that must succeed."""
    done = site.tenant(*words)
    assert done.returncode == 0, done.stdout + done.stderr


def enrolled(site: Site, guest: Guest, folder: Path) -> None:
    """Enrol the guest with policies over what it boots and everything that it runs."""
    shutil.copy(folder / "tpm-ca" / "issuercert.pem", site.store / "guest-tpm.pem")
    spoken(site, "-c", "addmbpolicy", "--mb-policy-name", BOOT, "--mb-policy", str(learned(site, guest, site.folder)))
    runtime = str(policy(site, site.folder))
    spoken(site, "-c", "add", "-u", guest.id, "--runtime-policy", runtime, "--mb-policy-name", BOOT)


def test_a_booted_machine_is_trusted_until_it_runs_what_nobody_listed(
    site: Site, guest: Guest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    enrolled(site, guest, tmp_path_factory.getbasetemp() / "vm0")
    view = view_of(site, guest, "trusted", rounds=2)
    assert {"quote-signature", "ima-log", "boot-log"} <= set(view["checks"]["ran"])

    guest.run(
        "mkdir -p /usr/local/bin; cp /bin/true /usr/local/bin/tool; echo >> /usr/local/bin/tool; /usr/local/bin/tool"
    )
    view = view_of(site, guest, "distrusted")
    found = {finding["context"].get("path") for finding in view["findings"]}
    assert found == {"/usr/local/bin/tool"}

    # A new start has not run it, its firmware measures the same, and an operator says that the machine may come back.
    guest.reboot()
    spoken(site, "-c", "reactivate", "-u", guest.id)
    view = view_of(site, guest, "trusted", rounds=1)
    assert {"ima-log", "boot-log"} <= set(view["checks"]["ran"])

    # Policies are replaced in place: now Secure Boot would have to be off.
    wanted = site.folder / "boot.json"
    wanted.write_text(json.dumps({**json.loads(wanted.read_text()), "secure_boot": "off"}))
    spoken(site, "-c", "updatembpolicy", "--mb-policy-name", BOOT, "--mb-policy", str(wanted))
    view = view_of(site, guest, "distrusted")
    (finding,) = view["findings"]
    assert finding["event_id"] == "measured_boot.policy_limeguard"
    assert "Secure Boot is on; the policy requires it to be off" in finding["context"]["message"]
