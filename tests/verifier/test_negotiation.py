"""What an agent that pushes is asked for."""

import json
from base64 import b64encode
from typing import Any

import pytest

from limeguard.simulator.softtpm import SoftAk
from limeguard.verifier.push.negotiation import Progress, Wanted, negotiate, starting_offset
from limeguard.wire.attestation_v3 import LogParameters, QuoteParameters
from limeguard.wire.offer_v3 import Invalid, Offer, decode_request, read_offer

AK = SoftAk.generate("rsa2048")
FRESH = Progress(0, 0, None)
ALL = list(range(24))


def wanted(**changes: Any) -> Wanted:
    usual: dict[str, Any] = {
        "ak": AK.area,
        "accept_hash": ("sha512", "sha256"),
        "accept_sign": ("ecschnorr", "rsapss", "rsassa"),
        "pcrs": frozenset(),
        "boot_log": False,
        "ima_log": False,
    }
    return Wanted(**{**usual, **changes})


def offer(
    *, quote: dict[str, Any] | None = None, logs: tuple[str, ...] = ("uefi_log", "ima_log"), boot: bool = True
) -> Offer:
    key = {
        "key_class": "asymmetric",
        "key_algorithm": "rsa",
        "key_size": 2048,
        "server_identifier": "ak",
        "local_identifier": "00",
        "public": b64encode(AK.area.raw).decode(),
    }
    capabilities = {
        "component_version": "2.0",
        "hash_algorithms": ["sha1", "sha256"],
        "signature_schemes": ["rsassa", "rsapss"],
        "available_subjects": {"sha1": ALL, "sha256": ALL},
        "certification_keys": [key],
        **(quote or {}),
    }
    items = [{"evidence_class": "certification", "evidence_type": "tpm_quote", "capabilities": capabilities}]
    formats = {"uefi_log": "application/octet-stream", "ima_log": "text/plain"}
    items += [
        {
            "evidence_class": "log",
            "evidence_type": name,
            "capabilities": {"entry_count": 7, "supports_partial_access": True, "formats": [formats[name]]},
        }
        for name in logs
    ]
    attributes: dict[str, Any] = {"evidence_supported": items}
    if boot:
        attributes["system_info"] = {"boot_time": "2026-01-05T08:00:00Z"}
    return read_offer(decode_request(json.dumps({"data": {"type": "attestation", "attributes": attributes}}).encode()))


def quote_of(offered: Offer, held_to: Wanted) -> QuoteParameters:
    requested, _ = negotiate(offered, held_to, FRESH, bytes(16), None)
    parameters = requested[0].parameters
    assert isinstance(parameters, QuoteParameters)
    return parameters


def test_a_node_without_policy_is_asked_for_a_quote_all_the_same() -> None:
    # trust: empty-is-not-valid
    asked = quote_of(offer(), wanted())
    assert asked.selected_subjects == {"sha256": (0, 1, 2, 3, 4, 5, 6, 7), "sha1": None}
    assert (asked.signature_scheme, asked.hash_algorithm) == ("rsassa", "sha256")
    assert list(asked.selected_subjects) == ["sha256", "sha1"]  # in order of preference


def test_everything_that_is_judged_is_asked_for_in_the_order_of_the_wire() -> None:
    requested, due = negotiate(
        offer(logs=("ima_log", "uefi_log")),
        wanted(pcrs=frozenset({23}), boot_log=True, ima_log=True),
        FRESH,
        bytes(16),
        None,
    )
    assert [one.evidence_type for one in requested] == ["tpm_quote", "uefi_log", "ima_log"]
    asked = requested[0].parameters
    assert isinstance(asked, QuoteParameters)
    assert asked.selected_subjects["sha256"] == (*range(16), 23)
    assert due == 7
    assert all("format" in json.loads(bytes(one.chosen)) for one in requested[1:])
    assert "format" not in json.loads(bytes(requested[0].chosen))


def test_a_key_that_deployed_agents_would_not_take_back_is_left_out() -> None:
    bare = {"key_class": "asymmetric", "key_algorithm": "rsa", "server_identifier": "ak"}
    requested, _ = negotiate(offer(quote={"certification_keys": [bare]}), wanted(), FRESH, bytes(16), None)
    assert "certification_key" not in json.loads(bytes(requested[0].chosen))
    whole, _ = negotiate(offer(), wanted(), FRESH, bytes(16), None)
    assert json.loads(bytes(whole[0].chosen))["certification_key"]["server_identifier"] == "ak"


