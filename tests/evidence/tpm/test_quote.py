"""Quotes: every vector gives its expected verdict, and nothing but the very thing that was signed is believed."""

from base64 import b64decode
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.fakes import vectors

from limeguard.crypto.hashes import SHA1, SHA256
from limeguard.evidence.reader import MalformedEvidence
from limeguard.evidence.tpm.pcrblob import build_pcr_blob, parse_pcr_blob
from limeguard.evidence.tpm.quote import QuotedPcrs, QuoteFault, build_quote_string, parse_quote, verify_quote
from limeguard.evidence.tpm.structures import (
    PcrSelection,
    Signature,
    build_quote_attest,
    build_signature,
    parse_public_2b,
)
from limeguard.simulator.softtpm import SoftAk, SoftNode, sign

ALL = frozenset({"sha1", "sha256", "sha384", "sha512"})
STRONG = frozenset({"sha256", "sha384", "sha512"})
CASES = vectors.load("quote/cases.json")
PCRS = {0: b"\x01" * 32, 7: b"\x02" * 32, 16: b"\x03" * 32}


def judge(case: dict[str, Any], accepted: frozenset[str] = ALL) -> QuotedPcrs | QuoteFault | MalformedEvidence:
    key = parse_public_2b(b64decode(case["ak"]))
    try:
        quote = parse_quote(case["quote"])
    except MalformedEvidence as problem:
        return problem
    return verify_quote(quote, key=key, nonce=bytes.fromhex(case["nonce"]), accepted_hashes=accepted)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_every_vector_gives_its_expected_verdict(case: dict[str, Any]) -> None:
    outcome = judge(case)
    assert isinstance(outcome, QuotedPcrs) is (case["expect"] == "valid"), (case["reason"], outcome)
    if isinstance(outcome, QuotedPcrs):
        shown = {b.name: {str(n): v.hex() for n, v in values.items()} for b, values in outcome.banks.items() if values}
        assert shown == case["pcrs"]
        assert parse_public_2b(b64decode(case["ak"])).name.hex() == case["ak_name"]


# trust: downgrade
@pytest.mark.parametrize("case", [c for c in CASES if "sha1" in c["name"]], ids=lambda c: c["name"])
def test_sha1_counts_only_where_the_operator_accepts_it(case: dict[str, Any]) -> None:
    uses_sha1 = "-sha1/" in case["name"] or "sha1" in case["pcrs"]
    assert isinstance(judge(case, STRONG), QuotedPcrs) is not uses_sha1
    assert isinstance(judge(case, ALL), QuotedPcrs)


# trust: fresh
def test_another_nonce_is_refused() -> None:
    ak = SoftAk.generate()
    quote = parse_quote(ak.quote(b"first", PCRS))
    for nonce in (b"second", b"", b"firs", b"first\0"):
        assert verify_quote(quote, key=ak.area, nonce=nonce, accepted_hashes=STRONG) is QuoteFault.WRONG_NONCE
    assert isinstance(verify_quote(quote, key=ak.area, nonce=b"first", accepted_hashes=STRONG), QuotedPcrs)


# trust: bound-identity
@pytest.mark.parametrize("kind", ["rsa2048", "ecc256", "ecc384"])
def test_another_key_is_refused(kind: str) -> None:
    mine, other = SoftAk.generate(kind), SoftAk.generate(kind, number=1)
    quote = parse_quote(mine.quote(b"n", PCRS))
    assert verify_quote(quote, key=other.area, nonce=b"n", accepted_hashes=STRONG) is QuoteFault.BAD_SIGNATURE


# trust: bound-identity
def test_a_key_that_signs_anything_proves_nothing() -> None:
    unrestricted = SoftAk.generate(attributes=0x00040072)
    quote = parse_quote(unrestricted.quote(b"n", PCRS))
    outcome = verify_quote(quote, key=unrestricted.area, nonce=b"n", accepted_hashes=STRONG)
    assert outcome is QuoteFault.KEY_NOT_RESTRICTED


# trust: downgrade
def test_a_scheme_other_than_the_keys_own_is_refused() -> None:
    ak = SoftAk.generate(scheme="rsapss")
    attest, _, blob = ak.quote_parts(b"n", PCRS)
    other = build_signature(sign(ak.key, "rsassa", ak.hash_alg, attest))
    quote = parse_quote(build_quote_string(attest, other, blob))
    assert verify_quote(quote, key=ak.area, nonce=b"n", accepted_hashes=STRONG) is QuoteFault.SCHEME_MISMATCH


