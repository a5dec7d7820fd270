"""Nodes in memory for tests of what keeps them."""

from typing import Any

from limeguard.clients.agent import AgentAddress
from limeguard.policy.pcrs import PcrPolicy
from limeguard.simulator.softtpm import SoftNode
from limeguard.store.node_record import Enrolled, NodeRecord, NodeState
from limeguard.verifier.fleet import Node
from limeguard.verifier.record import with_supervision
from limeguard.verifier.supervision import Supervision


def make_record(agent_id: str = "n", **changes: Any) -> NodeRecord:
    """Return a node as enrolled; `changes` go over what supervision knows."""
    enrolled = Enrolled(
        agent_id=agent_id,
        verifier_id="default",
        verifier_ip="127.0.0.1",
        verifier_port=8881,
        ip="127.0.0.1",
        port=9002,
        v=None,
        tpm_policy='{"mask": "0x0"}',
        meta_data="{}",
        has_mb_policy=False,
        has_runtime_policy=False,
        accept_hash=("sha256",),
        accept_enc=("ecc",),
        accept_sign=("ecdsa",),
        ak_tpm="",
        certificate_sha256=None,
        enrolled_at=0.0,
    )
    blank = NodeState(supported_version="2.6", phase="", integrity="", reachability="")
    return NodeRecord(enrolled, with_supervision(blank, Supervision(**changes)))


def make_node(agent_id: str = "n", **changes: Any) -> Node:
    """Return the object in memory over such a record."""
    area = SoftNode.create("ecc256").ak.area
    return Node(make_record(agent_id, **changes), area, PcrPolicy({}, 0), AgentAddress("127.0.0.1", 9002, None))
