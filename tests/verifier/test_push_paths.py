"""No path to trust but fresh, valid evidence: every interleaving of offers, evidence, operators, time and restarts.

The services are the real ones, over a node with a TPM in software; only sockets and the database are not there.
"""

import asyncio
import contextlib
import json
from base64 import b64decode, b64encode
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from tests.fakes.nodes import make_record

from limeguard.clients.agent import AgentAddress
from limeguard.policy.pcrs import PcrPolicy
from limeguard.policy.severity import DEFAULT_LABELS, parse_severity
from limeguard.simulator.softtpm import SoftNode
from limeguard.store.attestations import AttestationRow
from limeguard.store.node_record import Enrolled, NodeRecord
from limeguard.verifier import lifecycle
from limeguard.verifier.engine import Engine, Limits
from limeguard.verifier.fleet import Fleet, Node
from limeguard.verifier.poller import Result
from limeguard.verifier.push.attestation_log import AttestationLog
from limeguard.verifier.push.rounds import PushRefused, PushRounds, PushRules
from limeguard.verifier.supervision import Job, Rules
from limeguard.verifier.view import shows_trust
from limeguard.verifier.writer import Writer
from limeguard.wire.attestation_v3 import QuoteParameters
from limeguard.wire.offer_v3 import Invalid

LIFETIME, CHALLENGE = 60.0, 30.0
RULES = Rules(
    quote_interval=0.0,
    retry_interval=1.0,
    exponential_backoff=False,
    max_retries=1,
    trust_lifetime=LIFETIME,
    severity=parse_severity(DEFAULT_LABELS, [(".*", "emergency")]),
)
STEPS = ("offer", "good", "old", "stolen", "altered", "repeat", "wait", "long wait", "reactivate", "stop", "restart")


class _NoRows:
    async def save_rounds(self, batch: list[Any], _notices: list[Any], /) -> frozenset[str]:
        del batch
        return frozenset()

    async def delete(self, _agent_id: str, _epoch: int | None = None, /) -> bool:
        return True

    async def perform(self, _node: Node, _job: Job, /) -> Result:
        raise AssertionError("a node that pushes was asked")

    async def write(self, _rows: list[AttestationRow], _crowded: list[str], /) -> None:
        return

    async def list(self, _agent_id: str, /) -> list[AttestationRow]:
        return []

    def reset_count(self, _agent_id: str, /) -> int | None:
        return None

    def passed(self, _agent_id: str, /) -> None:
        return

    boot_memo = None

    def runtime(self, _enrolled: Enrolled, /) -> None:
        return

    def boot(self, _enrolled: Enrolled, /) -> None:
        return


