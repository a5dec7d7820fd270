"""The door to the TPM, against a software TPM without a resource manager: what leaks is soon felt."""

import hashlib
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.agent.swtpm_site import SoftwareTpm, software_tpm

from limeguard.agent.attester import Attester, TpmOptions
from limeguard.agent.device import Device, StaleKey, TpmError, choose_tcti, is_direct
from limeguard.agent.identity import StoredKey
from limeguard.agent.templates import AK_ATTRIBUTES, Algorithms, parse_algorithms
from limeguard.crypto.hashes import SHA256, SHA384
from limeguard.crypto.keys import spki_pem
from limeguard.evidence.tpm.credential import make_credential
from limeguard.evidence.tpm.quote import QuotedPcrs, QuoteFault, parse_quote, signature_is_good, verify_quote
from limeguard.evidence.tpm.structures import (
    CertifyAttest,
    PublicArea,
    parse_attest,
    parse_public_2b,
    parse_signature,
)

pytestmark = pytest.mark.e2e

RSA = Algorithms("sha256", "rsa2048", "rsassa")
ACCEPTED = frozenset({"sha256", "sha384", "sha512"})
BINDING = b"-----BEGIN PUBLIC KEY-----\n"


@pytest.fixture(scope="module")
def shared_tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareTpm]:
    """One TPM for the tests that leave it as they found it."""
    folder = tmp_path_factory.mktemp("tpm")
    with software_tpm(folder, "--createek", "--create-ek-cert", "--pcr-banks", "sha256,sha384") as running:
        yield running
        assert running.handles() == []


def challenge(device: Device, ek: PublicArea, ak: PublicArea) -> None:
    secret = secrets.token_bytes(32)
    blob = make_credential(
        ek,
        ak.name,
        secret,
        seed=secrets.token_bytes(ek.name_alg.size),
        ephemeral_scalar=1 + secrets.randbits(250),
    )
    assert device.activate(blob) == secret


@pytest.mark.parametrize(
    ("hash_name", "key", "scheme"),
    [
        ("sha256", "rsa", "rsassa"),
        ("sha256", "rsa2048", "rsapss"),
        ("sha384", "rsa", "rsassa"),
        ("sha256", "ecc", "ecdsa"),
        ("sha384", "ecc384", "ecdsa"),
        ("sha256", "ecc521", "ecdsa"),
        ("sha256", "rsa3072", "rsassa"),
    ],
)
def test_every_algorithm_registers_and_quotes(shared_tpm: SoftwareTpm, hash_name: str, key: str, scheme: str) -> None:
    algorithms = parse_algorithms(hash_name, key, scheme)
    device = Device.open(shared_tpm.tcti, algorithms)
    try:
        ek = device.load_endorsement_key()
        ak = device.load_attestation_key(device.create_attestation_key())
        assert (ek.key_algorithm, ak.key_algorithm) == (algorithms.key, algorithms.key)
        assert ak.attributes == AK_ATTRIBUTES
        challenge(device, ek, ak)
        device.release_endorsement_key()
        quote = parse_quote(device.quote(b"abc123", 0x3FF, BINDING))
        found = verify_quote(quote, key=ak, nonce=b"abc123", accepted_hashes=ACCEPTED)
        assert isinstance(found, QuotedPcrs)
        assert set(found.values) == {*range(10), 16}
        bank = SHA384 if hash_name == "sha384" else SHA256
        assert found.bank == bank
        assert found.values[16] == bank.digest(bytes(bank.size) + bank.digest(BINDING))
        assert verify_quote(quote, key=ak, nonce=b"abc124", accepted_hashes=ACCEPTED) is QuoteFault.WRONG_NONCE
        # What a push agent needs beside quotes: the proof that it holds the AK, in the AK's own scheme.
        message, signature = device.certify(bytes(range(16)))
        said = parse_attest(message)
        assert isinstance(said, CertifyAttest)
        assert (said.extra_data, said.name) == (bytes(range(16)), ak.name)
        made = parse_signature(signature)
        assert signature_is_good(ak, made, message)
        assert (made.scheme, made.hash_alg.name) == (scheme, hash_name)
        assert device.bank_pcrs() == tuple(range(24))
    finally:
        device.close()
    assert shared_tpm.handles() == []


def test_a_quote_satisfies_the_checker_of_tpm2_tools(shared_tpm: SoftwareTpm, tmp_path: Path) -> None:
    import base64

    device = Device.open(shared_tpm.tcti, RSA)
    device.load_endorsement_key()
    ak = device.load_attestation_key(device.create_attestation_key())
    text = device.quote(b"\x12\x34", 0xFFFFFF, BINDING)
    device.close()
    for name, part in zip(("message", "signature", "pcrs"), text[1:].split(":"), strict=True):
        (tmp_path / name).write_bytes(base64.b64decode(part))
    (tmp_path / "ak.pem").write_text(spki_pem(ak.public_key()))
    command = ["tpm2_checkquote", "-u", "ak.pem", "-m", "message", "-s", "signature", "-f", "pcrs", "-g", "sha256"]
    subprocess.run([*command, "-q", "1234"], cwd=tmp_path, check=True, capture_output=True)


