"""Workers, the partitions that they lease, and changes that owners are to go by."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "limeguard_workers",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("verifier_id", sa.String(100), nullable=False, index=True),
        sa.Column("place", sa.String(100), nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.Column("leaving", sa.Boolean, nullable=False),
    )
    op.create_table(
        "limeguard_leases",
        sa.Column("verifier_id", sa.String(100), primary_key=True),
        sa.Column("partition", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("owner", sa.String(36), index=True),
    )
    op.create_table(
        "limeguard_changes",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("verifier_id", sa.String(100), nullable=False),
        sa.Column("partition", sa.SmallInteger, nullable=False),
        sa.Column("agent_id", sa.String(80), nullable=False),
    )
    op.create_index("ix_limeguard_changes_partition", "limeguard_changes", ["verifier_id", "partition"])