@dataclass
class World:
    """One verifier with one node; `random` draws challenges."""

    now: float = 1000.0
    drawn: int = 0
    tpm: SoftNode = field(default_factory=lambda: SoftNode.create("ecc256"))
    thief: SoftNode = field(default_factory=lambda: SoftNode.create("ecc256", number=1))
    sent: list[bytes] = field(default_factory=list)

    def start(self, node: Node) -> None:
        nothing = _NoRows()
        writer = Writer(nothing, lambda _node: None)
        fleet = Fleet(late_after=1.0, jitter=lambda: 0.0)
        limits = Limits(8, 10.0)
        self.engine = Engine(
            fleet, nothing, writer, nothing, RULES, limits, now=lambda: self.now, clock=lambda: self.now
        )
        log = AttestationLog(nothing)
        rules = PushRules(0.0, CHALLENGE)
        self.rounds = PushRounds(self.engine, nothing, log, nothing, rules, now=lambda: self.now, random=self.random)
        self.node = node

    def random(self, count: int) -> bytes:
        self.drawn += 1
        return self.drawn.to_bytes(count, "big")

    def enrol(self) -> None:
        self.start(self.fresh_node())
        self.engine.take_in(self.node, lifecycle.Enrolled())

    def fresh_node(self) -> Node:
        record = make_record("n")
        state = structs.replace(record.state, attestation_limit=10**6)
        return self.node_of(structs.replace(record, enrolled=replace(record.enrolled, push=True), state=state))

    def node_of(self, record: NodeRecord) -> Node:
        node = Node(record, self.tpm.ak.area, PcrPolicy({}, 0), AgentAddress("", 0, None))
        node.next_attestation = self.drawn
        return node

    def restart(self) -> None:
        node = self.node_of(self.node.record)
        self.start(node)
        self.engine.take_in(node, lifecycle.Restarted())

    def offer(self) -> bytes:
        area = self.tpm.ak.area
        key = {"key_algorithm": "ecc", "key_class": "asymmetric", "key_size": 256, "server_identifier": "ak"}
        quote = {
            "component_version": "2.0",
            "hash_algorithms": ["sha256"],
            "signature_schemes": ["ecdsa"],
            "available_subjects": {"sha256": list(range(24))},
            "certification_keys": [{**key, "public": b64encode(area.raw).decode()}],
        }
        item = {"evidence_class": "certification", "evidence_type": "tpm_quote", "capabilities": quote}
        return document(evidence_supported=[item])

    def evidence(self, tpm: SoftNode) -> bytes:
        attestation = self.node.attestation
        challenge = b"nothing asked"
        pcrs = {0}
        if attestation is not None:
            parameters = attestation.requested[0].parameters
            assert isinstance(parameters, QuoteParameters)
            challenge = b64decode(parameters.challenge)
            pcrs = set(parameters.selected_subjects["sha256"] or ())
        message, signature, values = tpm.quote(challenge, pcrs)[1:].split(":")
        data = {"message": message, "signature": signature, "subject_data": values}
        return document(
            evidence_collected=[{"evidence_class": "certification", "evidence_type": "tpm_quote", "data": data}]
        )

    async def send(self, body: bytes) -> bool:
        """Send evidence and let it be judged; say whether it was taken, and not as a repetition."""
        before = self.node.attestation
        known = before is not None and before.body_sha256 is not None
        try:
            self.rounds.submit("n", None, body)
        except (PushRefused, Invalid):
            return False
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return not known

    async def step(self, name: str) -> bool:
        """Do one thing; say whether it may have made trust: evidence by the node's own TPM over the open challenge."""
        if name == "good":
            self.sent.append(self.evidence(self.tpm))
            return await self.send(self.sent[-1])
        if name in {"old", "repeat", "stolen", "altered"}:
            await self.send(self.bad_evidence(name))
        elif name == "offer":
            with contextlib.suppress(PushRefused):
                await self.rounds.negotiate("n", self.offer())
        else:
            self.happen(name)
        return False

    def bad_evidence(self, name: str) -> bytes:
        if name == "stolen":
            return self.evidence(self.thief)
        if name == "altered" or not self.sent:
            text = json.loads(self.evidence(self.tpm))
            data = text["data"]["attributes"]["evidence_collected"][0]["data"]
            blob = bytearray(b64decode(data["message"]))
            blob[-1] ^= 1
            data["message"] = b64encode(bytes(blob)).decode()
            return json.dumps(text).encode()
        return self.sent[0] if name == "old" else self.sent[-1]

    def happen(self, name: str) -> None:
        match name:
            case "wait":
                self.now += 20.0
            case "long wait":
                self.now += LIFETIME + 1
            case "reactivate":
                self.engine.apply(self.node, lifecycle.Reactivated())
            case "stop":
                self.engine.apply(self.node, lifecycle.StopRequested())
            case "restart":
                self.restart()


def document(**attributes: Any) -> bytes:
    return json.dumps({"data": {"type": "attestation", "attributes": attributes}}).encode()


def green(world: World) -> bool:
    return shows_trust(world.node.state, world.now)


@given(st.lists(st.sampled_from(STEPS), max_size=25))
@settings(max_examples=120, deadline=None)
def test_only_fresh_valid_evidence_leads_to_trust(steps: list[str]) -> None:
    # trust: fresh, bound-identity, fail-closed, green-is-recent

    async def play() -> None:
        world = World()
        world.enrol()
        proven_at: float | None = None
        for name in steps:
            before = green(world)
            may = await world.step(name)
            if green(world) and not before:
                assert may, (name, steps)
            if may and green(world):
                proven_at = world.now
            if green(world):
                assert proven_at is not None
                assert world.now - proven_at < LIFETIME

    asyncio.run(play())


def test_the_good_path_is_there() -> None:
    async def play() -> None:
        world = World()
        world.enrol()
        for name, expected in (
            ("offer", False),
            ("good", True),
            ("repeat", True),
            ("restart", True),
            ("repeat", True),
            ("long wait", False),
            ("offer", False),
            ("old", False),
        ):
            await world.step(name)
            assert green(world) is expected, name
        await world.step("offer")
        await world.step("good")
        assert not green(world)  # condemned for the old evidence
        for name in ("reactivate", "offer", "good"):
            await world.step(name)
        assert green(world)

    asyncio.run(play())
