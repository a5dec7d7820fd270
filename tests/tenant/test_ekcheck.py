"""EK certificates against a store, and the operator's script: what vouches for a TPM, and what does not."""

import base64
import datetime
import os
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from tests.fakes.tenant_site import NODE, Site
from tests.tenant.conftest import Heard, Tenant

from limeguard.crypto.chains import parse_certificate
from limeguard.evidence.tpm.structures import parse_public_2b
from limeguard.simulator.softtpm import SoftEk
from limeguard.tenant.ekcheck import EkRules, certificate_fault, ek_accepted, read_store, run_script
from limeguard.tenant.errors import TenantError
from limeguard.wire.operator_view import Registration

NOW = 1_790_000_000.0
START = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class Maker:
    """Somebody who makes certificates for TPMs, itself certified by nobody or by another maker."""

    def __init__(self, name: str, issuer: "Maker | None" = None, key: Key | None = None) -> None:
        self.name = name
        self.key: Key = key or ec.generate_private_key(ec.SECP256R1())
        self.certificate = (issuer or self).sign(name, self.key.public_key(), ca=True)

    def sign(self, name: str, key: Any, *, ca: bool = False, end: datetime.datetime | None = None) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)]))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(START)
            .not_valid_after(end or START + datetime.timedelta(days=36500))
        )
        if ca:
            builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        return builder.sign(self.key, hashes.SHA256())

    def put(self, store: Path, name: str | None = None) -> None:
        (store / f"{name or self.name}.pem").write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))


def certified(maker: Maker, ek: SoftEk, **options: Any) -> str:
    certificate = maker.sign("EK", parse_public_2b(ek.public_2b).public_key(), **options)
    return base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()


def registration(ek: SoftEk, certificate: str | None) -> Registration:
    return Registration("", base64.b64encode(ek.public_2b).decode(), certificate, None, None, None, 1, {})


@pytest.fixture(scope="module")
def ek() -> SoftEk:
    return SoftEk.generate("rsa2048")


def fault(ek: SoftEk, certificate: str | None, store: Path) -> str | None:
    try:
        parsed = parse_certificate(base64.b64decode(certificate or "", validate=True))
    except ValueError as problem:
        return str(problem)
    return certificate_fault(parsed, base64.b64encode(ek.public_2b).decode(), read_store(store, Heard()))


@pytest.mark.parametrize("key", [ec.SECP256R1, ec.SECP384R1, None])
def test_a_certificate_of_a_direct_issuer_in_the_store_is_accepted(tmp_path: Path, ek: SoftEk, key: Any) -> None:
    made: Key = rsa.generate_private_key(65537, 2048) if key is None else ec.generate_private_key(key())
    maker = Maker("maker", key=made)
    maker.put(tmp_path)
    assert fault(ek, certified(maker, ek), tmp_path) is None


def test_the_direct_issuer_is_enough_without_its_root(tmp_path: Path, ek: SoftEk) -> None:
    maker = Maker("intermediate", Maker("root"))
    maker.put(tmp_path)
    assert fault(ek, certified(maker, ek), tmp_path) is None


# trust: bound-identity
def test_a_certificate_of_nobody_in_the_store_is_refused(tmp_path: Path, ek: SoftEk) -> None:
    Maker("other").put(tmp_path)
    Maker("maker").put(tmp_path)
    assert "issued it (issuer CN=maker)" in (fault(ek, certified(Maker("maker"), ek), tmp_path) or "")


# trust: bound-identity
def test_a_good_certificate_for_another_ek_is_refused(tmp_path: Path, ek: SoftEk) -> None:
    maker = Maker("maker")
    maker.put(tmp_path)
    other = SoftEk.generate("rsa2048", number=107)
    assert "another key than the EK" in (fault(ek, certified(maker, other), tmp_path) or "")


# trust: empty-is-not-valid
def test_an_empty_store_accepts_nothing(tmp_path: Path, ek: SoftEk) -> None:
    assert fault(ek, certified(Maker("maker"), ek), tmp_path) is not None


