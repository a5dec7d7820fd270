"""Whether the TPM behind a node comes from a maker the operator trusts: its EK certificate, and the operator's script.

The certificate must be for the very EK that the registrar challenged, and its issuer must be in the store, directly or
through intermediates that stand below it in a file of the store. Decides nothing about quotes.
"""

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from limeguard.crypto import chains, keys
from limeguard.evidence.reader import MalformedEvidence
from limeguard.evidence.tpm.structures import parse_public_2b
from limeguard.telemetry import clean
from limeguard.tenant.errors import TenantError
from limeguard.tenant.report import Report, error, info, warning
from limeguard.wire.operator_view import Registration

MAX_STORE_FILE = 1024 * 1024
MAX_STORE_FILES = 4096
MAX_SCRIPT_OUTPUT = 256 * 1024
MAX_OUTPUT_LINE = 16384
SCRIPT_SECONDS = 300.0
"""A script that has not decided by then has refused."""


@dataclass(frozen=True, slots=True)
class EkRules:
    """What the operator demands of an EK.

    `script` is absolute, `work_dir` is where it runs, `environment` what it inherits.
    """

    certificate_required: bool
    store: Path
    script: Path | None
    work_dir: Path
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def nothing(self) -> bool:
        """Whether no check at all is asked for."""
        return not self.certificate_required and self.script is None


@dataclass(frozen=True, slots=True)
class Store:
    """Certificates that are trusted, and certificates that may stand between them and an EK's."""

    trusted: tuple[chains.ParsedCertificate, ...]
    between: tuple[chains.ParsedCertificate, ...] = ()


async def ek_accepted(
    rules: EkRules, agent_id: str, shown: str, registration: Registration, report: Report, now: float
) -> bool:
    """Say whether the operator's rules accept the EK of a node; the reasons are reported.

    `shown` is the node as messages show it. Every rule that is set must accept.
    """
    if rules.nothing:
        warning(
            report,
            "DANGER: EK cert checking is disabled and no additional checks on EKs have been specified with "
            f"ek_check_script option for {shown}. Any software that pretends to be a TPM passes",
        )
        return True
    if rules.certificate_required and not _certificate_accepted(rules, shown, registration, report, now):
        return False
    return rules.script is None or await _script_accepts(rules, agent_id, shown, registration, report)


def _certificate_accepted(rules: EkRules, shown: str, registration: Registration, report: Report, now: float) -> bool:
    if not registration.ek_certificate:
        warning(report, f"No EK cert provided, require_ek_cert option in config set to True for {shown}")
        return False
    try:
        certificate = chains.parse_certificate(b64decode(registration.ek_certificate, validate=True))
        reason = certificate_fault(certificate, registration.endorsement_key, read_store(rules.store, report))
    except (Base64Error, ValueError) as problem:
        warning(report, f"Invalid EK certificate for {shown}: it cannot be read ({clean(problem)})")
        return False
    if reason is not None:
        warning(report, f"Invalid EK certificate for {shown}: {reason}")
        return False
    if certificate.malformed:
        warning(report, f"The EK certificate for {shown} is malformed and was read leniently")
    if certificate.certificate.not_valid_after_utc.timestamp() < now:
        warning(report, f"The EK certificate for {shown} has run out, which TPMs outlive")
    return True


def certificate_fault(certificate: chains.ParsedCertificate, endorsement_key: str, store: Store) -> str | None:
    """Say why a certificate does not vouch for an EK (base64 TPM2B_PUBLIC), or None when it does."""
    try:
        endorsement = keys.spki_der(parse_public_2b(b64decode(endorsement_key, validate=True)).public_key())
        certified = chains.public_key_der(certificate)
    except (Base64Error, MalformedEvidence, ValueError) as problem:
        return f"the keys cannot be read ({clean(problem)})"
    if certified != endorsement:
        return "it is for another key than the EK that was registered"
    if not chains.issued_by_store(certificate, store.trusted, store.between):
        issuer = clean(certificate.certificate.issuer.rfc4514_string())
        return f"no certificate in the TPM certificate store issued it (issuer {issuer})"
    return None


