"""The encrypted key store: published numbers, round trips, and everything that is not one."""

import base64

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from limeguard.authoring.keystore import KeyStore, KeyStoreError, seal, store_key, unseal
from limeguard.crypto.keysplit import decrypt_payload, encrypt_payload

SALT = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
KEY = bytes.fromhex("ba141ea86b6ca16d3011ce57329c7f2306013cd14c3751b39599143405ff75d1")
PLAINTEXT = b"ca: x\nlastserial: 1\nrevoked_keys: []\n"
SEALED = "AAECAwQFBgcICQoLDA0OD6Uopq7dC9H7JZzmJqWZiHmD75CRIhQOZq//RDFJQLuvIxJYCHjswIuMfCzz1mdwvFxn8bws"
STORE = KeyStore(b"-----BEGIN", 3, (2,), {"a": b"-----A", "b": b"-----B"})


def outer(**members: object) -> bytes:
    return yaml.safe_dump(members).encode()


def test_the_key_is_derived_from_the_text_of_the_salt() -> None:
    assert store_key("default", SALT) == KEY


def test_the_published_store_is_read() -> None:
    assert decrypt_payload(KEY, base64.b64decode(SEALED)) == PLAINTEXT
    for sealed in (SEALED, SEALED.encode()):
        assert unseal(outer(salt=SALT, priv=sealed), "default") == KeyStore(b"x", 1)


def test_a_store_is_read_back_and_written_as_keylime_writes_it() -> None:
    data = seal(STORE, "secret", salt=bytes(range(32)), iv=bytes(range(16)))
    assert unseal(data, "secret") == STORE
    written = yaml.safe_load(data)
    assert written["salt"] == SALT
    content = yaml.safe_load(decrypt_payload(store_key("secret", SALT), base64.b64decode(written["priv"])))
    assert content == {"ca": b"-----BEGIN", "lastserial": 3, "revoked_keys": ["2"], "a": b"-----A", "b": b"-----B"}
    assert isinstance(written["priv"], bytes)


def test_a_wrong_password_is_refused() -> None:
    with pytest.raises(KeyStoreError, match="Invalid password for keystore"):
        unseal(seal(STORE, "secret", salt=b"s", iv=bytes(16)), "wrong")


def test_an_altered_store_is_refused() -> None:
    """# trust: fail-closed."""
    blob = bytearray(base64.b64decode(SEALED))
    blob[20] ^= 1
    with pytest.raises(KeyStoreError):
        unseal(outer(salt=SALT, priv=base64.b64encode(bytes(blob))), "default")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"- a",
        b"\xff",
        b"a: [",
        outer(salt=1, priv="x"),
        outer(salt="x"),
        outer(salt="x", priv="!"),
        b"!!python/x {}",
    ],
)
def test_what_is_no_store_is_refused(data: bytes) -> None:
    """# trust: safe-parsing."""
    with pytest.raises(KeyStoreError):
        unseal(data, "default")


@pytest.mark.parametrize(
    "content", [b"x", b"ca: 1\nlastserial: 1", b"ca: x", b"ca: x\nlastserial: y", b"ca: x\nlastserial: 1\nname: 5"]
)
def test_content_that_is_not_of_a_ca_is_refused(content: bytes) -> None:
    """# trust: safe-parsing."""
    sealed = base64.b64encode(encrypt_payload(KEY, bytes(16), content))
    with pytest.raises(KeyStoreError):
        unseal(outer(salt=SALT, priv=sealed), "default")


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_order(data: bytes) -> None:
    """# trust: safe-parsing."""
    with pytest.raises(KeyStoreError):
        unseal(data, "default")


def test_the_printed_form_holds_no_keys() -> None:
    """# trust: secret."""
    assert "-----" not in repr(STORE)


def test_a_serial_is_revoked_once() -> None:
    assert STORE.with_revoked(2) is STORE
    assert STORE.with_revoked(3).revoked == (2, 3)
