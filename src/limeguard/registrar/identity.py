"""Which registrations are good: one chain from EK certificate to EK to AK to node id, and no change of it later.

Takes a request and what is stored, gives the record to store. No I/O; must not know HTTP or SQL. IAK and IDevID are
bound to their certificates and to the AK here; who issued those certificates is not judged.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

from msgspec import UNSET, UnsetType

from limeguard.crypto.chains import CertificateError, parse_certificate, public_key_der
from limeguard.crypto.keys import spki_der
from limeguard.evidence.reader import MalformedEvidence
from limeguard.evidence.tpm.certify import certification_fault
from limeguard.evidence.tpm.structures import FIXED_TPM, PublicArea, parse_public_2b
from limeguard.store.registrations import Registration
from limeguard.telemetry import clean, get_logger
from limeguard.wire.registrar_v2 import RegistrationRequest, pem

log = get_logger("keylime.registrar")

IDENTITY_MEMBERS: Final = ("ek_tpm", "ekcert", "aik_tpm")
DEVICE_MEMBERS: Final = ("iak_tpm", "iak_cert", "idevid_tpm", "idevid_cert")


class InvalidRegistration(ValueError):  # noqa: N818 - a judgement
    """The registration is not good; the text says why, for the log."""


class OtherIdentity(Exception):  # noqa: N818 - a judgement
    """The id belongs to a node with another TPM; the text names the members that differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityRules:
    """What an operator demands: `tpm_identity`, `malformed_cert_action`, and whether an id may move to another TPM."""

    tpm_identity: str = "default"
    malformed_cert_action: str = "warn"
    allow_other_tpm: bool = False


@dataclass(frozen=True, slots=True)
class Judged:
    """A good registration: the record without its challenge, and the keys the challenge is made for."""

    record: Registration
    ek: PublicArea
    ak: PublicArea


def judge(agent_id: str, request: RegistrationRequest, stored: Registration | None, rules: IdentityRules) -> Judged:
    """Return the record that a registration leads to. Raises OtherIdentity, InvalidRegistration.

    Whether the identity may change is decided before anything in it is looked at.
    """
    differing = changed_identity(request, stored)
    if differing and not rules.allow_other_tpm:
        raise OtherIdentity(", ".join(differing))
    merged = _merged(agent_id, request, stored)
    try:
        ek, ak = _keys(merged)
        _check_ek_certificate(merged, ek, rules)
        _check_device_identity(merged, request, ak, rules)
        record = replace(merged, mtls_cert=_server_certificate(request.mtls_cert, merged.mtls_cert))
    except (MalformedEvidence, CertificateError) as problem:
        raise InvalidRegistration(str(problem)) from problem
    return Judged(_progressed(record, request, stored), ek, ak)


def changed_identity(request: RegistrationRequest, stored: Registration | None) -> tuple[str, ...]:
    """Return the members that were set and would become something else. An absent member changes nothing."""
    if stored is None:
        return ()
    given = ((name, getattr(request, name), getattr(stored, name)) for name in IDENTITY_MEMBERS)
    return tuple(name for name, new, old in given if new is not UNSET and old is not None and new != old)


def _merged(agent_id: str, request: RegistrationRequest, stored: Registration | None) -> Registration:
    ak = request.aik_tpm if not isinstance(request.aik_tpm, UnsetType) else stored and stored.aik_tpm
    if not ak:
        raise InvalidRegistration("there is no aik_tpm")
    base = stored or Registration(agent_id=agent_id, ek_tpm=None, ekcert=None, aik_tpm=ak)
    given = {
        name: value
        for name in ("ek_tpm", "ekcert", "ip", "port")
        if not isinstance(value := getattr(request, name), UnsetType)
    }
    return replace(base, aik_tpm=ak, **given, **_device_identity(request))