def read_store(folder: Path, report: Report) -> Store:
    """Read every `*.pem` file of the store; what cannot be read is reported and left out.

    The first certificate of a file is trusted; those below it may lead to a trusted one. Raises TenantError when there
    is no such folder.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".pem" and path.is_file())
    except OSError as problem:
        raise TenantError(f"TPM certificate store {folder} cannot be read: {problem.strerror}") from problem
    trusted: list[chains.ParsedCertificate] = []
    between: list[chains.ParsedCertificate] = []
    for path in paths[:MAX_STORE_FILES]:
        try:
            with path.open("rb") as file:
                content = file.read(MAX_STORE_FILE)
            trusted.append(chains.parse_certificate(chains.first_certificate(content)))
            between += (chains.parse_certificate(der) for der in chains.pem_blocks(content)[1:])
        except (OSError, ValueError) as problem:
            warning(report, f"TPM certificate store: {clean(path.name)} is left out ({clean(problem)})")
    return Store(tuple(trusted), tuple(between))


def script_environment(rules: EkRules, agent_id: str, registration: Registration) -> dict[str, str]:
    """Return the environment of an EK script: what the caller has, and the EK in every form it may want."""
    try:
        ek = keys.spki_pem(parse_public_2b(b64decode(registration.endorsement_key, validate=True)).public_key())
    except (Base64Error, MalformedEvidence, ValueError):
        ek = ""
    return {
        **rules.environment,
        "AGENT_UUID": agent_id,
        "EK": ek,
        "EK_CERT": registration.ek_certificate or "",
        "EK_TPM": registration.endorsement_key,
        "PROVKEYS": registration.provider_keys_text(),
        "TPM_CERT_STORE": str(rules.store),
    }


async def _script_accepts(
    rules: EkRules, agent_id: str, shown: str, registration: Registration, report: Report
) -> bool:
    script = rules.script
    if script is None:
        return True
    info(report, f"Checking EK for {shown} with script {script}")
    environment = script_environment(rules, agent_id, registration)
    status, output = await run_script(script, rules.work_dir, environment)
    lines = "\n".join(clean(line, MAX_OUTPUT_LINE) for line in output.decode("utf-8", "replace").splitlines())
    if status == 0:
        info(report, f"ek_check output: {lines}")
        return True
    reason = "no answer in time" if status is None else f"exit status {status}"
    error(report, f"External check script failed to validate EK: {script} ({reason}) {lines}".rstrip())
    return False


async def run_script(
    script: Path, folder: Path, environment: Mapping[str, str], seconds: float = SCRIPT_SECONDS
) -> tuple[int | None, bytes]:
    """Run a script and return its exit status (None: it was ended for taking too long) and its bounded output.

    Raises TenantError when it cannot be started.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            script, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, cwd=folder, env=dict(environment), start_new_session=True
        )
    except OSError as problem:
        raise TenantError(f"ek_check_script {script} cannot be run: {problem.strerror}") from problem
    output = bytearray()
    try:
        async with asyncio.timeout(seconds):
            await _collect(process.stdout, output)
            return await process.wait(), bytes(output)
    except TimeoutError:
        return None, bytes(output)
    finally:
        if process.returncode is None:  # too slow, or we are being ended: its own children go with it
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def _collect(stream: asyncio.StreamReader | None, output: bytearray) -> None:
    while stream is not None and (chunk := await stream.read(65536)):
        output += chunk[: max(0, MAX_SCRIPT_OUTPUT - len(output))]


def resolve_script(setting: str, work_dir: Path) -> Path | None:
    """Return the script of a setting, relative names below the work directory; None when none is set."""
    return work_dir / setting if setting else None
