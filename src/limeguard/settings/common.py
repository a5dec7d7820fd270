"""Options that several components share, with the texts that go with them: TLS files, databases, durable records."""

from pathlib import Path
from typing import Any

from limeguard.settings.kinds import COMMA_LIST, TEXT, Kind, integer
from limeguard.settings.options import Clash, IfSet, Option, mask_url, not_yet

NEWEST_VERSION = (2, 6)
"""The version of Keylime's configuration that these tables follow."""

MAX_UPLOAD = 100 * 1024 * 1024

SUBJECT_ALTERNATIVES = "Further names or addresses for the generated server certificate, separated by commas."
TRUSTED_CLIENTS = (
    "CAs whose client certificates are accepted: `default` is the verifier's own CA, or a list of files in `tls_dir`."
)
TRUSTED_SERVERS = (
    "CAs whose server certificates are accepted: `default` is the verifier's own CA, or a list of files in `tls_dir`."
)
POOL_HELP = "Connections kept open to the database, and how many more may be opened; not for SQLite."
UPLOAD_HELP = "Largest request body that is read, in bytes."
VERSION_HELP = "Version of the configuration."


def durable_attestation(signed_attributes: str) -> tuple[Option, ...]:
    """Return the options of durable attestation, which this version does not have."""
    reason = "records for durable attestation are not written"
    details: tuple[tuple[str, Kind[Any], str], ...] = (
        ("transparency_log_url", TEXT, ""),
        ("transparency_log_sign_algo", TEXT, "sha256"),
        ("time_stamp_authority_url", TEXT, ""),
        ("time_stamp_authority_certs_path", TEXT, ""),
        ("persistent_store_format", TEXT, "json"),
        ("persistent_store_encoding", TEXT, ""),
        ("signed_attributes", COMMA_LIST, signed_attributes),
    )
    return (
        *not_yet([("durable_attestation_import", TEXT, "")], reason, IfSet.REFUSE),
        *not_yet([("persistent_store_url", TEXT, "")], reason, mask=mask_url),
        *not_yet(details, reason),
    )


MAX_WORKERS = not_yet(
    [("max_workers", integer(0), "16")], "one process does the work, so there are no workers to count"
)


def database_url(configured: str, work_dir: Path, file_name: str) -> str:
    """Return the URL that is meant: `sqlite` alone is a file in the working directory."""
    return f"sqlite:///{work_dir / file_name}" if configured == "sqlite" else configured


def version_cautions(version: str) -> tuple[Clash, ...]:
    """Say when the files are newer than what these tables follow."""
    major, _, minor = version.partition(".")
    if not (major.isdecimal() and minor.isdecimal()):
        return ()
    if (int(major), int(minor)) <= NEWEST_VERSION:
        return ()
    newest = ".".join(map(str, NEWEST_VERSION))
    return (("version", f"written for version {version}; this program follows {newest} and may not know every option"),)
