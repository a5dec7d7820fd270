"""The settings of the certificate authority: `ca.conf`, section `[ca]`, as one frozen value."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from limeguard.settings import Component, Loaded, Sources, load
from limeguard.settings import common as shared
from limeguard.settings.kinds import EXACT_TEXT, TEXT, URL, integer
from limeguard.settings.options import Clash, mask_all, option
from limeguard.settings.sources import WORK_DIR

ASK = "default"
"""The password that stands for "ask on the terminal"; servers that make a CA use the word itself."""

WEAK_BITS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class CaSettings:
    """What certificates say and how long they last. Lifetimes are days, key sizes bits."""

    version: str = option(TEXT, "2.6", shared.VERSION_HELP)
    password: str = option(
        EXACT_TEXT,
        "default",
        "Password of the key store; `default` asks on the terminal, or is the password where a server makes a CA.",
        mask=mask_all,
    )
    cert_country: str = option(TEXT, "US", "Country, two letters.")
    cert_ca_name: str = option(TEXT, "Keylime Certificate Authority", "Common name of the CA.")
    cert_state: str = option(TEXT, "MA", "State or province.")
    cert_locality: str = option(TEXT, "Lexington", "Town.")
    cert_organization: str = option(TEXT, "Keylime", "Organization.")
    cert_org_unit: str = option(TEXT, "53", "Unit of the organization.")
    cert_ca_lifetime: int = option(integer(1, 36500), "3650", "Days that the CA certificate is valid.")
    cert_lifetime: int = option(integer(1, 36500), "365", "Days that the other certificates are valid.")
    cert_bits: int = option(integer(1024, 16384), "2048", "Size of RSA keys in bits.")
    cert_crl_dist: str = option(URL, "http://localhost:38080/crl", "Where the list of revoked certificates can be had.")
    work_dir: Path = WORK_DIR

    @property
    def ca_directory(self) -> Path:
        """The CA that commands work on unless told otherwise."""
        return self.work_dir / "ca"


def _clashes(settings: CaSettings) -> Iterator[Clash]:
    if len(settings.cert_country) != 2:
        yield "cert_country", "a country is two letters, such as US or DE"
    for name in ("cert_ca_name", "cert_state", "cert_locality", "cert_organization", "cert_org_unit"):
        limit = 128 if name in {"cert_state", "cert_locality"} else 64
        if not 1 <= len(getattr(settings, name)) <= limit:
            yield name, f"must have 1 to {limit} characters"
    if settings.cert_bits < WEAK_BITS:
        yield "cert_bits", f"keys of {settings.cert_bits} bits are refused by TLS libraries; write 2048, 3072 or 4096"


def _cautions(settings: CaSettings) -> Iterator[Clash]:
    yield from shared.version_cautions(settings.version)


CA = Component("ca", CaSettings, clashes=_clashes, cautions=_cautions)


def load_ca_settings(sources: Sources) -> Loaded[CaSettings]:
    """Read the settings of the CA. Raises SettingsError with every problem."""
    return load(CA, sources)
