"""The tables: names to algorithms, templates, and policies that fit together."""

import hashlib

import pytest

from limeguard.agent import templates
from limeguard.agent.templates import Algorithms, UnsupportedAlgorithm, ak_template, ek_template, parse_algorithms
from limeguard.agent.tpm_errors import base_code, explain, is_about_parameter, is_lost_connection, is_lost_object

POLICY_OR = (0x171).to_bytes(4, "big")


@pytest.mark.parametrize(
    ("policy", "algorithm"),
    [(templates.POLICY_B_256, "sha256"), (templates.POLICY_B_384, "sha384"), (templates.POLICY_B_512, "sha512")],
)
def test_the_branches_of_a_policy_give_the_policy(policy: bytes, algorithm: str) -> None:
    # TPM 2.0 Part 3 §23.6: PolicyOR resets the digest and extends command code and all branches.
    first, second = templates.EK_POLICY_BRANCHES[policy]
    size = hashlib.new(algorithm).digest_size
    assert hashlib.new(algorithm, bytes(size) + POLICY_OR + first + second).digest() == policy


@pytest.mark.parametrize(("key", "size"), [("rsa2048", 316), ("ecc256", 124)])
def test_the_low_templates_have_the_published_size(key: str, size: int) -> None:
    template = ek_template(key)
    assert len(template) == size
    assert int.from_bytes(template[:2], "big") == size - 2


def test_the_template_of_the_common_ek_is_the_published_one() -> None:
    head = "013a0001000b000300b20020837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa"
    assert ek_template("rsa2048") == bytes.fromhex(head + "00060080004300100800000000000100") + bytes(256)


def test_the_ak_cannot_be_locked_out() -> None:
    template = ak_template(Algorithms("sha256", "rsa2048", "rsassa"))
    assert template == bytes.fromhex("00180001000b00050472000000100014000b0800000000000000")


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        (("sha256", "rsa", "rsassa"), Algorithms("sha256", "rsa2048", "rsassa")),
        (("sha256", "ecc", "ecdsa"), Algorithms("sha256", "ecc256", "ecdsa")),
        (("sha384", "ecc_nist_p384", "ecdsa"), Algorithms("sha384", "ecc384", "ecdsa")),
        (("sha512", "rsa4096", "rsapss"), Algorithms("sha512", "rsa4096", "rsapss")),
    ],
)
def test_names_are_understood(given: tuple[str, str, str], parsed: Algorithms) -> None:
    assert parse_algorithms(*given) == parsed


# trust: downgrade
@pytest.mark.parametrize(
    ("given", "option"),
    [
        (("sha256", "rsa1024", "rsassa"), "tpm_encryption_alg"),
        (("sha256", "ecc192", "ecdsa"), "tpm_encryption_alg"),
        (("sm3_256", "rsa", "rsassa"), "tpm_hash_alg"),
        (("sha256", "rsa", "ecdsa"), "tpm_signing_alg"),
        (("sha256", "ecc", "rsassa"), "tpm_signing_alg"),
        (("sha256", "rsa", "none"), "tpm_signing_alg"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_option_s_name(given: tuple[str, str, str], option: str) -> None:
    with pytest.raises(UnsupportedAlgorithm, match=option):
        parse_algorithms(*given)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0x921, "lockout"),
        (0x902, "tpm2_flushcontext"),
        (0x9A2, "tpm_ownerpassword"),
        (0x100, "TPM2_Startup"),
        (0xA000A, "cannot be reached"),
        (0x70001, "software stack"),
        (0xB0902, "tpm2_flushcontext"),
        (0x1DF, "does not belong"),
        (0x9FF, "refused"),
    ],
)
def test_a_code_becomes_a_sentence_with_what_to_do(code: int, words: str) -> None:
    assert words in explain(code)
    assert f"{code:#05x}" in explain(code)


def test_only_a_refused_parameter_means_a_stale_key() -> None:
    assert is_about_parameter(0x1DF)
    for code in (0x921, 0x902, 0x9A2, 0xA000A, 0x18B):
        assert not is_about_parameter(code), hex(code)
    assert base_code(0x9A2) == 0xA2


def test_lost_connections_are_recognised() -> None:
    assert is_lost_connection(0xA000A)
    assert not is_lost_connection(0x910)
    assert not is_lost_object(0xA000A)


def test_lost_handles_are_recognised() -> None:
    assert is_lost_object(0x910)
    assert is_lost_object(0x18B)
    assert not is_lost_object(0x921)
    assert not is_lost_object(0x1DF)
