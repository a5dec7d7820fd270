"""Measured boot policies as objects of their own."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "limeguard_boot_policies",
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("text", sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")),
        sa.Column("checksum", sa.String(64), nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
    )
    op.add_column("limeguard_nodes", sa.Column("mb_policy_name", sa.String(255)))
    op.create_index("ix_limeguard_nodes_mb_policy_name", "limeguard_nodes", ["mb_policy_name"])
