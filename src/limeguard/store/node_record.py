"""A node as it is stored: what an operator enrolled, what supervision learned, and which write that reflects."""

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache

import msgspec

from limeguard.appraisal.ima.history import NO_IMA, ImaHistory
from limeguard.evidence.tpm.structures import ClockInfo
from limeguard.store.schema_verifier import PARTITIONS

MAX_FINDINGS = 64
"""Findings kept of a node's last bad round: nobody reads a thousand wrong files one by one."""
MAX_CONTEXT = 4096
"""Characters of one finding's context that are kept."""


class StoredFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was wrong: our id, the wire's event id, its severity, JSON text of the context, advice."""

    id: str
    event_id: str
    severity: int
    label: str
    context: str
    advice: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """What an operator enrolled; fixed until the node is deleted. Times are seconds since 1970.

    `push`: the node attests by itself and is never asked. `mtls_cert` and `revocation_key` are only read where they are
    needed, so that a fleet in memory stays small.
    """

    agent_id: str
    verifier_id: str
    verifier_ip: str
    verifier_port: int
    ip: str | None
    port: int | None
    v: str | None = field(repr=False)
    tpm_policy: str
    meta_data: str | None
    has_mb_policy: bool
    has_runtime_policy: bool
    runtime_policy_name: str | None = None
    ima_keys: str | None = field(default=None, repr=False)
    mb_policy_name: str | None = None
    accept_hash: tuple[str, ...]
    accept_enc: tuple[str, ...]
    accept_sign: tuple[str, ...]
    ak_tpm: str
    certificate_sha256: bytes | None
    enrolled_at: float
    push: bool = False


class NodeState(msgspec.Struct, frozen=True, kw_only=True):
    """What supervision knows of a node. Times are seconds since 1970, 0 is never.

    `attestation_limit` is above every number that an attestation of the node may have been given.
    """

    supported_version: str
    phase: str
    integrity: str
    reachability: str
    trust_expires_at: float | None = None
    proven_at: float | None = None
    attempts: int = 0
    attestation_count: int = 0
    last_received_quote: float = 0.0
    last_successful_attestation: float = 0.0
    clock: ClockInfo | None = None
    public_key: str | None = None
    boottime: int = 0
    ima: ImaHistory = NO_IMA
    hash_alg: str = ""
    enc_alg: str = ""
    sign_alg: str = ""
    severity_level: int | None = None
    last_event_id: str | None = None
    findings: tuple[StoredFinding, ...] = ()
    required_checks: tuple[str, ...] = ()
    ran_checks: tuple[str, ...] = ()
    attestation_limit: int = 0


class NodeRecord(msgspec.Struct, frozen=True):
    """One row. `version` is the number of the write that the record reflects.

    `epoch` is that of the lease under which the record was taken up, and under which alone it may be written.
    """

    enrolled: Enrolled
    state: NodeState
    version: int = 0
    epoch: int = 0

    @property
    def agent_id(self) -> str:
        """The node's id."""
        return self.enrolled.agent_id


@dataclass(frozen=True, slots=True)
class Address:
    """Where a node's agent is, the digest of the certificate that it must show, and the version of its API."""

    agent_id: str
    ip: str | None
    port: int | None
    certificate_sha256: bytes | None
    version: str


@lru_cache(maxsize=1024)  # asked several times while one request is answered
def partition_of(agent_id: str) -> int:
    """Return the partition of a node: the same on every host and in every release."""
    return int.from_bytes(hashlib.sha256(agent_id.encode()).digest()[:4], "big") % PARTITIONS
