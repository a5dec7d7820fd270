"""The node's id in every mode, and the file that keeps its AK."""

import json
import re
import socket
import uuid
from pathlib import Path

import pytest

from limeguard.agent.identity import (
    NoIdentity,
    StoredKey,
    ek_hash,
    keep_key,
    load_stored_key,
    resolve_agent_id,
)
from limeguard.agent.templates import Algorithms

LITERAL = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000"
ALGORITHMS = Algorithms("sha256", "rsa2048", "rsassa")
EK_HASH = "ab" * 32


@pytest.mark.parametrize(
    "spelling", [LITERAL, LITERAL.upper(), LITERAL.replace("-", ""), f"{{{LITERAL}}}", f"urn:uuid:{LITERAL}"]
)
def test_a_literal_uuid_is_normalised(spelling: str) -> None:
    assert resolve_agent_id(spelling, "", {}) == LITERAL


def test_the_hash_of_the_ek_covers_the_pem_text_with_its_last_newline() -> None:
    pem = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"
    assert resolve_agent_id("hash_ek", pem, {}) == ek_hash(pem)
    assert re.fullmatch("[0-9a-f]{64}", ek_hash(pem))
    assert ek_hash(pem) != ek_hash(pem.rstrip())


def test_generate_gives_a_new_id_each_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    first, second = resolve_agent_id("generate", "", {}), resolve_agent_id("generate", "", {})
    assert first != second
    assert uuid.UUID(first).version == 4
    assert f"Generated a new UUID: {first}" in caplog.text


def test_the_firmware_s_uuid_is_read(tmp_path: Path) -> None:
    (tmp_path / "product_uuid").write_text(LITERAL.upper() + "\n")
    assert resolve_agent_id("dmidecode", "", {}, dmi=tmp_path / "product_uuid") == LITERAL


def test_the_host_name_is_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: "node-7.example.org")
    assert resolve_agent_id("hostname", "", {}) == "node-7.example.org"


def test_the_environment_gives_the_id() -> None:
    assert resolve_agent_id("environment", "", {"KEYLIME_AGENT_UUID": LITERAL.upper()}) == LITERAL
    assert resolve_agent_id("environment", "", {"KEYLIME_AGENT_UUID": "node_1"}) == "node_1"


# trust: fail-closed
@pytest.mark.parametrize("option", ["dmidecode", "environment", "openstack", "hostname"])
def test_a_mode_that_cannot_be_served_never_becomes_a_random_id(
    option: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: "no/such name")
    with pytest.raises(NoIdentity):
        resolve_agent_id(option, "", {}, dmi=tmp_path / "none")
    with pytest.raises(NoIdentity):
        resolve_agent_id("environment", "", {"KEYLIME_AGENT_UUID": "environment"})


def test_any_other_text_is_random_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert uuid.UUID(resolve_agent_id("my node", "", {})).version == 4
    assert "neither a UUID nor a mode" in caplog.text


def test_a_kept_key_is_found_again(tmp_path: Path) -> None:
    path, key = tmp_path / "agent_data.json", StoredKey(bytes(range(256)), b"private")
    assert load_stored_key(path, ALGORITHMS, EK_HASH) is None
    keep_key(path, key, ALGORITHMS, EK_HASH)
    assert load_stored_key(path, ALGORITHMS, EK_HASH) == key
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_file_is_the_one_of_the_rust_agent(tmp_path: Path) -> None:
    path = tmp_path / "agent_data.json"
    keep_key(path, StoredKey(b"\x00\x01", b"\xff"), Algorithms("sha384", "ecc384", "ecdsa"), EK_HASH)
    assert json.loads(path.read_text()) == {
        "ak_hash_alg": "Sha384",
        "ak_sign_alg": "EcDsa",
        "ak_public": [0, 1],
        "ak_private": [255],
        "ek_hash": [ord(letter) for letter in EK_HASH],
    }


@pytest.mark.parametrize(
    ("algorithms", "ek"),
    [
        (Algorithms("sha384", "rsa2048", "rsassa"), EK_HASH),
        (Algorithms("sha256", "rsa2048", "rsapss"), EK_HASH),
        (ALGORITHMS, "cd" * 32),
    ],
)
def test_a_key_of_another_ek_or_algorithm_is_not_used(tmp_path: Path, algorithms: Algorithms, ek: str) -> None:
    keep_key(tmp_path / "a", StoredKey(b"1", b"2"), ALGORITHMS, EK_HASH)
    assert load_stored_key(tmp_path / "a", algorithms, ek) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"ak_hash_alg": "Sha256"}',
        '{"ak_hash_alg":"Sha256","ak_sign_alg":"RsaSsa","ak_public":[256],"ak_private":[],"ek_hash":[]}',
        '{"ak_hash_alg":"Sha256","ak_sign_alg":"RsaSsa","ak_public":[-1],"ak_private":[],"ek_hash":[]}',
        '{"ak_hash_alg":"Sha256","ak_sign_alg":"RsaSsa","ak_public":[1],"ak_private":[1],"ek_hash":[200]}',
    ],
)
def test_a_spoilt_file_is_replaced_and_not_fatal(tmp_path: Path, text: str) -> None:
    (tmp_path / "a").write_text(text)
    assert load_stored_key(tmp_path / "a", ALGORITHMS, EK_HASH) is None