@pytest.mark.parametrize("text", ["", "!!", base64.b64encode(b"\x30\x03junk").decode()])
def test_a_certificate_that_cannot_be_read_is_refused(tmp_path: Path, ek: SoftEk, text: str) -> None:
    Maker("maker").put(tmp_path)
    assert fault(ek, text, tmp_path) is not None


def test_unreadable_files_of_the_store_are_left_out_with_a_warning(tmp_path: Path, ek: SoftEk) -> None:
    maker = Maker("maker")
    maker.put(tmp_path)
    (tmp_path / "a.pem").write_bytes(b"junk\n\x1b")
    (tmp_path / "b.crt").write_bytes(b"not looked at")
    (tmp_path / "c.pem").mkdir()
    heard = Heard()
    store = read_store(tmp_path, heard)
    assert len(store.trusted) == 1
    assert heard.lines
    assert all("a.pem is left out" in text for _, text in heard.lines)
    assert fault(ek, certified(maker, ek), tmp_path) is None


def test_only_the_first_certificate_of_a_file_counts(tmp_path: Path, ek: SoftEk) -> None:
    first, second = Maker("first"), Maker("second")
    both = b"".join(maker.certificate.public_bytes(serialization.Encoding.PEM) for maker in (first, second))
    (tmp_path / "both.pem").write_bytes(both)
    assert fault(ek, certified(first, ek), tmp_path) is None
    assert fault(ek, certified(second, ek), tmp_path) is not None


def test_an_intermediate_below_its_root_in_a_file_may_stand_between(tmp_path: Path, ek: SoftEk) -> None:
    root = Maker("root")
    intermediate = Maker("intermediate", root)
    both = b"".join(maker.certificate.public_bytes(serialization.Encoding.PEM) for maker in (root, intermediate))
    (tmp_path / "chain.pem").write_bytes(both)
    assert fault(ek, certified(intermediate, ek), tmp_path) is None


async def test_a_certificate_that_has_run_out_is_accepted_with_a_warning(tmp_path: Path, ek: SoftEk) -> None:
    maker = Maker("maker")
    maker.put(tmp_path)
    old = certified(maker, ek, end=START + datetime.timedelta(days=1))
    heard = Heard()
    chosen = rules(tmp_path, None, certificate_required=True)
    assert await ek_accepted(chosen, NODE, "x", registration(ek, old), heard, NOW)
    assert "has run out" in heard.text


def test_a_store_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TenantError, match="cannot be read"):
        read_store(tmp_path / "none", Heard())


# --- the script ------------------------------------------------------------------------------------------------------


def script(folder: Path, text: str) -> Path:
    path = folder / "check.sh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return path


def rules(folder: Path, path: Path | None, **changes: Any) -> EkRules:
    values: dict[str, Any] = {
        "certificate_required": False,
        "store": folder,
        "script": path,
        "work_dir": folder,
        "environment": {"PATH": "/usr/bin:/bin", "INHERITED": "yes"},
    }
    return EkRules(**{**values, **changes})


async def test_a_script_sees_the_ek_in_every_form(tmp_path: Path, ek: SoftEk) -> None:
    certificate = certified(Maker("maker"), ek)
    heard = Heard()
    path = script(tmp_path, "env; pwd")
    assert await ek_accepted(rules(tmp_path, path), NODE, "Agent x", registration(ek, certificate), heard, NOW)
    output = heard.lines[-1][1]
    assert output.startswith("ek_check output: ")
    for line in (
        f"AGENT_UUID={NODE}",
        "EK=-----BEGIN PUBLIC KEY-----",
        f"EK_CERT={certificate}",
        f"EK_TPM={base64.b64encode(ek.public_2b).decode()}",
        "PROVKEYS={}",
        f"TPM_CERT_STORE={tmp_path}",
        "INHERITED=yes",
        str(tmp_path),
    ):
        assert line in output.removeprefix("ek_check output: ").split("\n")