def test_pcr_numbers_are_bound_and_not_only_their_values() -> None:
    ak = SoftAk.generate()
    attest, signature, _ = ak.quote_parts(b"n", PCRS)
    renumbered = build_pcr_blob({SHA256: {1: PCRS[0], 7: PCRS[7], 16: PCRS[16]}})
    quote = parse_quote(build_quote_string(attest, signature, renumbered))
    assert verify_quote(quote, key=ak.area, nonce=b"n", accepted_hashes=STRONG) is QuoteFault.SELECTION_MISMATCH


def test_a_value_that_was_not_quoted_is_refused() -> None:
    ak = SoftAk.generate()
    attest, signature, _ = ak.quote_parts(b"n", PCRS)
    altered = build_pcr_blob({SHA256: {**PCRS, 7: b"\x09" * 32}})
    quote = parse_quote(build_quote_string(attest, signature, altered))
    assert verify_quote(quote, key=ak.area, nonce=b"n", accepted_hashes=STRONG) is QuoteFault.WRONG_PCR_DIGEST


# trust: empty-is-not-valid
def test_a_quote_over_no_pcrs_proves_nothing() -> None:
    ak = SoftAk.generate()
    quote = parse_quote(ak.quote(b"n", {}))
    assert verify_quote(quote, key=ak.area, nonce=b"n", accepted_hashes=STRONG) is QuoteFault.NO_PCRS


# trust: empty-is-not-valid
def test_no_accepted_hash_accepts_nothing() -> None:
    ak = SoftAk.generate()
    quote = parse_quote(ak.quote(b"n", PCRS))
    assert verify_quote(quote, key=ak.area, nonce=b"n", accepted_hashes=frozenset()) is QuoteFault.HASH_NOT_ACCEPTED


def test_two_banks_in_one_quote_are_both_proven() -> None:
    ak = SoftAk.generate()
    other = {0: b"\x07" * 20}
    values = {SHA256: PCRS, SHA1: other}
    base = parse_quote(ak.quote(b"n", PCRS)).attest
    digest = SHA256.digest(b"".join(PCRS.values()) + other[0])
    selection = (PcrSelection(SHA256, (0, 7, 16)), PcrSelection(SHA1, (0,)))
    attest = build_quote_attest(replace(base, selection=selection, pcr_digest=digest))
    signature = build_signature(sign(ak.key, ak.scheme, ak.hash_alg, attest))
    quote = parse_quote(build_quote_string(attest, signature, build_pcr_blob(values)))
    outcome = verify_quote(quote, key=ak.area, nonce=b"n", accepted_hashes=ALL)
    assert isinstance(outcome, QuotedPcrs)
    assert outcome.bank is SHA256
    assert outcome.banks == values
    assert verify_quote(quote, key=ak.area, nonce=b"n", accepted_hashes=STRONG) is QuoteFault.HASH_NOT_ACCEPTED


@pytest.mark.parametrize(
    "text",
    ["", "r", "x::", "r:", "r::", "r:::", "rAA==:AA==", "rAA==:AA==:AA==:AA==", "r!!:AA==:AA==", "r" + "A" * 70000],
)
def test_what_is_no_quote_string_is_malformed(text: str) -> None:
    with pytest.raises(MalformedEvidence):
        parse_quote(text)


# trust: safe-parsing
@given(st.text())
def test_any_text_is_a_quote_or_malformed(text: str) -> None:
    for candidate in (text, "r" + text, f"r{text}:{text}:{text}"):
        with pytest.raises(MalformedEvidence):
            parse_quote(candidate)


