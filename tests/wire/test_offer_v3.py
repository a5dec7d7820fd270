"""Offers and evidence of agents that push: what is well-formed, and where in it a problem lies."""

import contextlib
import copy
import json
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limeguard.simulator.softtpm import SoftAk
from limeguard.wire.attestation_v3 import LogParameters, NoEvidence, QuoteParameters, Requested, read_evidence
from limeguard.wire.jsonapi import NotADocument, decode_resource
from limeguard.wire.offer_v3 import Invalid, decode_request, read_offer

KEY = {"key_class": "asymmetric", "key_algorithm": "rsa", "key_size": 2048, "server_identifier": "ak"}
QUOTE = {
    "component_version": "2.0",
    "hash_algorithms": ["sha1", "sha256"],
    "signature_schemes": ["rsassa"],
    "available_subjects": {"sha1": [0], "sha256": [0, 10]},
    "certification_keys": [KEY],
}
LOG = {"entry_count": 5, "supports_partial_access": True, "appendable": True, "formats": ["text/plain"]}
OFFER: dict[str, Any] = {
    "evidence_supported": [
        {"evidence_class": "certification", "evidence_type": "tpm_quote", "capabilities": QUOTE},
        {"evidence_class": "log", "evidence_type": "ima_log", "capabilities": LOG},
        {"evidence_class": "log", "evidence_type": "from_the_future", "capabilities": {"any": "thing"}},
    ],
    "system_info": {"boot_time": "2026-01-05T08:00:00Z"},
}


def body(attributes: object) -> bytes:
    return json.dumps({"data": {"type": "attestation", "attributes": attributes}}).encode()


def changed(change: Callable[[Any], None]) -> bytes:
    attributes = copy.deepcopy(OFFER)
    change(attributes)
    return body(attributes)


def put(path: str, value: object) -> Callable[[Any], None]:
    """Return a change that sets (or with `...` deletes) what a dotted path names."""

    def change(attributes: Any) -> None:
        *names, last = path.split(".")
        for name in names:
            attributes = attributes[int(name) if name.isdigit() else name]
        if value is ...:
            del attributes[last]
        else:
            attributes[int(last) if last.isdigit() else last] = value

    return change


def test_a_good_offer_is_read_and_what_nobody_knows_is_ignored() -> None:
    offer = read_offer(decode_request(changed(put("unknown", {"x": 1}))))
    assert offer.quote is not None
    assert offer.ima is not None
    assert offer.uefi is None
    assert (offer.ima.position, offer.ima.capabilities.entry_count) == (1, 5)
    assert offer.boot_time == 1767600000.0
    assert json.loads(bytes(offer.quote.key_as_sent(0))) == KEY


BAD = {
    "no evidence": (put("evidence_supported", ...), "/evidence", "is required"),
    "empty": (put("evidence_supported", []), "/evidence", "is required"),
    "no array": (put("evidence_supported", {}), "/evidence", "must be an array"),
    "no object": (
        put("evidence_supported.0", 5),
        "/evidence",
        "may only contain objects with key-value pairs",
    ),
    "class": (
        put("evidence_supported.0.evidence_class", "guess"),
        "/evidence/0/evidence_class",
        "must be 'certification' or 'log'",
    ),
    "no capabilities": (
        put("evidence_supported.0.capabilities", ...),
        "/evidence/0/capabilities",
        "is required",
    ),
    "banks": (
        put("evidence_supported.0.capabilities.available_subjects.sha512", [0]),
        "/evidence/0/capabilities/available_subjects",
        "may only contain PCR banks for the given hash algorithms",
    ),
    "no keys": (
        put("evidence_supported.0.capabilities.certification_keys", ...),
        "/evidence/0/capabilities/certification_keys",
        "is required for tpm_quote evidence",
    ),
    "family": (
        put("evidence_supported.0.capabilities.certification_keys.0.key_algorithm", "ecc"),
        "/evidence/0/capabilities/certification_keys/0/key_algorithm",
        "must be compatible with a given signature schemes",
    ),
    "no formats": (
        put("evidence_supported.1.capabilities.formats", ...),
        "/evidence/1/capabilities/formats",
        "is required",
    ),
    "no count": (
        put("evidence_supported.1.capabilities.entry_count", ...),
        "/evidence/1/capabilities/entry_count",
        "is required when supports_partial_access is true",
    ),
    "negative": (
        put("evidence_supported.1.capabilities.entry_count", -1),
        "/evidence/1/capabilities/entry_count",
        "must be a number of entries",
    ),
    "boot time": (
        put("system_info.boot_time", "yesterday"),
        "/system_info/boot_time",
        "must be an ISO 8601 time with its offset",
    ),
    "no zone": (
        put("system_info.boot_time", "2026-01-05T08:00:00"),
        "/system_info/boot_time",
        "must be an ISO 8601 time with its offset",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_the_problem_is_pointed_to(name: str) -> None:
    change, pointer, message = BAD[name]
    with pytest.raises(Invalid) as refused:
        read_offer(decode_request(changed(change)))
    (problem,) = refused.value.problems
    assert (problem.pointer, problem.message) == (pointer, message)
    assert problem.detail == f"Attribute '{pointer.split('/')[1]}' {message}."


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"{", body({"system_info": None}), body(OFFER) + b"x"])
def test_what_is_no_document(text: bytes) -> None:
    with pytest.raises(NotADocument):
        decode_request(text)


