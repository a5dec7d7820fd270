"""The registrar's tables. One mapping: `store.registrations` is the only reader and writer of these columns."""

import sqlalchemy as sa

metadata = sa.MetaData()

registrations = sa.Table(
    "limeguard_registrations",
    metadata,
    sa.Column("agent_id", sa.String(80), primary_key=True),
    # The identity: once set it changes only when an operator allows it.
    sa.Column("ek_tpm", sa.LargeBinary(2048)),
    sa.Column("ekcert", sa.LargeBinary(65536)),
    sa.Column("aik_tpm", sa.LargeBinary(2048), nullable=False),
    # The device identity, which may change.
    sa.Column("iak_tpm", sa.LargeBinary(2048)),
    sa.Column("iak_cert", sa.LargeBinary(65536)),
    sa.Column("idevid_tpm", sa.LargeBinary(2048)),
    sa.Column("idevid_cert", sa.LargeBinary(65536)),
    # Where the agent is reached.
    sa.Column("ip", sa.String(255)),
    sa.Column("port", sa.Integer),
    sa.Column("mtls_cert", sa.Text),
    # Registration as a state machine. Of the proof that is awaited only its SHA-256 is kept: a copy of the database
    # activates nothing.
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Column("proven", sa.Boolean, nullable=False),
    sa.Column("proof_sha256", sa.LargeBinary(32), nullable=False),
    sa.Column("regcount", sa.Integer, nullable=False),
    sa.Column("registered_at", sa.Double, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
)
"""The table of registered nodes."""
