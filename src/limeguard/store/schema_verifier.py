"""The verifier's tables. One mapping: `store.nodes` is the only reader and writer of these columns."""

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

metadata = sa.MetaData()

PARTITIONS = 256
"""Nodes are spread over this many partitions by a hash of their id; a worker owns whole partitions."""

nodes = sa.Table(
    "limeguard_nodes",
    metadata,
    # What was enrolled: written once.
    sa.Column("agent_id", sa.String(80), primary_key=True),
    sa.Column("partition", sa.SmallInteger, nullable=False, index=True),
    sa.Column("verifier_id", sa.String(100), nullable=False, index=True),
    sa.Column("verifier_ip", sa.String(255), nullable=False),
    sa.Column("verifier_port", sa.Integer, nullable=False),
    sa.Column("ip", sa.String(255)),
    sa.Column("port", sa.Integer),
    sa.Column("v", sa.Text),
    sa.Column("tpm_policy", sa.Text, nullable=False),
    sa.Column("meta_data", sa.Text),
    sa.Column("revocation_key", sa.Text, nullable=False),
    sa.Column("has_mb_policy", sa.Boolean, nullable=False),
    sa.Column("has_runtime_policy", sa.Boolean, nullable=False),
    sa.Column("runtime_policy_name", sa.String(255), index=True),
    sa.Column("ima_keys", sa.Text),
    sa.Column("mb_policy_name", sa.String(255), index=True),
    sa.Column("accept_tpm_hash_algs", sa.Text, nullable=False),
    sa.Column("accept_tpm_encryption_algs", sa.Text, nullable=False),
    sa.Column("accept_tpm_signing_algs", sa.Text, nullable=False),
    sa.Column("ak_tpm", sa.Text, nullable=False),
    sa.Column("mtls_cert", sa.Text),
    sa.Column("certificate_sha256", sa.LargeBinary(32)),
    sa.Column("enrolled_at", sa.Double, nullable=False),
    sa.Column("push", sa.Boolean, nullable=False, server_default=sa.false()),
    # Who may write: the number of the last write, and the epoch of the lease under which it was made.
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    # What supervision learned: written after rounds.
    sa.Column("supported_version", sa.String(50), nullable=False),
    sa.Column("phase", sa.String(20), nullable=False),
    sa.Column("integrity", sa.String(20), nullable=False),
    sa.Column("reachability", sa.String(20), nullable=False),
    sa.Column("trust_expires_at", sa.Double),
    sa.Column("proven_at", sa.Double),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("attestation_count", sa.BigInteger, nullable=False),
    sa.Column("last_received_quote", sa.Double, nullable=False),
    sa.Column("last_successful_attestation", sa.Double, nullable=False),
    sa.Column("tpm_clockinfo", sa.Text),
    sa.Column("public_key", sa.Text),
    sa.Column("boottime", sa.BigInteger, nullable=False),
    sa.Column("ima_next_entry", sa.BigInteger, nullable=False),
    sa.Column("ima_history", sa.Text),
    sa.Column("hash_alg", sa.String(20), nullable=False),
    sa.Column("enc_alg", sa.String(20), nullable=False),
    sa.Column("sign_alg", sa.String(20), nullable=False),
    sa.Column("severity_level", sa.Integer),
    sa.Column("last_event_id", sa.String(200)),
    sa.Column("findings", sa.Text, nullable=False),
    sa.Column("required_checks", sa.Text, nullable=False),
    sa.Column("ran_checks", sa.Text, nullable=False),
    sa.Column("attestation_limit", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("updated_at", sa.Double, nullable=False),
)

runtime_policies = sa.Table(
    "limeguard_runtime_policies",
    metadata,
    sa.Column("name", sa.String(255), primary_key=True),
    # The text as it was uploaded, envelope included; MySQL has four kinds of text.
    sa.Column("text", sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb"), nullable=False),
    sa.Column("checksum", sa.String(64), nullable=False),
    sa.Column("generator", sa.Integer, nullable=False),
    sa.Column("tpm_policy", sa.Text),
    sa.Column("updated_at", sa.Double, nullable=False),
)

boot_policies = sa.Table(
    "limeguard_boot_policies",
    metadata,
    sa.Column("name", sa.String(255), primary_key=True),
    # The text as it was uploaded; NULL where the upload said null.
    sa.Column("text", sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")),
    sa.Column("checksum", sa.String(64), nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
)

notices = sa.Table(
    "limeguard_notices",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("verifier_id", sa.String(100), nullable=False, index=True),
    sa.Column("channel", sa.String(20), nullable=False),
    sa.Column("agent_id", sa.String(80), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("signing_key", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    # When the next try is due; NULL for a notice that was given up.
    sa.Column("next_at", sa.Double),
    sa.Column("created_at", sa.Double, nullable=False),
)

workers = sa.Table(
    "limeguard_workers",
    metadata,
    # One process that supervises, until it leaves or the database's clock passes `expires_at`.
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("verifier_id", sa.String(100), nullable=False, index=True),
    # Machine and process, so that a death is seen at once by those who live beside it.
    sa.Column("place", sa.String(100), nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
    # One that hands its nodes over is not counted when shares are.
    sa.Column("leaving", sa.Boolean, nullable=False),
)

leases = sa.Table(
    "limeguard_leases",
    metadata,
    sa.Column("verifier_id", sa.String(100), primary_key=True),
    sa.Column("partition", sa.SmallInteger, primary_key=True, autoincrement=False),
    # Grows with each owner: a write under an older one is refused.
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("owner", sa.String(36), index=True),
)

changes = sa.Table(
    "limeguard_changes",
    metadata,
    # Nodes that somebody else than their owner has changed; the owner removes a line when it goes by the change.
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("verifier_id", sa.String(100), nullable=False),
    sa.Column("partition", sa.SmallInteger, nullable=False),
    sa.Column("agent_id", sa.String(80), nullable=False),
    sa.Index("ix_limeguard_changes_partition", "verifier_id", "partition"),
)

sessions = sa.Table(
    "limeguard_sessions",
    metadata,
    sa.Column("session_id", sa.String(36), primary_key=True),
    sa.Column("verifier_id", sa.String(100), nullable=False),
    sa.Column("agent_id", sa.String(80), nullable=False, index=True),
    # When the node was enrolled whose key was proven: a token does not outlive its enrolment. NULL before the proof.
    sa.Column("enrolled_at", sa.Double),
    # NULL once it was answered: a challenge is used once.
    sa.Column("challenge", sa.LargeBinary(64)),
    # SHA-256 of the whole token, which has 256 random bits; the token itself is stored nowhere.
    sa.Column("token_sha256", sa.LargeBinary(32)),
    sa.Column("reset_count", sa.BigInteger),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False, index=True),
)

attestations = sa.Table(
    "limeguard_attestations",
    metadata,
    sa.Column("agent_id", sa.String(80), primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("passed", sa.Boolean, nullable=False),
    # The attributes as answers show them; MySQL has four kinds of text.
    sa.Column("attributes", sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb"), nullable=False),
    sa.Column("completed_at", sa.Double, nullable=False),
)