def test_the_ek_is_the_one_of_the_manufacturer_and_its_certificate_is_found(shared_tpm: SoftwareTpm) -> None:
    from cryptography import x509

    device = Device.open(shared_tpm.tcti, RSA)
    created = device.load_endorsement_key()
    own, chain = device.endorsement_certificates()
    device.close()
    size = 4 + int.from_bytes(own[2:4], "big")
    assert x509.load_der_x509_certificate(own[:size]).public_key() == created.public_key()
    assert chain == b""


def test_the_ek_under_a_persistent_handle_is_used_and_stays(shared_tpm: SoftwareTpm) -> None:
    device = Device.open(shared_tpm.tcti, RSA)
    created = device.load_endorsement_key()
    device.close()
    persistent = Device.open(shared_tpm.tcti, RSA)
    ek = persistent.load_endorsement_key(0x81010001)
    assert ek == created
    ak = persistent.load_attestation_key(persistent.create_attestation_key())
    challenge(persistent, ek, ak)
    persistent.close()
    assert "0x81010001" in shared_tpm.tool("tpm2_getcap", "handles-persistent")


def test_a_handle_without_an_ek_is_refused(shared_tpm: SoftwareTpm) -> None:
    device = Device.open(shared_tpm.tcti, RSA)
    with pytest.raises(TpmError, match="no object under that handle"):
        device.load_endorsement_key(0x81FF0001)
    with pytest.raises(TpmError, match="not a persistent handle"):
        device.load_endorsement_key(0x80000001)
    device.close()


def test_a_stored_key_is_loaded_again_and_an_altered_one_is_stale(shared_tpm: SoftwareTpm) -> None:
    device = Device.open(shared_tpm.tcti, RSA)
    device.load_endorsement_key()
    stored = device.create_attestation_key()
    first = device.load_attestation_key(stored)
    device.close()
    device = Device.open(shared_tpm.tcti, RSA)
    device.load_endorsement_key()
    for bad in (
        replace(stored, private=stored.private[:-1] + bytes([stored.private[-1] ^ 1])),
        replace(stored, private=b""),
        replace(stored, private=bytes(5000)),
        replace(stored, public=stored.public[:-4]),
        StoredKey(b"", b""),
    ):
        with pytest.raises(StaleKey):
            device.load_attestation_key(bad)
    assert device.load_attestation_key(stored) == first
    device.close()


def test_a_key_of_another_type_is_stale(shared_tpm: SoftwareTpm) -> None:
    device = Device.open(shared_tpm.tcti, RSA)
    device.load_endorsement_key()
    stored = device.create_attestation_key()
    device.close()
    other = Device.open(shared_tpm.tcti, Algorithms("sha256", "ecc256", "ecdsa"))
    other.load_endorsement_key()
    with pytest.raises(StaleKey, match="rsa2048"):
        other.load_attestation_key(stored)
    other.close()


def test_a_challenge_for_another_ak_is_not_opened_and_leaves_no_session(shared_tpm: SoftwareTpm) -> None:
    device = Device.open(shared_tpm.tcti, RSA)
    ek = device.load_endorsement_key()
    device.load_attestation_key(device.create_attestation_key())
    wrong = make_credential(ek, b"\x00\x0b" + bytes(32), b"x" * 32, seed=bytes(32), ephemeral_scalar=None)
    for _ in range(5):  # more than a TPM has places for sessions
        with pytest.raises(TpmError, match="does not belong"):
            device.activate(wrong)
    with pytest.raises(ValueError, match="credential blob"):
        device.activate(b"garbage")
    device.close()
    assert shared_tpm.handles() == []


def test_a_wrong_owner_password_is_named(shared_tpm: SoftwareTpm) -> None:
    device = Device.open(shared_tpm.tcti, RSA, b"wrong")
    with pytest.raises(TpmError, match="tpm_ownerpassword"):
        device.load_endorsement_key()
    device.close()


def test_the_password_of_the_endorsement_hierarchy_is_used(tmp_path: Path) -> None:
    with software_tpm(tmp_path, "--pcr-banks", "sha256") as tpm:
        tpm.tool("tpm2_changeauth", "-c", "e", "owner secret")
        device = Device.open(tpm.tcti, RSA, b"owner secret")
        ek = device.load_endorsement_key()
        challenge(device, ek, device.load_attestation_key(device.create_attestation_key()))
        assert device.endorsement_certificates() == [b"", b""]
        device.close()
        assert tpm.handles() == []


