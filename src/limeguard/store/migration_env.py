"""What every `migrations/<component>/env.py` does: run the revisions on the connection of `Database.migrate`."""

from alembic import context


def run() -> None:
    """Run the migrations of this environment inside the caller's transaction."""
    attributes = context.config.attributes
    connection = attributes["connection"]
    context.configure(
        connection=connection,
        version_table=attributes["version_table"],
        target_metadata=None,
        # SQLite changes a table by copying it
        render_as_batch=connection.dialect.name == "sqlite",
        transactional_ddl=False,
    )
    with context.begin_transaction():
        context.run_migrations()
