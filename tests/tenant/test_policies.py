"""Policies as they are sent: masks, checksums, signatures, and what this version refuses to pass on."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.fakes.shared import shared_path
from tests.tenant.conftest import Heard

from limeguard.policy.keyring import key_id_of
from limeguard.tenant.errors import TenantError
from limeguard.tenant.policies import Policies, PolicyFiles, prepare
from limeguard.tenant.request import Request
from limeguard.tenant.signed import check_signed_policy, signed_bytes

ZEROS = "0" * 64
RUNTIME = {"meta": {"version": 1, "generator": 2}, "digests": {}}


def prepared(**options: Any) -> Policies:
    return prepare(Request(**options), PolicyFiles(), Heard())


def mask(policies: Policies) -> int:
    return int(json.loads(policies.tpm_policy)["mask"], 16)


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    path = tmp_path / "runtime.json"
    path.write_text(json.dumps(RUNTIME) + "\n")
    return path


def test_no_policy_is_an_empty_mask() -> None:
    assert prepared() == Policies(tpm_policy='{"mask": "0x0"}')


def test_values_become_lists_of_lower_case_and_the_mask_names_their_pcrs() -> None:
    text = json.dumps({"23": "AB" * 32, "15": ["CD" * 32]})
    assert json.loads(prepared(tpm_policy=text).tpm_policy) == {
        "23": ["ab" * 32],
        "15": ["cd" * 32],
        "mask": "0x808000",
    }


def test_a_runtime_policy_asks_for_pcr_10(runtime: Path) -> None:
    assert mask(prepared(runtime_policy=str(runtime))) == 0x400
    assert mask(prepared(runtime_policy_name="p")) == 0x400


def test_a_boot_policy_asks_for_its_pcrs(tmp_path: Path) -> None:
    path = tmp_path / "mb.json"
    path.write_text("{}\n")
    policies = prepared(mb_policy=str(path))
    assert mask(policies) == 0xFBFF
    assert policies.boot == "{}"
    assert mask(prepared(mb_policy_name="m")) == 0xFBFF


def test_a_runtime_policy_is_passed_on_byte_by_byte(runtime: Path) -> None:
    policies = prepared(runtime_policy=str(runtime), runtime_policy_name="p")
    assert policies.runtime == runtime.read_bytes()
    assert policies.runtime_name == "p"


def test_the_checksum_decides(runtime: Path) -> None:
    good = hashlib.sha256(runtime.read_bytes()).hexdigest()
    assert prepared(runtime_policy=str(runtime), runtime_policy_checksum=good.upper()).runtime
    with pytest.raises(TenantError, match=f"Checksum of runtime policy does not match! Expected 00, Calculated {good}"):
        prepared(runtime_policy=str(runtime), runtime_policy_checksum="00")


@pytest.mark.parametrize("content", ["", "no json", "[]", '"text"'])
def test_a_runtime_policy_that_is_no_object_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(content)
    with pytest.raises(TenantError, match=r"Validation for runtime policy .* failed! Error: "):
        prepared(runtime_policy=str(path))


def test_a_pcr_of_the_boot_policy_cannot_be_named_twice(tmp_path: Path) -> None:
    path = tmp_path / "mb.json"
    path.write_text("{}")
    with pytest.raises(
        TenantError,
        match=r'WARNING: PCR 15 is specified in "tpm_policy", but will in fact be used by measured boot\. '
        r"Please remove it from policy",
    ):
        prepared(mb_policy=str(path), tpm_policy=json.dumps({"15": ZEROS}))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"allowlist": "/nowhere"}, "cannot be read"),
        ({"allowlist_url": "http://a"}, "Allowlists are not downloaded"),
        ({"ima_keys": ("/nowhere",)}, "cannot be read"),
        ({"mb_policy": "default"}, "default where the setting mb_refstate names one"),
        ({"mb_policy": ""}, "has to name a file"),
        ({"runtime_policy": "/nowhere"}, "cannot be read"),
        ({"mb_policy": "/nowhere"}, "cannot be read"),
    ],
)
def test_what_cannot_be_passed_on_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(TenantError, match=text):
        prepared(**options)


# --- signed policies -------------------------------------------------------------------------------------------------


def signed(key: ec.EllipticCurvePrivateKey, payload: bytes = b"{}") -> dict[str, Any]:
    signature = key.sign(signed_bytes("application/vnd.keylime+json", payload), ec.ECDSA(hashes.SHA256()))
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": "application/vnd.keylime+json",
        "signatures": [{"keyid": "x", "sig": base64.b64encode(signature).decode()}],
    }


def pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_a_policy_signed_by_the_key_passes(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    check_signed_policy(signed(key), pem(key))


def test_one_good_signature_among_several_is_enough() -> None:
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    document = signed(other)
    document["signatures"] += signed(key)["signatures"]
    check_signed_policy(document, pem(key))


@pytest.mark.parametrize(
    "change",
    [
        {"payload": base64.b64encode(b"[]").decode()},
        {"payloadType": "text/plain"},
        {"payloadType": None},
        {"signatures": []},
        {"signatures": None},
        {"signatures": [{"sig": "!"}]},
        {"signatures": [{}]},
        {"signatures": ["x"]},
        {"payload": "!!!"},
    ],
)
def test_a_changed_envelope_fails(change: dict[str, Any]) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(TenantError, match="Runtime policy failed DSSE signature verification!"):
        check_signed_policy({**signed(key), **change}, pem(key))


def test_another_key_fails() -> None:
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(TenantError, match="failed DSSE signature verification"):
        check_signed_policy(signed(key), pem(other))


def test_a_signed_policy_needs_a_key_and_a_key_needs_a_signed_policy() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(TenantError, match="required but no key was given!"):
        check_signed_policy(signed(key), b"")
    with pytest.raises(TenantError, match="Runtime policy is not signed!"):
        check_signed_policy(RUNTIME, pem(key))
    check_signed_policy(RUNTIME, b"")


def test_keys_of_another_kind_are_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(TenantError, match="no public key in PEM"):
        check_signed_policy(signed(key), b"junk")
    with pytest.raises(TenantError, match="no elliptic curve key"):
        check_signed_policy(signed(key), pem(rsa.generate_private_key(65537, 2048)))


def test_the_envelope_of_another_implementation_is_read() -> None:
    folder = shared_path("fixtures/upstream/dsse")
    key = (folder / "runtime-policy-pubkey.pub").read_bytes()
    check_signed_policy(json.loads((folder / "runtime-policy-test-signed.json").read_text()), key)
    with pytest.raises(TenantError, match="failed DSSE signature verification"):
        check_signed_policy(json.loads((folder / "runtime-policy-test-signed-bad.json").read_text()), key)


def test_older_lists_are_sent_as_a_runtime_policy(tmp_path: Path) -> None:
    (tmp_path / "allow").write_text(f"{'a' * 64}  /bin/x\n")
    (tmp_path / "exclude").write_text("# remark\n/tmp/.*\n")
    policies = prepared(allowlist=str(tmp_path / "allow"), exclude=str(tmp_path / "exclude"))
    sent = json.loads(policies.runtime)
    assert (sent["digests"], sent["excludes"]) == ({"/bin/x": ["a" * 64]}, ["/tmp/.*"])
    assert mask(policies) == 0x400
    (tmp_path / "allow").write_text("short /bin/x\n")
    with pytest.raises(TenantError, match="does not make a runtime policy"):
        prepared(allowlist=str(tmp_path / "allow"))


def test_keys_that_verify_files_are_sent_as_a_keyring(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    (tmp_path / "key.pem").write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    policies = prepared(ima_keys=(str(tmp_path / "key.pem"),))
    assert json.loads(policies.ima_keys)["keyids"] == [key_id_of(key)]
    assert mask(policies) == 0x400
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(TenantError, match="cannot be used"):
        prepared(ima_keys=(str(tmp_path / "key.pem"),))