# trust: empty-is-not-valid
def test_a_bank_that_is_not_active_ends_the_start(tmp_path: Path) -> None:
    with software_tpm(tmp_path, "--pcr-banks", "sha256") as tpm:
        with pytest.raises(TpmError, match="no active PCR bank sha384") as problem:
            Device.open(tpm.tcti, Algorithms("sha384", "rsa2048", "rsassa"))
        assert "sha256" in str(problem.value)


def test_what_an_earlier_client_left_is_flushed(tmp_path: Path) -> None:
    with software_tpm(tmp_path, "--pcr-banks", "sha256") as tpm:
        for number in range(3):
            tpm.tool("tpm2_createprimary", "-c", str(tmp_path / f"{number}.ctx"))
            tpm.tool("tpm2_startauthsession", "-S", str(tmp_path / f"{number}.session"), "--policy-session")
        assert len(tpm.handles()) >= 4
        device = Device.open(tpm.tcti, RSA)
        assert tpm.handles() == []
        device.close()


def test_power_cuts_do_not_lock_the_ak_out(tmp_path: Path) -> None:
    with software_tpm(tmp_path, "--pcr-banks", "sha256") as tpm:
        device = Device.open(tpm.tcti, RSA)
        device.load_endorsement_key()
        stored = device.create_attestation_key()
        device.load_attestation_key(stored)
        # noDA: however often the TPM loses power after use, the AK still signs.
        for _ in range(6):
            device.quote(b"abc", 0, BINDING)
            device.close()
            tpm.stop(orderly=False)
            tpm.start()
            device = Device.open(tpm.tcti, RSA)
            device.load_endorsement_key()
            device.load_attestation_key(stored)
        device.quote(b"abc", 0, BINDING)
        device.close()


def test_a_tpm_that_was_reset_under_a_running_agent_gets_its_keys_back(tmp_path: Path) -> None:
    with software_tpm(tmp_path, "--pcr-banks", "sha256") as tpm:
        attester = Attester(TpmOptions(tpm.tcti, RSA, b"", None, tmp_path / "agent_data.json"))
        registered = parse_public_2b(attester.open().ak_public)
        attester.release_endorsement_key()
        attester.quote(b"abc", 0, BINDING)
        tpm.stop()
        tpm.start()
        quote = parse_quote(attester.quote(b"def", 0, BINDING))
        found = verify_quote(quote, key=registered, nonce=b"def", accepted_hashes=ACCEPTED)
        assert isinstance(found, QuotedPcrs)
        attester.close()
        assert tpm.handles() == []
        with pytest.raises(TpmError, match="closed"):
            attester.quote(b"abc", 0, BINDING)


def test_a_tpm_that_is_gone_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(TpmError, match="cannot be reached"):
        Device.open("swtpm:host=localhost,port=1", RSA)
    with software_tpm(tmp_path, "--pcr-banks", "sha256") as tpm:
        device = Device.open(tpm.tcti, RSA)
        device.load_endorsement_key()
        device.load_attestation_key(device.create_attestation_key())
        tpm.stop()
        with pytest.raises(TpmError, match="cannot be reached"):
            device.quote(b"abc", 0, BINDING)
        device.close()


def test_the_tpm_is_the_environment_s_or_the_kernel_s(tmp_path: Path) -> None:
    assert choose_tcti({"TCTI": "swtpm:port=2321"}, tmp_path) == "swtpm:port=2321"
    assert choose_tcti({}, tmp_path) == f"device:{tmp_path}/tpm0"
    (tmp_path / "tpmrm0").touch()
    assert choose_tcti({"TCTI": ""}, tmp_path) == f"device:{tmp_path}/tpmrm0"


# trust: no-ambient-files
@pytest.mark.parametrize(
    ("tcti", "direct"),
    [
        ("swtpm:host=localhost,port=2321", True),
        ("mssim", True),
        ("device:/dev/tpm0", True),
        ("device:/dev/tpmrm0", False),
        ("device", False),
        ("tabrmd:bus_name=com.intel.tss2.Tabrmd", False),
        ("cmd:ssh node tpm2_send", False),
    ],
)
def test_only_a_direct_connection_is_cleaned_up(tcti: str, direct: bool) -> None:
    assert is_direct(tcti) is direct


def test_the_digest_in_a_quote_is_over_the_values_sent(shared_tpm: SoftwareTpm) -> None:
    device = Device.open(shared_tpm.tcti, RSA)
    device.load_endorsement_key()
    device.load_attestation_key(device.create_attestation_key())
    quote = parse_quote(device.quote(b"abc", 0xFFFFFF, BINDING))
    device.close()
    values = quote.values[SHA256]
    assert sorted(values) == list(range(24))
    assert quote.attest.pcr_digest == hashlib.sha256(b"".join(values[pcr] for pcr in range(24))).digest()