def _device_identity(request: RegistrationRequest) -> dict[str, Any]:
    """Return the four members of the device identity, or nothing: agents without one send nulls."""
    given = {name: value for name in DEVICE_MEMBERS if isinstance(value := getattr(request, name), bytes)}
    if given and len(given) != len(DEVICE_MEMBERS):
        missing = ", ".join(name for name in DEVICE_MEMBERS if name not in given)
        raise InvalidRegistration(
            f"IAK and IDevID are given with all keys and certificates or not at all: no {missing}"
        )
    return given


def _keys(record: Registration) -> tuple[PublicArea, PublicArea]:
    if record.ek_tpm is None:
        raise InvalidRegistration("there is no ek_tpm, so no challenge can be made")
    ek, ak = parse_public_2b(record.ek_tpm), parse_public_2b(record.aik_tpm)
    if not ak.restricted_signing or not ak.attributes & FIXED_TPM:
        # Any other key would sign what its owner makes up, or could be taken out of the TPM.
        raise InvalidRegistration(
            "aik_tpm is not an attestation key: it must be a restricted signing key fixed to its TPM"
        )
    return ek, ak


def _check_ek_certificate(record: Registration, ek: PublicArea, rules: IdentityRules) -> None:
    if record.ekcert is not None:
        _check_certificate("ekcert", record.ekcert, "ek_tpm", ek, record.agent_id, rules)


def _check_device_identity(
    record: Registration, request: RegistrationRequest, ak: PublicArea, rules: IdentityRules
) -> None:
    if not isinstance(request.iak_tpm, bytes):
        if rules.tpm_identity == "iak_idevid":
            raise InvalidRegistration("tpm_identity demands IAK and IDevID, and they are not given")
        return
    log.info("IDevID and IAK received")
    keys = {name: parse_public_2b(getattr(record, name) or b"") for name in ("iak_tpm", "idevid_tpm")}
    for key, certificate in (("iak_tpm", "iak_cert"), ("idevid_tpm", "idevid_cert")):
        _check_certificate(certificate, getattr(record, certificate), key, keys[key], record.agent_id, rules)
    if not isinstance(request.iak_attest, bytes) or not isinstance(request.iak_sign, bytes):
        raise InvalidRegistration("an IAK is given without the proof that the AK is in its TPM")
    fault = certification_fault(keys["iak_tpm"], ak, record.agent_id, request.iak_attest, request.iak_sign)
    if fault is not None:
        raise InvalidRegistration(fault)
    log.info("Agent %s AIK verified with IAK", clean(record.agent_id))


def _check_certificate(name: str, der: bytes, key_name: str, key: PublicArea, node: str, rules: IdentityRules) -> None:
    certificate = parse_certificate(der)
    if certificate.malformed:
        _judge_malformed(name, node, rules)
    if public_key_der(certificate) != spki_der(key.public_key()):
        raise InvalidRegistration(f"the key in {name} is not {key_name}")


def _judge_malformed(name: str, node: str, rules: IdentityRules) -> None:
    if rules.malformed_cert_action == "reject":
        raise InvalidRegistration(f"the encoding of {name} has flaws, and malformed_cert_action is reject")
    if rules.malformed_cert_action != "ignore":
        log.warning("The encoding of %s of agent %s has flaws; the certificate was read leniently", name, clean(node))


def _server_certificate(given: bytes | str | UnsetType | None, stored: str | None) -> str | None:
    if isinstance(given, UnsetType):
        return stored
    return pem(parse_certificate(given).der) if isinstance(given, bytes) else given


def _progressed(record: Registration, request: RegistrationRequest, stored: Registration | None) -> Registration:
    """Return the record at the start of its next activation.

    Where a node is reached is proved together with its keys: what is changed is not active before the TPM has answered.
    """
    same_tpm = stored is not None and (stored.ek_tpm, stored.aik_tpm) == (record.ek_tpm, record.aik_tpm)
    keys_named = request.ek_tpm is not UNSET or request.aik_tpm is not UNSET
    return replace(
        record,
        active=record.active and record == stored and not keys_named,
        proven=record.proven and same_tpm,
        regcount=record.regcount + request.touches_identity,
    )