def test_a_document_of_another_type_is_none() -> None:
    with pytest.raises(NotADocument):
        decode_request(body(OFFER).replace(b'"attestation"', b'"error"'))


def test_elliptic_curves_fit_their_schemes() -> None:
    change = put("evidence_supported.0.capabilities.certification_keys.0.key_algorithm", "ecc")
    attributes = copy.deepcopy(OFFER)
    change(attributes)
    put("evidence_supported.0.capabilities.signature_schemes", ["ecdsa"])(attributes)
    assert read_offer(decode_request(body(attributes))).quote is not None


# --- evidence ---------------------------------------------------------------------------------------------------------

AK = SoftAk.generate("ecc256")
ASKED = (
    Requested.make(
        "certification",
        "tpm_quote",
        decode_resource(body({"x": QUOTE})).attributes["x"],
        QuoteParameters(
            signature_scheme="ecdsa",
            challenge="AAAA",
            hash_algorithm="sha256",
            selected_subjects={"sha256": (0, 10), "sha1": None},
        ),
    ),
    Requested.make(
        "log",
        "ima_log",
        decode_resource(body({"x": LOG})).attributes["x"],
        LogParameters(format="text/plain", starting_offset=0),
    ),
)


def sent(**changes: Any) -> list[dict[str, Any]]:
    attest, signature, blob = AK.quote_parts(b"\0\0\0", {0: bytes(32), 10: bytes(32), 16: bytes(32)})
    quote = {
        name: b64encode(part).decode()
        for name, part in (("message", attest), ("signature", signature), ("subject_data", blob))
    }
    return [
        {"evidence_class": "certification", "evidence_type": "tpm_quote", "data": {**quote, **changes}},
        {"evidence_class": "log", "evidence_type": "ima_log", "data": {"entries": "a\nb\n", "entry_count": 2}},
    ]


def read(items: object, due: int = 2) -> Any:
    return read_evidence(decode_resource(body({"evidence_collected": items})), ASKED, due)


def test_good_evidence_is_read() -> None:
    collected = read(sent())
    assert collected.ima_log == "a\nb\n"
    assert collected.boot_log is None
    assert set(collected.quote.values) == {collected.quote.signature.hash_alg}


def few_pcrs() -> list[dict[str, Any]]:
    _, _, blob = AK.quote_parts(b"", {0: bytes(32)})
    return sent(subject_data=b64encode(blob).decode())


BAD_EVIDENCE: dict[str, tuple[Any, str, str]] = {
    "no array": ({}, "/evidence", "must be an array"),
    "count": (sent()[:1], "/evidence", "must contain a number of elements equal to that which were requested"),
    "order": (sent()[::-1], "/evidence", "must appear in the same order as the evidence requested"),
    "no message": (sent(message=None), "/evidence/0/data/message", "is required"),
    "no base64": (sent(signature="***"), "/evidence/0/data/signature", "must be base64"),
    "no attest": (sent(message="AAAA"), "/evidence/0/data/message", "cannot be read"),
    "no blob": (sent(subject_data="AAAA"), "/evidence/0/data/subject_data", "cannot be read"),
    "few": (few_pcrs(), "/evidence/0/data/subject_data", "must contain at least the PCRs requested"),
}


@pytest.mark.parametrize("name", BAD_EVIDENCE)
def test_the_problem_of_evidence_is_pointed_to(name: str) -> None:
    items, pointer, message = BAD_EVIDENCE[name]
    with pytest.raises(Invalid) as refused:
        read(items)
    (problem,) = refused.value.problems
    assert problem.pointer == pointer
    assert problem.message.startswith(message)


def test_fewer_entries_than_there_are_is_refused() -> None:
    with pytest.raises(Invalid) as refused:
        read(sent(), due=3)
    assert refused.value.problems[0].pointer == "/evidence/1/data/entries"
    assert "at least 3 entries" in refused.value.problems[0].message


def test_an_agent_that_cannot_answer_says_so() -> None:
    text = b'{"data":{"type":"error","attributes":{"evidence_collected":[]}}}'
    with pytest.raises(NoEvidence):
        read_evidence(decode_resource(text), ASKED, 0)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
names = st.sampled_from([*QUOTE, *LOG, *KEY, *OFFER, "evidence_class", "evidence_type", "capabilities", "data", "x"])
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=6), max_leaves=25
)


@given(st.dictionaries(names, anything, max_size=4))
def test_nothing_but_a_refusal_comes_of_nonsense(attributes: dict[str, Any]) -> None:
    # trust: safe-parsing
    for key in ("evidence_supported", "evidence_collected"):
        text = body({key: [{**attributes, "evidence_class": "log", "evidence_type": "ima_log"}], **attributes})
        try:
            resource = decode_request(text)
            read_offer(resource)
        except (NotADocument, Invalid):
            pass
        with contextlib.suppress(NotADocument, Invalid, NoEvidence):
            read_evidence(decode_resource(text), ASKED, 1)


@given(st.lists(st.sampled_from(sorted(BAD)), max_size=4), anything)
def test_nor_of_an_offer_that_is_almost_good(broken: list[str], value: object) -> None:
    # trust: safe-parsing
    attributes = copy.deepcopy(OFFER)
    for name in broken:
        try:
            BAD[name][0](attributes)
        except (KeyError, TypeError, IndexError):
            continue
    attributes["evidence_supported"] = attributes.get("evidence_supported", value)
    with contextlib.suppress(NotADocument, Invalid):
        read_offer(decode_request(body(attributes)))