def test_the_enrolled_key_is_preferred_over_others() -> None:
    other = {"key_class": "asymmetric", "key_algorithm": "rsa", "key_size": 2048, "server_identifier": "ak"}
    mine = {**other, "server_identifier": "x", "public": b64encode(AK.public_2b).decode(), "local_identifier": "m"}
    requested, _ = negotiate(offer(quote={"certification_keys": [other, mine]}), wanted(), FRESH, bytes(16), None)
    assert json.loads(bytes(requested[0].chosen))["certification_key"]["local_identifier"] == "m"


RESTRICTED = {"key_class": "asymmetric", "key_algorithm": "rsa", "public": ""}
TIP = "must have 'tpm_quote' with capabilities which are valid and satisfy agent policy"
UNFIT: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "version": ({"component_version": "1.2"}, {}, f"{TIP} (check 'component_version')"),
    "schemes": ({}, {"accept_sign": ("ecdsa",)}, f"{TIP} (check 'signature_schemes')"),
    "hashes": ({}, {"accept_hash": ("sha512",)}, f"{TIP} (check 'hash_algorithms')"),
    "restricted key": (
        {"certification_keys": [{**RESTRICTED, "allowable_signature_schemes": ["rsapss"]}]},
        {},
        f"{TIP} (check schemes and algorithms in 'certification_keys')",
    ),
    "banks": (
        {"available_subjects": {"sha1": ALL}},
        {},
        "must have a PCR bank for a hash algorithm allowable for agent",
    ),
    "numbers": (
        {"available_subjects": {"sha256": [1, 2]}},
        {"pcrs": frozenset({23})},
        (
            "must have 'tpm_quote' with capabilities which satisfy agent policy "
            "(check the correct numbered PCRs are given for an allowable PCR bank)"
        ),
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_an_offer_that_does_not_do(name: str) -> None:
    # trust: downgrade
    capabilities, held_to, message = UNFIT[name]
    with pytest.raises(Invalid) as refused:
        negotiate(offer(quote=capabilities), wanted(**held_to), FRESH, bytes(16), None)
    assert refused.value.problems[0].message == message


def test_a_log_that_is_not_offered() -> None:
    with pytest.raises(Invalid, match="must contain a log item of type 'ima_log' per agent policy"):
        negotiate(offer(logs=()), wanted(ima_log=True), FRESH, bytes(16), None)
    with pytest.raises(Invalid, match="must contain a log item of type 'uefi_log' per agent policy"):
        negotiate(offer(logs=()), wanted(boot_log=True), FRESH, bytes(16), None)
    with pytest.raises(Invalid, match=r"Attribute 'system_info' is required"):
        negotiate(offer(boot=False), wanted(ima_log=True), FRESH, bytes(16), None)


@pytest.mark.parametrize(
    ("progress", "boot", "entries", "resets", "offset"),
    [
        (Progress(5, 100, 2), 100.0, 7, 2, 5),
        (Progress(5, 100, 2), 100.9, 7, None, 5),
        (Progress(5, 100, None), 100.0, 7, 2, 5),
        (Progress(7, 100, 2), 100.0, 7, 2, 7),
        (Progress(8, 100, 2), 100.0, 7, 2, 0),  # a shorter log
        (Progress(5, 100, 2), 99.0, 7, 2, 0),  # the clock of the wall was set back
        (Progress(5, 100, 2), 101.0, 7, 2, 0),  # a later boot
        (Progress(5, 100, 2), 100.0, 7, 3, 0),  # the TPM was reset since
        (Progress(5, 100, 2), None, 7, 2, 0),
        (Progress(0, 0, None), 0.0, 0, None, 0),
    ],
)
def test_from_where_a_log_is_needed(
    progress: Progress, boot: float | None, entries: int, resets: int | None, offset: int
) -> None:
    assert starting_offset(progress, boot_time=boot, entries=entries, resets=resets) == offset


def test_what_was_agreed_on_before_holds_again_but_for_the_challenge() -> None:
    # trust: fresh
    offered, held_to = offer(), wanted(pcrs=frozenset({23}))
    (first,), _ = negotiate(offered, held_to, FRESH, bytes(16), None)
    (again,), _ = negotiate(offered, held_to, FRESH, b"\1" * 16, None, first)
    (anew,), _ = negotiate(offered, held_to, FRESH, b"\1" * 16, None)
    assert json.loads(bytes(again.chosen)) == json.loads(bytes(anew.chosen))
    assert isinstance(again.parameters, QuoteParameters)
    assert again.parameters.challenge == b64encode(b"\1" * 16).decode()
    assert not isinstance(again.parameters, LogParameters)
