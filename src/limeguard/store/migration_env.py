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
        # MySQL warns that it gives primary keys no names
        version_table_pk=connection.dialect.name not in {"mysql", "mariadb"},
    )
    with context.begin_transaction():
        context.run_migrations()
