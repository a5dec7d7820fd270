"""A push node whose every message the test chooses: a TPM in software, and the real client to a running verifier."""

import datetime
import ssl
from dataclasses import dataclass, field

from limeguard.clients.registrar_enrol import RegistrarClient, Target
from limeguard.clients.verifier_push import Attestation, PushVerifier, Session
from limeguard.crypto.keys import spki_pem
from limeguard.crypto.keysplit import registration_auth_tag
from limeguard.simulator.softtpm import SoftNode
from limeguard.web.client import HttpClient
from limeguard.wire import push_agent_v3 as wire
from limeguard.wire.registrar_agent_v2 import Registration
from tests.fakes.soft_ima import SoftKernel


@dataclass
class Puppet:
    """One node. `boot_time` is what it says, in seconds since 1970."""

    agent_id: str
    node: SoftNode
    verifier: PushVerifier
    http: HttpClient
    boot_time: int = 1_700_000_000
    kernel: SoftKernel = field(init=False)

    def __post_init__(self) -> None:
        self.kernel = SoftKernel(self.node)

    @classmethod
    def make(cls, agent_id: str, base: str, context: ssl.SSLContext, kind: str = "ecc256", number: int = 0) -> "Puppet":
        """Return a node; call inside a running loop and `close` it."""
        http = HttpClient(context, timeout=10, max_answer=1 << 24)
        node = SoftNode.create(kind, number=number)
        return cls(agent_id, node, PushVerifier(base, "v3.0", agent_id, http), http)

    async def register(self, port: int) -> None:
        """Register and activate at a registrar's plain port on this machine."""
        client = RegistrarClient(Target("127.0.0.1", port, None))
        try:
            blob = await client.register(
                "2.6",
                self.agent_id,
                Registration(
                    ek_public=self.node.ek.public_2b,
                    ek_certificates="",
                    ak_public=self.node.ak.public_2b,
                    server_certificate="disabled",
                    ip="127.0.0.1",
                    port=9002,
                ),
            )
            await client.activate("2.6", self.agent_id, registration_auth_tag(self.node.activate(blob), self.agent_id))
        finally:
            await client.close()

    async def session(self) -> Session | None:
        """Open a session; None when the verifier is not convinced."""
        opened = await self.verifier.open_session()
        return await self.verifier.prove(opened, *self.node.certify_itself(opened.challenge))

    async def begin(self, session: Session) -> Attestation:
        """Offer what there is."""
        return await self.verifier.negotiate(session, self.offer())

    def offer(self) -> wire.Capabilities:
        """Return what there is."""
        area = self.node.ak.area
        assert area.scheme is not None
        key = wire.CertificationKey(
            key_algorithm="ecc" if area.key_algorithm.startswith("ecc") else "rsa",
            key_size=area.public_key().key_size,
            server_identifier="ak",
            local_identifier=area.name.hex(),
            public=wire.base64_text(area.raw),
            allowable_hash_algorithms=(area.scheme.hash_alg.name,),
            allowable_signature_schemes=(area.scheme.name,),
        )
        moment = datetime.datetime.fromtimestamp(self.boot_time, datetime.UTC)
        return wire.Capabilities(
            key=key,
            hash_algorithm=area.scheme.hash_alg.name,
            signature_scheme=area.scheme.name,
            pcrs=tuple(range(24)),
            uefi_version="2.1",
            uefi_entries=0,
            ima_entries=len(self.kernel.lines),
            boot_time=moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
        )

    def evidence(self, begun: Attestation) -> bytes:
        """Return honest evidence of what is asked for."""
        binding = spki_pem(self.node.ak.area.public_key())
        collected = []
        for one in begun.requested:
            match one:
                case wire.QuoteRequest():
                    parts = self.node.quote_parts(one.challenge, set(one.pcrs), binding)
                    collected.append(wire.collected_quote(*parts))
                case wire.LogRequest(evidence_type="ima_log"):
                    lines = self.kernel.lines[one.starting_offset :]
                    collected.append(wire.collected_ima_log("".join(f"{line}\n" for line in lines)))
                case _:
                    collected.append(wire.collected_uefi_log(""))
        return wire.encode_evidence(collected)

    async def attest(self, session: Session) -> float | None:
        """Attest honestly, once."""
        begun = await self.begin(session)
        return await self.verifier.submit(begun, session, self.evidence(begun))
