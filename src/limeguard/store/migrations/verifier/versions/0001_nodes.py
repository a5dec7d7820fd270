"""The table of enrolled nodes."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "limeguard_nodes",
        sa.Column("agent_id", sa.String(80), primary_key=True),
        sa.Column("partition", sa.SmallInteger, nullable=False),
        sa.Column("verifier_id", sa.String(100), nullable=False),
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
        sa.Column("accept_tpm_hash_algs", sa.Text, nullable=False),
        sa.Column("accept_tpm_encryption_algs", sa.Text, nullable=False),
        sa.Column("accept_tpm_signing_algs", sa.Text, nullable=False),
        sa.Column("ak_tpm", sa.Text, nullable=False),
        sa.Column("mtls_cert", sa.Text),
        sa.Column("certificate_sha256", sa.LargeBinary(32)),
        sa.Column("enrolled_at", sa.Double, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
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
        sa.Column("hash_alg", sa.String(20), nullable=False),
        sa.Column("enc_alg", sa.String(20), nullable=False),
        sa.Column("sign_alg", sa.String(20), nullable=False),
        sa.Column("severity_level", sa.Integer),
        sa.Column("last_event_id", sa.String(200)),
        sa.Column("findings", sa.Text, nullable=False),
        sa.Column("required_checks", sa.Text, nullable=False),
        sa.Column("ran_checks", sa.Text, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
    )
    op.create_index("ix_limeguard_nodes_partition", "limeguard_nodes", ["partition"])
    op.create_index("ix_limeguard_nodes_verifier_id", "limeguard_nodes", ["verifier_id"])
