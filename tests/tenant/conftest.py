"""A running site for each test, and a tenant that works against it."""

import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.tenant_site import NODE, Site, SoftAgent, running_site

from limeguard.tenant.errors import TenantError
from limeguard.tenant.payload import CertificateAuthority
from limeguard.tenant.request import Request
from limeguard.tenant.run import Connections, run
from limeguard.tenant.settings import TenantSettings
from limeguard.web.tls import agent_client_context, client_context


@dataclass
class Heard:
    """A report that remembers what was said, in the order in which it was."""

    lines: list[tuple[int, str]] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    documents: dict[str, Any] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)
    answers: list[tuple[str, Any]] = field(default_factory=list)
    echoes: list[Any] = field(default_factory=list)

    def say(self, level: int, text: str) -> None:
        self.lines.append((level, text))

    def detail(self, text: str) -> None:
        self.details.append(text)

    def echo(self, content: object) -> None:
        self.echoes.append(content)

    def document(self, name: str, title: str, content: object) -> None:
        self.titles.append(title)
        self.documents[name] = content

    def answer(self, name: str, content: object, heading: str = "") -> None:
        del name
        self.answers.append((heading, content))

    @property
    def text(self) -> str:
        return "\n".join(text for _, text in self.lines)

    @property
    def errors(self) -> list[str]:
        return [text for level, text in self.lines if level >= logging.ERROR]


@dataclass
class Tenant:
    """Runs requests against a site."""

    site: Site
    heard: Heard = field(default_factory=Heard)
    authority: Callable[[str], CertificateAuthority] | None = None
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/bin:/bin"})

    async def __call__(self, command: str, settings: TenantSettings | None = None, **options: Any) -> int:
        self.heard = Heard()
        chosen = settings or self.site.settings()
        files = chosen.tls_files
        assert files.client is not None
        certificate, key = files.client.certificate, files.client.key
        return await run(
            Request(command=command, **{"agent_id": NODE, **options}),
            chosen,
            Connections(
                client_context(certificate, key, "", files.server_cas, system_store=False),
                agent_client_context(certificate, key, ""),
            ),
            self.heard,
            environment=self.environment,
            authority=self.authority or _no_authority,
        )


def _no_authority(folder: str) -> CertificateAuthority:
    raise TenantError(f"no CA in {folder}")


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with running_site(tmp_path, SoftAgent(tmp_path, NODE)) as running:
        running.register()
        yield running


@pytest.fixture
def tenant(site: Site) -> Tenant:
    return Tenant(site)
