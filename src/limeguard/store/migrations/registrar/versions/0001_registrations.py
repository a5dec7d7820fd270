"""The table of registered nodes."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "limeguard_registrations",
        sa.Column("agent_id", sa.String(80), primary_key=True),
        sa.Column("ek_tpm", sa.LargeBinary(2048)),
        sa.Column("ekcert", sa.LargeBinary(65536)),
        sa.Column("aik_tpm", sa.LargeBinary(2048), nullable=False),
        sa.Column("iak_tpm", sa.LargeBinary(2048)),
        sa.Column("iak_cert", sa.LargeBinary(65536)),
        sa.Column("idevid_tpm", sa.LargeBinary(2048)),
        sa.Column("idevid_cert", sa.LargeBinary(65536)),
        sa.Column("ip", sa.String(255)),
        sa.Column("port", sa.Integer),
        sa.Column("mtls_cert", sa.Text),
        sa.Column("active", sa.Boolean, nullable=False),
        sa.Column("proven", sa.Boolean, nullable=False),
        sa.Column("proof_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("regcount", sa.Integer, nullable=False),
        sa.Column("registered_at", sa.Double, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
    )
