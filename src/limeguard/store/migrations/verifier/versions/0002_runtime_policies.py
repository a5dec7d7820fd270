"""Runtime policies as objects of their own, and what nodes proved of their measurement lists."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "limeguard_runtime_policies",
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("text", sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb"), nullable=False),
        sa.Column("checksum", sa.String(64), nullable=False),
        sa.Column("generator", sa.Integer, nullable=False),
        sa.Column("tpm_policy", sa.Text),
        sa.Column("updated_at", sa.Double, nullable=False),
    )
    op.add_column("limeguard_nodes", sa.Column("runtime_policy_name", sa.String(255)))
    op.add_column("limeguard_nodes", sa.Column("ima_keys", sa.Text))
    op.add_column("limeguard_nodes", sa.Column("ima_history", sa.Text))
    op.create_index("ix_limeguard_nodes_runtime_policy_name", "limeguard_nodes", ["runtime_policy_name"])