# trust: safe-parsing
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["rsa2048", "ecc256"]), st.integers(0, 2), st.integers(0, 2**16))
def test_no_flipped_bit_anywhere_is_believed(kind: str, part: int, place: int) -> None:
    ak = SoftAk.generate(kind)
    parts = list(ak.quote_parts(b"nonce", PCRS))
    original = parts[part]
    bit = place % (len(original) * 8)
    mutable = bytearray(original)
    mutable[bit // 8] ^= 1 << bit % 8
    parts[part] = bytes(mutable)
    try:
        quote = parse_quote(build_quote_string(*parts))
    except MalformedEvidence:
        return
    outcome = verify_quote(quote, key=ak.area, nonce=b"nonce", accepted_hashes=STRONG)
    if isinstance(outcome, QuotedPcrs):  # the blob has bytes that mean nothing: padding of slots and values
        assert part == 2
        assert outcome.values == PCRS
    else:
        assert isinstance(outcome, QuoteFault)


# trust: safe-parsing
@given(st.binary(max_size=2000))
def test_any_bytes_are_a_pcr_blob_or_malformed(data: bytes) -> None:
    try:
        selections, values = parse_pcr_blob(data)
    except MalformedEvidence:
        return
    assert {s.bank for s in selections} == set(values)


@given(st.dictionaries(st.integers(0, 23), st.binary(min_size=32, max_size=32), max_size=24))
def test_a_pcr_blob_comes_back_as_it_was(values: dict[int, bytes]) -> None:
    selections, parsed = parse_pcr_blob(build_pcr_blob({SHA256: values}))
    assert parsed == {SHA256: values}
    assert selections == (PcrSelection(SHA256, tuple(sorted(values))),)


def test_the_blob_has_the_sizes_of_the_format() -> None:
    for count, size in ((1, 668), (8, 668), (9, 1200), (16, 1200), (24, 1732)):
        assert len(build_pcr_blob({SHA256: {n: bytes(32) for n in range(count)}})) == size


def test_a_captured_identity_quote_holds() -> None:
    captured, keys = vectors.load("tpm/protocol.json")["identity_quote"], vectors.load("tpm/protocol.json")["keys"]
    blob = build_pcr_blob({SHA256: {16: bytes.fromhex(captured["pcr16"])}})
    assert SHA256.digest(blob).hex() == captured["blob_sha256"]
    text = build_quote_string(b64decode(captured["attest"]), b64decode(captured["signature"]), blob)
    key = parse_public_2b(b64decode(keys["aik_tpm"]))
    outcome = verify_quote(parse_quote(text), key=key, nonce=captured["nonce"].encode(), accepted_hashes=STRONG)
    assert isinstance(outcome, QuotedPcrs)
    assert outcome.clock.reset_count == 2
    assert outcome.clock.clock == 0xEA44
    pubkey = captured["pubkey"].encode()
    assert outcome.values[16] == SHA256.digest(bytes(32) + SHA256.digest(pubkey))


def test_a_captured_quote_of_a_push_agent_holds() -> None:
    captured = vectors.load("tpm/protocol.json")["push"]
    public = b64decode(captured["public"])
    key = parse_public_2b(len(public).to_bytes(2, "big") + public)
    # PCR 0 and 10 were zero, PCR 16 is the one given: the digest in the attestation is over those three.
    quoted = {0: bytes(32), 10: bytes(32), 16: bytes.fromhex(captured["pcr16"])}
    blob = build_pcr_blob({SHA256: quoted})
    text = build_quote_string(b64decode(captured["quote_message"]), b64decode(captured["quote_signature"]), blob)
    nonce = b64decode(captured["challenge"])
    outcome = verify_quote(parse_quote(text), key=key, nonce=nonce, accepted_hashes=STRONG)
    assert isinstance(outcome, QuotedPcrs)
    assert outcome.values == quoted


@pytest.mark.parametrize("kind", ["rsa2048", "rsa3072", "ecc256", "ecc384", "ecc521"])
def test_a_node_of_every_key_kind_is_proven(kind: str) -> None:
    node = SoftNode.create(kind)
    outcome = verify_quote(parse_quote(node.quote("n", {0, 1})), key=node.ak.area, nonce=b"n", accepted_hashes=STRONG)
    assert isinstance(outcome, QuotedPcrs)


def test_an_empty_ecdsa_half_is_malformed() -> None:
    ak = SoftAk.generate("ecc256")
    attest, _, blob = ak.quote_parts(b"n", PCRS)
    text = build_quote_string(attest, bytes.fromhex("0018000b00000000"), blob)
    with pytest.raises(MalformedEvidence):
        parse_quote(text)
    zero = build_signature(Signature("ecdsa", SHA256, (0, 0)))
    quote = parse_quote(build_quote_string(attest, zero, blob))
    assert verify_quote(quote, key=ak.area, nonce=b"n", accepted_hashes=STRONG) is QuoteFault.BAD_SIGNATURE