async def test_a_script_that_fails_refuses(tmp_path: Path, ek: SoftEk) -> None:
    heard = Heard()
    path = script(tmp_path, "echo no such maker >&2; exit 3")
    assert not await ek_accepted(rules(tmp_path, path), NODE, "Agent x", registration(ek, None), heard, NOW)
    assert heard.errors[0].startswith("External check script failed to validate EK: ")
    assert "exit status 3" in heard.errors[0]
    assert "no such maker" in heard.errors[0]


# trust: bound-identity
async def test_both_certificate_and_script_must_accept(tmp_path: Path, ek: SoftEk) -> None:
    maker = Maker("maker")
    store = tmp_path / "store"
    store.mkdir()
    maker.put(store)
    good, bad = certified(maker, ek), certified(Maker("other"), ek)
    yes, no = script(tmp_path, "exit 0"), tmp_path / "no.sh"
    no.write_text("#!/bin/sh\nexit 1\n")
    no.chmod(0o700)
    for certificate, path, expected in ((good, yes, True), (good, no, False), (bad, yes, False), (bad, no, False)):
        chosen = rules(tmp_path, path, certificate_required=True, store=store)
        assert await ek_accepted(chosen, NODE, "x", registration(ek, certificate), Heard(), NOW) is expected


async def test_no_rule_at_all_is_a_loud_warning(tmp_path: Path, ek: SoftEk) -> None:
    heard = Heard()
    assert await ek_accepted(rules(tmp_path, None), NODE, "Agent x", registration(ek, None), heard, NOW)
    assert heard.lines[0][1].startswith("DANGER: ")


# trust: bounded
async def test_a_script_without_end_is_ended_with_its_children(tmp_path: Path) -> None:
    marker = tmp_path / "child"
    path = script(tmp_path, f"(sleep 60; touch {marker}) & echo $! > {tmp_path}/pid; sleep 60")
    started = time.monotonic()
    status, _ = await run_script(path, tmp_path, {"PATH": "/usr/bin:/bin"}, seconds=0.5)
    assert status is None
    assert time.monotonic() - started < 10
    child = int((tmp_path / "pid").read_text())
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or " Z " in state.read_text():
            break
        time.sleep(0.05)
    else:
        pytest.fail("a child of the script lives on")


# trust: bounded
async def test_the_output_of_a_script_is_bounded(tmp_path: Path) -> None:
    path = script(tmp_path, "head -c 3000000 /dev/zero; exit 0")
    status, output = await run_script(path, tmp_path, {"PATH": "/usr/bin:/bin"})
    assert status == 0
    assert len(output) <= 256 * 1024


# trust: hygiene
async def test_the_output_of_a_script_cannot_control_the_terminal(tmp_path: Path, ek: SoftEk) -> None:
    heard = Heard()
    path = script(tmp_path, r"printf 'a\033[2Jb\n'")
    assert await ek_accepted(rules(tmp_path, path), NODE, "x", registration(ek, None), heard, NOW)
    assert "\x1b" not in heard.text


async def test_a_script_that_cannot_be_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TenantError, match="cannot be run"):
        await run_script(tmp_path / "none", tmp_path, {})


@pytest.mark.services
async def test_a_node_with_a_certificate_from_the_store_is_added(site: Site, tenant: Tenant) -> None:
    maker = Maker("maker")
    maker.put(site.folder / "store")
    site.register(ekcert=certified(maker, site.agent.ek))
    assert await tenant("add", site.settings(require_ek_cert=True)) == 0


@pytest.mark.services
async def test_a_relative_script_runs_in_the_work_directory(site: Site, tenant: Tenant) -> None:
    script(site.folder, 'test -n "$EK" && echo ran in $(pwd)')
    assert await tenant("add", site.settings(ek_check_script="check.sh")) == 0
    assert f"ran in {os.path.realpath(site.folder)}" in tenant.heard.text
