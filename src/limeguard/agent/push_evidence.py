"""What a node offers to a verifier and gives when asked: quote, firmware log, IMA log, as the push protocol has them.

Decides what can be given. The quote is always taken before the logs are read: a log may be ahead of it, never behind.
"""

import asyncio
import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import rsa

from limeguard.agent.attester import Attester
from limeguard.agent.boot_events import count_events
from limeguard.agent.device import MAX_PCR
from limeguard.agent.logs import BootLog, ImaLog, LogTooLarge
from limeguard.agent.worker import TpmThread
from limeguard.crypto.keys import spki_pem
from limeguard.evidence.tpm.structures import PublicArea
from limeguard.telemetry import clean, get_logger
from limeguard.wire import push_agent_v3 as wire

log = get_logger("keylime_push_model_agent")

TPM_KEY_KINDS: Final = {True: "rsa", False: "ecc"}


class Unavailable(Exception):  # noqa: N818 - a fact about the node
    """Evidence that was asked for cannot be had; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Names:
    """How parts of the evidence are called, as configured."""

    server_identifier: str
    uefi_version: str


@dataclass(frozen=True, slots=True)
class EvidenceSource:
    """A node's evidence. `boot_time` is in seconds since 1970, None when unknown."""

    thread: TpmThread
    attester: Attester
    ak: PublicArea
    ima_log: ImaLog | None
    boot_log: BootLog | None
    boot_time: int | None
    names: Names

    async def certify(self, challenge: bytes) -> tuple[bytes, bytes]:
        """Return the proof that this node holds its AK. Raises TpmError, Busy."""
        return await self.thread.run(self.attester.certify, challenge)

    async def capabilities(self) -> wire.Capabilities:
        """Return what can be given evidence of now. Raises TpmError, Busy, OSError, LogTooLarge."""
        scheme = self.ak.scheme
        if scheme is None:
            raise Unavailable("the AK has no signature scheme of its own")
        pcrs = await self.thread.run(self.attester.bank_pcrs)
        return wire.Capabilities(
            key=self._key(scheme.name, scheme.hash_alg.name),
            hash_algorithm=scheme.hash_alg.name,
            signature_scheme=scheme.name,
            pcrs=tuple(number for number in pcrs if number <= MAX_PCR),
            uefi_version=self.names.uefi_version,
            uefi_entries=await asyncio.to_thread(self._boot_entries),
            ima_entries=0 if self.ima_log is None else await asyncio.to_thread(self.ima_log.count),
            boot_time=None if self.boot_time is None else _iso(self.boot_time),
        )

    def _key(self, scheme: str, hash_name: str) -> wire.CertificationKey:
        key = self.ak.public_key()
        return wire.CertificationKey(
            key_algorithm=TPM_KEY_KINDS[isinstance(key, rsa.RSAPublicKey)],
            key_size=key.key_size,
            server_identifier=self.names.server_identifier,
            local_identifier=self.ak.name.hex(),
            public=wire.base64_text(self.ak.raw),
            allowable_hash_algorithms=(hash_name,),
            allowable_signature_schemes=(scheme,),
        )

    def _boot_entries(self) -> int:
        if self.boot_log is None:
            return 0
        try:
            return count_events(self.boot_log.read_bytes())
        except OSError as problem:
            log.warning("The measured boot event log cannot be read: %s", clean(problem))
            return 0

    async def collect(self, requested: Sequence[wire.Requested]) -> tuple[wire.Collected, ...]:
        """Return the evidence in the order in which it is asked for. Raises Unavailable, TpmError, Busy, OSError."""
        quotes = {
            number: await self._quote(one) for number, one in enumerate(requested) if isinstance(one, wire.QuoteRequest)
        }
        found = [quotes.get(number) or await self._log(one) for number, one in enumerate(requested)]
        return tuple(found)

    async def _quote(self, request: wire.QuoteRequest) -> wire.Collected:
        scheme = self.ak.scheme
        if scheme is None or (request.signature_scheme, request.hash_algorithm) != (scheme.name, scheme.hash_alg.name):
            asked = clean(f"{request.signature_scheme} with {request.hash_algorithm}", 80)
            raise Unavailable(f"a quote by {asked} is wanted, which this node's AK does not sign")
        if any(not 0 <= number <= MAX_PCR for number in request.pcrs):
            raise Unavailable("a PCR that does not exist is wanted")
        mask = sum(1 << number for number in request.pcrs)
        binding = spki_pem(self.ak.public_key()).encode("ascii")
        parts = await self.thread.run(self.attester.quote_parts, request.challenge, mask, binding)
        return wire.collected_quote(*parts)

    async def _log(self, request: wire.Requested) -> wire.Collected:
        try:
            match request:
                case wire.LogRequest(evidence_type="ima_log"):
                    lines = await asyncio.to_thread(self._ima_lines, request.starting_offset, request.entry_count)
                    return wire.collected_ima_log(lines)
                case wire.LogRequest(evidence_type="uefi_log"):
                    # An absent log is sent as what it is, an empty one: what that means is the verifier's judgement.
                    content = "" if self.boot_log is None else await asyncio.to_thread(self.boot_log.read)
                    return wire.collected_uefi_log(content)
        except LogTooLarge as problem:
            raise Unavailable(str(problem)) from problem
        kind = wire.TPM_QUOTE if isinstance(request, wire.QuoteRequest) else request.evidence_type
        raise Unavailable(f"evidence of type {clean(kind, 40)} is wanted, which this agent lacks")

    def _ima_lines(self, first: int, most: int | None) -> str:
        if self.ima_log is None:
            return ""
        part = self.ima_log.read_from(first)
        if part.first != first:
            raise Unavailable(f"the IMA log has fewer than {first} entries: it began anew")
        if most is None or part.text.count("\n") <= most:
            return part.text
        return "".join(f"{line}\n" for line in part.text.split("\n", most)[:most])


def _iso(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
