"""The registration half of an agent, as strict about answers as deployed agents are, and with a TPM in software.

It takes no answer that a deployed agent would refuse: statuses, headers, members and JSON types are all checked.
"""

import json
import ssl
from base64 import b64decode
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from limeguard.crypto.keysplit import registration_auth_tag
from limeguard.simulator.softtpm import SoftNode

VERSIONS = ("2.1", "2.2", "2.3", "2.4", "2.5", "2.6")
REQUEST_ID = "a1b2c3"


class Refusal(Exception):  # noqa: N818 - an answer, not a fault
    """The registrar answered with another status than 2xx."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status
        self.text = text

    @property
    def said(self) -> str:
        """The status text of an envelope that is whole, "" for an answer without body."""
        if not self.text:
            return ""
        envelope = json.loads(self.text)
        assert envelope["code"] == self.status
        assert envelope["results"] == {}
        assert isinstance(envelope["status"], str)
        return str(envelope["status"])


class NotUnderstood(AssertionError):  # noqa: N818 - a failed test
    """A deployed agent could not go on with this answer."""


@dataclass
class StrictAgent:
    """One agent. `base` is scheme, host and port; `tls` is for https."""

    base: str
    agent_id: str
    node: SoftNode
    tls: ssl.SSLContext | None = None
    version: str = "2.6"
    fields: dict[str, Any] = field(default_factory=dict)

    async def ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Send a request and return the whole envelope. Raises Refusal."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", "X-Request-ID": REQUEST_ID}
        data = None if body is None else json.dumps(body).encode()
        timeout = aiohttp.ClientTimeout(total=20)
        async with (
            aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session,
            session.request(
                method, self.base + path, data=data, headers=headers, ssl=self.tls or False, allow_redirects=False
            ) as answer,
        ):
            text = await answer.text()
            if answer.headers.get("X-Request-ID") != REQUEST_ID:
                raise NotUnderstood("the request id is not echoed")
            if not 200 <= answer.status < 300:
                raise Refusal(answer.status, text)
            if "Retry-After" in answer.headers:
                raise NotUnderstood("Retry-After on a good answer: the request would be sent for ever")
            if answer.content_type != "application/json":
                raise NotUnderstood(f"content type {answer.content_type}")
            return self._envelope(answer.status, text)

    def _envelope(self, status: int, text: str) -> dict[str, Any]:
        envelope = json.loads(text)
        if not isinstance(envelope, dict) or set(envelope) != {"code", "status", "results"}:
            raise NotUnderstood(f"not an envelope: {text[:100]}")
        if type(envelope["code"]) is not int or envelope["code"] != status:
            raise NotUnderstood("code is not the status")
        if not isinstance(envelope["status"], str) or not isinstance(envelope["results"], dict):
            raise NotUnderstood("status is no text, or results is no object")
        return envelope

    async def negotiate(self) -> str:
        """Ask for the versions and choose as agents do."""
        results = (await self.ask("GET", "/version"))["results"]
        current, supported = results["current_version"], results["supported_versions"]
        if not isinstance(current, str) or not all(isinstance(version, str) for version in supported):
            raise NotUnderstood("versions are no texts")
        usable = [version for version in VERSIONS if version in supported]
        self.version = current if current in VERSIONS else usable[-1]
        return self.version

    @property
    def path(self) -> str:
        return f"/v{self.version}/agents/{self.agent_id}"

    async def register(self, **changed: Any) -> bytes:
        """Register and return the blob."""
        body = {**self.node.registration_fields(), **self.fields, **changed}
        blob = (await self.ask("POST", self.path, body))["results"].get("blob")
        if not isinstance(blob, str):
            raise NotUnderstood("the blob is no text")
        return b64decode(blob, validate=True)

    def answer(self, blob: bytes, agent_id: str | None = None) -> str:
        """Open the blob in the TPM and return the proof."""
        return registration_auth_tag(self.node.activate(blob), agent_id or self.agent_id)

    async def activate(self, proof: str) -> None:
        """Send the proof."""
        await self.ask("PUT", self.path, {"auth_tag": proof})

    async def enrol(self, **changed: Any) -> None:
        """Do what an agent does when it starts."""
        await self.negotiate()
        await self.activate(self.answer(await self.register(**changed)))
