"""Nodes that attest by themselves: their sessions, their attestations, and what a node's row says of it."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "limeguard_sessions",
        sa.Column("session_id", sa.String(36), primary_key=True),
        sa.Column("verifier_id", sa.String(100), nullable=False),
        sa.Column("agent_id", sa.String(80), nullable=False, index=True),
        sa.Column("enrolled_at", sa.Double),
        sa.Column("challenge", sa.LargeBinary(64)),
        sa.Column("token_sha256", sa.LargeBinary(32)),
        sa.Column("reset_count", sa.BigInteger),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False, index=True),
    )
    op.create_table(
        "limeguard_attestations",
        sa.Column("agent_id", sa.String(80), primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("passed", sa.Boolean, nullable=False),
        sa.Column("attributes", sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb"), nullable=False),
        sa.Column("completed_at", sa.Double, nullable=False),
    )
    op.add_column("limeguard_nodes", sa.Column("push", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("limeguard_nodes", sa.Column("attestation_limit", sa.BigInteger, nullable=False, server_default="0"))
